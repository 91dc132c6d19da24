"""What a model is made from and edited on: true sentences, plain ones, and corrections in splits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from errata.edit import Edit
from errata.guard.probes import Probes

# Two halves, and the two folds of the first.
FOLDS = ("train-a", "train-b")
PARTS = ("train", "test", *FOLDS)
SPLITS = (*PARTS, "validation")
NUM_QUESTIONS, NUM_SENTENCES = 256, 64


class Corpus(Protocol):
    """A world, or a dataset standing in for one."""

    @property
    def name(self) -> str:
        """For file names; different for different content."""

    def sentences(self, part: str | None = None) -> list[tuple[str, str]]:
        """(prompt, answer) of everything that the model is to know, or of a part of it: one of `PARTS`."""

    def plain_sentences(self, held_out: bool = False) -> list[str]:
        """Sentences that state no fact: to train on, or others for perplexity."""

    def words(self) -> list[str] | None:
        """Every word, if the vocabulary is closed."""

    def edits(self, split: str, count: int, seed: int = 0) -> list[Edit]:
        """`count` corrections of a split: `train` (hypernetworks learn on it) or one fold of it, `validation` (settings are
        chosen on it), or `test`. Only `test` has facts that no training and no choice has seen; of the facts of `validation`
        the sentences of `train-a` say nothing. Raises `ValueError` if there are too few."""

    def stream(self, split: str, seed: int = 0) -> Iterator[Edit]:
        """Every correction of the split once."""


def probes_of(corpus: Corpus) -> Probes:
    """For the guard of a model that has learned the corpus: facts that no test edit touches, and sentences held out."""
    questions = tuple(dict.fromkeys(prompt for prompt, _ in corpus.sentences("train")))
    return Probes(questions, tuple(corpus.plain_sentences(held_out=True))).sample(NUM_QUESTIONS, NUM_SENTENCES)


def check_part(part: str | None) -> None:
    if part is not None and part not in PARTS:
        raise ValueError(f"a part of the corpus is {', '.join(PARTS)}, not {part!r}")


def check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"a split is one of {', '.join(SPLITS)}, not {split!r}")
