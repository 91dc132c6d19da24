"""Packed texts: those that begin alike, such as with a chat template's system prompt, share one row and one reading of it.

An attention mask keeps the texts of a row apart, and each token has the position of its own text. Log probabilities are those
of rows of their own up to rounding; fewer tokens are read, and fewer are padding.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from errata.edit import Row
from errata.model.encoding import IGNORED, Encoded, answer_log_probs, padded
from errata.model.generation import attends_to_all
from errata.model.language_model import LanguageModel

MIN_SHARED = 16  # tokens with which texts begin alike, from which on packing pays
MAX_PACKED = 256  # tokens of a row's texts without their beginning; attention computes all pairs of them
NUM_CHECKED = 3  # texts of the self-check
MAX_ERROR = 0.05  # mean difference of their log probabilities, over their standard deviation

GivenAnswer = tuple[list[int], list[int]]  # The tokens of a prompt, and those of its answer.


def packed(model: LanguageModel, rows: Sequence[GivenAnswer]) -> Encoded:
    """Return rows of (given tokens, answer tokens) as one batch: packed, where many begin alike and the model can read it."""
    packs = _packs(rows)
    if any(pack.shared for pack in packs) and _can_pack(model, packs):
        return _together(packs, model.renderer.pad_id, model.device)
    return padded(rows, model.renderer.pad_id, model.device)


def packed_requests(model: LanguageModel, rows: Sequence[Row]) -> Encoded:
    """Render the requests of a batch with their answers, and the end token, as `packed` does."""
    rendered = model.renderer.rows([(row.prompt, row.answer) for row in rows], close=True)
    return packed(model, [(list(given), list(answer)) for given, answer in rendered])


@dataclass(frozen=True)
class Packed(Encoded):
    """Packed texts. `text_BS` numbers those of a row from 1, in order; 0 is the beginning that they share."""

    text_BS: Tensor

    @cached_property
    def answer_lengths(self) -> list[int]:
        rows = zip(self.text_BS, self.predicts_BS, strict=True)
        counts = [torch.bincount(text_S[predicts_S], minlength=int(text_S.max()) + 1)[1:] for text_S, predicts_S in rows]
        return torch.cat(counts).tolist()

    def arguments(self, dtype: torch.dtype) -> dict[str, Tensor]:
        return {"input_ids": self.input_ids_BS, "attention_mask": self._mask_B1SS(dtype), "position_ids": self.position_BS}

    @cached_property
    def position_BS(self) -> Tensor:
        """The place of each token in its own text, which starts with the shared beginning."""
        place_BS = torch.arange(self.text_BS.shape[1], device=self.text_BS.device).expand_as(self.text_BS)
        begins_BS = nn.functional.pad(self.text_BS.diff(dim=1) != 0, (1, 0), value=True)
        first_BS = (place_BS * begins_BS).cummax(1).values
        num_shared_B1 = (self.text_BS == 0).sum(1, keepdim=True)
        return place_BS - first_BS + num_shared_B1 * (self.text_BS > 0)

    def _mask_B1SS(self, dtype: torch.dtype) -> Tensor:
        """Return what is added to the attention logits: a token sees those before it in its own text, and itself."""
        is_same_BSS = (self.text_BS[:, :, None] == self.text_BS[:, None]) | (self.text_BS[:, None] == 0)
        seen_BSS = is_same_BSS.tril() & self.attention_mask_BS.bool()[:, None]
        seen_BSS |= torch.eye(self.text_BS.shape[1], dtype=torch.bool, device=self.text_BS.device)  # Padding sees itself alone.
        return torch.zeros_like(seen_BSS, dtype=dtype).masked_fill(~seen_BSS, torch.finfo(dtype).min)[:, None]


@dataclass
class _Pack:
    """Texts of one row, of which the first `shared` tokens are the same."""

    texts: list[GivenAnswer]
    shared: int

    @property
    def num_own(self) -> int:
        """The number of tokens without the beginning."""
        return sum(len(given) + len(answer) - self.shared for given, answer in self.texts)


def _packs(rows: Sequence[GivenAnswer]) -> list[_Pack]:
    """Split rows, in order, into packs of about the same length: runs of texts that begin alike, and the texts between them."""
    runs: list[_Pack] = []
    next_shared = [_num_shared(one[0], other[0]) for one, other in pairwise(rows)] + [0]
    for row, ahead in zip(rows, next_shared, strict=True):
        run = runs[-1] if runs else None
        together = 0 if run is None else min(_num_shared(run.texts[0][0], row[0]), run.shared)
        if run is not None and together >= MIN_SHARED:
            run.texts.append(row)
            run.shared = together
        elif run is not None and run.shared < MIN_SHARED and ahead < MIN_SHARED:
            run.texts.append(row)
            run.shared = 0
        else:
            # A text that is followed by one alike begins a run that they share; a single one shares nothing.
            runs.append(_Pack([row], len(row[0]) - 1 if ahead >= MIN_SHARED else 0))
    return [part for run in runs for part in _parts(run)]


def _parts(run: _Pack) -> list[_Pack]:
    """Split a run into as few packs as its length allows, all about as long."""
    count = -(-run.num_own // MAX_PACKED)
    length = run.num_own / max(count, 1)
    parts, before = [_Pack([], run.shared)], 0
    for given, answer in run.texts:
        if parts[-1].texts and before >= length * len(parts):
            parts.append(_Pack([], run.shared))
        parts[-1].texts.append((given, answer))
        before += len(given) + len(answer) - run.shared
    return parts


def _num_shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two prompts begin with alike; each keeps one of its own, which predicts its answer."""
    limit = min(len(one), len(other)) - 1
    return next((i for i in range(limit) if one[i] != other[i]), max(limit, 0))


def _together(packs: Sequence[_Pack], pad: int, device: Any) -> Packed:
    """Join the texts of each pack behind their beginning, and pad the packs on the right."""
    width = max(pack.shared + pack.num_own for pack in packs)
    ids_BS, mask_BS, labels_BS, text_BS = list[list[int]](), list[list[int]](), list[list[int]](), list[list[int]]()
    for pack in packs:
        ids, labels, text = pack.texts[0][0][: pack.shared], [IGNORED] * pack.shared, [0] * pack.shared
        for number, (given, answer) in enumerate(pack.texts, 1):
            own = given[pack.shared :]
            ids = ids + own + answer
            labels = labels + [IGNORED] * len(own) + answer
            text = text + [number] * (len(own) + len(answer))
        rest = width - len(ids)
        ids_BS.append(ids + [pad] * rest)
        mask_BS.append([1] * len(ids) + [0] * rest)
        labels_BS.append(labels + [IGNORED] * rest)
        text_BS.append(text + text[-1:] * rest)
    return Packed(*(torch.tensor(lists, device=device) for lists in (ids_BS, mask_BS, labels_BS, text_BS)))


_CHECKED: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()  # By module, if it reads packed texts right.


def _can_pack(model: LanguageModel, packs: Sequence[_Pack]) -> bool:
    """Say if a model reads packed texts as it reads rows of their own; tried once, on some of these texts.

    A repetition penalty looks at whole rows, and a window or a recurrent state passes over the ends of texts.
    """
    module = model.module
    if module not in _CHECKED:
        is_alike = model.repetition_penalty == 1.0 and _takes_masks(module) and attends_to_all(module)
        _CHECKED[module] = is_alike and _reads_alike(model, next(pack for pack in packs if pack.shared))
    return _CHECKED[module]


def _takes_masks(module: Any) -> bool:
    """Say if the model takes positions and a mask for each pair of tokens."""
    attention, parameters = module.config._attn_implementation, inspect.signature(module.forward).parameters
    return attention in ("eager", "sdpa") and "position_ids" in parameters and not getattr(module.config, "alibi", False)


@torch.no_grad()
def _reads_alike(model: LanguageModel, pack: _Pack) -> bool:
    some = pack.texts[:NUM_CHECKED]
    apart, together = padded(some, model.renderer.pad_id, model.device), _together([_Pack(some, pack.shared)], 0, model.device)
    apart_TV, together_TV = (answer_log_probs(model.module, texts) for texts in (apart, together))
    return bool((apart_TV - together_TV).abs().mean() <= MAX_ERROR * apart_TV.std())
