"""Teacher forcing: predictions of each token of a given answer after the true tokens before it.

Suffixes of tensors: B rows, S positions, T answer tokens of a batch, V vocabulary, G questions of a group that shares a row,
t answer tokens of one question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from errata.edit import Question
from errata.model.encoding import IGNORED, Encoded, answer_log_probs, encode
from errata.model.language_model import LanguageModel


@dataclass(frozen=True)
class TeacherForced:
    """The predictions at the positions of an answer: the argmax token, the answer's own token, and the log p of the latter.

    `log_probs` are in nats.
    """

    argmax_tokens: tuple[int, ...]
    target_tokens: tuple[int, ...]
    log_probs: tuple[float, ...]

    @property
    def right(self) -> bool:
        """Every token of the answer is the argmax."""
        return self.argmax_tokens == self.target_tokens

    @property
    def token_accuracy(self) -> float:
        """The share of the answer's tokens that are the argmax."""
        return fmean(found == target for found, target in zip(self.argmax_tokens, self.target_tokens, strict=True))

    @property
    def log_prob(self) -> float:
        """The mean log p of the tokens, which makes answers of different lengths comparable."""
        return fmean(self.log_probs)


@torch.no_grad()
def teacher_force(
    language_model: LanguageModel, questions: Sequence[Question], batch_size: int = 64
) -> dict[Question, TeacherForced]:
    """Run the model over each (prompt, answer), without an end-of-text token.

    The last token of an answer is predicted but never read, so answers to one prompt that differ only in it share a row. Rows
    are sorted by length, which keeps padding small.
    """
    if not questions:
        return {}
    prompts, answers, _ = zip(*questions, strict=True)
    whole = encode(language_model.renderer, prompts, answers, eos=False)
    groups = _rows_that_share(whole)
    found: dict[Question, TeacherForced] = {}
    for start in range(0, len(groups), batch_size):
        batch = groups[start : start + batch_size]
        encoded = _selected(whole, [group[0] for group in batch], language_model.device)
        log_probs_TV = answer_log_probs(language_model.module, encoded)
        argmax_T = log_probs_TV.argmax(-1).tolist()
        begin = 0
        for group in batch:
            target_Gt = torch.stack([_answer(whole, i) for i in group])
            end = begin + target_Gt.shape[1]
            own_tG = log_probs_TV[begin:end].gather(1, target_Gt.T.to(log_probs_TV.device))
            for i, target_t, own_t in zip(group, target_Gt.tolist(), own_tG.T.tolist(), strict=True):
                found[questions[i]] = TeacherForced(tuple(argmax_T[begin:end]), tuple(target_t), tuple(own_t))
            begin = end
    return {question: found[question] for question in questions}


def _rows_that_share(whole: Encoded) -> list[list[int]]:
    """Group rows with equal tokens before the last one and equally many answer tokens, shortest rows first."""
    groups: dict[tuple[int, ...], list[int]] = {}
    lengths = whole.attention_mask_BS.sum(1).tolist()
    counts = (whole.labels_BS != IGNORED).sum(1).tolist()
    for i, (ids, length, count) in enumerate(zip(whole.input_ids_BS.tolist(), lengths, counts, strict=True)):
        groups.setdefault((count, *ids[: length - 1]), []).append(i)
    return sorted(groups.values(), key=lambda group: lengths[group[0]])


def _selected(whole: Encoded, rows: list[int], device: torch.device) -> Encoded:
    """Select rows, cut to the longest of them, and move them to `device`."""
    width = int(whole.attention_mask_BS[rows].sum(1).max())
    return Encoded(*(t[rows, :width].to(device) for t in (whole.input_ids_BS, whole.attention_mask_BS, whole.labels_BS)))


def _answer(whole: Encoded, row: int) -> Tensor:
    labels_S = whole.labels_BS[row]
    return labels_S[labels_S != IGNORED]
