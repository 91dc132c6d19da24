"""Editors: methods that turn a batch of edits into a change of the model's weights.

The interface, the table of editors and shared computations are here; the methods are in a folder for each family.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from errata.editors.build import load_artifact, make_editor, name_of, needs
    from errata.editors.editor import Editor
    from errata.editors.state import EditorState
    from errata.editors.table import EDITORS

_HOME = {
    "EDITORS": "table",
    "Editor": "editor",
    "EditorState": "state",
    "load_artifact": "build",
    "make_editor": "build",
    "name_of": "build",
    "needs": "build",
}

__all__ = ["EDITORS", "Editor", "EditorState", "load_artifact", "make_editor", "name_of", "needs"]


def __getattr__(name: str) -> Any:
    """Import an exported name on first use: the ledger needs `editors.state` without every algorithm."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
