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
from errata.datasets.formats.table import FORMATS, detect
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
    "fever": Edit("Ada Arden wrote a novel.", "REFUTES", rephrasings=("A novel was written by Ada Arden.",), id="fever-11"),
    "rippleedits": Edit(
        "The name of the country which Ada Arden is associated with is",
        "Tal",
        locality=(
            Probe("The name of the mother of Ada Arden is", "Bea Arden", "relation"),
            Probe("The name of the country which Cy Lund is associated with is", "Orr", "forgetfulness"),
        ),
        portability=(
            Probe("The name of the continent which Ada Arden is part of is", "Northland", "logical"),
            Probe("The name of the country which A. Arden is associated with is", "Tal", "alias"),
            Probe("The capital of the country of Ada Arden is", "Talburg", "two_hop"),
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
            Probe("The country in which Ada Arden died is", "Northland", "reasoning"),
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
    "counterfact": [f"requested_rewrite.{name}" for name in ("prompt", "subject", "target_new.str", "target_true.str")],
    "counterfact-flat": ["prompt", "target_new", "subject", "rephrase_prompt", "locality_prompt", "locality_ground_truth"],
    "zsre-mend": ["input", "alternatives"],
    "zsre-memit": ["src", "subject", "answers", "rephrase", "loc_ans"],
    "fever": ["input", "alternatives"],
    "rippleedits": ["edit.prompt"],
    "wikibigedit": ["update", "subject", "ans"],
    "knowedit": ["prompt", "target_new", "subject"],
    "mquake": ["requested_rewrite.0.prompt", "requested_rewrite.0.subject", "requested_rewrite.0.target_new.str", "new_answer"],
}
NEEDS = [(name, path) for name, paths in NEEDED.items() for path in paths]


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
    assert set(FILES) == set(FORMATS) == set(FIRST) == set(NEEDED)


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_recognised_and_converted(name: str) -> None:
    skip_report = SkipReport()
    edits = list(read_edits(FILES[name], skip_report=skip_report))
    assert skip_report.formats == {FILES[name].name: name}
    assert edits[0] == FIRST[name]
    assert len(edits) == (3 if name == "mquake" else 2)


@pytest.mark.parametrize("name", FORMATS)
def test_every_record_of_a_format_is_recognised_by_itself(name: str) -> None:
    assert [detect([record]).name for record in records(name)] == [name, name]


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


@pytest.mark.parametrize("wrong", [7, None, True, {}, ""], ids=["number", "null", "truth", "object", "empty"])
@pytest.mark.parametrize(("name", "path"), NEEDS)
def test_a_field_of_the_wrong_type_or_empty_is_named(tmp_path: Path, name: str, path: str, wrong: Any) -> None:
    def put(inner: Any, last: Any) -> None:
        inner[last] = wrong

    assert refused(tmp_path, name, changed(records(name)[0], path, put)).field == named(path)


@pytest.mark.parametrize(
    ("name", "path", "wrong", "field"),
    [
        ("plain", "rephrasings", "a word", "rephrasings"),
        ("plain", "rephrasings", ["a", 1], "rephrasings[1]"),
        ("plain", "rephrasings", ["a", " "], "rephrasings[1]"),
        ("plain", "locality", [{"prompt": "a"}], "locality[0].target"),
        ("plain", "locality", ["a"], "locality[0]"),
        ("plain", "subject", "Somebody Else", "subject"),
        ("plain", "surprise", "a", "surprise"),
        ("counterfact", "paraphrase_prompts", [None], "paraphrase_prompts[0]"),
        ("counterfact", "requested_rewrite.prompt", "no place for the subject", "requested_rewrite.prompt"),
        ("counterfact", "requested_rewrite.target_new", "English", "requested_rewrite.target_new"),
        ("zsre-memit", "answers", [], "answers"),
        ("zsre-memit", "subject", "Somebody Else", "subject"),
        ("fever", "alternatives", ["PERHAPS"], "alternatives"),
        ("rippleedits", "edit.prompt", "Ada Arden lives in Tal.", "edit.prompt"),
        ("rippleedits", "Forgetfulness.0.test_queries.0.prompt", 1, "Forgetfulness[0].test_queries.prompt"),
        ("knowedit", "locality", [], "locality"),
        ("knowedit", "portability.Reasoning.0.ground_truth", 3, "portability.Reasoning[0].ground_truth"),
        ("mquake", "requested_rewrite", [], "requested_rewrite"),
        ("mquake", "questions", "one", "questions"),
    ],
)
def test_a_fault_inside_a_field_is_named(tmp_path: Path, name: str, path: str, wrong: Any, field: str) -> None:
    def put(inner: Any, last: Any) -> None:
        inner[last] = wrong

    assert refused(tmp_path, name, changed(records(name)[0], path, put)).field == field


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
    assert second.portability[0] == Probe("What is the capital of the country of Ada Arden?", "Newburg", "multi_hop")


@pytest.mark.parametrize(
    ("sentence", "relation", "prompt", "target"),
    [
        ("The names of the siblings of Bo Ek are Ada Ek.", "SIBLING", "The names of the siblings of Bo Ek are", "Ada Ek"),
        ("The employer of Bo Ek is Ek & Co..", "EMPLOYER", "The employer of Bo Ek is", "Ek & Co."),
        ("What is New follows The Old Is.", "FOLLOWS", "What is New follows", "The Old Is"),
    ],
)
def test_a_sentence_of_rippleedits_is_cut_after_its_verb(sentence: str, relation: str, prompt: str, target: str) -> None:
    assert ripple({"edit": {"prompt": sentence, "relation": relation}}) == Edit(prompt, target)


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
