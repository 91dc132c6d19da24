"""Offsets of the input embeddings of subjects: the search for them, and the attribution of an old answer to these embeddings.

G subjects, N tokens of all subjects, B rows, S sequence, P places of subjects' tokens in the rows, T answer tokens, D embedding
size, K scaled copies of one subject's tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from errata.model.encoding import Encoded, GivenAnswer, answer_log_probs, answer_nll, padded
from errata.model.language_model import LanguageModel

NUM_SCALES, SMALLEST_SCALE = 20, 1e-4  # of the integrated gradients


@dataclass(frozen=True)
class SubjectText:
    """A prompt with an answer, and where the tokens of a subject begin in it.

    The answer of an anchor, a text after which the next word must not change, is one token of any kind.
    """

    tokens: GivenAnswer
    at: int
    is_anchor: bool = False


@dataclass(frozen=True)
class OffsetSearch:
    """Constants of the search; the names of the published code are in brackets.

    Gradient steps with Adam (`v_num_grad_steps`, `v_lr`), the weights of an anchor's KL (`kl_factor`) and of the offset's norm
    (`v_weight_decay`), and the largest norm as a share of the embeddings' (`clamp_norm_factor`).
    """

    num_steps: int = 25
    learning_rate: float = 0.02
    kl_weight: float = 0.2
    norm_weight: float = 0.3
    max_norm: float = 1.0


class SubjectTexts:
    """The texts of several subjects as one batch, read with offsets at the subjects' tokens."""

    def __init__(self, model: LanguageModel, texts: Sequence[Sequence[SubjectText]], subjects: Sequence[Sequence[int]]) -> None:
        own = [(group, text) for group, each in enumerate(texts) for text in each]
        device, self.model, self.num_subjects = model.device, model, len(subjects)
        self.encoded = padded([text.tokens for _, text in own], model.renderer.pad_id, device)
        width = self.encoded.input_ids_BS.shape[1]
        begins = torch.tensor([0, *map(len, subjects)]).cumsum(0).tolist()
        places = [
            (row * width + text.at + i, begins[group] + i)
            for row, (group, text) in enumerate(own)
            for i in range(len(subjects[group]))
        ]
        self.place_P, self.source_P = torch.tensor(places, device=device).T
        self.group_N = torch.repeat_interleave(torch.arange(self.num_subjects), torch.tensor([*map(len, subjects)])).to(device)
        row_T = torch.repeat_interleave(torch.arange(len(own)), torch.tensor(self.encoded.answer_lengths))
        self.group_T = torch.tensor([group for group, _ in own])[row_T].to(device)
        self.is_anchor_T = torch.tensor([text.is_anchor for _, text in own])[row_T].to(device)
        # The rows of a subject, and the answer tokens of one, have equal weights.
        num_rows_G = torch.tensor([sum(not text.is_anchor for text in each) for each in texts])
        tokens_B = torch.tensor(self.encoded.answer_lengths)
        self.share_T = 1.0 / (tokens_B[row_T].to(device) * num_rows_G.to(device)[self.group_T])

    def log_probs(self, offset_ND: Tensor) -> Tensor:
        """Return log p at the answer tokens with the offsets added to the embeddings, [T, V]."""

        def add(output_BSD: Tensor) -> Tensor:
            flat = output_BSD.flatten(0, 1)
            return flat.index_add(0, self.place_P, offset_ND[self.source_P].to(flat)).view_as(output_BSD)

        with embeddings_changed(self.model, add):
            return answer_log_probs(self.model.module, self.encoded)

    def sums(self, values_T: Tensor, where_T: Tensor) -> Tensor:
        """Sum values over the answer tokens of each subject, [G]."""
        return values_T.new_zeros(self.num_subjects).index_add(0, self.group_T[where_T], values_T[where_T])


@contextmanager
def embeddings_changed(model: LanguageModel, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Pass the input embeddings of every pass through `change` inside the block."""
    handle = model.module.get_input_embeddings().register_forward_hook(lambda _module, _args, output: change(output))
    try:
        yield
    finally:
        handle.remove()


def searched(texts: SubjectTexts, embedding_ND: Tensor, search: OffsetSearch) -> tuple[Tensor, Tensor]:
    """Return the offsets of all subjects, [N, D], and the last loss of each, [G].

    The loss of a subject is the mean -log p of its targets + kl_weight KL(anchor) + norm_weight |delta| / |E|^2. A search ends
    early as in the published code: where the loss is below 0.8 kl_weight, or all targets rank first at an anchor's KL below
    0.01. While they rank first, -log p counts half.
    """
    norm_G = _norms(texts, embedding_ND)
    offset_ND = embedding_ND.clone().requires_grad_()
    optimizer = torch.optim.Adam([offset_ND], lr=search.learning_rate)
    with torch.no_grad():
        plain_TV = texts.log_probs(torch.zeros_like(embedding_ND))[texts.is_anchor_T]
    done_G = torch.zeros(texts.num_subjects, dtype=torch.bool, device=embedding_ND.device)
    for _ in range(search.num_steps):
        with torch.enable_grad():
            nll_G, kl_G, is_first_G = _losses(texts, offset_ND, plain_TV)
            loss_G = torch.where(is_first_G, 0.5, 1.0) * nll_G + search.kl_weight * kl_G
            loss_G = loss_G + search.norm_weight * _norms(texts, offset_ND) / norm_G.square()
            optimizer.zero_grad()
            offset_ND.grad = torch.autograd.grad(loss_G.sum(), offset_ND)[0]
        done_G |= (loss_G.detach() < 0.8 * search.kl_weight) | (is_first_G & (kl_G.detach() < 0.01))
        if bool(done_G.all()):
            break
        before_ND = offset_ND.detach().clone()
        optimizer.step()
        with torch.no_grad():
            shrunk_G = (search.max_norm * norm_G / _norms(texts, offset_ND)).clamp(max=1.0)
            moved_ND = offset_ND * shrunk_G[texts.group_N, None]
            offset_ND.copy_(torch.where(done_G[texts.group_N, None], before_ND, moved_ND))
    return offset_ND.detach(), loss_G.detach()


def _norms(texts: SubjectTexts, rows_ND: Tensor) -> Tensor:
    squared_G = rows_ND.new_zeros(texts.num_subjects).index_add(0, texts.group_N, rows_ND.square().sum(1))
    return squared_G.clamp_min(1e-12).sqrt()


def _losses(texts: SubjectTexts, offset_ND: Tensor, plain_TV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return each subject's mean -log p of the targets, its anchor's KL, and whether all its targets rank first."""
    log_probs_TV = texts.log_probs(offset_ND)
    is_answer_T = ~texts.is_anchor_T
    nll_T = answer_nll(log_probs_TV, texts.encoded)
    anchor_TV = log_probs_TV[texts.is_anchor_T]
    kl_T = torch.zeros_like(nll_T).masked_scatter(texts.is_anchor_T, (plain_TV.exp() * (plain_TV - anchor_TV)).sum(1))
    is_wrong_T = (log_probs_TV.argmax(1) != texts.encoded.targets_T).float()
    is_first_G = texts.sums(is_wrong_T, is_answer_T) == 0
    return texts.sums(nll_T * texts.share_T, is_answer_T), texts.sums(kl_T, texts.is_anchor_T), is_first_G


def attributions(model: LanguageModel, given: Sequence[int], old: Sequence[int], at: int, num_tokens: int) -> Tensor:
    """Return the integrated gradients of P(old answer) with respect to the embeddings of a subject's tokens, [m, D].

    A[t] = E[t] * the mean over scales c of dP / dE[t] at c E[t], the other tokens as they are; for an answer of several tokens
    the mean over these, each after those before it.
    """
    scale_c = torch.linspace(SMALLEST_SCALE, 1.0, NUM_SCALES, device=model.device)
    rows = [(list(given), list(old))] * (num_tokens * NUM_SCALES)
    encoded: Encoded = padded(rows, model.renderer.pad_id, model.device)
    embedding_mD = embeddings_of(model, given[at : at + num_tokens])
    scaled_KD = (embedding_mD[:, None] * scale_c[:, None]).flatten(0, 1).requires_grad_()
    row_K = torch.arange(len(rows), device=model.device)
    place_K = row_K * encoded.input_ids_BS.shape[1] + at + row_K // NUM_SCALES

    def put(output_BSD: Any) -> Any:
        flat = output_BSD.flatten(0, 1)
        return flat.index_copy(0, place_K, scaled_KD.to(flat)).view_as(output_BSD)

    with torch.enable_grad(), embeddings_changed(model, put):
        nll_T = answer_nll(answer_log_probs(model.module, encoded), encoded)
        (grad_KD,) = torch.autograd.grad((-nll_T).exp().sum() / len(old), scaled_KD)
    return embedding_mD * grad_KD.view(num_tokens, NUM_SCALES, -1).mean(1)


@torch.no_grad()
def embeddings_of(model: LanguageModel, ids: Sequence[int]) -> Tensor:
    """Return the input embeddings of tokens in fp32, [N, D]."""
    embedded_ND: Tensor = model.module.get_input_embeddings()(torch.tensor(list(ids), device=model.device))
    return embedded_ND.float()
