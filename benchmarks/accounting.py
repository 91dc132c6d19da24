"""Bytes of live tensors, operation by operation, also for tensors with sizes and without values.

This gives the memory of a run without the device: its code runs on `FakeTensorMode`'s tensors, with the device `meta` in place
of the accelerator and `cpu` as the host. A storage counts from the operation that allocates it until its last reference goes.
Memory that is not a tensor does not count: library workspaces, fragments of the allocator, a CUDA context.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
Owners = Callable[[], Mapping[str, Sequence[Tensor]]]
OTHER = "other"


def fakes() -> FakeTensorMode:
    """Make tensors without values inside the block; tensors on `meta` stay there, as on an accelerator."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)  # torch.tensor would make a real tensor on `meta`
    mode.allow_meta = True
    return mode


class Accounting(TorchDispatchMode):
    """Context manager that counts `now_bytes` and `peak_bytes` of a device's tensors, and the parts of the peak in `at_peak`.

    `owners` gives the tensors of each part. It is called when the peak has grown by `grain`, so the parts describe a moment at
    most that far below the peak. A tensor without owner belongs to the label it was made under, or to the part of `named_by`
    whose last dimension it has. A fake tensor has no values for a branch to depend on: it reads as true, 0 or 1.0.
    """

    def __init__(
        self, device: str, owners: Owners = dict, named_by: Mapping[int, str] | None = None, grain: float = 0.02
    ) -> None:
        super().__init__()
        self.device, self.owners, self.named_by, self.grain = device, owners, named_by or {}, grain
        self.label = OTHER
        self.now_bytes = self.peak_bytes = self._noted_bytes = 0
        self.at_peak: dict[str, int] = {}
        self._alive: dict[int, tuple[int, str, weakref.ref[Any]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = _decided(func, args)
        if answer is not None:
            return answer
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.device.type == self.device:
                self._count(tensor)
        if self.now_bytes > self.peak_bytes:
            self.peak_bytes = self.now_bytes
            if self.peak_bytes > (1 + self.grain) * self._noted_bytes:
                self._noted_bytes, self.at_peak = self.peak_bytes, self.parts()
        return made

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)  # one object per storage, as long as it lives
        if key in self._alive:
            return
        label = self.named_by.get(tensor.shape[-1], self.label) if tensor.ndim > 1 else self.label
        self._alive[key] = storage.nbytes(), label, weakref.ref(storage, lambda _: self._forget(key))
        self.now_bytes += storage.nbytes()

    def _forget(self, key: int) -> None:
        self.now_bytes -= self._alive.pop(key)[0]

    def parts(self) -> dict[str, int]:
        """Live bytes by owner or label."""
        owned = {id(t.untyped_storage()): name for name, tensors in self.owners().items() for t in tensors}
        sums: Counter[str] = Counter()
        for key, (num_bytes, label, _) in list(self._alive.items()):
            sums[owned.get(key, label)] += num_bytes
        return dict(sums)

    @contextmanager
    def labelled(self, modules: Sequence[nn.Module], label: str) -> Iterator[None]:
        """Label the tensors that the forward passes of `modules` allocate inside the block."""

        def begin(*_: Any) -> None:
            self.label = label

        def end(*_: Any) -> None:
            self.label = OTHER

        handles = [handle for m in modules for handle in (m.register_forward_pre_hook(begin), m.register_forward_hook(end))]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _decided(func: Any, args: Any) -> bool | int | float | None:
    """Values that a fake tensor gives to code that reads one."""
    if not any(isinstance(arg, FakeTensor) for arg in args):
        return None
    if func is aten.equal.default:
        return True
    if func is not aten._local_scalar_dense.default or args[0].constant is not None:
        return None
    if args[0].dtype is torch.bool:
        return True
    return 1.0 if args[0].is_floating_point() else 0
