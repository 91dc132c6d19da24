"""Build an editor by name."""

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from errata.edit_memory.bank import READ_BEFORE
from errata.editors.closed_form.locate_then_edit import LocateThenEdit
from errata.editors.editor import Editor
from errata.editors.presets import preset_of
from errata.editors.table import EDITORS
from errata.editors.tiers import Tiers
from errata.editors.trained_editor import TrainedEditor
from errata.editors.wrappers.wrapper import EditorWrapper
from errata.model.checkpoint import header
from errata.model.json_file import read_json
from errata.overrides import overridden

DEFAULT_EDITOR = "answer"  # needs no training and no setting, and answers most on the default model: docs/benchmarks.md
OF_ARTIFACTS = "RLEdit"  # for artifacts and presets that name no editor


def editor_for(name: str, artifact: str | Path | None = None, preset: str | None = None, memory: str | None = None) -> str:
    """Return the name of the editor that a user means: the one named, or that of the policy or preset given, or the default.

    With a `memory` before it, an editor of weights is meant.
    """
    if name:
        return name
    if not artifact:
        return OF_ARTIFACTS if preset or memory else DEFAULT_EDITOR
    path = Path(artifact) / "artifact.json"
    return str(read_json(path).get("editor") or OF_ARTIFACTS) if path.exists() else OF_ARTIFACTS


def name_of(editor: Editor) -> str:
    """Return the editor's name in `EDITORS`, or that of its class.

    A wrapper of an unusual editor is `RECT/AlphaEdit`, and an editor of weights with a memory before it `RLEdit+answer`.
    """
    if isinstance(editor, Tiers):
        return f"{name_of(editor.weights)}+{name_of(editor.memory)}"
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
    return _built(name, settings, lambda kind: kind.from_artifact(artifact, preset, device))


def with_memory(editor: Editor, memory: str, settings: Mapping[str, str] | None = None) -> Tiers:
    """Put a memory, by its name in `EDITORS`, in front of an editor of weights; `settings` are those of `tier_settings`.

    Raises `ValueError` for an unknown name, for one that is no memory read before the model, and for an unknown setting.
    """
    tiers: Any = Tiers(editor, memory_named(memory)())
    for field, value in (settings or {}).items():
        tiers = overridden(tiers, field, value)
    return cast(Tiers, tiers)


def memory_named(memory: str) -> type[Editor]:
    """Return the class of a memory that may be read before weights. Raises `ValueError` for any other name."""
    kind, _, inner = _kinds(memory)
    if inner or kind.writes != "memory" or kind.is_trained or kind.kind not in READ_BEFORE:
        names = ", ".join(name for name, one in EDITORS.items() if one.kind in READ_BEFORE and not one.is_trained)
        raise ValueError(f"{memory} is no memory that is read before weights: give one of {names}")
    return cast(type[Editor], kind)


def tier_settings(settings: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Split settings into those of the weights' editor, and those of the tiers and of the memory (`memory.threshold`)."""
    own = {name: value for name, value in settings.items() if name == "max_records" or name.startswith("memory.")}
    return {name: value for name, value in settings.items() if name not in own}, own


def outline(
    name: str,
    artifact: str | Path | None = None,
    preset: str | None = None,
    settings: Mapping[str, str] | None = None,
) -> Editor:
    """Build the editor as `make_editor` does, with all its fields, but without reading the tensors of its artifact.

    Raises `ValueError` as `make_editor` does.
    """
    return _built(name, settings, lambda kind: _outline(kind, artifact, preset))


def _built(name: str, settings: Mapping[str, str] | None, make: Callable[[Any], Editor]) -> Editor:
    kind, outer, inner = _kinds(name)
    editor: Any
    if issubclass(kind, EditorWrapper):
        editor = kind(_built(inner or _named(kind.default_inner()), None, make))
    elif inner:
        raise ValueError(f"{outer} does not wrap another editor, as {name!r} asks")
    else:
        editor = make(kind)
    for field, value in (settings or {}).items():
        if editor.is_trained:
            raise ValueError(
                f"{outer} was trained with its settings: train another policy (jobs/train.py) instead of {field}={value}"
            )
        editor = overridden(editor, field, value)
    return editor


def _outline(kind: Any, artifact: str | Path | None, preset: str | None) -> Editor:
    if artifact is None:
        return cast(Editor, kind.from_artifact(None, preset))
    if kind.is_trained and preset is None:
        return _untrained(kind, Path(artifact))
    if issubclass(kind, LocateThenEdit):
        editor, names = kind.from_artifact(None, preset), tuple(matrices_of(artifact))
        return replace(editor, modules=names) if preset is None else editor
    return cast(Editor, kind.from_artifact(artifact, preset))


def _untrained(kind: Any, folder: Path) -> Editor:
    """Build a trained editor with the matrices of its artifact. Raises `ValueError` if that is of another editor."""
    path = folder / "artifact.json"
    description = read_json(path) if path.exists() else {}
    if (found := description.get("editor")) != kind.__name__:
        what = f"it is of {found}" if found else "it has no artifact.json"
        raise ValueError(
            f"{folder} holds no {kind.__name__} policy ({what}): give the folder of one, or train one (jobs/train.py)"
        )
    return cast(Editor, kind(tuple(matrices_of(folder)) or tuple(description["fields"]["modules"])))


def own_editor(name: str) -> type[Editor]:
    """Import an operator's own editor, `package.module:Class`, without making one. Raises `ValueError` if there is none."""
    module, _, attribute = name.partition(":")
    try:
        there = vars(importlib.import_module(module))
    except Exception as wrong:  # noqa: BLE001  # The operator's module raises what it likes.
        reason = " ".join(f"{type(wrong).__name__}: {wrong}".split())[:200]
        raise ValueError(
            f"the module {module!r} of {name} cannot be imported ({reason}): give package.module:Class, from the current "
            "folder or PYTHONPATH"
        ) from None
    found = there.get(attribute)
    if not isinstance(found, type) or not issubclass(found, Editor):
        editors = [key for key, one in there.items() if isinstance(one, type) and issubclass(one, Editor) and one is not Editor]
        raise ValueError(
            f"the module {module} has no class {attribute!r} that is an Editor; it has {', '.join(editors) or 'none'}: give "
            "package.module:Class"
        )
    return found


def matrices_of(artifact: str | Path) -> dict[str, tuple[int, ...]]:
    """Return the matrices of a trained policy with their sizes [out, in], or those of key moments with [in, in].

    Only headers are read. Raises `ValueError` for a folder that is no artifact, or a damaged one.
    """
    folder = Path(artifact)
    if (folder / "artifact.json").exists():
        header(folder / "policy.safetensors")
        try:
            found = read_json(folder / "artifact.json")["matrices"]
            return {one["name"]: (one["num_out"], one["num_in"]) for one in found}
        except (KeyError, TypeError):
            raise ValueError(
                f"{folder / 'artifact.json'} names no matrices, so it is damaged: copy the artifact again"
            ) from None
    if not (folder / "moments.json").exists():
        raise ValueError(
            f"{artifact} is no artifact: it has neither artifact.json (a policy of jobs/train.py) nor moments.json (key "
            "moments of jobs/moments.py)"
        )
    return {name: tensor.shape for name, tensor in header(folder / "moments.safetensors").items()}


def needs(name: str, preset: str = "") -> str:
    """Return the folder of $ERRATA_HOME with the artifacts that an editor needs: `hypernets`, `moments`, or "" for none.

    Raises `ValueError` for an unknown name or preset.
    """
    kind, outer, inner = _kinds(name)
    if issubclass(kind, EditorWrapper):
        return needs(inner or _named(kind.default_inner()), preset)
    if preset and kind.is_trained:
        raise ValueError(f"{outer} is trained, so it takes no preset: train it with a plan that has one (docs/plans.md)")
    if preset:
        preset_of(kind, preset)
    return "hypernets" if kind.is_trained else "moments" if issubclass(kind, LocateThenEdit) else ""


def load_artifact(directory: str | Path, device: Any = "cpu") -> tuple[TrainedEditor[Any], dict[str, Any]]:
    """Load a trained editor with its policy, and the record of its training. Raises `ValueError` without an artifact."""
    path = Path(directory) / "artifact.json"
    if not path.exists():
        raise ValueError(f"{directory} is no artifact of a trained editor: it has no artifact.json")
    description = json.loads(path.read_text())
    editor = EDITORS.get(description["editor"])
    if editor is None or not issubclass(editor, TrainedEditor):
        raise ValueError(f"{directory} is of {description['editor']!r}, which is no trained editor of this release")
    return editor.load(directory, device), description["record"]
