"""Style drift: how far answers that no edit concerns move from the unedited model's own manner.

T answer tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from errata.model.encoding import answer_log_probs, answer_nll, encode
from errata.model.language_model import LanguageModel
from errata.text.dialogue import Prompt


@dataclass(frozen=True)
class Style:
    """Means over answers: their length in tokens, and -log p of a token (nats) under the unedited model."""

    length: float
    nll: float


@torch.no_grad()
def style_of(unedited: LanguageModel, answers: Mapping[Prompt, str], batch_size: int = 32) -> Style:
    """Measure the style of answers, by prompt; empty answers count as of length 0. Raises `ValueError` without a text."""
    written = [(prompt, text) for prompt, text in answers.items() if text.strip()]
    if not written:
        raise ValueError("the style of answers needs at least one that is not empty")
    lengths: list[int] = []
    means: list[float] = []
    for begin in range(0, len(written), batch_size):
        counts, nlls = _read(unedited, written[begin : begin + batch_size])
        lengths += counts
        means += nlls
    return Style(sum(lengths) / len(answers), fmean(means))


def _read(model: LanguageModel, part: Sequence[tuple[Prompt, str]]) -> tuple[list[int], list[float]]:
    """Return the number of tokens of each answer, and its mean -log p of a token."""
    encoded = encode(model.renderer, [prompt for prompt, _ in part], [text for _, text in part], model.device, eos=False)
    nll_T = answer_nll(answer_log_probs(model.module, encoded), encoded)
    counts: list[int] = encoded.predicts_BS.sum(1).tolist()
    return counts, [float(own.mean()) for own in nll_T.split(counts)]
