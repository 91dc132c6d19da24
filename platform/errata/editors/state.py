"""What an editor remembers between edits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor


@dataclass
class Room:
    """Rows with room behind them: `used` of `tensor`'s rows are written, by whichever state has got furthest."""

    tensor: Tensor
    used: int

    @classmethod
    def after(cls, room: Room | None, old: Tensor | None, more: Tensor) -> Room:
        """With `more` behind `old`, in the room that it has if that is free: not if another state has grown into it."""
        start = 0 if old is None else len(old)
        end = start + len(more)
        alike = room is not None and (room.tensor.dtype, room.tensor.device) == (more.dtype, more.device)
        if room is None or not alike or room.used != start or end > len(room.tensor):
            room = cls(more.new_empty((end + end // 4, *more.shape[1:])), start)
            if old is not None:
                room.tensor[:start] = old
        room.tensor[start:end] = more.detach()
        room.used = end
        return room


@dataclass(frozen=True)
class EditorState:
    """What an editor remembers: tensors by name, and how many edits it has made.

    `derived` is what follows from these and would only be slow to make again; it is not saved.
    """

    num_edits: int = 0
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    derived: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    _self: object = field(default_factory=object, init=False, compare=False, repr=False)
    _origin: object = field(default=None, init=False, compare=False, repr=False)
    _rooms: Mapping[str, Room] = field(default_factory=dict, init=False, compare=False, repr=False)

    def grown(self, num_edits: int, rows: Mapping[str, Tensor], derived: Mapping[str, Any]) -> EditorState:
        """After `num_edits` more: with `rows` at the end of tensors of these names, or as new ones; the others stay.

        What has grown so is neither copied nor compared as a whole at each edit, however many rows there are.
        """
        rooms = {name: Room.after(self._rooms.get(name), self.tensors.get(name), more) for name, more in rows.items()}
        tensors = {**self.tensors, **{name: room.tensor[: room.used] for name, room in rooms.items()}}
        grown = EditorState(self.num_edits + num_edits, tensors, derived)
        object.__setattr__(grown, "_origin", self._self)
        object.__setattr__(grown, "_rooms", {**self._rooms, **rooms})
        return grown

    def grew_from(self, other: EditorState) -> bool:
        """Whether `other.grown` made this one, so that each tensor of it begins one of these. False says nothing."""
        return self._origin is other._self

    def save(self, path: str | Path) -> None:
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.tensors.items()}
        save_file(tensors, str(path), metadata={"state": json.dumps({"num_edits": self.num_edits})})

    @classmethod
    def load(cls, path: str | Path) -> EditorState:
        """What `save` wrote. Raises `ValueError` for a file of a ledger that is only part of a state."""
        with safe_open(str(path), framework="pt") as file:
            meta = json.loads(file.metadata()["state"])
            if meta.get("kept"):
                raise ValueError(f"{path} holds the new rows alone; Ledger.state puts the whole state together")
            return cls(meta["num_edits"], {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
