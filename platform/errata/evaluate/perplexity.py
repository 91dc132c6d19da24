"""Perplexity on sentences that state no fact: whether a model still writes as it did."""

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
    """exp(mean -log p of every token but the first), by sentence; infinite where the model's numbers are not finite."""

    by_sentence: tuple[float, ...]

    @property
    def mean(self) -> float:
        """What papers report; one sentence that an edit broke rules it."""
        return fmean(self.by_sentence)

    @property
    def median(self) -> float:
        return float(median(self.by_sentence))

    @property
    def mean_log(self) -> float:
        """exp(mean log): the geometric mean, between the two others in how it takes an outlier."""
        return math.exp(fmean(map(math.log, self.by_sentence)))

    @property
    def max(self) -> float:
        return max(self.by_sentence)

    def ratios_to(self, before: Perplexities) -> dict[str, float]:
        """By that of `before`: `ppl_ratio` is of the medians, the others are named by what they are of."""
        names = {"ppl_ratio": "median", **{f"ppl_ratio_{name}": name for name in ("mean", "mean_log", "max")}}
        return {name: getattr(self, statistic) / getattr(before, statistic) for name, statistic in names.items()}

    def intervals_to(self, before: Perplexities) -> dict[str, Interval]:
        """Of these ratios, over resampled sentences. A maximum has none: a resample never holds a larger one."""
        statistics: dict[str, Callable[..., np.ndarray]] = {"ppl_ratio": np.median, "ppl_ratio_mean": np.mean}
        statistics["ppl_ratio_mean_log"] = _mean_log
        return {name: paired_interval(of, self.by_sentence, before.by_sentence) for name, of in statistics.items()}


def _mean_log(values_RN: np.ndarray, axis: int) -> np.ndarray:
    return np.exp(np.log(values_RN).mean(axis=axis))


@torch.no_grad()
def perplexities(language_model: LanguageModel, sentences: Sequence[str], batch_size: int = 64) -> Perplexities:
    """Each sentence is cut to the model's context. Raises `ValueError` without sentences, and for one of a single token."""
    if not sentences:
        raise ValueError("perplexity needs at least one sentence")
    tokenizer, limit = language_model.tokenizer, language_model.max_tokens
    found: list[float] = []
    for start in range(0, len(sentences), batch_size):
        batch = sentences[start : start + batch_size]
        encoded = encode_text(tokenizer, batch, limit, language_model.device)
        if short := [s for s, mask in zip(batch, encoded.attention_mask_BS, strict=True) if int(mask.sum()) < 2]:
            raise ValueError(f"a sentence needs two tokens to have a perplexity; these do not have them: {short[:5]}")
        nll_T = answer_nll(answer_log_probs(language_model.module, encoded), encoded)
        counts = (encoded.labels_BS != IGNORED).sum(1).tolist()
        found += [float(part.mean().exp().nan_to_num(math.inf, math.inf)) for part in nll_T.split(counts)]
    return Perplexities(tuple(found))


def perplexity(language_model: LanguageModel, sentences: Sequence[str], batch_size: int = 64) -> float:
    """The median over sentences: one that an edit broke would otherwise hide all others. Raises as `perplexities` does."""
    return perplexities(language_model, sentences, batch_size).median
