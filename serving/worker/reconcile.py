"""Agreement between the journal (what was accepted) and the ledger (what was made) after a crash or a lost version.

Every step is idempotent and is repeated until it has succeeded, so that a crash between two writes loses no edit and makes
none twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime

from errata.guard.bisection import contradiction
from errata.history.ancestry import Ancestry
from errata.ledger import Ledger, Version
from serving.logs import event
from serving.worker.journal import Journal

logger = logging.getLogger("errata")


def superseded_by(version: Version) -> dict[str, str]:
    """Return the edits that a version superseded as it was made, with the reasons; its scorecard has the later edit of each."""
    own = {edit.id: edit for edit in version.edits}
    record: dict[str, str] = version.scorecard.get("superseded", {})
    return {id: contradiction().reason for id, later in record.items() if later in own}


class Reconciler:
    """Brings the journal's states in line with the ledger.

    `is_settled` is True once the edits of every retracted version are queued again. `num_reopenings` counts the retracted
    versions whose edits were queued again: edits that were taken before such a change must be taken again, in order.
    """

    def __init__(self, ledger: Ledger, journal: Journal, wake: Callable[[], None]) -> None:
        self.ledger, self.journal, self.wake = ledger, journal, wake
        self.is_settled = False
        self.num_reopenings = 0

    def reconcile(self) -> None:
        """Settle or queue again every edit that the previous process left `applying` or that a lost version held.

        All versions that were ever quarantined or retracted are checked, because the previous process may have died before it
        had queued their edits.
        """
        for gone in self.ledger.quarantined():
            num_edits = self.journal.reopen(gone.number) if gone.was_live else 0
            if num_edits:
                event(logger, "version.quarantined", logging.ERROR, version=gone.number, num_edits=num_edits, error=gone.faults)
        self._requeue_unmade()
        self._adopt()
        self.is_settled = False
        self.settle_retracted()
        self.finish_made()
        self.mark_reverted()
        self.journal.requeue_applying()
        self.wake()

    def _requeue_unmade(self) -> None:
        """Queue the edits again that were applied in versions which the ledger never had.

        After a restore the journal may be a little newer than the ledger, never older.
        """
        number = self.ledger.next_number
        if num_edits := self.journal.reopen(number, or_later=True):
            event(logger, "edit.made_again", logging.ERROR, version=number, num_edits=num_edits)

    def _adopt(self) -> None:
        """Enter into the journal what the ledger alone has, as after a restore without a journal."""
        retracted, num_edits = self.ledger.retracted(), 0
        for version in self.ledger.versions():
            edits = [edit.to_json() for edit in version.edits if edit.id is not None]
            if edits and version.number not in retracted:
                created = datetime.fromisoformat(version.created).timestamp()
                num_edits += self.journal.adopt(edits, version.number, created)
        if num_edits:
            event(logger, "edit.adopted", logging.WARNING, num_edits=num_edits)

    def settle_retracted(self) -> list[str]:
        """Queue the edits of retracted versions again, and mark what reverts take out; returns the edits that are marked.

        Raises `JournalFailed` and `OSError`. Then `is_settled` stays False, and the next writer repeats the call first.
        """
        if self.is_settled:
            return []
        for number in sorted(self.ledger.retracted()):
            if num_edits := self.journal.reopen(number):
                self.num_reopenings += 1
                event(logger, "edit.made_again", logging.ERROR, version=number, num_edits=num_edits)
        marked = self.mark_reverted()
        self.is_settled = True
        return marked

    def finish_made(self) -> bool:
        """Mark open edits that are in the ledger as applied, and with them those that their versions supersede.

        Returns True if there were any. A superseded edit is never open alone: it is settled together with those of the version.
        """
        found = {entry.id: self.ledger.find_edit(entry.id) for entry in self.journal.pending()}
        made = {id: number for id, number in found.items() if number is not None}
        for number in sorted(set(made.values())):
            version = self.ledger.version(number)
            gone = {id: why for id, why in superseded_by(version).items() if id in found and id not in made}
            self.journal.finish([id for id in made if made[id] == number], number, superseded=gone)
        return bool(made)

    def mark_reverted(self) -> list[str]:
        """Mark the edits that the live version's lineage takes out as reverted, and others so far reverted as applied again.

        All edits are marked in one transaction, and their ids are returned. The ledger's record counts, so that a revert which
        was made and not marked is found whenever this is called next. Raises `JournalFailed` and `OSError`.
        """
        lineage = Ancestry.of(self.ledger, self.ledger.head).numbers
        cards = {number: self.ledger.version(number).scorecard for number in lineage}
        out = {id: number for number, card in cards.items() for id in card.get("reverted", {}).get("edits", ())}
        marked = self.journal.reverted()
        fresh = {id: number for id, number in out.items() if marked.get(id) != number}
        # An edit that was never made in this ledger, as after a restore of an older one, stays as it is.
        back = {id: number for id in marked.keys() - out.keys() if (number := self.ledger.find_edit(id)) is not None}
        if fresh or back:
            self.journal.mark_reverted(fresh, back)
        return [*fresh, *back]
