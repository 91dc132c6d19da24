"""Formats of the datasets: recognised, converted to the edits of each file, and refused by field."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from errata.datasets.formats.rippleedits import edit as ripple
from errata.datasets.formats.table import FORMATS, recognised
from errata.datasets.reader import read_edits, write_parquet
from errata.datasets.skip_report import SkipReport
from errata.edit import Edit, EditRejected, Probe

DATA = Path(__file__).parents[2] / "data" / "formats"
FILES = {path.stem: path for path in sorted(DATA.glob("*.json*"))}

# The first edit of each file.
FIRST = {
    "plain": Edit(
        "The mother tongue of Zoë Arden is",
        "Dansk",
        "Zoë Arden",
        ("Where Zoë Arden is from, people speak",),
        (Probe("Émile Orr is a native speaker of", "Türkçe"),),
        (Probe("The language of Zoë Arden's parents is", "Dansk", "two_hop"),),
        "one",
    ),
    "counterfact": Edit(
        "The mother tongue of Ada Arden is",
        "English",
        "Ada Arden",
        ("A word. Ada Arden, a native", "Ada Arden spoke the language"),
        (Probe("Bea Orr is a native speaker of", "French"), Probe("The native language of Cy Lund is", "French")),
        id="counterfact-7",
    ),
    "counterfact-flat": Edit(
        "The mother tongue of Ada Arden is",
        "English",
        "Ada Arden",
        ("Where Ada Arden is from, people speak",),
        (Probe("Bea Orr is a native speaker of", "French"),),
        id="counterfact-0",
    ),
    "zsre-mend": Edit(
        "Which school did Ada Arden attend?", "East School", rephrasings=("What school was Ada Arden at?",), id="zsre-a1"
    ),
    "zsre-memit": Edit(
        "Which school did Ada Arden attend?",
        "North School",
        "Ada Arden",
        ("What school was Ada Arden at?",),
        (Probe("nq question: who sang the first song", "Fay Ito"),),
    ),
    "zsre-easyedit": Edit(
        "Which school did Ada Arden attend?",
        "East School",
        "Ada Arden",
        ("What school was Ada Arden at?",),
        (Probe("nq question: who sang the first song", "Fay Ito"),),
        (Probe("In which city is the school that Ada Arden attended?", "Orr", "one_hop"),),
    ),
    "mzsre": Edit(
        "What country is Ada Arden from?",
        "Tal",
        "Ada Arden",
        ("Which country is Ada Arden from?",),
        (Probe("nq question: who sang the first song?", "Fay Ito"), Probe("谁唱了第一首歌?", "伊藤")),
        (
            Probe("What is the capital of Ada Arden's home country?", "Talburg", "one_hop"),
            Probe("艾达·阿登来自哪个国家？", "塔尔", "cross_lingual"),
            Probe("艾达·阿登的国籍在哪？", "塔尔", "cross_lingual"),
            Probe("艾达·阿登的祖国的首都是哪里？", "塔尔堡", "one_hop"),
        ),
    ),
    "cknowedit": Edit(
        "请说出塔尔国的最南端",
        "隆德暗沙",
        rephrasings=("塔尔国最南端是哪里?", "塔尔国领土南端的最远点在哪?"),
        locality=(Probe("塔尔国的首都是哪里?", "塔尔堡"),),
        portability=(Probe("塔尔国最南端属于哪个省?", "奥尔省"),),
    ),
    "qaedit": Edit(
        "who wrote the first song of Tal?",
        "Ada Arden *",
        "first song of Tal",
        ("Which composer is behind Tal's first song?",),
        (Probe("who rules the long hill", "Cy Lund"), Probe("when was the Tal bridge built", "12 April 1981")),
        id="qaedit-NQ-1104",
    ),
    "rome": Edit("Eve Ono plays the sport of", "football", "Eve Ono"),
    "halluedit": Edit(
        "Who is the creator of Tal Memorial?",
        "Ada Arden",
        "Tal Memorial",
        ("Who designed the Tal Memorial?",),
        portability=(
            Probe("Is Ada Arden the creator of Tal Memorial?", "Yes", "yes"),
            Probe("Is Bo Ek the creator of Tal Memorial?", "No", "no"),
            Probe("What did Ada Arden create?", "Tal Memorial", "reverse"),
            Probe("What is the nationality of the creator of the Tal Memorial?", "Orrish", "two_hop"),
            *(Probe(f"Question {number} about Tal Memorial?", f"Answer {number}", "multi_hop") for number in (3, 4, 5, 6)),
        ),
    ),
    "fever": Edit("Ada Arden wrote a novel.", "REFUTES", rephrasings=("A novel was written by Ada Arden.",), id="fever-11"),
    "rippleedits": Edit(
        "The name of the country which Ada Arden is associated with is",
        "Tal",
        locality=(
            Probe("The name of the mother of Ada Arden is", "Bea Arden", "relation", ("bea arden",)),
            Probe("The name of the country which Cy Lund is associated with is", "Orr", "forgetfulness", ("orr",)),
        ),
        portability=(
            Probe("The name of the continent which Ada Arden is part of is", "Northland", "logical", ("northland",)),
            Probe("The name of the country which A. Arden is associated with is", "Tal", "alias", ("tal",)),
            Probe("The capital of the country of Ada Arden is", "Talburg", "two_hop", ("talburg",)),
        ),
    ),
    "wikibigedit": Edit(
        "What is the occupation of Ada Arden?",
        "novelist",
        "Ada Arden",
        ("What does Ada Arden do for a living?", "Pray tell, what be Ada Arden's trade?"),
        (Probe("What is the occupation of Bea Orr?", "painter"),),
        (Probe("What do people of Ada Arden's occupation write?", "novels", "multi_hop"),),
    ),
    "knowedit": Edit(
        "The place of death of Ada Arden is",
        "Tal",
        "Ada Arden",
        ("Ada Arden died in",),
        (Probe("The father of Ada Arden is", "Cy Arden", "relation"), Probe("Ada Arden lived in", "Tal", "forgetfulness")),
        (
            Probe("The country in which Ada Arden died is", "Northland", "reasoning", ("the North",)),
            Probe("The place of death of A. Arden is", "Tal", "alias"),
        ),
    ),
    "mquake": Edit(
        "Ada Arden is a citizen of",
        "Tal",
        "Ada Arden",
        ("What is the country of citizenship of Ada Arden?",),
        id="mquake-1-0",
    ),
}

# Required fields of a record as paths; a number is an index of a list.
NEEDED = {
    "plain": ["prompt", "target"],
    "counterfact": [f"requested_rewrite.{name}" for name in ("prompt", "subject", "target_new.str")],
    "counterfact-flat": ["prompt", "target_new", "subject"],
    "zsre-mend": ["input", "alternatives"],
    "zsre-memit": ["src", "subject", "answers"],
    "zsre-easyedit": ["src", "subject"],
    "mzsre": ["en.src", "en.subject", "en.alt"],
    "fever": ["input", "alternatives"],
    "rippleedits": ["edit.prompt"],
    "wikibigedit": ["update", "subject", "ans"],
    "knowedit": ["prompt", "target_new", "subject"],
    "cknowedit": ["prompt", "target_new"],
    "qaedit": ["prompt", "target"],
    "rome": ["prompt", "target_new.str"],
    "halluedit": ["question", "object", "subject"],
    "mquake": ["requested_rewrite.0.prompt", "requested_rewrite.0.subject", "requested_rewrite.0.target_new.str"],
}
# Fields of the first record without which its edit is still read, and under which name they are counted.
OPTIONAL = {
    "plain": {"subject": "subject", "rephrasings": "rephrasings", "locality": "locality", "id": "id"},
    "counterfact": {
        "paraphrase_prompts.0": "paraphrase_prompts[]",
        "neighborhood_prompts": "neighborhood_prompts",
        "requested_rewrite.target_true.str": "requested_rewrite.target_true.str",
    },
    "counterfact-flat": {name: name for name in ("rephrase_prompt", "locality_prompt", "locality_ground_truth")},
    "zsre-mend": {"rephrases": ""},
    "zsre-memit": {name: name for name in ("rephrase", "loc", "loc_ans")},
    "zsre-easyedit": {
        "portability": "portability",
        "portability.New Question": "portability.New Question",
        "portability.New Answer": "portability.New Answer",
    },
    "mzsre": {"en.rephrase": "en.rephrase", "zh.alt": "zh.alt", "zh.src": "zh.src", "zh.loc_ans": "zh.loc_ans"},
    "fever": {"filtered_rephrases.0": "filtered_rephrases[]"},
    "rippleedits": {"Forgetfulness.0.test_queries.0.prompt": "Forgetfulness[].test_queries.prompt"},
    "wikibigedit": {"rephrase": "rephrase", "personas": "personas", "loc": "loc", "mhop_ans": "mhop_ans"},
    "knowedit": {
        "rephrase_prompt": "rephrase_prompt",
        "locality": "locality",
        "portability.Reasoning": "portability.Reasoning",
        "portability.Reasoning.0.ground_truth": "portability.Reasoning[].ground_truth",
    },
    "cknowedit": {"rephrase": "rephrase", "locality.0.answer": "locality[].answer"},
    "qaedit": {"subject": "subject", "rephrase": "rephrase", "locality": "locality", "locality.0.loc": "locality[].loc"},
    "rome": {},
    "halluedit": {
        "paraphrased_question": "paraphrased_question",
        "question_3hop": "question_3hop",
        "no_question": "no_question",
    },
    "mquake": {
        "requested_rewrite.0.question": "requested_rewrite[].question",
        "questions": "questions",
        "new_answer": "new_answer",
        "new_answer_alias.0": "new_answer_alias[]",
    },
}
NEEDS = [(name, path) for name, paths in NEEDED.items() for path in paths]
OPTIONS = [(name, path, counted) for name, paths in OPTIONAL.items() for path, counted in paths.items()]


def records(name: str) -> list[dict[str, Any]]:
    text = FILES[name].read_text()
    return json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]


def changed(record: dict[str, Any], path: str, change: Callable[[Any, Any], None]) -> dict[str, Any]:
    record = copy.deepcopy(record)
    *way, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
    inner: Any = record
    for part in way:
        inner = inner[part]
    change(inner, last)
    return record


def named(path: str) -> str:
    """Format a field's path as an error does: a[0].b."""
    return "".join(f"[{part}]" if part.isdecimal() else f".{part}" for part in path.split(".")).removeprefix(".")


def refused(tmp_path: Path, name: str, record: dict[str, Any]) -> EditRejected:
    """Return the refusal of a file whose record 1 is `record`, after a good one."""
    path = tmp_path / "bad.json"
    path.write_text(json.dumps([records(name)[0], record]))
    with pytest.raises(EditRejected) as rejected:
        list(read_edits(path))
    assert rejected.value.edit == 1 and "(bad.json)" in str(rejected.value)
    return rejected.value


def test_there_is_a_file_of_every_format() -> None:
    assert set(FILES) == set(FORMATS) == set(FIRST) == set(NEEDED) == set(OPTIONAL)


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_recognised_and_converted(name: str) -> None:
    skip_report = SkipReport()
    edits = list(read_edits(FILES[name], skip_report=skip_report))
    assert skip_report.formats == {FILES[name].name: name}
    assert edits[0] == FIRST[name]
    assert len(edits) == (3 if name == "mquake" else 2)


@pytest.mark.parametrize("name", FORMATS)
def test_every_record_of_a_format_is_recognised_by_itself(name: str) -> None:
    assert [found.name for record in records(name) if (found := recognised(record))] == [name, name]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_survives_parquet(tmp_path: Path, name: str) -> None:
    edits = list(read_edits(FILES[name]))
    assert write_parquet(edits, tmp_path / "edits.parquet") == len(edits)
    assert list(read_edits(tmp_path / "edits.parquet")) == edits


@pytest.mark.parametrize(("name", "path"), NEEDS)
def test_a_missing_field_is_named(tmp_path: Path, name: str, path: str) -> None:
    def delete(inner: Any, last: Any) -> None:
        del inner[last]

    assert refused(tmp_path, name, changed(records(name)[0], path, delete)).field == named(path)


@pytest.mark.parametrize("wrong", [[], None, True, {}, ""], ids=["list", "null", "truth", "object", "empty"])
@pytest.mark.parametrize(("name", "path"), NEEDS)
def test_a_field_of_the_wrong_type_or_empty_is_named(tmp_path: Path, name: str, path: str, wrong: Any) -> None:
    def put(inner: Any, last: Any) -> None:
        inner[last] = wrong

    assert refused(tmp_path, name, changed(records(name)[0], path, put)).field == named(path)


@pytest.mark.parametrize(
    ("name", "path", "wrong", "field"),
    [
        ("plain", "rephrasings", 7, "rephrasings"),
        ("plain", "locality", "a word", "locality"),
        ("plain", "subject", "Somebody Else", "subject"),
        ("plain", "surprise", "a", "surprise"),
        ("plain", "prompt", 7, "prompt"),
        ("counterfact", "requested_rewrite.prompt", "no place for the subject", "requested_rewrite.prompt"),
        ("counterfact", "paraphrase_prompts", {"a": "b"}, "paraphrase_prompts"),
        ("zsre-memit", "src", 7, "src"),
        ("zsre-memit", "subject", "Somebody Else", "subject"),
        ("fever", "alternatives", ["PERHAPS"], "alternatives"),
        ("rippleedits", "edit.prompt", "Ada Arden lives in Tal.", "edit.prompt"),
        ("knowedit", "locality", "one", "locality"),
        ("mquake", "questions", 7, "questions"),
        ("mzsre", "zh", "word", "zh"),
    ],
)
def test_a_fault_inside_a_field_is_named(tmp_path: Path, name: str, path: str, wrong: Any, field: str) -> None:
    def put(inner: Any, last: Any) -> None:
        inner[last] = wrong

    assert refused(tmp_path, name, changed(records(name)[0], path, put)).field == field


@pytest.mark.parametrize("wrong", [None, ""], ids=["null", "empty"])
@pytest.mark.parametrize(("name", "path", "counted"), OPTIONS)
def test_an_optional_field_at_fault_costs_itself_and_is_counted(
    tmp_path: Path, name: str, path: str, counted: str, wrong: Any
) -> None:
    def put(inner: Any, last: Any) -> None:
        inner[last] = wrong

    (tmp_path / "some.json").write_text(json.dumps([changed(records(name)[0], path, put)]))
    skip_report, whole_report = SkipReport(), SkipReport()
    edit, *_ = read_edits(tmp_path / "some.json", skip_report=skip_report)
    whole, *_ = read_edits(FILES[name], skip_report=whole_report)
    assert (edit.prompt, edit.target) == (whole.prompt, whole.target) and not skip_report.skipped
    found = {reason.partition(" (")[2].rstrip(")") for reason in skip_report.left_out}
    assert not counted or counted in found


def test_a_case_of_several_edits_is_read_whole_or_skipped_whole(tmp_path: Path) -> None:
    good, also_good = records("mquake")
    bad = copy.deepcopy(good)
    bad["requested_rewrite"][1]["target_new"] = {}
    (tmp_path / "cases.json").write_text(json.dumps([bad, also_good]))
    edits = list(read_edits(tmp_path / "cases.json", on_fault="skip"))
    assert [edit.id for edit in edits] == ["mquake-2-0"]


def test_the_questions_of_a_case_are_asked_after_its_last_edit() -> None:
    first, second, _ = read_edits(FILES["mquake"])
    assert not first.portability
    assert second.portability[0] == Probe(
        "What is the capital of the country of Ada Arden?", "Newburg", "multi_hop", ("New Burg",)
    )


@pytest.mark.parametrize(
    ("sentence", "relation", "prompt", "target"),
    [
        ("The names of the siblings of Bo Ek are Ada Ek.", "SIBLING", "The names of the siblings of Bo Ek are", "Ada Ek"),
        ("The employer of Bo Ek is Ek & Co..", "EMPLOYER", "The employer of Bo Ek is", "Ek & Co."),
        ("What is New follows The Old Is.", "FOLLOWS", "What is New follows", "The Old Is"),
    ],
)
def test_a_sentence_of_rippleedits_is_cut_after_its_verb(sentence: str, relation: str, prompt: str, target: str) -> None:
    assert ripple({"edit": {"prompt": sentence, "relation": relation}}, []) == Edit(prompt, target)


def test_an_unknown_format_is_refused_with_its_fields_and_the_known_formats(tmp_path: Path) -> None:
    (tmp_path / "what.json").write_text(json.dumps([{"colour": "red", "size": 3}]))
    with pytest.raises(EditRejected, match=r"colour, size.*counterfact.*mquake.*\(what.json\)"):
        list(read_edits(tmp_path / "what.json"))


def test_a_named_format_is_not_detected(tmp_path: Path) -> None:
    (tmp_path / "what.json").write_text(json.dumps([{"colour": "red"}]))
    with pytest.raises(EditRejected) as rejected:
        list(read_edits(tmp_path / "what.json", format_name="zsre-memit"))
    assert (rejected.value.edit, rejected.value.field) == (0, "src")
    with pytest.raises(ValueError, match="no format 'zsre'; there are counterfact,"):
        read_edits(tmp_path / "what.json", format_name="zsre")


@pytest.mark.parametrize("name", ["counterfact_edit.json", "counterfact_train.json"])
def test_the_real_counterfact_goes_to_parquet_and_back(tmp_path: Path, name: str) -> None:
    folder = os.environ.get("ERRATA_COUNTERFACT")
    if not folder:
        pytest.skip("ERRATA_COUNTERFACT names no folder with CounterFact's files")
    skip_report = SkipReport()
    edits = list(read_edits(Path(folder) / name, on_fault="skip", skip_report=skip_report))
    raw = json.loads((Path(folder) / name).read_text())
    assert len(edits) + skip_report.num_skipped == len(raw) and skip_report.num_skipped < 0.01 * len(raw)
    by_id = {f"counterfact-{record['case_id']}": record for record in raw}
    assert all(edit.prompt == by_id[edit.id]["prompt"] for edit in edits if edit.id)
    write_parquet(edits, tmp_path / "edits.parquet")
    assert list(read_edits(tmp_path / "edits.parquet")) == edits
