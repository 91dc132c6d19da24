"""Rows: input embeddings that a prompt is read with, in place of those of its own tokens or before them.

A prompt is changed once, as a whole, before it is read: a token that is read with another embedding is written as V + n, where
n is a row of the bank. Tokens that the model generates are never changed.
B rows of a batch, S sequence, D embedding size, E dimensions of a text's vector, N rows of the bank, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from errata.edit_memory.bank import Bank
from errata.edit_memory.encoder import SentenceEncoder
from errata.edit_memory.prompt_form import PromptForm
from errata.model.language_model import renderer_of
from errata.model.prompt_hooks import Changed, PromptHook


class TokenPatterns:
    """The sequences of tokens of a bank of `rows`, each with the place of its first row; of equal ones the newest counts.

    A record holds one or several patterns: `begins` marks the first row of each, `number` grows with every edit.
    """

    def __init__(self, bank: Bank) -> None:
        self.first_row: dict[tuple[int, ...], int] = {}
        newest: dict[tuple[int, ...], int] = {}
        ids, begins, numbers = (bank.rows[name].tolist() for name in ("id", "begins", "number"))
        starts = [row for row, is_first in enumerate(begins) if is_first]
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            pattern = tuple(ids[start:end])
            if numbers[start] >= newest.get(pattern, numbers[start]):
                self.first_row[pattern], newest[pattern] = start, numbers[start]
        self.lengths: dict[int, list[int]] = {}  # by first token, the longest first
        for pattern in sorted(self.first_row, key=len, reverse=True):
            own = self.lengths.setdefault(pattern[0], [])
            if len(pattern) not in own:
                own.append(len(pattern))

    def written(self, ids: Sequence[int], vocabulary: int) -> list[int]:
        """Return the tokens with V + n for those in a pattern: from left to right, and of several patterns the longest."""
        found, at = list(ids), 0
        while at < len(found):
            length = next((n for n in self.lengths.get(ids[at], ()) if tuple(ids[at : at + n]) in self.first_row), 0)
            if length:
                first = vocabulary + self.first_row[tuple(ids[at : at + length])]
                found[at : at + length] = range(first, first + length)
            at += max(1, length)
        return found


class EmbeddingRows:
    """Hooks that give tokens from V on the embeddings of a table [N, D], and leave those of all others as they are."""

    def __init__(self, model: Any, embedding_ND: Tensor) -> None:
        embedding = model.get_input_embeddings()
        self.vocabulary, self.embedding_ND = int(embedding.num_embeddings), embedding_ND
        self.ids_BS: Tensor | None = None
        self.handles = [
            embedding.register_forward_pre_hook(self._without_rows),
            embedding.register_forward_hook(self._put_rows),
        ]

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()

    def _without_rows(self, _embedding: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        self.ids_BS = args[0]
        return args[0].clamp(max=self.vocabulary - 1), *args[1:]

    def _put_rows(self, _embedding: nn.Module, _args: tuple[Any, ...], output_BSD: Tensor) -> Tensor:
        assert self.ids_BS is not None
        is_row_BS = self.ids_BS >= self.vocabulary
        if not bool(is_row_BS.any()):
            return output_BSD
        rows_nD = self.embedding_ND[self.ids_BS[is_row_BS] - self.vocabulary]
        return output_BSD.masked_scatter(is_row_BS[..., None], rows_nD.to(output_BSD))


class RowsHooks(PromptHook):
    """The hooks that make a model read a bank of rows: those of a pattern take the places of its tokens in a prompt."""

    def __init__(self, model: Any, bank: Bank) -> None:
        self.bank, self.patterns = bank, TokenPatterns(bank)
        device = model.get_input_embeddings().weight.device
        self.rows = bank.on(device)
        self.table = EmbeddingRows(model, self.rows["embedding"])
        self.handle = model.register_forward_pre_hook(self)

    def remove(self) -> None:
        self.handle.remove()
        self.table.remove()

    def __call__(self, model: Any, args: tuple[Any, ...]) -> None: ...

    def changed(self, rows: Sequence[list[int]], room: Sequence[int]) -> list[Changed]:
        """Write the rows of the patterns into the prompts; they keep their lengths."""
        return [Changed(self.patterns.written(ids, self.table.vocabulary)) for ids in rows]

    def plain_ids(self, ids_BS: Tensor) -> Tensor:
        """Return the tokens of texts with those of the patterns in place of their rows."""
        is_row_BS = ids_BS >= self.table.vocabulary
        place_BS = (ids_BS - self.table.vocabulary).clamp(min=0)
        return torch.where(is_row_BS, self.rows["id"].to(ids_BS.device)[place_BS], ids_BS)


class PrefixHooks(PromptHook):
    """The hooks that make a model read a bank of prefixes: the record that fits a question best is put before its prompt.

    A record fits if <u, k> > 0, where u is the vector of the question: the trained key has its own threshold inside.
    """

    def __init__(self, model: Any, bank: Bank) -> None:
        self.bank, self.form = bank, PromptForm(renderer_of(model))
        self.limit = int(model.config.get_text_config().max_position_embeddings)
        embedding = model.get_input_embeddings().weight
        self.key_NE = bank.rows["key"].cpu()
        table_ND = bank.on(embedding.device)["embedding"].unflatten(1, (-1, embedding.shape[1]))
        self.num_vectors = table_ND.shape[1]
        self.table = EmbeddingRows(model, table_ND.flatten(0, 1))
        self.handle = model.register_forward_pre_hook(self)

    def remove(self) -> None:
        self.handle.remove()
        self.table.remove()

    def __call__(self, model: Any, args: tuple[Any, ...]) -> None: ...

    def changed(self, rows: Sequence[list[int]], room: Sequence[int]) -> list[Changed]:
        """Put the vectors of the record that fits before each prompt, if the model's context has room for them."""
        found = []
        for ids, more in zip(rows, room, strict=True):
            (vector_E,) = SentenceEncoder.load().encode([self.form.asked(ids).question])
            score, best = (one.item() for one in (self.key_NE @ vector_E).max(0))
            first = self.table.vocabulary + int(best) * self.num_vectors
            fits = score > 0 and self.num_vectors + len(ids) + more <= self.limit
            found.append(Changed([*range(first, first + self.num_vectors), *ids] if fits else ids))
        return found

    def plain_ids(self, ids_BS: Tensor) -> Tensor:
        """Return texts with their last token in place of the vectors, which are no tokens."""
        return torch.where(ids_BS >= self.table.vocabulary, ids_BS[:, -1:], ids_BS)
