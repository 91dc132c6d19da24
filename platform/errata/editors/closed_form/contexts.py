"""Edit positions: each prompt in several contexts, and in each the last token of the subject, or of the prompt.

Contexts are sampled by the model itself, from a seed, before the first edit. They belong to the editor's state, so that later
edits use the same ones. B rows (an edit in a context), S sequence, n edits, F features, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from errata.edit import Code, Edit, EditBatch, EditRejected
from errata.model.encoding import Encoded, encode
from errata.model.language_model import LanguageModel
from errata.model.renderer import Renderer
from errata.text.dialogue import Prompt, in_contexts
from errata.text.rules import subject_span

Position = Literal["subject", "either", "prompt"]


@dataclass(frozen=True)
class Contexts:
    """Texts that are put before a prompt; the first is empty, for the bare prompt.

    In a mean over an edit's rows the bare prompt has weight `bare_share`, and the others share the rest; with None all weights
    are equal. `position` is where an edit is written: at `subject`, the last token of its subject, and an edit without one is
    refused; at `either`, such an edit is written at the last token of its prompt; at `prompt`, every edit is.
    """

    texts: tuple[str, ...] = ("",)
    bare_share: float | None = None
    position: Position = "subject"

    @property
    def weights(self) -> list[float]:
        others = len(self.texts) - 1
        if self.bare_share is None or not others:
            return [1.0 / len(self.texts)] * len(self.texts)
        return [self.bare_share, *[(1.0 - self.bare_share) / others] * others]

    def bare(self) -> Contexts:
        return Contexts(position=self.position)

    def writes_at_subject(self, edit: Edit) -> bool:
        return self.position != "prompt" and edit.subject is not None

    def around(self, edit: Edit, prompt: Prompt) -> list[Prompt]:
        """Return a prompt of the edit in every context.

        The sampled texts precede a completion. A dialogue is asked under other system prompts and as the second turn.
        """
        if isinstance(prompt, str):
            return [context + prompt for context in self.texts]
        return list(in_contexts(prompt, len(self.texts), offset=len(edit.prompt)))

    def edit_place(self, edit: Edit, index: int) -> int | None:
        """Return the character of the question at which the edit is written; None for the end of the whole prompt.

        Raises `EditRejected` if a subject is missing.
        """
        if self.writes_at_subject(edit):
            assert edit.subject is not None
            span = subject_span(edit.prompt, edit.subject)
            assert span is not None  # `Edit.faults` finds a subject that is not in the prompt.
            return span[1] - 1
        if self.position == "subject":
            raise EditRejected(
                "this method writes at the subject, and the edit has none: name it",
                edit=edit.id or index,
                field="subject",
                code=Code.MISSING_FIELD,
            )
        return None


@dataclass(frozen=True)
class EditPrompts:
    """The edits of a batch in their contexts, tokenised: row b is edit `edit_B[b]` with its answer.

    It is written at token `position_B[b]`, and has weight `weight_B[b]` in a mean over the edit's rows.
    """

    encoded: Encoded
    edit_B: Tensor
    position_B: Tensor
    weight_B: Tensor

    @property
    def first_n(self) -> Tensor:
        """The first row of each edit, which is its bare prompt, [n]."""
        edits_n = torch.arange(int(self.edit_B.max()) + 1, device=self.edit_B.device)
        return torch.searchsorted(self.edit_B, edits_n)

    def mean(self, rows_BF: Tensor) -> Tensor:
        """Return the weighted mean over each edit's rows, [n, F]."""
        means_nF = rows_BF.new_zeros((int(self.edit_B.max()) + 1, *rows_BF.shape[1:]))
        weight_B = self.weight_B.to(rows_BF).view(-1, *[1] * (rows_BF.dim() - 1))
        return means_nF.index_add(0, self.edit_B, weight_B * rows_BF)

    def at_edit_position(self, rows_BSF: Tensor) -> Tensor:
        """Return the values at the edit positions, [B, F] in fp32 at least, on the device of the tokens."""
        rows_BF = rows_BSF[torch.arange(len(self.position_B), device=rows_BSF.device), self.position_B.to(rows_BSF.device)]
        return rows_BF.to(self.position_B.device, torch.promote_types(rows_BF.dtype, torch.float32))


def tokenise_at_subject(model: LanguageModel, batch: EditBatch, contexts: Contexts, eos: bool = True) -> EditPrompts:
    """Render every edit in every context. Raises `EditRejected` for an edit without the subject that its position needs."""
    prompts: list[Prompt] = []
    targets, places, owners, weights = [], [], [], []
    for index, edit in enumerate(batch):
        place = contexts.edit_place(edit, index)
        for prompt in edit.prompts:
            for asked, weight in zip(contexts.around(edit, prompt), contexts.weights, strict=True):
                prompts.append(asked)
                targets.append(edit.wording(prompt))
                places.append(_token_at(model.renderer, asked, edit.prompt, place))
                owners.append(index)
                weights.append(weight / len(edit.prompts))
    device = model.device
    return EditPrompts(
        encode(model.renderer, prompts, targets, device, eos),
        torch.tensor(owners, device=device),
        torch.tensor(places, device=device),
        torch.tensor(weights, device=device),
    )


def _token_at(renderer: Renderer, prompt: Prompt, question: str, place: int | None) -> int:
    """Return the token at which an edit is written: that of a place in the question, or the last of the prompt."""
    if isinstance(prompt, str):  # The question is its end.
        begin = len(prompt) - len(question)
        return renderer.token_at(prompt, begin + (len(question.rstrip()) - 1 if place is None else place))
    if place is None:
        return len(renderer.ids(prompt)) - 1
    return renderer.token_at(prompt, renderer.question_at(prompt) + place)


@torch.no_grad()
def sample_contexts(
    model: LanguageModel, words: Sequence[str], lengths: Sequence[int], seed: int, top_k: int = 5
) -> tuple[str, ...]:
    """Sample a context for each length and word: the model's continuation of the word to that many tokens, and a full stop.

    The first context is empty, for the bare prompt. Raises `EditRejected` if the model's logits are not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    return ("", *(_sampled(model, word, length, top_k, generator) for length in lengths for word in words))


def _sampled(model: LanguageModel, word: str, length: int, top_k: int, generator: torch.Generator) -> str:
    ids = list(model.tokenizer(word)["input_ids"])
    while len(ids) < length:
        logits_V = model.module(torch.tensor([ids], device=model.device), use_cache=False).logits[0, -1].float().cpu()
        if not bool(torch.isfinite(logits_V).all()):
            raise EditRejected("the model's logits are not finite", code=Code.NOT_FINITE)
        values_k, tokens_k = logits_V.topk(top_k)
        token = int(tokens_k[torch.multinomial(values_k.softmax(0), 1, generator=generator)])
        if token == model.tokenizer.eos_token_id:
            break
        ids.append(token)
    return f"{model.tokenizer.decode(ids, skip_special_tokens=True).strip()}. "
