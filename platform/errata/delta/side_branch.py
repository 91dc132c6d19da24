"""Side branches: run a model with a delta beside its weights and its memory, without changing them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from errata.delta.kinds import Delta, split_by_kind
from errata.delta.memory_delta import held_after
from errata.delta.parts import Part
from errata.edit_memory.hooks import bank_of, reading
from errata.model.matrices import MatrixSpec


@contextmanager
def applied(model: nn.Module, *deltas: Delta) -> Iterator[None]:
    """Make the model behave as if it were edited: each matrix has a side branch, and the memory is that after the deltas."""
    changes, memory = split_by_kind(deltas)
    weights = [found for delta in changes for found in delta.on_devices_of(model)]
    with ExitStack() as stack:
        for name, part in weights:
            stack.callback(model.get_submodule(name).register_forward_hook(_SideBranchHook(part)).remove)
        if (bank := held_after(memory, bank_of(model))) is not None and memory:
            stack.enter_context(reading(model, bank))
        yield


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
