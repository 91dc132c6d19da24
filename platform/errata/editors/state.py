"""State that an editor keeps between edits: tensors by name, some of which grow by rows with every edit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor


@dataclass(frozen=True, eq=False)
class GrowingTensor:
    """A tensor as blocks of rows: `block` holds the last rows, `before` the earlier ones, or None if there are none.

    Growing copies nothing: the longer tensor shares its earlier blocks with the shorter one. `num_before` counts the rows of
    `before`. A tensor of no dimensions is a block of its own.
    """

    block: Tensor
    before: GrowingTensor | None = None
    num_before: int = 0

    @property
    def num_rows(self) -> int:
        return self.num_before + len(self.block)

    def grown(self, rows: Tensor) -> GrowingTensor:
        """Return the tensor with `rows` behind it; they set the data type and the device."""
        if (rows.dtype, rows.device) == (self.block.dtype, self.block.device):
            return GrowingTensor(rows.detach(), self, self.num_rows)
        return GrowingTensor(self.joined().to(rows)).grown(rows)

    def blocks(self) -> list[Tensor]:
        return self.blocks_after(None) or []

    def blocks_after(self, start: GrowingTensor | None) -> list[Tensor] | None:
        """Return the blocks behind `start`, in order; None if this tensor did not grow from that object."""
        found, at = list[Tensor](), self
        while at is not start:
            found.append(at.block)
            if at.before is None:
                return found[::-1] if start is None else None
            at = at.before
        return found[::-1]

    def rows(self, index_n: Tensor) -> Tensor:
        """Return these rows, in ascending order; only the blocks that hold them are read."""
        wanted, found, at = index_n.tolist(), list[Tensor](), self
        while wanted:
            own = [number - at.num_before for number in wanted if number >= at.num_before]
            if own:
                found.append(at.block[own])
                wanted = wanted[: -len(own)]
            if wanted:
                assert at.before is not None
                at = at.before
        return torch.cat(found[::-1]) if found else self.block[:0]

    def joined(self) -> Tensor:
        return self.block if self.before is None else torch.cat(self.blocks())


class JoinedTensors(Mapping[str, Tensor]):
    """Tensors by name, each joined from its blocks when it is read."""

    def __init__(self, blocks: Mapping[str, GrowingTensor]) -> None:
        self.blocks = blocks

    def __getitem__(self, name: str) -> Tensor:
        return self.blocks[name].joined()

    def __iter__(self) -> Iterator[str]:
        return iter(self.blocks)

    def __len__(self) -> int:
        return len(self.blocks)

    def __contains__(self, name: object) -> bool:
        return name in self.blocks  # `Mapping` would join the tensor to find out.


@dataclass(frozen=True)
class EditorState:
    """The memory of an editor between edits: the number of its edits, and tensors by name.

    `derived` holds what follows from these and is slow to compute; it is not saved.
    """

    num_edits: int = 0
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    derived: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def blocks(self) -> Mapping[str, GrowingTensor]:
        """The tensors as blocks. A state that comes from another by the methods below shares its blocks."""
        if isinstance(self.tensors, JoinedTensors):
            return self.tensors.blocks
        return {name: GrowingTensor(tensor) for name, tensor in self.tensors.items()}

    def grown(self, num_edits: int, rows: Mapping[str, Tensor], derived: Mapping[str, Any]) -> EditorState:
        """Return the state after `num_edits` more edits, with `rows` behind the tensors of these names, or as new ones.

        The cost does not depend on the number of rows that are there.
        """
        more = {
            name: self.blocks[name].grown(block) if name in self.blocks else GrowingTensor(block.detach())
            for name, block in rows.items()
        }
        return EditorState(self.num_edits + num_edits, JoinedTensors({**self.blocks, **more}), derived)

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> EditorState:
        """Return the state with these tensors in place of those of the same names."""
        whole = {name: GrowingTensor(tensor) for name, tensor in tensors.items()}
        return EditorState(self.num_edits, JoinedTensors({**self.blocks, **whole}), self.derived)

    def with_prefix(self, prefix: str, derived: Mapping[str, Any]) -> EditorState:
        """Return the state with `prefix` before the name of every tensor."""
        return EditorState(self.num_edits, JoinedTensors({prefix + n: t for n, t in self.blocks.items()}), derived)

    def without_prefix(self, prefix: str, derived: Mapping[str, Any]) -> EditorState:
        """Return the tensors whose names begin with `prefix`, under the rest of their names."""
        found = {name.removeprefix(prefix): tensor for name, tensor in self.blocks.items() if name.startswith(prefix)}
        return EditorState(self.num_edits, JoinedTensors(found), derived)

    def save(self, path: str | Path) -> None:
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.tensors.items()}
        save_file(tensors, str(path), metadata={"state": json.dumps({"num_edits": self.num_edits})})

    @classmethod
    def load(cls, path: str | Path) -> EditorState:
        """Load a file of `save`. Raises `ValueError` for a ledger's file, which may hold only a part of a state."""
        with safe_open(str(path), framework="pt") as file:
            meta = json.loads(file.metadata()["state"])
            if meta.get("kept"):
                raise ValueError(f"{path} holds only the rows of one version; read the whole state with Ledger.state")
            return cls(meta["num_edits"], {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
