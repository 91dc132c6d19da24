"""Editors made of another one: a host makes a change, a function of deltas alters it. `RECT(AlphaEdit(...))`.

The host is a value, not a parent: any editor will do, also one that is composed itself. By name it stands after a stroke,
`RECT/AlphaEdit`. In the state of one that remembers something itself, the host's tensors are under `host|`, so that neither
meets the other's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from torch import Tensor

from errata.delta.weight_delta import WeightDelta
from errata.edit import EditBatch
from errata.editors.editor import Editor
from errata.editors.state import EditorState
from errata.model.language_model import LanguageModel
from errata.model.matrices import ModelSpec
from errata.model.prefix_cache import BatchCache

_HOST = "host|"


@dataclass(frozen=True)
class EditorWrapper(Editor):
    """`host` is given first. One that is `must_be_outermost` counts on the weights being what it made them: it is nobody's host."""

    host: Editor

    must_be_outermost: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if isinstance(self.host, EditorWrapper) and self.host.must_be_outermost:
            name = type(self.host).__name__
            raise ValueError(f"{name} looks at the whole of what was written: {name} over {type(self).__name__}, not under it")

    @classmethod
    @abstractmethod
    def default_inner(cls) -> type[Editor]:
        """Whom the method was published with: the host where none is named."""

    @property
    def modules(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.host.modules

    def with_moments(self, moments: Any) -> Self:
        return replace(self, host=self.host.with_moments(moments))

    def start(self, model: LanguageModel, spec: ModelSpec) -> EditorState:
        return self.host.start(model, spec)

    def edit(
        self, model: LanguageModel, batch: EditBatch, state: EditorState, cache: BatchCache | None = None
    ) -> tuple[WeightDelta, EditorState]:
        return self.edit_through(model, batch, state, lambda delta: delta, cache)

    @abstractmethod
    def edit_through(
        self,
        model: LanguageModel,
        batch: EditBatch,
        state: EditorState,
        transform: Callable[[WeightDelta], WeightDelta],
        cache: BatchCache | None = None,
    ) -> tuple[WeightDelta, EditorState]: ...


def inner_state(state: EditorState) -> EditorState:
    """The host's state, of a composed editor's."""
    return state.without_prefix(_HOST, state.derived.get("inner", {}))


def wrap_state(host: EditorState, own: Mapping[str, Tensor] | None = None) -> EditorState:
    """A composed editor's state: the host's, and tensors of its own."""
    return host.with_prefix(_HOST, {"inner": host.derived}).with_tensors(own or {})
