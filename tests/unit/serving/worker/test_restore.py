"""A service that is restored from `errata ledger push`: real ledger, journal and reconciler, without a model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from errata.delta.weight_delta import WeightDelta
from errata.edit import Edit
from errata.editors.state import EditorState
from errata.ledger import Ledger
from errata.ledger.journal_copy import journal_of, make_wanted
from errata.ledger.recovery import recover
from errata.ledger.remote import pull, push
from serving.worker.journal import Journal
from serving.worker.reconcile import Reconciler

Random = Callable[..., WeightDelta]


class Writer:
    """The ledger and the journal of one service, as its worker writes them."""

    def __init__(self, ledger: Ledger, random_delta: Random) -> None:
        self.ledger, self.journal, self.random_delta = ledger, Journal(journal_of(ledger.directory)), random_delta

    def post(self, *prompts: str, key: str | None = None) -> list[str]:
        return self.journal.submit([{"prompt": prompt, "target": "t"} for prompt in prompts], key, "ada")

    def make(self, limit: int = 99) -> int:
        entries = self.journal.take(limit)
        made = [Edit.from_json({**entry.edit, "poster": entry.poster}) for entry in entries]
        number = self.append(made)
        self.journal.finish([entry.id for entry in entries], number)
        return number

    def append(self, made: Sequence[Edit]) -> int:
        delta = self.random_delta(self.ledger.newest + 1)
        return self.ledger.append(self.ledger.head, delta, EditorState(), made, {}, ("E", "p")).number

    def states(self, ids: Sequence[str]) -> list[tuple[str, int | None]]:
        return [(entry.state, entry.version) for entry in map(self.journal.get, ids)]


@pytest.fixture
def writer(ledger: Ledger, random_delta: Random) -> Writer:
    return Writer(ledger, random_delta)


@pytest.fixture
def where(tmp_path: Path) -> str:
    return f"file://{tmp_path / 'copy'}"


def restored(where: str, folder: Path, random_delta: Random) -> Writer:
    """Pull a copy and start over it, as the worker does."""
    pull(where, folder)
    recover(Ledger.open(folder))
    found = Writer(Ledger.open(folder), random_delta)
    Reconciler(found.ledger, found.journal, lambda: None).reconcile()
    return found


def test_a_restored_service_knows_its_edits_its_queue_and_its_keys(
    writer: Writer, where: str, tmp_path: Path, random_delta: Random
) -> None:
    made, queued = writer.post("a", "b", key="k1"), list[str]()
    writer.make()
    queued = writer.post("c", key="k2")
    serving = threading.Event()

    def serve() -> None:
        while not serving.wait(0.05):
            make_wanted(writer.journal.path, writer.journal.back_up)

    worker = threading.Thread(target=serve)
    worker.start()
    push(writer.ledger.directory, where)  # The service runs.
    serving.set()
    worker.join()
    back = restored(where, tmp_path / "back", random_delta)
    assert back.states([*made, *queued]) == [("applied", 1), ("applied", 1), ("queued", None)]
    assert (back.post("a", "b", key="k1"), back.post("c", key="k2")) == (made, queued), "no edit is made twice"
    assert back.make() == 2 and back.states(queued) == [("applied", 2)]


def test_what_was_made_while_the_copy_was_taken_is_made_again_under_its_id(
    writer: Writer, where: str, tmp_path: Path, random_delta: Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    from errata.ledger import remote

    first = writer.post("a")
    writer.make()
    later, copied = list[str](), remote.copied

    def meanwhile(journal: Path) -> object:
        later.extend(writer.post("b", key="k"))
        writer.make()
        writer.journal.close()
        return copied(journal)

    monkeypatch.setattr(remote, "copied", meanwhile)
    push(writer.ledger.directory, where)
    back = restored(where, tmp_path / "back", random_delta)
    assert back.ledger.newest == 1 and back.states([*first, *later]) == [("applied", 1), ("queued", None)]
    assert back.post("b", key="k") == later
    assert back.make() == 2 and back.states(later) == [("applied", 2)]


def test_edits_of_a_copy_without_a_journal_are_known_and_a_rolled_back_version_stays_so(
    writer: Writer, where: str, tmp_path: Path, random_delta: Random
) -> None:
    ids = [writer.post(prompt)[0] for prompt in "abc"]
    for _ in ids:
        writer.make(1)
    writer.ledger.move_head(2, "ada")
    writer.journal.close()
    writer.journal.path.unlink()
    push(writer.ledger.directory, where)
    back = restored(where, tmp_path / "back", random_delta)
    assert back.states(ids) == [("applied", 1), ("applied", 2), ("applied", 3)] and back.journal.depth == 0
    entry = back.journal.get(ids[1])
    assert (entry.edit["prompt"], entry.poster) == ("b", "ada") and entry.created > 1e9
    Reconciler(back.ledger, back.journal, lambda: None).reconcile()
    assert len(back.journal.newest(99)) == 3
