"""The commands `errata ledger push` and `pull`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from errata.delta.weight_delta import WeightDelta
from errata.editors.state import EditorState
from errata.ledger import Ledger
from tests.unit.cli.invoke import errata, words


@pytest.fixture
def where(tmp_path: Path) -> str:
    return f"file://{tmp_path / 'copy'}"


def test_a_ledger_is_pushed_and_pulled(
    ledger: Ledger, random_delta: Callable[..., WeightDelta], where: str, tmp_path: Path
) -> None:
    ledger.append(0, random_delta(1), EditorState(), (), {}, ("E", "p"))
    assert "2 versions were new" in words(errata("ledger", "push", str(ledger.directory), where))
    assert "2 versions were new" in words(errata("ledger", "pull", where, str(tmp_path / "back")))
    assert Ledger.open(tmp_path / "back").head == 1


@pytest.mark.parametrize(
    ("command", "source", "target", "says"),
    [
        ("push", "{folder}/none", "file://{folder}/copy", "there is no ledger in"),
        ("pull", "file://{folder}/none", "{folder}/new", "there is no ledger at"),
        ("push", "{folder}/ledger", "nowhere://x", "cannot be opened"),
        ("push", "{folder}/ledger", "a/relative/path", "cannot be opened"),
    ],
)
def test_a_place_without_a_ledger_and_an_unknown_one_are_named(
    ledger: Ledger, tmp_path: Path, command: str, source: str, target: str, says: str
) -> None:
    done = errata("ledger", command, source.format(folder=tmp_path), target.format(folder=tmp_path))
    assert done.exit_code == 1 and says in words(done)
    assert not (tmp_path / "new").exists()
