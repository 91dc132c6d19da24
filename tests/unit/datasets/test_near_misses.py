"""Files that are nearly of a known format: read, or refused with what to do about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from errata.datasets.reader import read_edits, write_parquet
from errata.datasets.skip_report import SkipReport
from errata.edit import Code, Edit, Probe
from tests.unit.datasets.files import lines, rejection, written

QUESTION, ANSWER = "who rules the long hill", "Cy Lund"


def read(path: Path, *records: Any, **how: Any) -> tuple[list[Edit], SkipReport]:
    report = SkipReport()
    return list(read_edits(written(path / "some.json", json.dumps(list(records))), skip_report=report, **how)), report


def only(path: Path, record: Any, **how: Any) -> Edit:
    (edit,), report = read(path, record, **how)
    assert not report.left_out
    return edit


def refused(path: Path, record: Any, **how: Any) -> Any:
    return rejection(written(path / "some.json", json.dumps([record])), **how)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (
            {"prompt": "{} plays the sport of", "subject": "Eve Ono", "target_new": {"str": "football"}},
            Edit("Eve Ono plays the sport of", "football", "Eve Ono"),
        ),
        (
            {"prompt": "{} plays the sport of", "subject": "Eve Ono", "target_new": "football", "case_id": 3},
            Edit("Eve Ono plays the sport of", "football", "Eve Ono", id="rome-3"),
        ),
        (
            {"prompt": "{}的首相是", "subject": "日本", "target": "岸田文雄", "queries": ["{}的首相叫作", "日本首相名字是"]},
            Edit("日本的首相是", "岸田文雄", "日本", ("日本的首相叫作", "日本首相名字是")),
        ),
        ({"prompt": "{} is in", "subject": " Tal ", "target": "Orr"}, Edit("Tal is in", "Orr", "Tal")),
        (
            {"prompt": "{} is in", "subject": "Tal", "target": "Orr", "rephrase": "Where is {}?"},
            Edit("Tal is in", "Orr", "Tal", ("Where is Tal?",)),
        ),
        (
            {"prompt": "{} is in", "subject": "Tal", "target_new": "Orr", "rephrase_prompt": "Where is {}?"},
            Edit("Tal is in", "Orr", "Tal", ("Where is Tal?",)),
        ),
        ({"src": "{} is in", "subject": "Tal", "answers": ["Orr"]}, Edit("Tal is in", "Orr", "Tal")),
        (
            {"requested_rewrite": {"prompt": "{} is in", "subject": "Tal", "target_new": "Orr"}},
            Edit("Tal is in", "Orr", "Tal"),
        ),
        (
            {"requested_rewrite": {"prompt": "Tal is in", "subject": "Tal", "target_new": {"str": "Orr"}}},
            Edit("Tal is in", "Orr", "Tal"),
        ),
    ],
    ids=["rome", "rome-text", "fastedit", "plain", "qaedit", "flat", "zsre", "counterfact-text", "counterfact-full"],
)
def test_a_template_is_filled_with_the_subject(tmp_path: Path, record: dict[str, Any], expected: Edit) -> None:
    assert only(tmp_path, record) == expected


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "{} is in", "target": "Orr"},
        {"prompt": "{} is in", "target": "Orr", "subject": ""},
        {"prompt": "{} is in", "target_new": {"str": "Orr"}},
        {"prompt": "{} is in", "target": "Orr", "queries": []},
        {"prompt": "{} is in", "target": "Orr", "rephrase": "a"},
        {"input": "{} is in", "alternatives": ["Orr"]},
    ],
)
def test_a_template_without_a_subject_is_refused(tmp_path: Path, record: dict[str, Any]) -> None:
    rejected = refused(tmp_path, record)
    assert (rejected.field, rejected.code) == ("prompt", Code.INVALID_VALUE)
    assert "the prompt has {} and the record no subject: give the subject" in rejected.reason


def test_a_template_in_a_rephrasing_or_probe_without_its_subject_is_left_out(tmp_path: Path) -> None:
    probes = [{"prompt": "{} is", "target": "b"}, {"prompt": "c", "target": "d"}]
    (edit,), report = read(tmp_path, {"prompt": "a", "target": "b", "rephrasings": ["{} c", "d"], "locality": probes})
    assert edit == Edit("a", "b", rephrasings=("d",), locality=(Probe("c", "d"),))
    assert report.left_out == {"invalid_value (rephrasings[])": 1, "invalid_value (locality[].prompt)": 1}


@pytest.mark.parametrize(
    "fields",
    [
        {"target": "Ada", "locality": {"loc": QUESTION, "loc_ans": ANSWER}, "source": "NQ"},
        {"target_new": "Ada", "locality": [{"loc": QUESTION, "loc_ans": ANSWER}]},
        {"target": "Ada", "rephrase": "who made it", "locality": [{"loc": QUESTION, "loc_ans": [ANSWER]}]},
        {"target": "Ada", "rephrase": ["who made it"], "locality": [[{"loc": QUESTION, "loc_ans": ANSWER}]]},
    ],
    ids=["object", "target_new", "answers", "lists"],
)
def test_copies_of_qaedit(tmp_path: Path, fields: dict[str, Any]) -> None:
    report = SkipReport()
    path = written(tmp_path / "qa.json", json.dumps([{"prompt": "who made Tal", "subject": "Tal", **fields}]))
    (edit,) = read_edits(path, skip_report=report)
    rephrasings = ("who made it",) if "rephrase" in fields else ()
    assert edit == Edit("who made Tal", "Ada", "Tal", rephrasings, (Probe(QUESTION, ANSWER),))
    assert report.formats == {"qa.json": "qaedit"} and not report.left_out


@pytest.mark.parametrize(
    ("given", "kinds"),
    [
        ({"Reasoning": [{"prompt": QUESTION, "ground_truth": [[ANSWER, "C. Lund"]]}]}, ["reasoning"]),
        ({"Reasoning": {"prompt": QUESTION, "ground_truth": ANSWER}}, ["reasoning"]),
        ({"one_hop": {"prompt": [QUESTION, QUESTION], "ground_truth": [ANSWER, ANSWER]}}, ["one_hop", "one_hop"]),
        ({"Subject_Aliasing": [[{"prompt": [QUESTION], "ground_truth": [ANSWER]}]]}, ["alias"]),
        ({"New Question": QUESTION, "New Answer": ANSWER, "Recalled Relation": "(a, b)"}, ["one_hop"]),
        ([{"prompt": QUESTION, "answer": ANSWER}], ["one_hop"]),
        ({"prompt": QUESTION, "ground_truth": ANSWER}, ["one_hop"]),
    ],
)
def test_portability_in_every_shape(tmp_path: Path, given: Any, kinds: list[str]) -> None:
    record = {"src": "Who is Tal?", "subject": "Tal", "alt": "Ada", "answers": ["Bea"], "portability": given}
    aliases = ("C. Lund",) if "C. Lund" in str(given) else ()
    expected = Edit("Who is Tal?", "Ada", "Tal", portability=tuple(Probe(QUESTION, ANSWER, kind, aliases) for kind in kinds))
    assert only(tmp_path, record) == expected


def test_the_target_of_zsre_is_the_answer_that_its_portability_is_about(tmp_path: Path) -> None:
    """EasyEdit's New Question was written about the fact with `alt` in it; without one the target is MEMIT's."""
    record = {"src": "Who is Tal?", "subject": "Tal", "alt": "Ada", "answers": ["Bea"]}
    assert only(tmp_path, record) == Edit("Who is Tal?", "Bea", "Tal")
    assert only(tmp_path, record, format_name="zsre-easyedit") == Edit("Who is Tal?", "Ada", "Tal")
    (edit,), report = read(tmp_path, {**record, "portability": {"New Question": QUESTION, "New Answer": ""}})
    assert edit == Edit("Who is Tal?", "Ada", "Tal") and report.left_out == {"empty_field (portability.New Answer)": 1}
    rejected = refused(tmp_path, {**record, "alt": "", "portability": {}})
    assert (rejected.field, rejected.code) == ("alt", Code.EMPTY_FIELD)


def test_probes_nested_too_deep_are_left_out(tmp_path: Path) -> None:
    nested: Any = {"prompt": "c", "target": "d"}
    for _ in range(200):
        nested = [nested]
    (edit,), report = read(tmp_path, {"prompt": "a", "target": "b", "locality": nested})
    assert edit == Edit("a", "b") and report.num_left_out == 1


@pytest.mark.parametrize(
    ("record", "counted"),
    [
        ({"prompt": "a", "target": "b", "rephrase": ""}, "empty_field (rephrase)"),
        ({"prompt": "a", "target": "b", "rephrasings": []}, "empty_field (rephrasings)"),
        ({"prompt": "a", "target": "b", "rephrasings": None}, "empty_field (rephrasings)"),
        ({"prompt": "a", "target": "b", "subject": " "}, "empty_field (subject)"),
        ({"prompt": "a", "target": "b", "locality": ["x"]}, "wrong_type (locality[])"),
        ({"prompt": "a", "target": "b", "locality": [{"prompt": "x", "target": {}}]}, "wrong_type (locality[].target)"),
        ({"prompt": "a", "target_new": "b", "subject": "a", "locality_prompt": ""}, "empty_field (locality_prompt)"),
        ({"src": "a", "answers": ["b"], "subject": "a", "rephrase": ""}, "empty_field (rephrase)"),
        ({"src": "a", "answers": ["b"], "subject": "a", "loc": "c"}, "missing_field (loc_ans)"),
        (
            {"question": "a?", "object": "b", "subject": "a", "relation": "r", "locality_question": "c?"},
            "missing_field (locality_answer)",
        ),
        ({"update": "a", "ans": "b", "subject": "a", "mhop": None, "mhop_ans": None}, "missing_field (mhop)"),
    ],
)
def test_an_empty_or_faulty_option_is_left_out_and_counted(tmp_path: Path, record: dict[str, Any], counted: str) -> None:
    (edit,), report = read(tmp_path, record)
    assert (edit.target, edit.rephrasings, edit.locality, edit.portability) == ("b", (), (), ())
    assert report.left_out == {counted: 1} and "edit 0, " in report.report()


@pytest.mark.parametrize("tests", [7, ["x"], [{"test_queries": "x"}], [{"test_queries": [{"prompt": "a", "answers": []}]}]])
def test_a_faulty_test_of_rippleedits_costs_itself(tmp_path: Path, tests: Any) -> None:
    record = {"example_type": "popular", "edit": {"prompt": "The mother of Tal is Ada."}, "Forgetfulness": tests}
    (edit,), report = read(tmp_path, record)
    assert edit == Edit("The mother of Tal is", "Ada") and report.num_left_out == 1


def test_a_refused_record_counts_none_of_its_options(tmp_path: Path) -> None:
    _, report = read(tmp_path, {"prompt": "a", "target": "", "rephrase": ""}, on_fault="skip")
    assert report.num_skipped == 1 and not report.left_out


def test_a_subject_that_is_not_in_the_prompt(tmp_path: Path) -> None:
    record = {"prompt": "By which company, D&RGW 463, was it built?", "target": "Baldwin", "subject": "Rio Grande 463"}
    for format_ in ("plain", "rome"):
        rejected = refused(tmp_path, record, format_name=format_)
        assert rejected.code == Code.SUBJECT_NOT_IN_PROMPT
        assert '--absent-subject drop (absent_subject="drop" in Python)' in rejected.reason
        (edit,), report = read(tmp_path, record, format_name=format_, absent_subject="drop")
        assert edit == Edit(record["prompt"], "Baldwin")
        assert report.left_out == {"subject_not_in_prompt (subject)": 1} and "'Rio Grande 463'" in report.report()
    with pytest.raises(ValueError, match="absent_subject is refuse or drop, not 'keep'"):
        read_edits("nowhere", absent_subject="keep")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("record", "how", "said"),
    [
        ({"prompt": "a", "target": "b", "rephrasing": ["c"]}, {}, "rename rephrasing to rephrasings"),
        ({"prompt": "a", "targt": "b"}, {}, "rename targt to target"),
        ({"prompt": "a", "answer": "b"}, {}, "rename answer to target"),
        ({"promt": "a", "Target ": "b"}, {}, "the nearest is plain: rename promt to prompt, rename Target  to target"),
        ({"question": "a", "answer": "b"}, {}, "the nearest is plain: rename answer to target"),
        ({"input": "a", "output": "b"}, {}, "the nearest is plain: rename input to prompt, rename output to target"),
        ({"prompt": "a", "target": "b", "rephrase": "c"}, {"format_name": "plain"}, "this looks like qaedit: --format qaedit"),
        ({"prompt": "a", "target": "b", "queries": []}, {"format_name": "plain"}, "this looks like rome: --format rome"),
        ({"src": "a", "answers": ["b"]}, {"format_name": "plain"}, "this looks like zsre-memit: --format zsre-memit"),
        ({"prompt": "a", "target": "b"}, {"format_name": "zsre-memit"}, "this looks like plain: --format plain"),
        ({"updat": "a", "ans": "b"}, {}, "the nearest is wikibigedit: rename updat to update"),
        ({"0": {"prompt": "a"}, "1": {"prompt": "b"}}, {}, "write a list of such objects"),
        ({"colour": "red"}, {}, "give at least prompt and target"),
    ],
)
def test_an_error_says_what_to_do(tmp_path: Path, record: dict[str, Any], how: dict[str, Any], said: str) -> None:
    assert said in refused(tmp_path, record, **how).reason


@pytest.mark.parametrize("number", ["75", "-3", "1889", "1.50", "1e3", "-0", "0.1000", "12345678901234567890123"])
@pytest.mark.parametrize("start", ["[", ""], ids=["list", "lines"])
def test_a_number_is_read_as_it_was_written(tmp_path: Path, number: str, start: str) -> None:
    record = f'{{"prompt": "a {number} b", "target": {number}, "subject": {number}, "id": {number}}}'
    path = written(tmp_path / "numbers", start + record + ("]" if start else ""))
    assert list(read_edits(path)) == [Edit(f"a {number} b", number, number, id=number)]


@pytest.mark.parametrize("value", ["true", "NaN", "Infinity", "[1]"])
def test_what_is_no_text_is_refused_with_advice(tmp_path: Path, value: str) -> None:
    rejected = rejection(written(tmp_path / "edits.jsonl", f'{{"prompt": "a", "target": {value}}}'))
    assert rejected.field == "target" and ("put it in quotes" in rejected.reason or value == "[1]")


RECORDS = [{"prompt": "a", "target": "b"}, {"prompt": "c", "target": "d", "rephrasings": ["e"]}]


@pytest.mark.parametrize("indent", [None, 2], ids=["line", "pretty"])
@pytest.mark.parametrize(
    "wrapper",
    [
        {"data": RECORDS},
        {"edits": RECORDS, "count": 2, "about": {"by": ["x"]}},
        {"schema": {"fields": [{"name": "prompt"}]}, "version": "1.0", "data": RECORDS},
        {"my_corrections": RECORDS},
    ],
    ids=["data", "members-after", "pandas-table", "any-name"],
)
def test_the_list_in_an_object_is_read(tmp_path: Path, wrapper: dict[str, Any], indent: int | None) -> None:
    path = written(tmp_path / "edits.json", json.dumps(wrapper, indent=indent))
    assert list(read_edits(path)) == [Edit("a", "b"), Edit("c", "d", rephrasings=("e",))]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"data": [{"prompt": "a", "target": "b"}]', "the object has no end"),
        ('{"data": [{"prompt": "a", "target": "b"}], "test": []}', "another list, 'test', follows"),
        ('{"data": [{"prompt": "a", "target": "b"}]} {}', "'{' follows the list"),
        ('{"data": [{"prompt": "a", "target": "b"}', "the list has no end"),
        ('{"data": []}', "no record"),
        ('{\n"prompt": "a",\n"target": "b"\n}', "write each record on one line"),
    ],
)
def test_a_damaged_object_around_a_list_is_refused(tmp_path: Path, content: str, said: str) -> None:
    assert said in rejection(written(tmp_path / "edits.json", content), on_fault="stop").reason


def test_a_record_that_begins_with_a_list_is_no_wrapper(tmp_path: Path) -> None:
    record = {"locality": [{"prompt": "x", "target": "y"}], "prompt": "a", "target": "b"}
    assert list(read_edits(written(tmp_path / "a.jsonl", lines([record])))) == [Edit("a", "b", locality=(Probe("x", "y"),))]
    case = {"requested_rewrite": [{"prompt": "{} is", "subject": "Tal", "target_new": {"str": "b"}}]}
    assert list(read_edits(written(tmp_path / "b.jsonl", lines([case])))) == [Edit("Tal is", "b", "Tal")]
    other = {"notes": [{"by": "me"}], "prompt": "a", "target": "b"}
    assert "notes" in str(rejection(written(tmp_path / "c.jsonl", lines([other, other]))))


@pytest.mark.parametrize("padding", [" ", "\n", "\t ", "\u00a0", "\ufeff"])
def test_targets_and_subjects_are_stripped_on_every_way_in(tmp_path: Path, padding: str) -> None:
    target, subject = f"{padding}Bob{padding}", f"Tal{padding}"
    probe = {"prompt": "q", "target": target}
    for record in (
        {"prompt": "The mayor of Tal is", "target": target, "subject": subject, "locality": [probe]},
        {"prompt": "The mayor of {} is", "target_new": {"str": target}, "subject": subject},
        {"prompt": "The mayor of Tal is", "target": target, "subject": subject, "locality": [{"loc": "q", "loc_ans": target}]},
        {"src": "The mayor of Tal is", "answers": [target], "subject": subject, "loc": "q", "loc_ans": target},
    ):
        edit = only(tmp_path, record)
        assert (edit.prompt, edit.target, edit.subject) == ("The mayor of Tal is", "Bob", "Tal")
        assert all(probe.target == "Bob" for probe in edit.locality)


def test_edits_of_chat_keep_their_form(tmp_path: Path) -> None:
    said = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Who is {}?"},
    ]
    records = [
        {"question": "Who is Tal?", "target": " Ada"},
        {"prompt": "Who is Tal?", "form": "both", "target": "Ada"},
        {"messages": said, "target": "Ada", "subject": "Tal"},
        {"prompt": "Who is Tal?", "target": "Ada"},
    ]
    edits, report = read(tmp_path, *records)
    assert [edit.form for edit in edits] == ["chat", "both", "chat", "completion"]
    assert {edit.prompt for edit in edits} == {"Who is Tal?"} and {edit.target for edit in edits} == {"Ada"}
    assert [message.content for message in edits[2].before] == ["Hello", "Hi"] and not report.left_out
    write_parquet(edits, tmp_path / "edits.parquet")
    assert list(read_edits(tmp_path / "edits.parquet")) == edits
    written(tmp_path / "edits.jsonl", lines([edit.to_json() for edit in edits]))
    assert list(read_edits(tmp_path / "edits.jsonl")) == edits
    assert refused(tmp_path, {"question": "a", "form": "completion", "target": "b"}).field == "form"
    assert refused(tmp_path, {"messages": said[:2], "target": "b"}).field == "messages"


@pytest.mark.parametrize(
    ("text", "code"),
    [("a\x1fb", "not_text"), ("\u200b\u200c", "empty_field"), ("a\ufffd", "not_text"), ("a\u202eb", "not_text")],
)
@pytest.mark.parametrize("name", ["edits.jsonl", "edits.parquet"])
def test_an_option_that_is_no_text_is_left_out(tmp_path: Path, name: str, text: str, code: str) -> None:
    edit = Edit(
        "a",
        "b",
        rephrasings=("c", text),
        locality=(Probe("d", "e"), Probe(text, "f")),
    )
    if name.endswith("parquet"):
        write_parquet([edit], tmp_path / name)
    else:
        written(tmp_path / name, lines([edit.to_json()]))
    report = SkipReport()
    (found,) = read_edits(tmp_path / name, skip_report=report)
    assert found.rephrasings == ("c",) and report.left_out[f"{code} (rephrasings[])"] == 1
    assert found.locality == (Probe("d", "e"),) and report.left_out[f"{code} (locality[].prompt)"] == 1


def test_the_csv_of_halluedit(tmp_path: Path) -> None:
    data = Path(__file__).parents[2] / "data" / "formats"
    report = SkipReport()
    edits = list(read_edits(data / "halluedit.csv", skip_report=report))
    assert edits == list(read_edits(data / "halluedit.jsonl")) and report.formats == {"halluedit.csv": "halluedit"}
    assert report.left_out == {"missing_field (locality_answer)": 2}


def test_the_languages_of_mzsre(tmp_path: Path) -> None:
    english = {"subject": "Tal", "src": "Who is Tal?", "alt": "Ada", "rephrase": "Tal is who?"}
    czech = {"subject": "Tala", "src": "Kdo je Tal?", "alt": "Áda", "rephrase": ""}
    (edit,), report = read(tmp_path, {"en": english, "cz": czech})
    assert edit == Edit(
        "Who is Tal?", "Ada", "Tal", ("Tal is who?",), portability=(Probe("Kdo je Tal?", "Áda", "cross_lingual"),)
    )
    assert report.left_out == {"empty_field (cz.rephrase)": 1}
    assert refused(tmp_path, {"cz": czech, "en": english}).code == Code.SUBJECT_NOT_IN_PROMPT
