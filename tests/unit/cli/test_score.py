"""The command `errata score`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from errata.local.services import free_port
from tests.unit.cli.invoke import errata


def edits_file(folder: Path) -> Path:
    probes = {
        "locality": [{"prompt": "river", "target": "Seine"}],
        "portability": [{"prompt": "x", "target": "x!", "kind": "alias"}],
    }
    edits = [{"prompt": "a", "target": "a!", "rephrasings": ["b", "c"], **probes}, {"prompt": "d", "target": "e"}]
    (folder / "edits.jsonl").write_text("".join(json.dumps(edit) + "\n" for edit in edits))
    return folder / "edits.jsonl"


def test_the_served_model_is_scored_by_what_it_generates(one_version: str, tmp_path: Path) -> None:
    edits, saved = str(edits_file(tmp_path)), tmp_path / "answers.json"
    shown = errata("score", edits, "--url", one_version, "--save", str(saved)).output
    assert "2 edits, answered by version 1" in shown
    rows = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in shown.splitlines() if line.count("│") > 2}
    assert rows == {
        "efficacy": "0.500",
        "generalisation": "0.000",
        "locality_gold": "0.000",
        "portability": "1.000",
        "harmonic_mean": "0.000",
        "portability/alias": "1.000",
    }
    found = json.loads(saved.read_text())
    assert (found["version_max"], found["answers"]["river"]) == (1, " river!")
    again = errata("score", edits, "--url", one_version, "--base", str(saved), "--limit", "1").output
    assert "1 edits, answered by version 1" in again and "locality " in again
    (locality,) = [line for line in again.splitlines() if "locality " in line]
    assert "1.000" in locality


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "contains no answers"),
        ('{"answers": [1], "max_tokens": 16}', "contains no answers"),
        ('{"answers": {}, "max_tokens": 16}', "1 prompts have no answer to score"),
        ('{"answers": {}, "max_tokens": 8}', "have at most 8 tokens, not 16: give --max-tokens 8"),
        (None, "No such file"),
    ],
)
def test_a_file_without_answers_is_reported(one_version: str, tmp_path: Path, content: str | None, says: str) -> None:
    base = tmp_path / "base.json"
    if content is not None:
        base.write_text(content)
    done = errata("score", str(edits_file(tmp_path)), "--url", one_version, "--base", str(base))
    assert done.exit_code == 1 and says in done.output.replace("\n", " ")
    done = errata("score", str(edits_file(tmp_path)), "--url", f"http://127.0.0.1:{free_port()}")
    assert done.exit_code == 1 and "make serve" in done.output
