"""Side branches: run a model with a delta beside its weights, without changing them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from errata.delta.parts import Part
from errata.delta.weight_delta import WeightDelta
from errata.model.matrices import MatrixSpec


@contextmanager
def applied(model: nn.Module, *deltas: WeightDelta) -> Iterator[None]:
    """Add the output of each delta's side branch to its module, so that the model behaves as if it were edited."""
    parts = [found for delta in deltas for found in delta.on_devices_of(model)]
    handles = [model.get_submodule(name).register_forward_hook(_SideBranchHook(part)) for name, part in parts]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class _SideBranchHook:
    """A hook that adds the side branch of a part."""

    part: Part

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return output + self.part.side_branch(args[0])


def weight_now(model: nn.Module, matrix: MatrixSpec) -> Tensor:
    """Return a matrix [O, I] plus the side branches of `applied`: in fp32 if there are any, else in its own dtype."""
    module = model.get_submodule(matrix.name)
    weight_OI: Tensor = matrix.oriented(module.weight.detach())  # type: ignore[arg-type, union-attr, operator]
    for hook in module._forward_hooks.values():
        if isinstance(hook, _SideBranchHook):
            weight_OI = weight_OI.float() + hook.part.dense()
    return weight_OI
