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
from errata.model.encoding import IGNORED, Encoded, GivenAnswer, answer_log_probs, padded
from errata.model.generation import attends_to_all
from errata.model.language_model import LanguageModel

MIN_SHARED = 16  # tokens with which texts begin alike, from which on packing pays
MAX_PACKED = 256  # tokens of a row without the shared beginning, if each text is shorter; attention computes all pairs of them
# In the self-check, the mean difference of log probabilities over their standard deviation: rounding, if all is right.
MAX_ERROR, MAX_ERROR_IN_16_BIT = 1e-4, 0.05


def packed(model: LanguageModel, rows: Sequence[GivenAnswer]) -> Encoded:
    """Return rows of (given tokens, answer tokens) as one batch: packed, if some begin alike and the model can read it so."""
    packs = _packs(rows)
    if any(pack.shared for pack in packs) and _can_pack(model, packs):
        return _together(packs, model.renderer.pad_id, model.device)
    return padded(rows, model.renderer.pad_id, model.device)


def packed_requests(model: LanguageModel, rows: Sequence[Row]) -> Encoded:
    """Render the requests of a batch with their answers, and the end token, as `packed` does."""
    return packed(model, model.renderer.rows([(row.prompt, row.answer) for row in rows], close=True))


@dataclass(frozen=True)
class Packed(Encoded):
    """Packed texts. `text_BS` numbers those of a row from 1, in order; 0 is the beginning that they share."""

    text_BS: Tensor

    @cached_property
    def answer_lengths(self) -> list[int]:
        most = int(self.text_BS.max())
        counts_BN = torch.zeros((len(self.text_BS), most + 1), dtype=torch.long, device=self.text_BS.device)
        counts_BN.scatter_add_(1, self.text_BS, self.predicts_BS.long())
        is_text_BN = torch.arange(1, most + 1, device=self.text_BS.device) <= self.text_BS.amax(1, keepdim=True)
        return counts_BN[:, 1:][is_text_BN].tolist()

    def texts(self) -> list[GivenAnswer]:
        found = []
        for ids_S, labels_S, text_S, mask_S in zip(
            self.input_ids_BS, self.labels_BS, self.text_BS, self.attention_mask_BS.bool(), strict=True
        ):
            for number in range(1, int(text_S.max()) + 1):
                own_S = ((text_S == number) | (text_S == 0)) & mask_S
                is_answer_S = labels_S != IGNORED
                found.append((ids_S[own_S & ~is_answer_S].tolist(), ids_S[own_S & is_answer_S].tolist()))
        return found

    def arguments(self, dtype: torch.dtype) -> dict[str, Tensor]:
        return {"input_ids": self.input_ids_BS, "attention_mask": self._mask_B1SS(dtype), "position_ids": self.position_BS}

    @cached_property
    def position_BS(self) -> Tensor:
        """The place of each token in its own text, which starts with the shared beginning; 0 for padding."""
        place_BS = torch.arange(self.text_BS.shape[1], device=self.text_BS.device).expand_as(self.text_BS)
        begins_BS = nn.functional.pad(self.text_BS.diff(dim=1) != 0, (1, 0), value=True)
        first_BS = (place_BS * begins_BS).cummax(1).values
        num_shared_B1 = (self.text_BS == 0).sum(1, keepdim=True)
        return (place_BS - first_BS + num_shared_B1 * (self.text_BS > 0)) * self.attention_mask_BS

    def _mask_B1SS(self, dtype: torch.dtype) -> Tensor:
        """Return what is added to the attention logits: a token sees those before it in its own text."""
        is_same_BSS = (self.text_BS[:, :, None] == self.text_BS[:, None]) | (self.text_BS[:, None] == 0)
        seen_BSS = is_same_BSS.tril() & self.attention_mask_BS.bool()[:, None]
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
        ahead = ahead if ahead >= MIN_SHARED else 0
        run = runs[-1] if runs else _Pack([row], ahead)
        together = min(_num_shared(run.texts[0][0], row[0]), run.shared)
        # One text must not shorten a long beginning, if it shares more with the next text.
        joins = together >= MIN_SHARED and (2 * together >= run.shared or together >= ahead) if run.shared else not ahead
        if not runs or not joins:
            runs.append(_Pack([row], ahead))
        else:
            run.texts.append(row)
            run.shared = together if run.shared else 0
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


_READS_ALIKE: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()  # By module, the result of the self-check.


def _can_pack(model: LanguageModel, packs: Sequence[_Pack]) -> bool:
    """Say if a model reads packed texts as it reads rows of their own.

    Not with a repetition penalty, which counts the tokens of a whole row. Otherwise the first longest pack decides.
    """
    module = model.module
    if model.repetition_penalty != 1.0 or not _takes_masks(module) or not attends_to_all(module):
        return False
    if module not in _READS_ALIKE:
        longest = max((pack for pack in packs if pack.shared), key=lambda pack: pack.num_own)
        if not any(answer for _, answer in longest.texts):
            return False
        _READS_ALIKE[module] = _reads_alike(model, longest)
    return _READS_ALIKE[module]


def _takes_masks(module: Any) -> bool:
    """Say if the model takes positions and a mask for each pair of tokens."""
    attention, parameters = module.config._attn_implementation, inspect.signature(module.forward).parameters
    return attention in ("eager", "sdpa") and "position_ids" in parameters and not getattr(module.config, "alibi", False)


@torch.no_grad()
def _reads_alike(model: LanguageModel, pack: _Pack) -> bool:
    """Read a pack and, for padding, its first text in another row; compare with texts in rows of their own."""
    pad, device = model.renderer.pad_id, model.device
    apart = padded([*pack.texts, pack.texts[0]], pad, device)
    together = _together([pack, _Pack(pack.texts[:1], 0)], pad, device)
    expected_TV = answer_log_probs(model.module, apart)
    try:
        found_TV = answer_log_probs(model.module, together)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError):  # What models do with masks that they do not know.
        return False
    limit = MAX_ERROR if model.module.dtype == torch.float32 else MAX_ERROR_IN_16_BIT
    return bool((expected_TV - found_TV).abs().mean() <= limit * expected_TV.std())
