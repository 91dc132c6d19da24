"""What a model makes of an answer that is given to it, token by token after the true ones before it (teacher forcing)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from errata.evaluate.questions import Question
from errata.model.encoding import IGNORED, Encoded, answer_log_probs, encode
from errata.model.language_model import LanguageModel


@dataclass(frozen=True)
class TeacherForced:
    """Of each of the answer's tokens: the id that the model ranks first in its place, its own id, and its log p in nats."""

    ranked_first: tuple[int, ...]
    wanted: tuple[int, ...]
    log_probs: tuple[float, ...]

    @property
    def right(self) -> bool:
        """Every token is ranked first."""
        return self.ranked_first == self.wanted

    @property
    def share_right(self) -> float:
        return fmean(found == wanted for found, wanted in zip(self.ranked_first, self.wanted, strict=True))

    @property
    def log_prob(self) -> float:
        """Mean over the tokens, so that a long answer is not the less likely for its length."""
        return fmean(self.log_probs)


@torch.no_grad()
def teacher_force(
    language_model: LanguageModel, questions: Sequence[Question], batch_size: int = 64
) -> dict[Question, TeacherForced]:
    """Of each (prompt, answer), without the end-of-text token.

    The last token of an answer is predicted and never read: answers that differ in it alone, as all of one token to one prompt,
    share a row. Rows of about one length are run together.
    """
    if not questions:
        return {}
    prompts, answers = zip(*questions, strict=True)
    whole = encode(language_model.tokenizer, prompts, answers, eos=False)
    sharing = _sharing(whole)
    found: dict[Question, TeacherForced] = {}
    for start in range(0, len(sharing), batch_size):
        batch = sharing[start : start + batch_size]
        encoded = _chosen(whole, [group[0] for group in batch], language_model.device)
        log_probs_TV = answer_log_probs(language_model.module, encoded)
        ranked_first_T = log_probs_TV.argmax(-1).tolist()
        begin = 0
        for group in batch:
            wanted_Gt = torch.stack([_answer(whole, i) for i in group])
            end = begin + wanted_Gt.shape[1]
            own_tG = log_probs_TV[begin:end].gather(1, wanted_Gt.T.to(log_probs_TV.device))
            for i, wanted_t, own_t in zip(group, wanted_Gt.tolist(), own_tG.T.tolist(), strict=True):
                found[questions[i]] = TeacherForced(tuple(ranked_first_T[begin:end]), tuple(wanted_t), tuple(own_t))
            begin = end
    return {question: found[question] for question in questions}


def _sharing(whole: Encoded) -> list[list[int]]:
    """The rows with the same tokens before their last and as many answer tokens, shortest first."""
    groups: dict[tuple[int, ...], list[int]] = {}
    lengths = whole.attention_mask_BS.sum(1).tolist()
    counts = (whole.labels_BS != IGNORED).sum(1).tolist()
    for i, (ids, length, count) in enumerate(zip(whole.input_ids_BS.tolist(), lengths, counts, strict=True)):
        groups.setdefault((count, *ids[: length - 1]), []).append(i)
    return sorted(groups.values(), key=lambda group: lengths[group[0]])


def _chosen(whole: Encoded, rows: list[int], device: torch.device) -> Encoded:
    width = int(whole.attention_mask_BS[rows].sum(1).max())
    return Encoded(*(t[rows, :width].to(device) for t in (whole.input_ids_BS, whole.attention_mask_BS, whole.labels_BS)))


def _answer(whole: Encoded, row: int) -> Tensor:
    labels_S = whole.labels_BS[row]
    return labels_S[labels_S != IGNORED]
