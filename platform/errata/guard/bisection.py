"""A batch of edits on its way: which to try together, and who is to blame when they are refused. It makes nothing itself.

while (group := docket.next_group()) is not None:
    make a version of `docket.batch(group)`, then settle `docket.made(group)`
    or, if it is refused, settle `docket.refused(group, refusal)`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from errata.edit import Code, Edit, EditBatch, EditRejected

Group = tuple[int, ...]  # positions in the batch
Settled = list[tuple[int, EditRejected]]  # positions that are refused for good, and why


@dataclass
class BatchBisection:
    """A refusal that names an edit costs that edit; one that names none is traced to its cause by halving.

    Of edits that give one prompt different answers the latest is tried, and the earlier ones wait for its fate: if it is made
    they are refused, if not the next latest is tried.
    """

    edits: Sequence[Edit]
    waiting: list[Group] = field(default_factory=list)  # the next is the last
    rivals: dict[int, int] = field(default_factory=dict)  # an edit that waits, and the one that it waits for

    def __post_init__(self) -> None:
        last = {edit.prompt: i for i, edit in enumerate(self.edits)}
        self.rivals = {i: last[e.prompt] for i, e in enumerate(self.edits) if self.edits[last[e.prompt]].target != e.target}
        self._wait(tuple(i for i in range(len(self.edits)) if i not in self.rivals))

    def next_group(self) -> Group | None:
        return self.waiting.pop() if self.waiting else None

    def batch(self, group: Group) -> EditBatch:
        return EditBatch(tuple(self.edits[i] for i in group))

    def made(self, group: Group) -> Settled:
        """Those that a version of this group has made pointless."""
        settled = []
        for i, rival in list(self.rivals.items()):
            if rival in group:
                del self.rivals[i]
                answer = self.edits[rival].target
                why = f"another edit of the same batch answers this prompt by {answer!r}; the later one counts"
                settled.append((i, EditRejected(why, field="target", code=Code.CONTRADICTED)))
        return settled

    def refused(self, group: Group, refusal: EditRejected) -> Settled:
        guilty = self._named(group, refusal)
        if guilty is None and len(group) > 1:
            half = len(group) // 2
            self._wait(group[half:])
            self._wait(group[:half])
            return []
        guilty = group[0] if guilty is None else guilty
        self._wait(self._heirs(guilty))
        self._wait(tuple(i for i in group if i != guilty))
        return [(guilty, refusal)]

    def left(self) -> Group:
        """All that is not settled and not being tried, in order."""
        return tuple(sorted({i for group in self.waiting for i in group} | set(self.rivals)))

    def _wait(self, group: Group) -> None:
        if group:
            self.waiting.append(group)

    def _named(self, group: Group, refusal: EditRejected) -> int | None:
        """The edit that a refusal names by its position in the group, or by its id."""
        if isinstance(refusal.edit, int):
            return group[refusal.edit] if 0 <= refusal.edit < len(group) else None
        return next((i for i in group if refusal.edit is not None and self.edits[i].id == refusal.edit), None)

    def _heirs(self, guilty: int) -> Group:
        """Those that are tried now that the one that they waited for is refused: the latest, and others of its target."""
        rivals = [i for i, rival in self.rivals.items() if rival == guilty]
        if not rivals:
            return ()
        heirs = tuple(i for i in rivals if self.edits[i].target == self.edits[rivals[-1]].target)
        for i in rivals:
            del self.rivals[i]
            if i not in heirs:
                self.rivals[i] = heirs[-1]
        return heirs
