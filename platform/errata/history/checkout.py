"""Looking at other versions with a model that stands at one of them, and must stand there again afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from errata.delta.accumulator import EditedModel
from errata.ledger import Ledger


class Checkout:
    """Takes an edited model along a ledger's versions; each has the bits that it has when it is served.

    Where the last step began is remembered: from there, or from where it stands, whichever is nearer, the next step adds
    deltas. A bisection of N versions so adds about N of them in all.
    """

    def __init__(self, edited: EditedModel, ledger: Ledger, at: int) -> None:
        self.edited, self.ledger, self.at = edited, ledger, at
        self.began, self.sums = at, edited.sums()

    def go(self, version: int) -> None:
        """Raises `UnknownVersion`, and `LedgerDamaged` if a delta cannot be read; the model then is where it was."""
        chain = [0, *self.ledger.chain(version)]
        begin = max((place for place in (self.at, self.began) if place in chain), default=0)
        if begin == 0:
            self.edited.set(self.ledger.segments(version))
            self.began, self.sums = 0, {}
        else:
            deltas = [self.ledger.delta(number) for number in chain[chain.index(begin) + 1 :]]
            self.sums = self.edited.sums() if begin == self.at else self.sums
            self.edited.set(deltas, self.sums)
            self.began = begin
        self.at = version


@contextmanager
def checked_out(edited: EditedModel, ledger: Ledger, home: int) -> Iterator[Checkout]:
    """Within it the model, which stands at `home`, may be taken anywhere; after it, it is as it was, whatever was raised."""
    sums = edited.sums()
    try:
        yield Checkout(edited, ledger, home)
    finally:
        edited.set([], sums)
