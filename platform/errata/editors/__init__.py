"""Editors by name. A new one is a file beside these and one line here."""

from errata.editors.editor import Editor, EditorState
from errata.editors.hypernet.rledit import RLEdit

EDITORS: dict[str, type[Editor]] = {
    "RLEdit": RLEdit,
}

__all__ = ["EDITORS", "Editor", "EditorState"]
