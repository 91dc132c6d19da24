"""The worker's way with a batch, on a shop that makes nothing: no Ray, no engine."""

from __future__ import annotations

import asyncio
from collections import deque
from types import SimpleNamespace

import pytest

from errata.edit import EditRejected
from errata.ledger import LedgerConflict
from serving.edit_worker import EditWorker
from serving.journal import Journal


class Shop:
    """Versions are numbers; `refuse` says of a batch whether, and as what, it is refused."""

    def __init__(self, refuse) -> None:
        self.refuse_batch, self.version, self.made, self.noted = refuse, 0, [], []
        self.ledger = SimpleNamespace(refuse=lambda parent, edit, why: self.noted.append((parent, edit.id)), head=0)

    def make(self, edits):
        refusal = self.refuse_batch(edits)
        if refusal is not None:
            raise refusal
        return edits

    def append(self, edits):
        if any(edit.prompt == "conflict" for edit in edits) and self.version < 5:
            self.version = self.ledger.head = 5
            raise LedgerConflict(0, 5)
        self.version += 1
        self.made.append([edit.prompt for edit in edits])
        return version(self.version)

    def move_to(self, number):
        self.version = number


def version(number):
    from errata.ledger import Version

    return Version(number, number - 1, "e", "p", "f", "t", (), {}, 0, {}, {}, None)


def worker(tmp_path, refuse) -> EditWorker:
    one = object.__new__(EditWorker)
    one.shop, one.journal = Shop(refuse), Journal(tmp_path / "journal")
    one._writing, one._settled, one._appended = asyncio.Lock(), asyncio.Condition(), asyncio.Event()
    one.timings, one.replicas, one._unserved = deque(), [], False

    async def broadcast(_version):
        return None

    one._broadcast = broadcast
    return one


def posted(one: EditWorker, *prompts: str, target: str = "x") -> list[str]:
    return one.journal.submit([{"prompt": prompt, "target": target} for prompt in prompts])


def apply(one: EditWorker, limit: int = 5000) -> None:
    asyncio.run(one._apply(one.journal.take(limit)))


def states(one: EditWorker, ids: list[str]) -> list[tuple[str, int | None]]:
    return [(entry.state, entry.version) for entry in map(one.journal.get, ids)]


@pytest.mark.parametrize("guilty", ["a", "c", "e"])
def test_the_culprit_is_found_and_the_others_are_made_in_their_order(tmp_path, guilty):
    one = worker(tmp_path, lambda edits: EditRejected("harm") if guilty in [edit.prompt for edit in edits] else None)
    ids = posted(one, *"abcde")
    apply(one)
    assert [prompt for group in one.shop.made for prompt in group] == [p for p in "abcde" if p != guilty]
    found = dict(zip("abcde", states(one, ids), strict=True))
    assert found.pop(guilty) == ("rejected", None)
    assert all(state == "applied" and made for state, made in found.values())
    assert [id for _, id in one.shop.noted] == [ids["abcde".index(guilty)]]


def test_a_batch_in_which_everything_is_refused_by_name_ends(tmp_path):
    one = worker(tmp_path, lambda edits: EditRejected("no", edit=0))
    ids = posted(one, *map(str, range(1500)))
    apply(one)
    assert set(states(one, ids)) == {("rejected", None)} and not one.shop.made


def test_many_answers_to_one_prompt_cost_one_attempt(tmp_path):
    attempts = []
    one = worker(tmp_path, lambda edits: attempts.append(len(edits)))
    ids = [id for i in range(600) for id in posted(one, "p", target=str(i))]
    apply(one)
    assert attempts == [1] and states(one, ids)[-1] == ("applied", 1)
    assert set(states(one, ids)[:-1]) == {("rejected", None)}
    assert "the later one counts" in one.journal.get(ids[0]).reason


def test_on_a_conflict_all_that_is_left_is_queued_again_in_order(tmp_path):
    one = worker(tmp_path, lambda edits: EditRejected("harm") if "poison" in [e.prompt for e in edits] else None)
    ids = posted(one, "conflict", "a", "poison", "b")
    apply(one)
    assert [state for state, _ in states(one, ids)] == ["queued"] * 4 and one.shop.version == 5
    apply(one)
    assert [state for state, _ in states(one, ids)] == ["applied", "applied", "rejected", "applied"]
    assert one.shop.made == [["conflict", "a"], ["b"]]


def test_a_rollback_comes_in_between_two_attempts(tmp_path):
    one = worker(tmp_path, lambda edits: EditRejected("harm") if "poison" in [e.prompt for e in edits] else None)
    posted(one, "a", "b", "poison", "c")

    async def both():
        work = asyncio.create_task(one._apply(one.journal.take(10)))
        await asyncio.sleep(0)
        async with one._writing:
            seen = len(one.shop.made)
        await work
        return seen

    assert asyncio.run(both()) < len(one.shop.made)
