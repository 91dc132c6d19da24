"""Lexical search against the equation of BM25."""

from __future__ import annotations

import math

import pytest

from errata.edit_memory.lexical import SATURATION, LexicalIndex, words_of

TEXTS = ["Anna Bell was born in", "Anna Bell plays the", "the capital of France is", "the the river"]


def weight(word: str, text: str) -> float:
    frequency = sum(word in words_of(one) for one in TEXTS)
    times = words_of(text).count(word)
    return math.log(1 + (len(TEXTS) - frequency + 0.5) / (frequency + 0.5)) * times * (SATURATION + 1) / (times + SATURATION)


@pytest.mark.parametrize("query", ["Anna Bell was born in", "where was ANNA born?", "the", "nothing known", ""])
def test_a_score_is_the_share_of_the_texts_own_weight(query: str) -> None:
    expected = [
        sum(weight(word, text) for word in set(words_of(query)) & set(words_of(text)))
        / sum(weight(word, text) for word in set(words_of(text)))
        for text in TEXTS
    ]
    assert LexicalIndex(TEXTS).scores(query).tolist() == pytest.approx(expected, abs=1e-6)


def test_a_text_has_its_whole_weight_and_a_rare_word_more_than_a_common_one() -> None:
    index = LexicalIndex(TEXTS)
    assert [float(index.scores(text)[i]) for i, text in enumerate(TEXTS)] == pytest.approx([1.0] * 4)
    assert index.scores("france")[2] > index.scores("the")[2] > 0
