"""The context of a revert: the parts of the live model that it reads and changes."""

from __future__ import annotations

from typing import Protocol

from errata.delta.accumulator import EditedModel
from errata.editors.editor import Editor
from errata.guard.inspector import Inspector
from errata.ledger import Ledger


class RevertContext(Protocol):
    """The live model that a revert starts from: its weights are those of `version`, the head of `ledger`.

    `inspector` measures the same model, and `origin` is (editor, plan) as the ledger's versions name them.
    """

    ledger: Ledger
    edited: EditedModel
    inspector: Inspector
    editor: Editor

    @property
    def version(self) -> int: ...

    @property
    def origin(self) -> tuple[str, str]: ...
