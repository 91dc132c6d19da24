"""Index of the words of held edits: which of them have given words in their prompts, and which have most words in common."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterable

from errata.edit_memory.subjects import Words, plain_words
from errata.guard.held_edits import HeldEdit


class WordIndex:
    """Words of the prompts, in the form in which a subject's words are known."""

    def __init__(self) -> None:
        self.words: dict[HeldEdit, frozenset[str]] = {}
        self.having: dict[str, dict[HeldEdit, None]] = {}

    def update(self, held: Iterable[HeldEdit]) -> None:
        """Index these edits, and no others."""
        now = dict.fromkeys(held)
        for gone in [one for one in self.words if one not in now]:
            for word in self.words.pop(gone):
                del self.having[word][gone]
                if not self.having[word]:
                    del self.having[word]
        for one in now.keys() - self.words.keys():
            self.words[one] = frozenset(plain_words(one.edit.prompt))
            for word in self.words[one]:
                self.having.setdefault(word, {})[one] = None

    def with_all(self, words: Words) -> list[HeldEdit]:
        """Return the edits whose prompts have all of these words, in any order; none for no words."""
        rarest = min(words, key=lambda word: len(self.having.get(word, ())), default="")
        return [one for one in self.having.get(rarest, ()) if self.words[one].issuperset(words)]

    def nearest(self, text: str, count: int) -> list[HeldEdit]:
        """Return at most `count` edits that share words with a text, those first whose shared words are rarest together."""
        score = Counter[HeldEdit]()
        for word in frozenset(plain_words(text)):
            having = self.having.get(word, {})
            rarity = math.log(1 + len(self.words) / (1 + len(having)))
            for one in having:
                score[one] += rarity  # type: ignore[assignment]
        return heapq.nsmallest(count, score, key=lambda one: (-score[one], one.rank))
