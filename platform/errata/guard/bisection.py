"""Bisection of a refused batch of edits: which edits to try together, and which edit caused a refusal.

while (group := bisection.next_group()) is not None:
    make a version of `bisection.batch(group)`, then settle `bisection.made(group)`;
    if the version is refused, settle `bisection.refused(group, refusal)`
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from errata.edit import Code, Edit, EditBatch, EditRejected
from errata.text.rules import same_text


def same_target(one: Edit, other: Edit) -> bool:
    """Say if two edits of a prompt agree: their targets are the same text."""
    return same_text(one.target) == same_text(other.target)


def contradiction() -> EditRejected:
    """Build the refusal of an edit that a later one of its batch contradicts."""
    why = "another edit of the same batch gives this prompt another target; the later one counts"
    return EditRejected(why, field="target", code=Code.CONTRADICTED)


Group = tuple[int, ...]  # Positions in the batch.
Settled = list[tuple[int, EditRejected]]  # Positions whose refusal is final, and the refusals.


@dataclass
class BatchBisection:
    """The state of one batch. A refusal that names an edit costs that edit; any other is traced to its cause by halving.

    Of edits with one prompt and different targets, the latest is tried first. If a version is made of it, the earlier ones are
    superseded; if it is refused, the next latest is tried. An edit that is asked in two forms counts in both: it waits for the
    latest of all edits that contradict it, and is superseded as soon as a version is made of any of them.
    """

    edits: Sequence[Edit]
    waiting: list[Group] = field(default_factory=list)  # A stack: the last group is next.
    rivals: dict[int, int] = field(default_factory=dict)  # A waiting edit, and the edit that it waits for.
    asked: dict[Hashable, list[int]] = field(default_factory=dict)  # By prompt, the edits that are not refused, in order.

    def __post_init__(self) -> None:
        for i, edit in enumerate(self.edits):
            for key in edit.keys:
                self.asked.setdefault(key, []).append(i)
        self.rivals = {i: rival for i in range(len(self.edits)) if (rival := self._rival(i)) is not None}
        self._wait(tuple(i for i in range(len(self.edits)) if i not in self.rivals))

    def next_group(self) -> Group | None:
        """Return the next group to try, None if all edits are settled."""
        return self.waiting.pop() if self.waiting else None

    def batch(self, group: Group) -> EditBatch:
        """Return the edits of a group."""
        return EditBatch(tuple(self.edits[i] for i in group))

    def made(self, group: Group) -> Settled:
        """Record that a version of the group was made, and return the edits that it supersedes."""
        beaten = self.contradicted_by(group)
        self.rivals = {i: rival for i, rival in self.rivals.items() if i not in beaten}
        groups = [tuple(i for i in waiting if i not in beaten) for waiting in self.waiting]
        self.waiting = [waiting for waiting in groups if waiting]
        for i in beaten:
            self._release(i)
        return [(i, contradiction()) for i in beaten]

    def refused(self, group: Group, refusal: EditRejected) -> Settled:
        """Record that the group was refused, and return the edit at fault, or nothing while the group is being halved.

        Edits of a larger group that had no effect are tried again alone, after the others.
        """
        weak = [group[fault.edit] for fault in refusal.faults if isinstance(fault.edit, int) and fault.code is Code.INEFFECTIVE]
        if weak and len(group) > 1:
            for i in reversed(weak):
                self._wait((i,))
            self._wait(tuple(i for i in group if i not in weak))
            return []
        guilty = self._named(group, refusal)
        if guilty is None and len(group) > 1:
            half = len(group) // 2
            self._wait(group[half:])
            self._wait(group[:half])
            return []
        guilty = group[0] if guilty is None else guilty
        self._release(guilty)
        self._wait(tuple(i for i in group if i != guilty))
        return [(guilty, refusal)]

    def postpone(self, group: Group, later: Group) -> None:
        """Put a group back as two: those that need not be made yet are tried after the others."""
        self._wait(later)
        self._wait(tuple(i for i in group if i not in later))

    def left(self) -> Group:
        """Return the positions, in order, that are neither settled nor being tried."""
        return tuple(sorted({i for group in self.waiting for i in group} | set(self.rivals)))

    def _wait(self, group: Group) -> None:
        if group:
            self.waiting.append(group)

    def _named(self, group: Group, refusal: EditRejected) -> int | None:
        """Return the edit that a refusal names by its position in the group or by its id."""
        if isinstance(refusal.edit, int):
            return group[refusal.edit] if 0 <= refusal.edit < len(group) else None
        return next((i for i in group if refusal.edit is not None and self.edits[i].id == refusal.edit), None)

    def _rival(self, i: int) -> int | None:
        """Return the latest edit that answers a prompt of edit `i` with another target, if it is the latest of the prompt."""
        latest = {self.asked[key][-1] for key in self.edits[i].keys}
        return max((j for j in latest if not same_target(self.edits[i], self.edits[j])), default=None)

    def contradicted_by(self, group: Group) -> dict[int, int]:
        """Map each edit that is left to the latest edit of the group that is after it and answers its prompt otherwise.

        A version of the group supersedes these edits.
        """
        left, found = set(self.left()), dict[int, int]()
        latest = {key: j for j in sorted(group) for key in self.edits[j].keys}
        for key, j in latest.items():
            earlier = [i for i in self.asked[key] if i < j and i in left and not same_target(self.edits[i], self.edits[j])]
            found |= {i: max(j, found.get(i, j)) for i in earlier}
        return found

    def _release(self, out: int) -> None:
        """Let the edits that waited for a settled one be tried, or wait for the next latest."""
        for key in self.edits[out].keys:
            self.asked[key].remove(out)
        free = []
        for i in [i for i, rival in self.rivals.items() if rival == out]:
            del self.rivals[i]
            if (rival := self._rival(i)) is None:
                free.append(i)
            else:
                self.rivals[i] = rival
        self._wait(tuple(free))


def _contradiction() -> EditRejected:
    why = "another edit of the same batch gives this prompt another target; the later one counts"
    return EditRejected(why, field="target", code=Code.CONTRADICTED)
