"""Perplexity on sentences that state no fact, which edits should leave unchanged.

Suffixes of arrays: R resamples, N sentences, B rows, S positions, T predicted tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np
import torch

from errata.evaluate.bootstrap import Interval, paired_interval
from errata.model.encoding import IGNORED, answer_log_probs, answer_nll, encode_text
from errata.model.language_model import LanguageModel


@dataclass(frozen=True)
class Perplexities:
    """The perplexity of each sentence: exp of the mean -log p of all tokens after the first; infinite if that is not finite."""

    by_sentence: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean over sentences, as papers report it; a single broken sentence dominates it."""
        return fmean(self.by_sentence)

    @property
    def median(self) -> float:
        """The median over sentences, insensitive to a few broken ones."""
        return float(median(self.by_sentence))

    @property
    def mean_log(self) -> float:
        """The geometric mean over sentences, less sensitive to outliers than the mean and more than the median."""
        return math.exp(fmean(map(math.log, self.by_sentence)))

    @property
    def max(self) -> float:
        """The perplexity of the worst sentence."""
        return max(self.by_sentence)

    def ratios_to(self, before: Perplexities) -> dict[str, float]:
        """Divide each statistic by that of `before`: `ppl_ratio` for the median, `ppl_ratio_STATISTIC` for the others."""
        names = {"ppl_ratio": "median", **{f"ppl_ratio_{name}": name for name in ("mean", "mean_log", "max")}}
        return {name: getattr(self, statistic) / getattr(before, statistic) for name, statistic in names.items()}

    def intervals_to(self, before: Perplexities) -> dict[str, Interval]:
        """Bootstrap these ratios over sentences, except the maximum, which no resample can exceed."""
        statistics: dict[str, Callable[..., np.ndarray]] = {"ppl_ratio": np.median, "ppl_ratio_mean": np.mean}
        statistics["ppl_ratio_mean_log"] = _mean_log
        return {name: paired_interval(of, self.by_sentence, before.by_sentence) for name, of in statistics.items()}


def _mean_log(values_RN: np.ndarray, axis: int) -> np.ndarray:
    return np.exp(np.log(values_RN).mean(axis=axis))


@torch.no_grad()
def perplexities(language_model: LanguageModel, sentences: Sequence[str], batch_size: int = 64) -> Perplexities:
    """Compute the perplexity of each sentence, cut to the model's context.

    Raises `ValueError` without sentences and for a sentence of a single token.
    """
    if not sentences:
        raise ValueError("perplexity needs at least one sentence; none was given")
    tokenizer, limit = language_model.tokenizer, language_model.max_tokens
    found: list[float] = []
    for start in range(0, len(sentences), batch_size):
        batch = sentences[start : start + batch_size]
        encoded = encode_text(tokenizer, batch, limit, language_model.device)
        if short := [s for s, mask in zip(batch, encoded.attention_mask_BS, strict=True) if int(mask.sum()) < 2]:
            raise ValueError(f"a sentence needs at least two tokens for a perplexity; leave these out: {short[:5]}")
        nll_T = answer_nll(answer_log_probs(language_model.module, encoded), encoded)
        counts = (encoded.labels_BS != IGNORED).sum(1).tolist()
        found += [float(part.mean().exp().nan_to_num(math.inf, math.inf)) for part in nll_T.split(counts)]
    return Perplexities(tuple(found))


def perplexity(language_model: LanguageModel, sentences: Sequence[str], batch_size: int = 64) -> float:
    """Return the median perplexity over sentences, which one broken sentence does not dominate; raises like `perplexities`."""
    return perplexities(language_model, sentences, batch_size).median
