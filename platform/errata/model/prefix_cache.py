"""Prefix cache: the activations before the edited modules, which do not change while only these modules do.

`recomputed` is activation checkpointing for the blocks after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from errata.edit import EditBatch
from errata.model.encoding import Encoded
from errata.model.language_model import LanguageModel
from errata.model.packing import packed_requests


@dataclass(frozen=True)
class BatchCache:
    """The tokens of a batch of edits and a prefix cache for them, which the editor and the inspector share."""

    tokens: Encoded
    prefix: PrefixCache

    @classmethod
    def of(cls, model: LanguageModel, modules: Sequence[str], batch: EditBatch) -> BatchCache:
        """Tokenise the batch, and make an empty cache of what `model` computes before the first of `modules`."""
        return cls(packed_requests(model, batch.rows), PrefixCache(model.module, modules))


class PrefixCache:
    """Activations before the first of `modules`, computed in the first pass over a text and replayed in later ones.

    It is valid while only `modules` change. Inside the block of the first module, too, every submodule that runs before it is
    replayed. For consecutive blocks, only the last block's output is cached. With `offload`, the outputs lie in CPU memory.
    """

    def __init__(self, model: nn.Module, modules: Sequence[str], offload: bool = False) -> None:
        self.model, self.offload = model, offload
        self.changing = [model.get_submodule(name) for name in modules]
        names = {name.rsplit(".", depth)[0] for name in modules for depth in range(1, name.count(".") + 1)}
        ancestors = {model, *(model.get_submodule(name) for name in names)}
        self.parts = list(dict.fromkeys(_parts_without(model, ancestors, set(self.changing))))
        self.predecessors = _predecessors(model, set(self.parts))
        self.later_blocks = _blocks_from(model, ancestors)
        self.outputs: dict[int, tuple[Encoded, list[Any]]] = {}  # The key is the text's id, so the text is held, too.
        self.derived: dict[int, Encoded] = {}

    def has(self, text: Encoded) -> bool:
        return id(text) in self.outputs

    def forget(self, text: Encoded) -> None:
        """Free the outputs of `text`, and those derived from them."""
        self.outputs.pop(id(text), None)
        self.outputs.pop(id(self.derived.pop(id(text), None)), None)

    def empty_copy(self) -> PrefixCache:
        """Return a cache of the same parts without outputs."""
        other = copy(self)
        other.outputs, other.derived = {}, {}
        return other

    def derive(self, text: Encoded, other: Encoded, change: Callable[[Any], Any]) -> Encoded:
        """Cache for the text `other` the outputs of `text`, with `change` applied to each tensor and `UnreadOutput`."""
        assert not self.offload
        self.outputs[id(other)] = other, [_map(output, change) for output in self.outputs[id(text)][1]]
        self.derived[id(text)] = other
        return other

    def reusing(self, text: Encoded) -> AbstractContextManager[None]:
        """Replay the outputs of `text` in a pass over it, or record them if it is the first pass."""
        return self.replaying(text) if self.has(text) else self.recording(text)

    @contextmanager
    def recording(self, text: Encoded) -> Iterator[None]:
        """Cache the outputs of the parts in a pass over `text`, until the first changing module runs."""
        recording = _Recording(self.predecessors)

        def end(*_: Any) -> None:
            if recording.is_open:
                recording.is_open = False
                outputs = [_offloaded(output) for output in recording.outputs] if self.offload else recording.outputs
                self.outputs[id(text)] = text, outputs

        handles = [self.model.register_forward_pre_hook(recording.begin)]
        # The raw output is recorded, because other forward hooks of the part also run when it is replayed.
        handles += [part.register_forward_hook(recording.add, prepend=True) for part in self.parts]
        handles += [module.register_forward_pre_hook(end) for module in self.changing]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def replaying(self, text: Encoded) -> Iterator[None]:
        """Return the cached outputs from the parts in each pass over `text`, in the order in which they were recorded."""
        _, outputs = self.outputs[id(text)]
        remaining: list[Any] = []  # in reverse

        def begin(*_: Any) -> None:
            remaining[:] = reversed(outputs)

        def replayed(_part: nn.Module, forward: Any) -> Any:
            # Parts after the changing modules run, and so do all when activation checkpointing runs a block again.
            return lambda *args, **kwargs: _restored(remaining.pop()) if remaining else forward(*args, **kwargs)

        handle = self.model.register_forward_pre_hook(begin)
        try:
            with _replaced_forward(self.parts, replayed):
                yield
        finally:
            handle.remove()


class _Recording:
    """The outputs of the parts in one pass, in the order of computation."""

    def __init__(self, predecessors: Mapping[nn.Module, nn.Module]) -> None:
        self.predecessors, self.is_open = predecessors, False
        self.outputs: list[Any] = []
        self.last: nn.Module | None = None

    def begin(self, *_: Any) -> None:
        self.outputs, self.last, self.is_open = [], None, True

    def add(self, part: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not self.is_open:
            return
        if self.last is not None and self.predecessors.get(part) is self.last and args and args[0] is self.outputs[-1]:
            self.outputs[-1] = UnreadOutput(args[0].shape, args[0].dtype, args[0].device)
        self.outputs.append(output)
        self.last = part


@contextmanager
def recomputed(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Use activation checkpointing: keep only the input of each block, and run the block again in the backward pass.

    The backward pass must be inside, too, and all hooks in place.
    """

    def around(_block: nn.Module, forward: Any) -> Any:
        return partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)  # No dropout draws numbers.

    with _replaced_forward(blocks, around):
        yield


@contextmanager
def _replaced_forward(modules: Sequence[nn.Module], around: Callable[[nn.Module, Any], Any]) -> Iterator[None]:
    """Put `around(module, forward)` in place of each module's forward."""
    own = {module: vars(module).get("forward") for module in modules}  # Some libraries set `forward` on the instance.
    for module in modules:
        module.forward = around(module, module.forward)
    try:
        yield
    finally:
        for module, forward in own.items():
            del module.forward
            if forward is not None:
                module.forward = forward


@dataclass(frozen=True)
class UnreadOutput:
    """Placeholder for an output that replay never reads. Materialises as NaN, so that a wrong read is visible."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    def tensor(self) -> Tensor:
        return torch.full((), float("nan"), dtype=self.dtype, device=self.device).expand(self.shape)


@dataclass(frozen=True)
class _OffloadedTensor:
    """A tensor of `device` in CPU memory."""

    tensor: Tensor
    device: torch.device


def _map(output: Any, change: Callable[[Any], Any]) -> Any:
    """Apply `change` to an output, or to each element of a (nested) tuple."""
    return tuple(_map(one, change) for one in output) if isinstance(output, tuple) else change(output)


def _offloaded(output: Any) -> Any:
    return _map(output, lambda one: _OffloadedTensor(one.cpu(), one.device) if isinstance(one, Tensor) else one)


def _restored(output: Any) -> Any:
    def restored(one: Any) -> Any:
        if isinstance(one, UnreadOutput):
            return one.tensor()
        return one.tensor.to(one.device) if isinstance(one, _OffloadedTensor) else one

    return _map(output, restored)


def _parts_without(module: nn.Module, ancestors: set[nn.Module], changing: set[nn.Module]) -> Iterator[nn.Module]:
    """Yield the largest parts of `module` that contain none of `changing`; `ancestors` are all modules that contain one."""
    for child in module.children():
        if child in ancestors:
            yield from _parts_without(child, ancestors, changing)
        elif child not in changing:
            yield child


def _predecessors(model: nn.Module, parts: set[nn.Module]) -> dict[nn.Module, nn.Module]:
    """Map each of `parts` that follows another one in a list of modules to that one."""
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    pairs = ((second, first) for blocks in lists for first, second in pairwise(blocks))
    return {second: first for second, first in pairs if first in parts and second in parts}


def _blocks_from(model: nn.Module, ancestors: set[nn.Module]) -> list[nn.Module]:
    """Return the model's blocks from the first one that is in `ancestors`; none if the model has no list of blocks."""
    lists = (list(module) for module in model.modules() if isinstance(module, nn.ModuleList))
    blocks = next((blocks for blocks in lists if any(block in ancestors for block in blocks)), [])
    return blocks[next((i for i, block in enumerate(blocks) if block in ancestors), 0) :]
