"""The protocol of a corpus: sentences to train a model on, and edits of its facts in splits."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Protocol

from errata.edit import Edit
from errata.guard.probes import Probes
from errata.text.dialogue import Prompt

# The two halves of a corpus, and the two folds of the first half.
FOLDS = ("train-a", "train-b")
PARTS = ("train", "test", *FOLDS)
SPLITS = (*PARTS, "validation")
NUM_QUESTIONS, NUM_SENTENCES = 256, 64


class Corpus(Protocol):
    """An invented world, or a dataset in its place."""

    @property
    def name(self) -> str:
        """A name for files, different for different content."""

    def sentences(self, part: str | None = None) -> Sequence[tuple[Prompt, str]]:
        """List (prompt, answer) of the facts to train on, or of a part of them: one of `PARTS`."""

    def plain_sentences(self, held_out: bool = False) -> list[str]:
        """List sentences that state no fact, to train on; the ones held out are for perplexity."""

    def notes(self, held_out: bool = False) -> Sequence[tuple[str, str]]:
        """List (a note and a prompt, the answer by the note) to train on, or held out; none if the corpus has no notes."""

    def words(self) -> list[str] | None:
        """List every word if the vocabulary is closed, otherwise return None."""

    def edits(self, split: str, count: int, seed: int = 0) -> list[Edit]:
        """Draw `count` edits of a split: `train` for hypernetworks, one of its folds, `validation` to choose settings, `test`.

        Only `test` has facts that neither a training nor a choice of settings has seen. The sentences of `train-a` do not
        contain the facts of `validation`. Raises `ValueError` if the split has fewer facts.
        """

    def stream(self, split: str, seed: int = 0) -> Iterator[Edit]:
        """Yield every edit of the split once."""


def probes_of(corpus: Corpus) -> Probes:
    """Make the guard's probes of a model trained on the corpus: facts that no test edit changes, and held-out sentences."""
    questions = tuple(dict.fromkeys(str(prompt) for prompt, _ in corpus.sentences("train")))
    return Probes(questions, tuple(corpus.plain_sentences(held_out=True))).sample(NUM_QUESTIONS, NUM_SENTENCES)


def texts_of(corpus: Corpus, part: str | None, limit: int, seed: int) -> list[tuple[Prompt, str]]:
    """Draw at most `limit` texts for the second moment of a model's keys: facts with their answers, and plain sentences.

    A sentence is split after its first word.
    """
    found = list(corpus.sentences(part))
    for sentence in corpus.plain_sentences():
        first, rest = sentence.split(" ", 1)
        found.append((first, rest))
    return random.Random(seed).sample(found, limit) if len(found) > limit else found


def check_part(part: str | None) -> None:
    """Raise `ValueError` for an unknown part."""
    if part is not None and part not in PARTS:
        raise ValueError(f"a part of the corpus is {', '.join(PARTS)}, not {part!r}")


def check_split(split: str) -> None:
    """Raise `ValueError` for an unknown split."""
    if split not in SPLITS:
        raise ValueError(f"a split is one of {', '.join(SPLITS)}, not {split!r}")
