"""Build an editor by name."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from errata.editors.closed_form.locate_then_edit import LocateThenEdit
from errata.editors.editor import Editor
from errata.editors.hypernet.hypernet_editor import HypernetworkEditor
from errata.editors.presets import preset_of
from errata.editors.table import EDITORS
from errata.editors.wrappers.wrapper import EditorWrapper
from errata.overrides import overridden


def name_of(editor: Editor) -> str:
    """As EDITORS has it, with its host where that is another than usual; or the class's own."""
    name = _named(type(editor))
    if isinstance(editor, EditorWrapper) and type(editor.host) is not editor.default_inner():
        return f"{name}/{name_of(editor.host)}"
    return name


def _named(kind: type[Editor]) -> str:
    return next((name for name, known in EDITORS.items() if kind is known), kind.__name__)


def _kinds(name: str) -> tuple[Any, str, str]:
    """(class, its name, the name of its host) of a name; raises `ValueError` if there is none."""
    outer, _, inner = name.partition("/")
    if outer not in EDITORS:
        raise ValueError(f"no editor is named {outer!r}; there are {', '.join(EDITORS)}")
    return EDITORS[outer], outer, inner


def make_editor(
    name: str,
    artifact: str | Path | None = None,
    preset: str | None = None,
    settings: Mapping[str, str] | None = None,
    device: Any = "cpu",
) -> Editor:
    """An editor by its name in `EDITORS`, ready to start; `RECT/AlphaEdit` is RECT over AlphaEdit.

    `artifact` is the folder of a trained policy or of key moments, `preset` a name such as `llama3_8b`, for editors that have
    them; `settings` are fields with their values as text. Raises `ValueError` that says what is unknown or missing.
    """
    kind, outer, inner = _kinds(name)
    editor: Any
    if issubclass(kind, EditorWrapper):
        editor = kind(make_editor(inner or _named(kind.default_inner()), artifact, preset, None, device))
    elif inner:
        raise ValueError(f"{outer} is not made of another editor: {name!r}")
    else:
        editor = kind.from_artifact(artifact, preset, device)
    for field, value in (settings or {}).items():
        if isinstance(editor, HypernetworkEditor):
            raise ValueError(
                f"{outer} was trained with its settings: train another one (jobs/train.py) instead of {field}={value}"
            )
        editor = overridden(editor, field, value)
    return editor


def needs(name: str, preset: str = "") -> str:
    """Where $ERRATA_HOME keeps the artifacts that an editor is made with: `hypernets`, `moments`, or nowhere, an empty text.

    Raises `ValueError` if no editor has the name, or it has no such preset.
    """
    kind, outer, inner = _kinds(name)
    if issubclass(kind, EditorWrapper):
        return needs(inner or _named(kind.default_inner()), preset)
    if preset and issubclass(kind, HypernetworkEditor):
        raise ValueError(f"{outer} is trained, and takes no preset: train it with a plan that has one (docs/plans.md)")
    if preset:
        preset_of(kind, preset)
    return "hypernets" if issubclass(kind, HypernetworkEditor) else "moments" if issubclass(kind, LocateThenEdit) else ""


def load_artifact(directory: str | Path, device: Any = "cpu") -> tuple[HypernetworkEditor, dict[str, Any]]:
    """A learned editor with its policy, and the record of how it was made. Raises `ValueError` if the folder holds none."""
    path = Path(directory) / "artifact.json"
    if not path.exists():
        raise ValueError(f"{directory} is no artifact of a learned editor: it has no artifact.json")
    description = json.loads(path.read_text())
    editor = EDITORS.get(description["editor"])
    if editor is None or not issubclass(editor, HypernetworkEditor):
        raise ValueError(f"{directory} was made for {description['editor']!r}, which is no learned editor of this version")
    return editor.load(directory, device), description["record"]
