"""Selection of the versions and edits that a revert takes out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from errata.edit import Code, Edit, EditRejected
from errata.history.lineage import MadeBatch, Moved, batches, live_versions
from errata.ledger import Ledger, UnknownVersion, Version

MAX_ASKED = 10  # Reverted prompts whose answers the scorecard shows.


class RevertRefused(EditRejected):
    """A revert that cannot be made; `code` says whether an edit or version is unknown, is not live, or cannot be taken out."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _refused, (self.reason, self.code, self.edit, self.field)


def _refused(reason: str, code: Code, edit: int | str | None, field: str | None) -> RevertRefused:
    return RevertRefused(reason, code=code, edit=edit, field=field)


@dataclass(frozen=True)
class RevertSelection:
    """The edits to take out: the live versions that hold them, and by version number their places in its edits."""

    versions: tuple[Version, ...]
    places: Mapping[int, frozenset[int]]
    made_again_in: tuple[int, ...] = ()  # Live versions that are not selected and made a selected edit again.

    @property
    def edits(self) -> list[Edit]:
        """The edits to take out, in order."""
        return [version.edits[place] for version in self.versions for place in sorted(self.places[version.number])]

    @property
    def asked(self) -> list[Edit]:
        """The edits whose prompts are asked to show the effect."""
        return self.edits[:MAX_ASKED]

    @property
    def is_whole(self) -> bool:
        """True if all edits of each version are selected."""
        return all(len(self.places[version.number]) == len(version.edits) for version in self.versions)

    def without(self, version: Version) -> list[MadeBatch]:
        """Return the batches of a version without the selected edits; batches that become empty are left out.

        A repair has no edits of its own: it is left out if all that it made again is selected. So is a consolidation.
        """
        pairs = self.pairs(version)
        return [
            MadeBatch(stays.edits, tuple(filter(None, stays.again)), stays.moved)
            for _, stays in pairs
            if any((stays.edits, *stays.again)) or (stays.moved is not None and any(stays.moved))
        ]

    def pairs(self, version: Version) -> list[tuple[MadeBatch, MadeBatch]]:
        """Return each batch of a version, and what stays of it without the selected edits, round by round.

        Of a batch whose own edits are all selected, nothing stays but what it moved: what it made again was damage of its own.
        """
        found, place, gone, selected = [], 0, self.places.get(version.number, frozenset()), frozenset(map(_name, self.edits))
        for batch in batches(version):
            edits = tuple(edit for i, edit in enumerate(batch.edits, place) if i not in gone)
            again = tuple(tuple(edit for edit in made if _name(edit) not in selected) for made in batch.again)
            moved = batch.moved
            if moved is not None:
                back = tuple(edit for edit in moved.back if _name(edit) not in selected)
                moved = Moved(tuple(id for id in moved.gone if id not in selected), back)
            is_left = bool(edits) or not batch.edits
            found.append((batch, MadeBatch(edits, again if is_left else tuple(() for _ in again), moved)))
            place += len(batch.edits)
        return found


def select(ledger: Ledger, head: int, ids: Iterable[str], versions: Iterable[int]) -> RevertSelection:
    """Select the edits with these ids and all edits of these versions; they must be live in `head`.

    Raises `RevertRefused` if nothing is chosen, or for the first edit or version that is unknown, not live or without edits.
    """
    live = {version.number: version for version in live_versions(ledger, head)}
    places: dict[int, set[int]] = {}
    found = {edit.id: (n, i) for n, version in live.items() for i, edit in enumerate(version.edits) if edit.id is not None}
    for id in ids:
        if id not in found:
            raise _no_such_edit(ledger, head, id)
        number, place = found[id]
        places.setdefault(number, set()).add(place)
    for number in versions:
        if number not in live or not live[number].edits:
            raise _no_such_version(ledger, head, number)
        places[number] = set(range(len(live[number].edits)))
    if not places:
        raise RevertRefused(
            "nothing is chosen: give ids of edits, or numbers of versions", code=Code.NOTHING_CHOSEN, field="edits"
        )
    chosen = {_name(edit) for number, own in places.items() for i, edit in enumerate(live[number].edits) if i in own}
    again_in = tuple(
        number
        for number, version in live.items()
        if number not in places and any(not chosen.isdisjoint(_touched(one)) for one in batches(version))
    )
    read = {number: frozenset(own) for number, own in places.items()}
    return RevertSelection(tuple(live[number] for number in sorted(places)), read, again_in)


def _name(edit: Edit) -> str | Edit:
    """Return what an edit is known by: a consolidation writes it in other words, under the same id."""
    return edit if edit.id is None else edit.id


def _touched(batch: MadeBatch) -> Iterator[str | Edit]:
    """Yield the edits that a batch made again or moved."""
    yield from (_name(edit) for made in batch.again for edit in made)
    if batch.moved is not None:
        yield from (*batch.moved.gone, *map(_name, batch.moved.back))


def _no_such_edit(ledger: Ledger, head: int, id: str) -> RevertRefused:
    version = ledger.find_edit(id)
    if version is None:
        return RevertRefused(f"no version holds an edit {id!r}", code=Code.UNKNOWN_EDIT, edit=id, field="edits")
    why = f"it was made in version {version}, and is not (or no longer) part of the live version {head}"
    return RevertRefused(why, code=Code.NOT_LIVE, edit=id, field="edits")


def _no_such_version(ledger: Ledger, head: int, number: int) -> RevertRefused:
    try:
        version = ledger.version(number)
    except UnknownVersion as fault:
        return RevertRefused(str(fault), code=Code.UNKNOWN_VERSION, field="versions")
    if not version.edits:
        why = f"version {number} holds no edits to take out; to undo a revert, roll back to the version before it"
        return RevertRefused(why, code=Code.NO_EDITS, field="versions")
    why = f"version {number} is not (or no longer) part of the live version {head}"
    return RevertRefused(why, code=Code.NOT_LIVE, field="versions")
