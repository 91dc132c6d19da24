"""Editors that wrap another one: the wrapped editor makes a change, a function of deltas transforms it. `RECT(AlphaEdit(...))`.

The wrapped editor is a value (the field `host`), not a base class, so any editor can be wrapped, also a wrapper. In names it
follows a slash, `RECT/AlphaEdit`. In the state of a wrapper with tensors of its own, those of the wrapped editor have the
prefix `host|`.
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

_PREFIX = "host|"


@dataclass(frozen=True)
class EditorWrapper(Editor):
    """An editor that transforms the change of another one, `host`.

    A wrapper with `must_be_outermost` assumes that no other wrapper changes its delta, so it cannot be wrapped.
    """

    host: Editor

    must_be_outermost: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.host.writes == "memory":
            raise ValueError(
                f"{type(self).__name__} changes another editor's matrices, and {type(self.host).__name__} keeps its edits in a "
                "memory: give an editor of weights"
            )
        if isinstance(self.host, EditorWrapper) and self.host.must_be_outermost:
            name = type(self.host).__name__
            raise ValueError(
                f"{name} needs the sum of all changes, so no wrapper may follow it: put {name} over {type(self).__name__}"
            )

    @classmethod
    @abstractmethod
    def default_inner(cls) -> type[Editor]:
        """Return the editor that the method was published with; it is wrapped if no other is named."""

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
    """Return the state of the wrapped editor inside a wrapper's state."""
    return state.without_prefix(_PREFIX, state.derived.get("inner", {}))


def wrap_state(inner: EditorState, own: Mapping[str, Tensor] | None = None) -> EditorState:
    """Return a wrapper's state: that of the wrapped editor, and tensors of its own."""
    return inner.with_prefix(_PREFIX, {"inner": inner.derived}).with_tensors(own or {})
