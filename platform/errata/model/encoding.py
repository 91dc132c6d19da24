"""Text to tensors: prompts with their answers, padded on the right, with labels on the answer tokens only.

B batch, S sequence, V vocabulary, T answer tokens of the whole batch. A row is one text, or several packed ones (`packing.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from errata.edit import Row
from errata.model.prompt_hooks import prompt_hook_of
from errata.model.renderer import Renderer
from errata.model.said_answers import said_tokens, with_said
from errata.text.dialogue import Prompt

IGNORED = -100
GivenAnswer = tuple[list[int], list[int]]  # The tokens of a prompt, and those of its answer.


@dataclass(frozen=True)
class Encoded:
    """Tokens of a batch of texts. `labels_BS` has the tokens of answers and -100 elsewhere, not shifted, as in transformers."""

    input_ids_BS: Tensor
    attention_mask_BS: Tensor
    labels_BS: Tensor

    @cached_property
    def predicts_BS(self) -> Tensor:
        """The mask of the positions whose next token belongs to an answer."""
        shifted = torch.zeros_like(self.labels_BS, dtype=torch.bool)
        shifted[:, :-1] = self.labels_BS[:, 1:] != IGNORED
        return shifted

    @cached_property
    def predicts_T(self) -> Tensor:
        """Indices of the same positions in the flattened batch; cached, because every pass over a text needs them."""
        return self.predicts_BS.flatten().nonzero()[:, 0]

    @cached_property
    def targets_T(self) -> Tensor:
        return self.labels_BS.roll(-1, 1)[self.predicts_BS]

    def texts(self) -> list[GivenAnswer]:
        """Return the tokens of each prompt and of its answer, in the order of the answer positions."""
        found = []
        for ids_S, mask_S, labels_S in zip(self.input_ids_BS, self.attention_mask_BS.bool(), self.labels_BS, strict=True):
            found.append((ids_S[mask_S & (labels_S == IGNORED)].tolist(), labels_S[labels_S != IGNORED].tolist()))
        return found

    @property
    def num_answers(self) -> int:
        """T, the number of answer tokens."""
        return len(self.targets_T)

    @cached_property
    def answer_lengths(self) -> list[int]:
        """The number of answer tokens of each text."""
        return self.predicts_BS.sum(1).tolist()

    def arguments(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the arguments that give the texts to a model whose attention computes in `dtype`."""
        return {"input_ids": self.input_ids_BS, "attention_mask": self.attention_mask_BS}


def encode(
    renderer: Renderer, prompts: Sequence[Prompt], targets: Sequence[str], device: Any = "cpu", eos: bool = True
) -> Encoded:
    """Render prompts with their answers: the ids of each prompt as it is served, then those of its answer.

    With `eos`, the answer ends with the token at which the served model stops: without it, an edited model gives the right
    word and does not stop.
    """
    return padded(renderer.rows(list(zip(prompts, targets, strict=True)), close=eos), renderer.pad_id, device)


def encode_rows(renderer: Renderer, rows: Sequence[Row], device: Any = "cpu", eos: bool = True) -> Encoded:
    """Render the requests of a batch with their answers, one row each."""
    return encode(renderer, [row.prompt for row in rows], [row.answer for row in rows], device, eos)


def padded(rows: Sequence[GivenAnswer], pad: int, device: Any = "cpu") -> Encoded:
    """Pad rows of (given tokens, answer tokens) into one batch."""
    width = max(len(given) + len(answer) for given, answer in rows)
    ids, mask, labels = [], [], []
    for given, answer in rows:
        rest = width - len(given) - len(answer)
        ids.append(given + answer + [pad] * rest)
        mask.append([1] * (width - rest) + [0] * rest)
        labels.append([IGNORED] * len(given) + answer + [IGNORED] * rest)
    return Encoded(*(torch.tensor(lists, device=device) for lists in (ids, mask, labels)))


def encode_text(tokenizer: Any, lines: Sequence[str], max_tokens: int, device: Any = "cpu") -> Encoded:
    """Tokenise plain text, each line cut to `max_tokens`, with labels on every token except the first of a line."""
    rows = [tokenizer(line, truncation=True, max_length=max_tokens)["input_ids"] for line in lines]
    width = max(len(ids) for ids in rows)
    input_ids_BS = torch.zeros((len(rows), width), dtype=torch.long)
    attention_mask_BS = torch.zeros_like(input_ids_BS)
    for row, ids in enumerate(rows):
        input_ids_BS[row, : len(ids)] = torch.tensor(ids)
        attention_mask_BS[row, : len(ids)] = 1
    labels_BS = input_ids_BS.masked_fill(attention_mask_BS == 0, IGNORED)
    labels_BS[:, 0] = IGNORED
    return Encoded(input_ids_BS.to(device), attention_mask_BS.to(device), labels_BS.to(device))


def split(encoded: Encoded, num_rows: int) -> list[Encoded]:
    """Split a batch into parts of at most `num_rows` rows without columns of padding; 0 keeps it whole."""
    if not 0 < num_rows < len(encoded.input_ids_BS):
        return [encoded]
    parts = zip(*(getattr(encoded, f.name).split(num_rows) for f in fields(encoded)), strict=True)
    widths = [int(mask_BS.sum(1).max()) for mask_BS in encoded.attention_mask_BS.split(num_rows)]
    return [type(encoded)(*(tensor_BS[:, :width] for tensor_BS in part)) for part, width in zip(parts, widths, strict=True)]


def answer_log_probs(model: Any, encoded: Encoded, **arguments: Any) -> Tensor:
    """Compute log p over the vocabulary at every answer position, [T, V], in fp32: bf16 log-softmax yields negative KLs.

    The output embedding, often the largest matrix of a model, runs at these positions only. `arguments` go to the model. Where
    a memory puts texts into prompts, the positions are those of the same answers after the longer prompts; where it says
    answers, its token is the only likely one at the positions up to which the answer is the same.
    """
    plain = getattr(model, "module", model)  # A data-parallel wrapper holds the model.
    head = plain.get_output_embeddings()
    encoded, due = _as_changed(plain, encoded)
    chosen = head.register_forward_pre_hook(_AnswersOnly(encoded))
    try:
        inputs = {**encoded.arguments(head.weight.dtype), "use_cache": False}
        logits_TV = model(**(inputs | arguments)).logits
    finally:
        chosen.remove()
    return torch.log_softmax(with_said(logits_TV, due).float() if due else logits_TV.float(), dim=-1)


def _as_changed(model: Any, encoded: Encoded) -> tuple[Encoded, dict[int, int]]:
    """Return texts whose prompts are as a memory changes them, the same object if it changes none, and the said tokens."""
    hook = prompt_hook_of(model)
    if hook is None:
        return encoded, {}
    texts = encoded.texts()
    changed = hook.changed([prompt for prompt, _ in texts], [len(answer) for _, answer in texts])
    due = said_tokens([answer for _, answer in texts], [one.said for one in changed])
    rows = [(one.prompt, answer) for one, (_, answer) in zip(changed, texts, strict=True)]
    if rows == texts:
        return encoded, due
    return padded(rows, int(encoded.input_ids_BS[0, 0]), encoded.input_ids_BS.device), due  # Padding is masked in any case.


@dataclass(frozen=True, eq=False)
class _AnswersOnly:
    """A hook that gives the output layer the rows alone from which answer tokens are predicted."""

    encoded: Encoded

    def __call__(self, _head: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return at_answers(args[0], self.encoded), *args[1:]


def rows_at_head(head: Any, values_BSF: Tensor, input_of_head: Tensor) -> Tensor:
    """Select the rows [T, F] of a tensor at the positions that the output layer computes in this pass.

    These are the answer positions in `answer_log_probs`; otherwise the last ones of each row, as many as `input_of_head` has.
    """
    chosen = next((hook for hook in head._forward_pre_hooks.values() if isinstance(hook, _AnswersOnly)), None)
    if chosen is not None:
        return at_answers(values_BSF, chosen.encoded)
    return values_BSF[:, -input_of_head.shape[1] :].flatten(0, 1)


def at_answers(values_BSF: Tensor, encoded: Encoded) -> Tensor:
    """Select the rows [T, F] from which answer tokens are predicted."""
    return values_BSF.flatten(0, 1).index_select(0, encoded.predicts_T.to(values_BSF.device))


def answer_nll(log_probs_TV: Tensor, encoded: Encoded) -> Tensor:
    """Select -log p of each answer token, [T]."""
    return -log_probs_TV.gather(1, encoded.targets_T.to(log_probs_TV.device)[:, None])[:, 0]
