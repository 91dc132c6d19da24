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
    """Return the editor's name in `EDITORS`, or that of its class; a wrapper of an unusual editor is `RECT/AlphaEdit`."""
    name = _named(type(editor))
    if isinstance(editor, EditorWrapper) and type(editor.host) is not editor.default_inner():
        return f"{name}/{name_of(editor.host)}"
    return name


def _named(kind: type[Editor]) -> str:
    return next((name for name, known in EDITORS.items() if kind is known), kind.__name__)


def _kinds(name: str) -> tuple[Any, str, str]:
    """Return (class, its name, the name of the wrapped editor or ""). Raises `ValueError` for an unknown name."""
    outer, _, inner = name.partition("/")
    if outer not in EDITORS:
        raise ValueError(f"no editor is named {outer!r}; known are {', '.join(EDITORS)}")
    return EDITORS[outer], outer, inner


def make_editor(
    name: str,
    artifact: str | Path | None = None,
    preset: str | None = None,
    settings: Mapping[str, str] | None = None,
    device: Any = "cpu",
) -> Editor:
    """Build an editor by its name in `EDITORS`, ready to start; `RECT/AlphaEdit` is RECT over AlphaEdit.

    `artifact` is the folder of a trained policy or of key moments, `preset` a name such as `llama3_8b`, for editors that have
    them; `settings` are fields with their values as text. Raises `ValueError` for what is unknown or missing.
    """
    kind, outer, inner = _kinds(name)
    editor: Any
    if issubclass(kind, EditorWrapper):
        editor = kind(make_editor(inner or _named(kind.default_inner()), artifact, preset, None, device))
    elif inner:
        raise ValueError(f"{outer} does not wrap another editor, as {name!r} asks")
    else:
        editor = kind.from_artifact(artifact, preset, device)
    for field, value in (settings or {}).items():
        if isinstance(editor, HypernetworkEditor):
            raise ValueError(
                f"{outer} was trained with its settings: train another policy (jobs/train.py) instead of {field}={value}"
            )
        editor = overridden(editor, field, value)
    return editor


def needs(name: str, preset: str = "") -> str:
    """Return the folder of $ERRATA_HOME with the artifacts that an editor needs: `hypernets`, `moments`, or "" for none.

    Raises `ValueError` for an unknown name or preset.
    """
    kind, outer, inner = _kinds(name)
    if issubclass(kind, EditorWrapper):
        return needs(inner or _named(kind.default_inner()), preset)
    if preset and issubclass(kind, HypernetworkEditor):
        raise ValueError(f"{outer} is trained, so it takes no preset: train it with a plan that has one (docs/plans.md)")
    if preset:
        preset_of(kind, preset)
    return "hypernets" if issubclass(kind, HypernetworkEditor) else "moments" if issubclass(kind, LocateThenEdit) else ""


def load_artifact(directory: str | Path, device: Any = "cpu") -> tuple[HypernetworkEditor, dict[str, Any]]:
    """Load a hypernetwork editor with its policy, and the record of its training. Raises `ValueError` without an artifact."""
    path = Path(directory) / "artifact.json"
    if not path.exists():
        raise ValueError(f"{directory} is no artifact of a hypernetwork editor: it has no artifact.json")
    description = json.loads(path.read_text())
    editor = EDITORS.get(description["editor"])
    if editor is None or not issubclass(editor, HypernetworkEditor):
        raise ValueError(f"{directory} is of {description['editor']!r}, which is no hypernetwork editor of this release")
    return editor.load(directory, device), description["record"]
