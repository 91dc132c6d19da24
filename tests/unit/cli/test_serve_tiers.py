"""The command `errata serve --memory`: what cannot be two tiers is refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from errata.local.services import free_port
from tests.unit.cli.invoke import errata


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["--editor", "answer", "--memory", "answer"],
            "memory: AnswerMemory keeps its edits in a memory: give",
        ),
        (["--editor", "FT-L", "--memory", "RTD"], "memory: RTD is no memory that is read before weights: give one of"),
        (
            ["--editor", "FT-L", "--memory", "SCR", "--consolidate", "often"],
            "consolidate: 'often' is no policy of",
        ),
        (["--consolidate", "never"], "consolidate: there is no memory whose edits the weights could learn"),
        (["--editor", "FT-L", "--memory", "SCR", "--set", "memory.threshold=2"], "memory: threshold is the least cosine"),
    ],
)
def test_tiers_that_cannot_be_served_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    monkeypatch.setattr("errata.cli.serve._run", lambda *_: pytest.fail("it starts"))
    done = errata("serve", *arguments, "--port", str(free_port()))
    assert done.exit_code == 2 and len(done.output.strip().splitlines()) == 1 and done.output.startswith(says), done.output
