"""Fluency (n-gram entropy) and consistency (TF-IDF similarity) of longer generated texts, as ROME scores them.

Source: arXiv 2202.05262, section 3.4. Deviations: texts are greedy instead of sampled, and words are split at spaces instead of
by NLTK. The values are comparable with those of the unedited model, not with a paper's.

Suffix of arrays: G distinct n-grams.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np

WEIGHTS = {2: 2 / 3, 3: 4 / 3}  # of bigram and trigram entropy, from ROME's code


def entropy_bits(words: Sequence[str], n: int) -> float:
    """Return the entropy of the n-gram distribution of a text; 0 if the text has no n-gram or a single distinct one."""
    counts_G = np.array(list(Counter(zip(*(words[i:] for i in range(n)), strict=False)).values()), dtype=float)
    shares_G = counts_G / counts_G.sum() if len(counts_G) else counts_G
    return float(-(shares_G * np.log2(shares_G)).sum()) + 0.0


def fluencies(texts: Mapping[str, str]) -> dict[str, float]:
    """Return the fluency of each text in bits, by prompt: the mean of 2/3 bigram entropy and 4/3 trigram entropy.

    Its maximum for w words, all different, is (log2(w - 1) + 2 log2(w - 2)) / 3.
    """
    split = {prompt: text.split() for prompt, text in texts.items()}
    return {prompt: fmean(w * entropy_bits(words, n) for n, w in WEIGHTS.items()) for prompt, words in split.items()}


def consistencies(texts: Mapping[str, str], references: Mapping[str, str]) -> dict[str, float]:
    """Return the cosine similarity, 0 to 1, of the TF-IDF vectors of each text and its reference, by prompt.

    Prompts without a reference are left out. Document frequencies are counted over all these texts and references, with
    scikit-learn's smoothed IDF.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    asked = [prompt for prompt in texts if prompt in references]
    both = [texts[prompt] for prompt in asked] + [references[prompt] for prompt in asked]
    if not any(text.split() for text in both):
        return dict.fromkeys(asked, 0.0)
    vectors = TfidfVectorizer(token_pattern=r"\S+").fit_transform(both)  # rows of norm 1, or 0 for an empty text
    generated, wanted = vectors[: len(asked)], vectors[len(asked) :]
    return dict(zip(asked, np.asarray(generated.multiply(wanted).sum(axis=1)).ravel().tolist(), strict=True))
