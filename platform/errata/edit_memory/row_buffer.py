"""Row buffer: the rows of a bank as one tensor for each name, to which the banks that follow it append their own.

Without it each new bank would join the rows of all its records again: N records would cost N^2 rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

RowParts = Sequence[Mapping[str, Tensor]]  # the rows of records, by name


@dataclass
class _Store:
    """Tensors with room for more rows; the first `filled` are taken."""

    tensors: dict[str, Tensor]
    filled: int


@dataclass(frozen=True)
class RowBuffer:
    """The first `num_rows` rows of a store, which no later bank changes."""

    store: _Store
    num_rows: int

    @classmethod
    def of(cls, names: Iterable[str], parts: RowParts, device: torch.device) -> Self:
        """Join the rows of records, at least one, on a device."""
        tensors = {name: torch.cat([part[name] for part in parts]).to(device) for name in names}
        num_rows = len(next(iter(tensors.values())))
        return cls(_Store(tensors, num_rows), num_rows)

    @property
    def rows(self) -> dict[str, Tensor]:
        return {name: tensor[: self.num_rows] for name, tensor in self.store.tensors.items()}

    def followed_by(self, parts: RowParts) -> RowBuffer:
        """Return the buffer with the rows of more records behind these. A store is copied if it is full or has other rows."""
        added = {name: torch.cat([part[name] for part in parts]) for name in self.store.tensors}
        num_rows = self.num_rows + len(next(iter(added.values())))
        store = self.store
        if store.filled != self.num_rows or any(len(tensor) < num_rows for tensor in store.tensors.values()):
            store = _Store({name: _with_room(tensor, num_rows + num_rows // 2) for name, tensor in self.rows.items()}, 0)
        for name, tensor in added.items():
            store.tensors[name][self.num_rows : num_rows] = tensor
        store.filled = num_rows
        return RowBuffer(store, num_rows)


def _with_room(tensor: Tensor, num_rows: int) -> Tensor:
    found = tensor.new_empty(num_rows, *tensor.shape[1:])
    found[: len(tensor)] = tensor
    return found
