"""Editors by name. A new one is a file beside these and one line here."""

import json
from pathlib import Path
from typing import Any

from errata.editors.closed_form.alphaedit import AlphaEdit
from errata.editors.closed_form.memit import MEMIT
from errata.editors.closed_form.ultraedit import UltraEdit
from errata.editors.editor import Editor, EditorState
from errata.editors.finetuned.ftl import FTL
from errata.editors.finetuned.locft import LocFT
from errata.editors.hypernet.learned import Learned
from errata.editors.hypernet.malmen import MALMEN
from errata.editors.hypernet.mend import MEND
from errata.editors.hypernet.rledit import RLEdit

EDITORS: dict[str, type[Editor]] = {
    "RLEdit": RLEdit,
    "MALMEN": MALMEN,
    "MEND": MEND,
    "UltraEdit": UltraEdit,
    "MEMIT": MEMIT,
    "AlphaEdit": AlphaEdit,
    "FT-L": FTL,
    "LocFT": LocFT,
}


def name_of(editor: Editor) -> str:
    """As EDITORS has it, or the class's own."""
    return next((name for name, known in EDITORS.items() if type(editor) is known), type(editor).__name__)


def load_artifact(directory: str | Path, device: Any = "cpu") -> tuple[Learned, dict[str, Any]]:
    """A learned editor with its policy, and the record of how it was made. Raises `ValueError` if the folder holds none."""
    path = Path(directory) / "artifact.json"
    if not path.exists():
        raise ValueError(f"{directory} is no artifact of a learned editor: it has no artifact.json")
    description = json.loads(path.read_text())
    editor = EDITORS.get(description["editor"])
    if editor is None or not issubclass(editor, Learned):
        raise ValueError(f"{directory} was made for {description['editor']!r}, which is no learned editor of this version")
    return editor.load(directory, device), description["record"]


__all__ = ["EDITORS", "Editor", "EditorState", "load_artifact", "name_of"]
