"""Rows: how a transformers model reads input embeddings of a bank, which its prompts name by tokens beyond the vocabulary.

B rows of a batch, S sequence, D embedding size, N rows of the table, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from errata.edit_memory.bank import Bank
from errata.edit_memory.embedding_reader import EmbeddingSizes, embedding_reader
from errata.model.language_model import renderer_of
from errata.model.prompt_hooks import Changed, PromptHook


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


class EmbeddingHooks(PromptHook):
    """The hooks that make a model read a bank of the kind `rows` or `prefix`."""

    def __init__(self, model: Any, bank: Bank) -> None:
        weight_VD, limit = model.get_input_embeddings().weight, model.config.get_text_config().max_position_embeddings
        num_v, num_d = weight_VD.shape
        self.bank = bank
        self.reader = embedding_reader(bank, renderer_of(model), EmbeddingSizes(num_v, num_d, int(limit)))
        self.table = EmbeddingRows(model, self.reader.table_ND.to(weight_VD.device))
        self.handle = model.register_forward_pre_hook(self)

    def remove(self) -> None:
        self.handle.remove()
        self.table.remove()

    def __call__(self, model: Any, args: tuple[Any, ...]) -> None: ...

    def changed(self, rows: Sequence[list[int]], room: Sequence[int]) -> list[Changed]:
        changes = [self.reader.change(ids, more) for ids, more in zip(rows, room, strict=True)]
        return [Changed(ids if one is None else one.prompt or ids) for ids, one in zip(rows, changes, strict=True)]

    def plain_ids(self, ids_BS: Tensor) -> Tensor:
        return self.reader.plain_ids(ids_BS)
