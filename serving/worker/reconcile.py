"""Agreement between the journal (what was accepted) and the ledger (what was made) after a crash or a lost version.

Every step is idempotent and is repeated until it has succeeded, so that a crash between two writes loses no edit and makes
none twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime

from errata.ledger import Ledger
from serving.logs import event
from serving.worker.journal import Journal

logger = logging.getLogger("errata")


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
        num_adopted = self._adopt()
        self.is_settled = False
        self.settle_retracted()
        self.finish_made()
        self.mark_reverted(0 if num_adopted else None)
        self.journal.requeue_applying()
        self.wake()

    def _requeue_unmade(self) -> None:
        """Queue the edits again that were applied in versions which the ledger never had.

        After a restore the journal may be a little newer than the ledger, never older.
        """
        number = self.ledger.next_number
        if num_edits := self.journal.reopen(number, or_later=True):
            event(logger, "edit.made_again", logging.ERROR, version=number, num_edits=num_edits)

    def _adopt(self) -> int:
        """Enter into the journal what the ledger alone has, as after a restore without a journal; returns its count."""
        retracted, num_edits = self.ledger.retracted(), 0
        for version in self.ledger.versions():
            edits = [edit.to_json() for edit in version.edits if edit.id is not None]
            if edits and version.number not in retracted:
                created = datetime.fromisoformat(version.created).timestamp()
                num_edits += self.journal.adopt(edits, version.number, created)
        if num_edits:
            event(logger, "edit.adopted", logging.WARNING, num_edits=num_edits)
        return num_edits

    def settle_retracted(self) -> None:
        """Queue the edits of retracted versions again, and mark the edits that such a version had reverted as applied.

        Raises `JournalFailed` and `OSError`. Then `is_settled` stays False, and the next writer repeats the call first.
        """
        if self.is_settled:
            return
        for number in sorted(self.ledger.retracted()):
            if num_edits := self.journal.reopen(number):
                self.num_reopenings += 1
                event(logger, "edit.made_again", logging.ERROR, version=number, num_edits=num_edits)
        self.mark_reverted(self.ledger.head)
        self.is_settled = True

    def finish_made(self) -> bool:
        """Mark open edits that are in the ledger as applied; True if there were any."""
        made = {entry.id: self.ledger.find_edit(entry.id) for entry in self.journal.pending()}
        for id, version in made.items():
            if version is not None:
                self.journal.finish([id], version)
        return any(version is not None for version in made.values())

    def mark_reverted(self, before: int | None = None) -> None:
        """Mark the edits that live versions take out as reverted, and those of versions no longer live as applied.

        Only the live versions that are not in the lineage of `before` are read. None reads the newest live version alone,
        because at most one revert was under way when the previous process ended.
        """
        live = self.ledger.chain(self.ledger.head)
        for version in self.journal.reverting():
            if version not in live:
                for id in self.journal.reverted_by(version):
                    if (made_in := self.ledger.find_edit(id)) is not None:  # None: it was never made in this ledger.
                        self.journal.finish([id], made_in)
        fresh = live[-1:] if before is None else sorted(set(live) - set(self.ledger.chain(before)))
        for number in fresh:
            if "reverted" in (card := self.ledger.version(number).scorecard):
                self.journal.revert(card["reverted"]["edits"], number)
