"""What a model is made from and edited on: true sentences, plain ones, and corrections in splits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from errata.edit import Edit


class Corpus(Protocol):
    """A world, or a dataset standing in for one."""

    @property
    def name(self) -> str:
        """For file names; different for different content."""

    def sentences(self, half: str | None = None) -> list[tuple[str, str]]:
        """(prompt, answer) of everything that the model is to know, or of one half: `train`, of which the validation edits are
        a part, or `test`."""

    def plain_sentences(self, held_out: bool = False) -> list[str]:
        """Sentences that state no fact: to train on, or others for perplexity."""

    def words(self) -> list[str] | None:
        """Every word, if the vocabulary is closed."""

    def edits(self, split: str, count: int, seed: int = 0) -> list[Edit]:
        """`count` corrections of a split: `train` (hypernetworks learn on it), `validation` (settings are chosen on it), or
        `test`. Only `test` has facts that no training and no choice has seen. Raises `ValueError` if there are too few."""

    def stream(self, split: str, seed: int = 0) -> Iterator[Edit]:
        """Every correction of the split once."""


def check_half(half: str | None) -> None:
    if half not in (None, "train", "test"):
        raise ValueError(f"a half of the corpus is train or test, not {half!r}")
