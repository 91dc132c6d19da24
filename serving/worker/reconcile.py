"""Agreement between the journal (what was accepted) and the ledger (what was made) after a crash or a lost version.

Every step is idempotent and is repeated until it has succeeded, so that a crash between two writes loses no edit and makes
none twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from errata.guard.bisection import contradiction
from errata.ledger import Ledger, Version
from serving.logs import event
from serving.worker.journal import Journal

logger = logging.getLogger("errata")


def superseded_by(version: Version) -> dict[str, str]:
    """Return the edits that a version superseded as it was made, with the reasons; its scorecard has the later edit of each."""
    own = {edit.id: edit for edit in version.edits}
    record: dict[str, str] = version.scorecard.get("superseded", {})
    return {id: contradiction(own[later]).reason for id, later in record.items() if later in own}


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
        self.is_settled = False
        self.settle_retracted()
        self.finish_made()
        self.mark_reverted()
        self.journal.requeue_applying()
        self.wake()

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

    def mark_reverted(self, before: int | None = None) -> None:
        """Mark the edits that live versions take out as reverted, and those of versions no longer live as applied.

        Only the live versions that are not in the lineage of `before` are read. None reads the newest live version alone,
        because at most one revert was under way when the previous process ended.
        """
        live = self.ledger.chain(self.ledger.head)
        for version in self.journal.reverting():
            if version not in live:
                for id in self.journal.reverted_by(version):
                    self.journal.finish([id], self.ledger.find_edit(id) or 0)
        fresh = live[-1:] if before is None else sorted(set(live) - set(self.ledger.chain(before)))
        for number in fresh:
            if "reverted" in (card := self.ledger.version(number).scorecard):
                self.journal.revert(card["reverted"]["edits"], number)
