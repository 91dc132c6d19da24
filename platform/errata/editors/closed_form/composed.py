"""Editors made of another one: a host makes a change, a function of deltas alters it. `RECT(AlphaEdit(...))`.

The host is a value, not a parent: any editor will do, also one that is composed itself. By name it stands after a stroke,
`RECT/AlphaEdit`.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Self

from errata.editors.editor import Editor, EditorState
from errata.model import LanguageModel, ModelSpec


@dataclass(frozen=True)
class Composed(Editor):
    """`host` is given first."""

    host: Editor

    @classmethod
    @abstractmethod
    def usual_host(cls) -> type[Editor]:
        """Whom the method was published with: the host where none is named."""

    @property
    def modules(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.host.modules

    def with_moments(self, moments: Any) -> Self:
        return replace(self, host=self.host.with_moments(moments))

    def start(self, model: LanguageModel, spec: ModelSpec) -> EditorState:
        return self.host.start(model, spec)
