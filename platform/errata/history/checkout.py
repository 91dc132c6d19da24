"""Checkout: an edited model is taken to other versions of a ledger, and back to its own afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from errata.delta.accumulator import EditedModel, VersionContent
from errata.history.budget import WalkBudget
from errata.ledger import Ledger


class Checkout:
    """An edited model on its way along a ledger's versions. Each version has the bits that it is served with.

    A step adds the deltas from where the last step began, or from the current version, whichever is nearer. A bisection over
    N versions thus adds about N deltas in all. Each of them is a step of `budget`; one that raises leaves the model undefined.
    """

    def __init__(self, edited: EditedModel, ledger: Ledger, at: int, budget: WalkBudget | None = None) -> None:
        self.edited, self.ledger, self.at = edited, ledger, at
        self.budget = budget or WalkBudget()
        self.began, self.start = at, edited.content()

    def to(self, version: int) -> None:
        """Take the model to `version`.

        Raises `UnknownVersion`, and `LedgerDamaged` if a delta cannot be read; the model is then unchanged. Raises as `budget`
        does.
        """
        chain = [0, *self.ledger.chain(version)]
        begin = max((start for start in (self.at, self.began) if start in chain), default=0)
        numbers = chain[chain.index(begin) + 1 :]
        self.budget.take(len(numbers))
        if begin == 0:
            self.edited.set(self.ledger.segments(version), step=self.budget.step)
            self.began, self.start = 0, VersionContent()
        else:
            deltas = [self.ledger.delta(number) for number in numbers]
            self.start = self.edited.content() if begin == self.at else self.start
            self.edited.set(deltas, self.start, self.budget.step)
            self.began = begin
        self.at = version


@contextmanager
def checked_out(edited: EditedModel, ledger: Ledger, version: int) -> Iterator[Checkout]:
    """Yield a `Checkout` of a model that is at `version`. The model is there again after the block, whatever it raises."""
    start = edited.content()
    try:
        yield Checkout(edited, ledger, version)
    finally:
        edited.set([], start)
