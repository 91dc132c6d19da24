"""Lexical search: BM25 of a query in each text, as a share of what the text's own words would have.

D texts of an index. A library such as bm25s can take the place of `LexicalIndex`: it is asked by `scores` alone.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

_WORD = re.compile(r"\w+")
SATURATION = 1.2  # k1 of BM25. Its length normalisation is left out, because a score is a share of the text's own.


def words_of(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


class LexicalIndex:
    """An index of short texts."""

    def __init__(self, texts: Sequence[str]) -> None:
        counts = [Counter(words_of(text)) for text in texts]
        frequency = Counter(word for count in counts for word in count)
        self.num_texts = len(texts)
        self.postings: dict[str, list[tuple[int, float]]] = {}
        own = [0.0] * len(texts)
        for index, count in enumerate(counts):
            for word, times in count.items():
                rarity = math.log(1 + (len(texts) - frequency[word] + 0.5) / (frequency[word] + 0.5))
                weight = rarity * times * (SATURATION + 1) / (times + SATURATION)
                self.postings.setdefault(word, []).append((index, weight))
                own[index] += weight
        self.own_D = torch.tensor(own).clamp_min(1e-9)

    def scores(self, query: str) -> Tensor:
        """Return for each text the share of its weight that the query's words have, from 0 to 1, [D]."""
        found = [0.0] * self.num_texts
        for word in set(words_of(query)):
            for index, weight in self.postings.get(word, ()):
                found[index] += weight
        return torch.tensor(found) / self.own_D
