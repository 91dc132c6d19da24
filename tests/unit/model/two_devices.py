"""A simulated machine with accelerators: tensors on `meta:0` or `meta:1` that have values.

Each holds a CPU tensor that computes for it, so results have the bits of the CPU's. An operation that mixes devices is refused
as CUDA refuses it, and more strictly: an index from another device is refused, too. `.cpu()` and `.to` copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

from errata.model.matrices import PLAIN_TYPES

FIRST, SECOND = torch.device("meta:0"), torch.device("meta:1")
aten = torch.ops.aten
COPIES = (aten.copy_.default, aten._to_copy.default)


class OnDevice(Tensor):
    """A tensor of an accelerator; `held` has its values."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device) -> OnDevice:
        made: OnDevice = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=device,
            requires_grad=held.requires_grad,
        )
        made.held = held
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnDevice({self.held!r}, {self.device})"

    def tolist(self) -> Any:
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


PLAIN_TYPES.add(OnDevice)  # It has values, on a device that does not exist.


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the values; its results are on the device of its tensors."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    found = {tensor.device for tensor in tensors if tensor.dim() or isinstance(tensor, OnDevice)}
    if len(found) > 1 and func not in COPIES:
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, but found {sorted(map(str, found))}")
    asked = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
    device = asked or (args[0].device if func in COPIES else next(iter(found), torch.device("cpu")))
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    inner_args, inner_kwargs = tree_map_only(OnDevice, lambda tensor: tensor.held, (args, kwargs))
    if func is aten._to_copy.default:
        inner_kwargs = {**inner_kwargs, "device": torch.device("cpu")}
    made = func(*inner_args, **inner_kwargs)
    if device.type != "cpu":
        made = tree_map_only(Tensor, lambda tensor: OnDevice(tensor, device), made)
    return return_and_correct_aliasing(func, args, kwargs, made) if tensors and device.type != "cpu" else made


class Machine(TorchDispatchMode):
    """Dispatch mode in which factory functions make tensors of an accelerator."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


class Numbers(TorchFunctionMode):
    """Copies Python numbers to an accelerator, because torch makes a `meta` tensor without values of them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == Tensor.__getitem__ and isinstance(args[1], list):
            args = args[0], torch.tensor(args[1], device=args[0].device)
        if func == Tensor.new_tensor:
            return torch.tensor(args[1], **{"dtype": args[0].dtype, "device": args[0].device, **(kwargs or {})})
        return func(*args, **(kwargs or {}))


MADE = torch.tensor


def made_by_copy(data: Any, *, device: Any = None, **kwargs: Any) -> Tensor:
    """Replace torch.tensor for the same reason."""
    return MADE(data, **kwargs).to(device if device is not None else "cpu")


@contextmanager
def two_accelerators() -> Iterator[None]:
    with patch.object(torch, "tensor", made_by_copy), Machine(), Numbers():
        yield
