"""Invoking `errata` in this process, and reading what it prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from errata.cli.main import app

PROMPT = "The capital of France is"


def errata(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def words(done: Any) -> str:
    """Return the printed words, without the lines of tables and the breaks of narrow columns."""
    return " ".join("".join(" " if c in "│┃┳┏┓┗┛┡┩└┘┴┬┼├┤─━╇╭╮╰╯" else c for c in done.output).split())


def file_of(folder: Path, targets: list[str], name: str = "edits.jsonl") -> str:
    edits = [
        {"prompt": f"{PROMPT} {i}", "target": t, "locality": [{"prompt": "a", "target": "b"}]} for i, t in enumerate(targets)
    ]
    (folder / name).write_text("".join(json.dumps(edit) + "\n" for edit in edits))
    return str(folder / name)
