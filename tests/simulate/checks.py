"""Checks of a finished schedule, from the history of the clients, the ledger, the journal and the replicas alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from errata.edit import SETTLED
from errata.history.lineage import live_edits
from errata.ledger import Ledger
from serving.worker.journal_entry import Entry
from tests.simulate.fleet import SimReplica
from tests.simulate.ledger import REFUSED, answers_of
from tests.simulate.workload import Operation


@dataclass
class Outcome:
    """The end of a schedule: what clients saw, and what is on the disk."""

    operations: list[Operation]
    acknowledged: list[str]
    entries: dict[str, Entry]
    ledger: Ledger
    heads: list[int]
    replicas: list[SimReplica]

    @cached_property
    def live(self) -> list[Any]:
        """The edits of the head, in order."""
        return list(live_edits(self.ledger, self.ledger.head))

    def of_kind(self, *kinds: str) -> list[Operation]:
        return [operation for operation in self.operations if operation.kind in kinds and operation.begin is not None]

    def holds(self, version: int) -> set[str]:
        return {edit.id for edit in live_edits(self.ledger, version)}

    def reverted_in(self, version: int) -> set[str]:
        """Return the edits that were taken out on the way to a version, over replays, too."""
        found, seen, waiting = set[str](), {0}, [version]
        while waiting:
            number = waiting.pop()
            if number in seen:
                continue
            seen.add(number)
            card = self.ledger.version(number).scorecard.get("reverted", {})
            found |= set(card.get("edits", ()))
            waiting += [self.ledger.version(number).parent or 0, card.get("head", 0)]
        return found


def accounted(outcome: Outcome) -> Iterator[str]:
    """Check (a): every acknowledged edit is live, superseded by a later one, taken out, or refused for its own reason."""
    held, was_moved = [edit.id for edit in outcome.live], bool(outcome.of_kind("rollback"))
    for id in outcome.acknowledged:
        entry = outcome.entries[id]
        if entry.state not in SETTLED:
            yield f"edit {id[:6]} is {entry.state} at the end"
        elif entry.state == "rejected" and entry.edit["target"] != REFUSED:
            yield f"edit {id[:6]} is rejected: {entry.reason}"
        elif entry.state == "superseded" and not any(
            other.seq > entry.seq and other.edit["prompt"] == entry.edit["prompt"] and other.state in ("applied", "reverted")
            for other in outcome.entries.values()
        ):
            yield f"edit {id[:6]} is superseded, and no later edit of its prompt was applied"
        elif (
            entry.state == "applied" and entry.unchanged is None and held.count(id) != 1 and not (was_moved and id not in held)
        ):
            yield f"edit {id[:6]} is applied and {held.count(id)} times in the head"


def ordered(outcome: Outcome) -> Iterator[str]:
    """Check (b): for each prompt the last live edit in the chain is the last of them that was posted."""
    for prompt in {edit.prompt for edit in outcome.live}:
        posted = [outcome.entries[edit.id].seq for edit in outcome.live if edit.prompt == prompt]
        if posted[-1] != max(posted):
            yield f"post {posted[-1]} of {prompt!r} is made after post {max(posted)}"


def at_least(outcome: Outcome) -> Iterator[str]:
    """Check (c): what a version held that a client asked for is in the version that answers, or was taken out on request."""
    for ask in outcome.of_kind("ask"):
        if ask.answer is None or not ask.given["at_least"]:
            continue
        wanted, version = ask.given["at_least"], ask.answer[1]
        missing = {edit.id for edit in outcome.ledger.version(wanted).edits} - outcome.holds(version)
        if missing - outcome.reverted_in(version):
            yield f"version {version} answers for at least {wanted} and lacks {len(missing)} of its edits"


def visible(outcome: Outcome) -> Iterator[str]:
    """Check (d): an edit that was acknowledged with `wait` is in every later answer, until a rollback or a revert begins."""
    for post in outcome.of_kind("edit"):
        if post.answer is None or not post.given["wait"]:
            continue
        own = {edit["id"] for edit in post.answer if edit["state"] == "applied" and edit.get("changed")}
        for ask in outcome.of_kind("ask"):
            if ask.answer is None or ask.begin < (post.end or 0):
                continue
            moves = [move for move in outcome.of_kind("rollback", "revert") if move.begin < ask.end and _ends_after(move, post)]
            if not moves and own - outcome.holds(ask.answer[1]):
                yield f"version {ask.answer[1]} answers after an acknowledged post and lacks it"


def _ends_after(move: Operation, post: Operation) -> bool:
    return move.end is None or move.end > (post.begin or 0)


def forward(outcome: Outcome) -> Iterator[str]:
    """Check (e): the versions of a replica are heads in the order in which they were heads."""
    for replica in outcome.replicas:
        place = 0
        for version in replica.seen:
            if version not in outcome.heads[place:]:
                yield f"replica {replica.name} serves {replica.seen}, and the heads were {outcome.heads}"
                break
            place = outcome.heads.index(version, place)


def one_answer(outcome: Outcome) -> Iterator[str]:
    """Check (f): a version has one answer to a prompt."""
    for ask in outcome.of_kind("ask"):
        if ask.answer is not None:
            text, version = ask.answer
            if text != (right := answers_of(outcome.ledger, version).get(ask.given["prompt"], text)):
                yield f"version {version} says {text!r} and {right!r}"


def agreed(outcome: Outcome) -> Iterator[str]:
    """Check (g): the journal says of each edit what the chain says."""
    held, out = {edit.id for edit in outcome.live}, outcome.reverted_in(outcome.ledger.head)
    for id, entry in outcome.entries.items():
        if entry.state == "reverted" and (id in held or id not in outcome.reverted_in(outcome.ledger.head)):
            yield f"edit {id[:6]} is reverted in version {entry.version}, which the head does not follow"
        elif entry.state == "applied" and entry.unchanged is None and id in out and id not in held:
            yield f"edit {id[:6]} is applied, and a version that the head follows took it out"
        elif entry.state in ("queued", "applying", "rejected", "superseded") and id in held:
            yield f"edit {id[:6]} is {entry.state} and is in the head"
        elif entry.state == "applied" and entry.unchanged is None and outcome.ledger.find_edit(id) is None:
            yield f"edit {id[:6]} is applied and in no version"
    for replica in outcome.replicas:
        if replica.version != outcome.ledger.head:
            yield f"replica {replica.name} serves version {replica.version} at the end, and not {outcome.ledger.head}"


def expected(outcome: Outcome) -> Iterator[str]:
    """Check (h): a rollback or a revert that names the head was made at that head."""
    steps = set(zip(outcome.heads, outcome.heads[1:], strict=False))
    for move in outcome.of_kind("rollback", "revert"):
        if move.answer is not None and (head := move.given["expected_head"]) is not None:
            version = move.answer["version"]
            if version != head and (head, version) not in steps:
                yield f"the head moved to {version} although {head} was expected: {outcome.heads}"


CHECKS: dict[str, Callable[[Outcome], Iterator[str]]] = {
    check.__name__: check for check in (accounted, ordered, at_least, visible, forward, one_answer, agreed, expected)
}


def violations(outcome: Outcome) -> list[str]:
    return [f"{name}: {found}" for name, check in CHECKS.items() for found in check(outcome)]
