"""Editor states on disk: a tensor that begins with its parent's rows, as past keys do, is stored as its new rows alone.

Otherwise every version would hold all past keys, and the ledger would grow with the square of its length. A state is read with
the bits that it was saved with; a tensor that does not grow in this way is stored whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from errata.durable import digest_of
from errata.editors.state import EditorState, GrowingTensor
from errata.ledger.entry import LedgerDamaged, write_tensors


@dataclass(frozen=True)
class StateRows:
    """A state as a file holds it.

    `kept` counts, by tensor, the rows at its start that are not in the file but in the files of version `before` and earlier.
    """

    num_edits: int
    tensors: Mapping[str, Tensor]
    kept: Mapping[str, int]
    before: int = 0

    @property
    def state(self) -> EditorState:
        """The editor's state, once no rows are missing."""
        assert not self.kept
        return EditorState(self.num_edits, self.tensors)

    def save(self, path: Path) -> None:
        """Write the file, with a digest of its tensors."""
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.tensors.items()}
        about = {"num_edits": self.num_edits, "kept": dict(self.kept), "digest": _digest(tensors)}
        write_tensors(path, tensors, {"state": json.dumps(about)})

    @classmethod
    def load(cls, path: Path, before: int, names: Collection[str] | None = None) -> StateRows:
        """Read the tensors `names`, by default all. Raises `SafetensorError`."""
        with safe_open(str(path), framework="pt") as file:
            about = json.loads(file.metadata()["state"])
            found = {name: file.get_tensor(name) for name in file.keys() if names is None or name in names}  # noqa: SIM118
        return cls(about["num_edits"], found, about.get("kept", {}), before)


def is_whole(path: Path) -> bool:
    """Compare the tensors of a file with its digest. Raises `SafetensorError` if the file cannot be read."""
    with safe_open(str(path), framework="pt") as file:
        about = json.loads(file.metadata()["state"])
        return bool(about["digest"] == _digest({name: file.get_tensor(name) for name in file.keys()}))  # noqa: SIM118


def new_rows(state: EditorState, parent: EditorState) -> StateRows:
    """Return what `state` adds to `parent`, the state of the parent version.

    A tensor that shares the parent's blocks begins with them; any other, such as one read from disk, is compared bit by bit.
    """
    kept: dict[str, int] = {}
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.blocks.items():
        start = parent.blocks.get(name)
        rows = _rows_after(tensor, start) if start is not None else None
        if start is not None and rows is not None:
            kept[name] = start.num_rows
        tensors[name] = tensor.joined() if rows is None else rows
    return StateRows(state.num_edits, tensors, kept)


def gathered(read: Callable[[int, Collection[str] | None], StateRows], number: int, until: int = 0) -> StateRows:
    """Gather the rows that version `number` added since its ancestor `until`; since 0, all of them.

    `read` reads some tensors of a version's file, or of a snapshot that ends there. Raises `LedgerDamaged` if the rows of a
    version do not continue those of its parent.
    """
    newest = read(number, None)
    kept, at = dict(newest.kept), newest.before
    blocks = {name: [newest.tensors[name]] for name in kept}
    while kept and at != until:
        earlier = read(at, kept)
        for name, rows in list(kept.items()):
            start = earlier.kept.get(name, 0)
            if name not in earlier.tensors or start + len(earlier.tensors[name]) != rows:
                raise LedgerDamaged(f"the editor's state of version {number} needs {rows} rows of {name} from version {at}")
            blocks[name].append(earlier.tensors[name])
            kept[name] = start
        kept = {name: rows for name, rows in kept.items() if rows}
        at = earlier.before
    if kept and not until:
        raise LedgerDamaged(f"the editor's state of version {number} begins before the first version")
    joined = {name: torch.cat(parts[::-1]) for name, parts in blocks.items()}
    return StateRows(newest.num_edits, {**newest.tensors, **joined}, kept, until)


def _rows_after(tensor: GrowingTensor, start: GrowingTensor) -> Tensor | None:
    """Return the rows of `tensor` behind `start`, if it begins with them and `start` has rows; else None."""
    if not start.block.dim() or not start.num_rows:
        return None
    blocks = tensor.blocks_after(start)
    if blocks is not None:
        return torch.cat([tensor.block[:0], *blocks])
    whole, first = tensor.joined(), start.joined()
    return whole[len(first) :] if _begins_with(whole, first) else None


def _begins_with(tensor: Tensor, start: Tensor) -> bool:
    """Compare bits, so that a NaN equals itself and -0.0 does not equal 0.0."""
    if (tensor.dtype, tensor.dim(), tensor.shape[1:]) != (start.dtype, start.dim(), start.shape[1:]):
        return False
    return len(tensor) >= len(start) and torch.equal(_bits(tensor[: len(start)]), _bits(start.to(tensor.device)))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    parts = (f"{name} {list(t.shape)} {t.dtype} {digest_of(_bits(t).numpy().data)}" for name, t in sorted(tensors.items()))
    return digest_of("\n".join(parts).encode())
