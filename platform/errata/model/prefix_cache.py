"""A cache of the activations below the edited blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from errata.edit import EditBatch
from errata.model.encoding import IGNORED, Encoded, answer_log_probs, answer_nll, at_answers, encode
from errata.model.language_model import LanguageModel


@dataclass(frozen=True)
class BatchCache:
    """The tokens of a batch of edits and a prefix cache for them, which the editor and the inspector share."""

    tokens: Encoded
    prefix: PrefixCache

    @classmethod
    def of(cls, model: LanguageModel, modules: Sequence[str], batch: EditBatch) -> BatchCache:
        """Tokenise the batch, and make an empty cache of what `model` computes before the first of `modules`."""
        tokens = encode(model.tokenizer, batch.prompts, batch.targets, model.device)
        return cls(tokens, PrefixCache(model.module, modules))


class PrefixCache:
    """What a model computes before the first of `modules`, run once for each text and kept as long as this object.

    For many passes over the same texts between which only `modules` change: what is ready before the first of them begins is
    the same again, down to the parts of the block that it stands in. Of blocks that only hand on to the next, the last one's
    output alone is kept; with `on_host`, all of it in the host's memory.
    """

    def __init__(self, model: nn.Module, modules: Sequence[str], on_host: bool = False) -> None:
        self.model, self.on_host = model, on_host
        self.changing = [model.get_submodule(name) for name in modules]
        names = {name.rsplit(".", depth)[0] for name in modules for depth in range(1, name.count(".") + 1)}
        above = {model, *(model.get_submodule(name) for name in names)}
        self.parts = list(dict.fromkeys(_parts_without(model, above, set(self.changing))))
        self.handed_on = _neighbours(model, set(self.parts))
        self.behind = _blocks_from(model, above)
        self.kept: dict[int, tuple[Encoded, list[Any]]] = {}  # by identity of the text, which is held so that it stays unique
        self.narrow: dict[int, Encoded] = {}

    def has(self, text: Encoded) -> bool:
        return id(text) in self.kept

    def forget(self, text: Encoded) -> None:
        self.kept.pop(id(text), None)
        self.kept.pop(id(self.narrow.pop(id(text), None)), None)

    def anew(self) -> PrefixCache:
        """The same parts, and nothing kept."""
        other = copy(self)
        other.kept, other.narrow = {}, {}
        return other

    def is_pointwise(self, text: Encoded) -> bool:
        """Whether what is run behind the trunk mixes no places, as behind the last attention.

        Then what is predicted at one does not depend on what the trunk and the changing modules give at others. The gradient
        of the last place of each row tells.
        """
        is_answer_BS = text.labels_BS != IGNORED
        is_last_BS = is_answer_BS & (is_answer_BS.cumsum(1) == is_answer_BS.sum(1, keepdim=True))
        last = replace(text, labels_BS=text.labels_BS.masked_fill(~is_last_BS, IGNORED))
        if not last.predicts_BS[:, 1:].any():  # the first place of a text has no other to depend on
            return False
        assert not self.on_host
        trunk, given = self.anew(), list[Tensor]()
        with torch.no_grad(), trunk.once(last):
            answer_log_probs(self.model, last)
        trunk.kept[id(last)] = last, [_watched(output, given) for output in trunk.kept[id(last)][1]]
        handles = [module.register_forward_hook(lambda _m, _a, output: _watched(output, given)) for module in self.changing]
        try:
            with torch.enable_grad(), trunk.once(last):
                loss = answer_nll(answer_log_probs(self.model, last), last).sum()
        finally:
            for handle in handles:
                handle.remove()
        grads = torch.autograd.grad(loss, given, allow_unused=True)
        return not any(grad is not None and _is_elsewhere(grad, last) for grad in grads)

    def narrowed(self, text: Encoded) -> Encoded:
        """The places of `text` that predict an answer token, as one row; a pass over it runs the rest of the model there alone.

        It is right where the rest is pointwise, and replays the trunk of `text`, which must have been passed over.
        """
        assert not self.on_host
        if id(text) not in self.narrow:
            row_1T = text.targets_T[None]
            labels_BS = torch.nn.functional.pad(row_1T, (1, 0), value=IGNORED)  # one longer, so that every place predicts
            short = Encoded(row_1T, torch.ones_like(row_1T), labels_BS)
            self.kept[id(short)] = short, [_at_answers(output, text) for output in self.kept[id(text)][1]]
            self.narrow[id(text)] = short
        return self.narrow[id(text)]

    @contextmanager
    def once(self, text: Encoded) -> Iterator[None]:
        """Within it, every pass of the model is over `text`; only the first of all runs the trunk."""
        _, outputs = self.kept.get(id(text), (text, []))  # in the order in which the first pass made them
        recording, replay = id(text) not in self.kept, iter(())
        last: nn.Module | None = None  # of the parts that were recorded

        def begin_pass(*_: Any) -> None:
            nonlocal replay, last
            if recording:
                outputs.clear()
                last = None
            else:
                replay = iter(outputs)

        def end_trunk(*_: Any) -> None:
            nonlocal recording
            if recording and self.on_host:
                outputs[:] = [_to_host(output) for output in outputs]
            recording = False
            self.kept[id(text)] = text, outputs

        def record(part: nn.Module, output: Any, args: tuple[Any, ...]) -> None:
            nonlocal last
            if last is not None and self.handed_on.get(part) is last and args and args[0] is outputs[-1]:
                outputs[-1] = _Unread(args[0].shape, args[0].dtype, args[0].device)
            outputs.append(output)
            last = part

        def kept(part: nn.Module, forward: Any) -> Any:
            def run(*args: Any, **kwargs: Any) -> Any:
                if recording:
                    output = forward(*args, **kwargs)
                    record(part, output, args)
                    return output
                output = next(replay, None)
                return forward(*args, **kwargs) if output is None else _brought_back(output)

            return run

        handles = [self.model.register_forward_pre_hook(begin_pass)]
        handles += [module.register_forward_pre_hook(end_trunk) for module in self.changing]
        try:
            with _other_forward(self.parts, kept):
                yield
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def recomputed(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Within it, each of `blocks` keeps of a pass what goes in alone, and runs again when the backward pass comes to it.

    The backward pass must be inside, too, and all hooks in place.
    """

    def around(_block: nn.Module, forward: Any) -> Any:
        return partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)  # nothing is drawn: no dropout

    with _other_forward(blocks, around):
        yield


@contextmanager
def _other_forward(modules: Sequence[nn.Module], around: Callable[[nn.Module, Any], Any]) -> Iterator[None]:
    """Each module with `around(module, forward)` in place of its forward."""
    own = {module: vars(module).get("forward") for module in modules}  # some libraries give modules a forward of their own
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
class _Unread:
    """In place of an output that is only read where another is replayed; read all the same, it spoils everything visibly."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    def tensor(self) -> Tensor:
        return torch.full((), float("nan"), dtype=self.dtype, device=self.device).expand(self.shape)


@dataclass(frozen=True)
class _OnHost:
    """A tensor of `device` in the host's memory."""

    tensor: Tensor
    device: torch.device


def _each(output: Any, change: Callable[[Any], Any]) -> Any:
    """The same, with what it holds changed."""
    return tuple(_each(one, change) for one in output) if isinstance(output, tuple) else change(output)


def _to_host(output: Any) -> Any:
    return _each(output, lambda one: _OnHost(one.cpu(), one.device) if isinstance(one, Tensor) else one)


def _brought_back(output: Any) -> Any:
    def brought_back(one: Any) -> Any:
        if isinstance(one, _Unread):
            return one.tensor()
        return one.tensor.to(one.device) if isinstance(one, _OnHost) else one

    return _each(output, brought_back)


def _watched(output: Any, given: list[Tensor]) -> Any:
    """The same with every tensor in it taking a gradient, and put into `given`."""

    def watched(one: Any) -> Any:
        if not isinstance(one, Tensor) or not one.is_floating_point():
            return one
        given.append(one if one.requires_grad else one.detach().requires_grad_())
        return given[-1]

    return _each(output, watched)


def _is_elsewhere(grad: Tensor, text: Encoded) -> bool:
    """Whether a gradient is not zero where `text` predicts nothing, or is of something that has no places to tell."""
    if grad.shape[:2] == text.predicts_BS.shape:
        grad = grad[~text.predicts_BS.to(grad.device)]
    return bool(grad.any())


def _at_answers(output: Any, text: Encoded) -> Any:
    """What a part gave for each place of `text`, at those that predict an answer token, as one row."""
    num_rows, width = text.input_ids_BS.shape

    def chosen(one: Any) -> Any:
        if isinstance(one, _Unread):
            return replace(one, shape=torch.Size((1, len(text.predicts_T), *one.shape[2:])))
        if not isinstance(one, Tensor) or one.ndim < 2 or one.shape[0] not in (1, num_rows) or one.shape[1] != width:
            return one
        return at_answers(one.expand(num_rows, *one.shape[1:]), text)[None]

    return _each(output, chosen)


def _parts_without(module: nn.Module, above: set[nn.Module], changing: set[nn.Module]) -> Iterator[nn.Module]:
    """The largest parts of `module` that have none of `changing` in them; `above` are all modules that have."""
    for child in module.children():
        if child in above:
            yield from _parts_without(child, above, changing)
        elif child not in changing:
            yield child


def _neighbours(model: nn.Module, parts: set[nn.Module]) -> dict[nn.Module, nn.Module]:
    """Each of `parts` that stands in a list behind another of them, with that one."""
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    pairs = ((second, first) for blocks in lists for first, second in pairwise(blocks))
    return {second: first for second, first in pairs if first in parts and second in parts}


def _blocks_from(model: nn.Module, above: set[nn.Module]) -> list[nn.Module]:
    """The model's blocks from the first on that is one of `above`; none where it has no list of blocks."""
    lists = (list(module) for module in model.modules() if isinstance(module, nn.ModuleList))
    blocks = next((blocks for blocks in lists if any(block in above for block in blocks)), [])
    return blocks[next((i for i, block in enumerate(blocks) if block in above), 0) :]
