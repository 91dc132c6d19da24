"""The commands `errata data`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from errata.cli.main import app
from errata.datasets.duplicates import NUM_EXAMPLES
from errata.datasets.reader import read_edits, write_parquet
from errata.edit import Edit
from errata.text.dialogue import Message
from tests.unit.same_edits import each_pair

DATA = Path(__file__).parents[2] / "data" / "formats"


def run(*words: str | Path, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["data", *map(str, words)])
    assert done.exit_code == code, done.output
    return done.output


def test_convert_writes_the_same_edits(tmp_path: Path) -> None:
    said = run("convert", DATA / "mquake.json", tmp_path / "edits.parquet")
    assert "mquake.json: mquake" in said and "3 edits written" in said
    assert list(read_edits(tmp_path / "edits.parquet")) == list(read_edits(DATA / "mquake.json"))


def test_convert_keeps_aliases_answers_and_messages(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is it?"}]
    records = [
        {"prompt": "The code is", "target": 234, "aliases": [" +234 ", "00234"]},
        {"question": "What is it?", "target": "Lyon", "answer": " It is Lyon.\n"},
        {"messages": messages, "target": "Lyon", "aliases": ["Lugdunum"], "answer": "It is Lyon."},
        {"prompt": "a", "target": "b"},
    ]
    (tmp_path / "edits.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert "4 edits written" in run("convert", tmp_path / "edits.jsonl", tmp_path / "edits.parquet")
    edits = list(read_edits(tmp_path / "edits.parquet"))
    assert (
        edits
        == list(read_edits(tmp_path / "edits.jsonl"))
        == [
            Edit("The code is", "234", aliases=("+234", "00234")),
            Edit("What is it?", "Lyon", form="chat", answer="It is Lyon."),
            Edit(
                "What is it?",
                "Lyon",
                form="chat",
                before=(Message("system", "Be brief."),),
                aliases=("Lugdunum",),
                answer="It is Lyon.",
            ),
            Edit("a", "b"),
        ]
    )


def test_convert_stops_at_the_limit(tmp_path: Path) -> None:
    run("convert", DATA / "fever.jsonl", tmp_path / "edits.parquet", "--limit", "1", "--format", "fever")
    assert len(list(read_edits(tmp_path / "edits.parquet"))) == 1


def test_convert_stops_or_skips_and_leaves_no_partial_file(tmp_path: Path) -> None:
    bad, out = tmp_path / "bad.jsonl", tmp_path / "out" / "edits.parquet"
    bad.write_text('{"prompt": "a", "target": "b"}\n{"prompt": "a"}\n{"prompt": "c", "target": "d"}\n')
    assert "edit 1, target: must be given as a string (bad.jsonl)" in run("convert", bad, out, code=1)
    assert not list(out.parent.iterdir())
    said = run("convert", bad, out, "--on-fault", "skip")
    assert "skipped 1 record\n" in said and "2 edits written" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("convert", "none.json", "out.parquet"), "no file none.json"),
        (("convert", "none.json", "out.parquet", "--format", "zsre"), "there is no format 'zsre'"),
        (("check", "gopher://x/y"), "cannot be opened"),
    ],
)
def test_unreadable_input_is_one_line(words: tuple[str, ...], said: str) -> None:
    assert said in run(*words, code=1)


def test_on_fault_has_two_values(tmp_path: Path) -> None:
    run("convert", DATA / "plain.jsonl", tmp_path / "edits.parquet", "--on-fault", "ignore", code=2)
    assert not (tmp_path / "edits.parquet").exists()


@pytest.mark.parametrize(
    ("record", "said"),
    [({"prompt": "a", "target": ""}, "every record is faulty"), (None, "the file holds no record")],
    ids=["at-fault", "none"],
)
def test_convert_of_no_edit_fails_and_leaves_an_old_file(tmp_path: Path, record: dict | None, said: str) -> None:
    source, out = tmp_path / "edits.jsonl", tmp_path / "edits.parquet"
    write_parquet([Edit("a", "b")], out)
    source.write_text(f"{json.dumps(record)}\n" * 3 if record else "\n\n")
    shown = run("convert", source, out, "--on-fault", "skip", code=1)
    assert said in shown and ("skipped 3 records" in shown) == bool(record) and "written" not in shown
    assert list(read_edits(out)) == [Edit("a", "b")] and sorted(tmp_path.iterdir()) == [source, out]


@pytest.mark.parametrize("command", ["convert", "check"])
def test_parquet_without_rows_holds_no_record(tmp_path: Path, command: str) -> None:
    write_parquet([], tmp_path / "none.parquet")
    words = [tmp_path / "out.parquet"] if command == "convert" else []
    assert "the file holds no record" in run(command, tmp_path / "none.parquet", *words, code=1)
    assert list(tmp_path.iterdir()) == [tmp_path / "none.parquet"]


@pytest.mark.parametrize("name", ["out.jsonl", "out", "folder.parquet"])
def test_convert_writes_only_files_named_parquet(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.parquet").mkdir()
    said = run("convert", "none.json", tmp_path / name, code=2)
    assert ("folder" if name == "folder.parquet" else "must end in") in said and "no file none.json" not in said
    assert list(tmp_path.iterdir()) == [tmp_path / "folder.parquet"]


def test_check_counts_the_pairs_it_does_not_show(tmp_path: Path) -> None:
    write_parquet([Edit(f"fact {number // 2}", f"answer {number % 2}") for number in range(16)], tmp_path / "edits.parquet")
    said = run("check", tmp_path / "edits.parquet", code=1)
    assert "8 conflicts" in said and said.count("' is '") == NUM_EXAMPLES and "  and 3 more\n" in said


def test_check_finds_nothing_in_a_good_file() -> None:
    said = run("check", DATA / "counterfact.json")
    assert "counterfact.json: counterfact" in said and "2 edits, 0 records at fault" in said
    assert "0 duplicates of" in said and "0 conflicts, 0 edits in them" in said


def test_a_count_of_one_is_singular(tmp_path: Path) -> None:
    write_parquet([Edit("a", "b")], tmp_path / "one.parquet")
    assert "1 edit, 0 records at fault" in run("check", tmp_path / "one.parquet")
    assert "1 edit written" in run("convert", tmp_path / "one.parquet", tmp_path / "out.parquet")


def test_check_counts_faults_duplicates_and_conflicts(tmp_path: Path) -> None:
    records = [
        {"prompt": "The capital of Tal is", "target": "Orr", "subject": "Tal"},
        {"prompt": "The capital of  Tal is", "target": "Orr"},
        {"prompt": ""},
        {"prompt": "The capital of Tal is", "target": "Lund", "subject": "Tal"},
        {"prompt": "The river of Tal is", "target": "Orr", "subject": "Tal"},
    ]
    (tmp_path / "edits.json").write_text(json.dumps(records))
    said = run("check", tmp_path / "edits.json", code=1)
    assert "4 edits, 1 record at fault\n" in said and "1 × missing_field (target)" in said
    assert "1 duplicate of an earlier edit" in said and "edits 0 and 1: 'The capital of Tal is' is 'Orr' and 'Orr'" in said
    assert "1 conflict, 3 edits in it\n" in said and "edits 0 and 2: 'The capital of Tal is' is 'Orr' and 'Lund'" in said


@each_pair
def test_check_judges_a_file_as_the_service_judges_a_batch(tmp_path: Path, one: Edit, other: Edit, verdict: str) -> None:
    (tmp_path / "edits.jsonl").write_text("".join(json.dumps(edit.to_json()) + "\n" for edit in (one, other)))
    said = run("check", tmp_path / "edits.jsonl", code=int(verdict == "contradicts"))
    assert f"{int(verdict == 'repeats')} duplicate" in said and f"{int(verdict == 'contradicts')} conflict" in said


def test_check_shows_what_is_left_out_and_counts_it_as_no_fault(tmp_path: Path) -> None:
    records = [
        {"prompt": "The capital of Tal is", "target": "Orr", "rephrasings": ["", "Tal's capital is"]},
        {
            "prompt": "The river of Tal is",
            "target": "Orr",
            "locality": [{"prompt": "Bea Orr is"}, {"prompt": "a", "target": "b"}],
        },
    ]
    (tmp_path / "edits.json").write_text(json.dumps(records))
    said = run("check", tmp_path / "edits.json")
    assert "2 edits, 0 records at fault, 2 fields left out\n" in said
    assert "left out 2 fields of edits that were read\n  1 × empty_field (rephrasings[])\n    edit 0, rephrasings[0]:" in said
    assert "  1 × missing_field (locality[].target)\n    edit 1, locality[0].target: must be given as a string" in said
    said = run("convert", tmp_path / "edits.json", tmp_path / "edits.parquet")
    assert "left out 2 fields" in said and "2 edits written" in said


def test_an_edit_is_read_without_its_absent_subject_on_request(tmp_path: Path) -> None:
    record = {"prompt": "By which company was D&RGW 463 built?", "target": "Baldwin", "subject": "Rio Grande 463"}
    (tmp_path / "edits.jsonl").write_text(json.dumps(record))
    out = tmp_path / "edits.parquet"
    assert "--absent-subject drop" in run("convert", tmp_path / "edits.jsonl", out, code=1)
    said = run("convert", tmp_path / "edits.jsonl", out, "--absent-subject", "drop")
    assert "1 × subject_not_in_prompt (subject)" in said and "1 edit written" in said
    assert list(read_edits(out)) == [Edit(record["prompt"], "Baldwin")]
    assert "1 edit, 0 records at fault, 1 field left out" in run("check", tmp_path / "edits.jsonl", "--absent-subject", "drop")
    assert "refuse or drop, not 'keep'" in run("check", tmp_path / "edits.jsonl", "--absent-subject", "keep", code=2)
