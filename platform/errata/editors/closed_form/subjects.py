"""Where an edit's subject stands: each prompt in several contexts, and the last token of the subject in each.

B rows (an edit in a context), S sequence, n edits. Contexts are sampled once by the model itself, from a seed, and belong
to the editor's state, so that a later edit meets the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from errata.edit import EditBatch, EditRejected
from errata.encode import Encoded, encode
from errata.model import LanguageModel


@dataclass(frozen=True)
class Asked:
    """Row b is edit `edit_B[b]` with its answer; its subject's last token is `subject_B[b]`, and it counts `weight_B[b]` in a
    mean over the edit's rows."""

    encoded: Encoded
    edit_B: Tensor
    subject_B: Tensor
    weight_B: Tensor

    def mean(self, rows_BF: Tensor) -> Tensor:
        """The weighted mean over each edit's rows, [n, F]."""
        means_nF = rows_BF.new_zeros((int(self.edit_B.max()) + 1, *rows_BF.shape[1:]))
        weight_B = self.weight_B.to(rows_BF).view(-1, *[1] * (rows_BF.dim() - 1))
        return means_nF.index_add(0, self.edit_B, weight_B * rows_BF)


def ask(model: LanguageModel, batch: EditBatch, contexts: Sequence[str] = ("",), eos: bool = True) -> Asked:
    """Every edit in every context. The first context, the bare prompt, weighs as much as all others together.

    Raises `EditRejected` for an edit without a subject.
    """
    others = len(contexts) - 1
    weights = [0.5 if others else 1.0] + [0.5 / max(1, others)] * others
    prompts, targets, ends, owners = [], [], [], []
    for index, edit in enumerate(batch):
        if edit.subject is None:
            raise EditRejected("this method writes at the subject: name it", edit=edit.id or index, field="subject")
        for context in contexts:
            prompts.append(context + edit.prompt)
            targets.append(edit.target)
            ends.append(len(context) + edit.prompt.index(edit.subject) + len(edit.subject))
            owners.append(index)
    encoded = encode(model.tokenizer, prompts, targets, model.device, eos)
    positions = [_token_at(model.tokenizer, f"{p} {t}", end - 1) for p, t, end in zip(prompts, targets, ends, strict=True)]
    device = model.device
    return Asked(
        encoded,
        torch.tensor(owners, device=device),
        torch.tensor(positions, device=device),
        torch.tensor(weights * len(batch), device=device),
    )


def _token_at(tokenizer: Any, text: str, character: int) -> int:
    """The token that holds a character: by offsets, whatever special tokens the tokenizer puts before."""
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    return next(i for i, (begin, end) in enumerate(offsets) if begin <= character < end)


@torch.no_grad()
def sample_contexts(model: LanguageModel, words: Sequence[str], num_tokens: int, seed: int, top_k: int = 5) -> list[str]:
    """The bare prompt's, which is empty, and one text for each word: what the model makes of it, closed by a full stop.

    Raises `EditRejected` if the model's numbers are not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    contexts = [""]
    for word in words:
        ids = list(model.tokenizer(word)["input_ids"])
        for _ in range(num_tokens):
            logits_V = model.module(torch.tensor([ids], device=model.device), use_cache=False).logits[0, -1].float().cpu()
            if not bool(torch.isfinite(logits_V).all()):
                raise EditRejected("the model's logits are not finite")
            values_k, tokens_k = logits_V.topk(top_k)
            token = int(tokens_k[torch.multinomial(values_k.softmax(0), 1, generator=generator)])
            if token == model.tokenizer.eos_token_id:
                break
            ids.append(token)
        text = model.tokenizer.decode(ids, skip_special_tokens=True).strip()
        contexts.append(f"{text}. ")
    return contexts
