"""Whether longer texts are still varied (fluency) and speak of what they should (consistency): ROME's scores of generations.

They come from arXiv 2202.05262, section 3.4. Unlike there, the texts are greedy, and a text's words are what stands between
spaces: figures compare with each other, and with the unedited model's, rather than with a paper's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np

WEIGHTS = {2: 2 / 3, 3: 4 / 3}  # of bigrams and trigrams, as ROME's code has them


def entropy_bits(words: Sequence[str], n: int) -> float:
    """Of the distribution of a text's n-grams; 0 for a text that has none, or says one thing over and over."""
    counts_G = np.array(list(Counter(zip(*(words[i:] for i in range(n)), strict=False)).values()), dtype=float)
    shares_G = counts_G / counts_G.sum() if len(counts_G) else counts_G
    return float(-(shares_G * np.log2(shares_G)).sum()) + 0.0


def fluencies(texts: Mapping[str, str]) -> dict[str, float]:
    """Of each text the mean of 2/3 of the bigrams' and 4/3 of the trigrams' entropy, in bits; texts are by their prompts.

    A text of w different words has (log2(w - 1) + 2 log2(w - 2)) / 3, the most that w words can have.
    """
    split = {prompt: text.split() for prompt, text in texts.items()}
    return {prompt: fmean(w * entropy_bits(words, n) for n, w in WEIGHTS.items()) for prompt, words in split.items()}


def consistencies(texts: Mapping[str, str], references: Mapping[str, str]) -> dict[str, float]:
    """Cosine, 0 to 1, of the TF-IDF vectors of what follows a prompt and of its reference text.

    Both are by prompt; prompts without a reference are left out. How rare a word is, is counted over all these texts and
    references: smoothed, as scikit-learn has it, whose vectors these are.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    asked = [prompt for prompt in texts if prompt in references]
    both = [texts[prompt] for prompt in asked] + [references[prompt] for prompt in asked]
    if not any(text.split() for text in both):
        return dict.fromkeys(asked, 0.0)
    vectors = TfidfVectorizer(token_pattern=r"\S+").fit_transform(both)  # rows of length 1, or 0 for an empty text
    said, wanted = vectors[: len(asked)], vectors[len(asked) :]
    return dict(zip(asked, np.asarray(said.multiply(wanted).sum(axis=1)).ravel().tolist(), strict=True))
