"""Check that a model has the matrices of an editor and of its artifact, by the headers of its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from errata.editors.build import matrices_of
from errata.editors.closed_form.locate_then_edit import LocateThenEdit, block_of
from errata.editors.editor import Editor
from errata.editors.hypernet.hypernet_editor import HypernetworkEditor
from errata.editors.wrappers.wrapper import EditorWrapper
from errata.local.problems import Problems
from errata.model.checkpoint import TensorHeader, check_checkpoint, headers, matrix_names, without_prefix
from errata.model.matrices import MatrixSpec, ModelSpec, closest, editable_matrices, find_matrices, no_such_modules, unmatched
from errata.model.weights import architecture_of

SURE = 0.9  # A pattern that is so like the name of a matrix is a misspelling of it.
# Of Llama and the models like it. A checkpoint of these names is read without renaming.
STANDARD_NAME = re.compile(r"model\.layers\.\d+\.(self_attn\.(q|k|v|o|qkv)_proj|mlp\.(gate|up|down|gate_up)_proj)")


def check_matrices(
    folder: Path, editor: Editor, artifact: str | None, found: Problems, model: str = ""
) -> Sequence[str] | None:
    """Check that the model in `folder` has the editor's matrices, and that the artifact is of them.

    Returns the names of the matrices; None if they are in doubt. `model` is the name for a command that measures moments.
    """
    tensors, inner = headers(folder), innermost(editor)
    sizes = found.checked("artifact", matrices_of, artifact) if artifact else {}
    if sizes is None:
        return None
    if isinstance(inner, HypernetworkEditor) or tuple(sizes) == inner.modules:
        fits = found.checked("artifact", check_fits, sizes, tensors, artifact)
        if not fits or not isinstance(inner, LocateThenEdit):
            return tuple(sizes) if fits else None
    names = found.checked("settings.modules", matched, folder, tensors, inner.modules)
    if names and isinstance(inner, LocateThenEdit):
        found.checked("settings.modules", _check_places, inner, names, matrix_names(tensors))
        known = {without_prefix(name) for name in sizes}
        if inner.needs_moments and (missing := [name for name in names if without_prefix(name) not in known]):
            found.note(
                "artifact",
                f"{type(inner).__name__} needs the key moments of {_some(missing)}: give the folder that `python "
                f"jobs/moments.py model={model or folder} modules={','.join(inner.modules)}` makes",
            )
    return names


def innermost(editor: Editor) -> Editor:
    """Return the editor that makes the change: the innermost one of wrappers."""
    while isinstance(editor, EditorWrapper):
        editor = editor.host
    return editor


def same_matrices(folder: Path, names: Sequence[str], held: Sequence[str]) -> bool:
    """Say if `names`, which `check_matrices` found, are the model's matrices `held`.

    The headers of a model that also reads images name its image encoder's, too: there the model without weights decides.
    """
    if {without_prefix(name) for name in names} == {without_prefix(name) for name in held}:
        return True
    if all(map(STANDARD_NAME.fullmatch, names)):
        return False
    there = editable_matrices(architecture_of(folder)).names
    own = {without_prefix(name) for name in there}
    return {short for name in names if (short := without_prefix(name)) in own} == {without_prefix(name) for name in held}


def check_fits(artifact: Mapping[str, Sequence[int]], tensors: Mapping[str, TensorHeader], where: str | None) -> bool:
    """Raise `ValueError` for an artifact of matrices that the model does not have, or has in other sizes; else return True."""
    there = {without_prefix(name): _shape(tensors, name) for name in matrix_names(tensors)}
    short = {name: without_prefix(name) for name in artifact}
    if lost := [name for name in artifact if short[name] not in there]:
        raise ValueError(
            f"{where} is of {_some(lost)}, which this model does not have: give the model that it was made on, or an "
            "artifact of this model"
        )
    sizes = {name: set(map(int, size)) for name, size in artifact.items()}
    if other := [name for name in artifact if not sizes[name] <= set(there[short[name]])]:
        name = other[0]
        raise ValueError(
            f"{where} is of a {name} of {' x '.join(map(str, artifact[name]))}, and this model's is "
            f"{' x '.join(map(str, there[short[name]]))}: give the model that it was made on, or an artifact of this model"
        )
    return True


def _shape(tensors: Mapping[str, TensorHeader], name: str) -> tuple[int, int]:
    rows, columns = tensors[f"{name}.weight"].shape
    return rows, columns


def matched(folder: Path, tensors: Mapping[str, TensorHeader], patterns: Sequence[str]) -> list[str]:
    """Return the matrices that the patterns match. Raises `ValueError` with the closest names for one that matches none.

    Headers have the checkpoint's names, which may differ from the model's. So a pattern that is like none of them is looked for
    in the model itself, which is made without weights and takes seconds, unless all names are standard ones.
    """
    names = matrix_names(tensors)
    short = [without_prefix(pattern) for pattern in patterns]
    missing = unmatched(map(without_prefix, names), short)
    close = {pattern: closest(pattern, names, SURE) for pattern in missing}
    if missing and all(close.values()):
        better = dict.fromkeys(close[one][0] if one in missing else one for one in short)
        raise ValueError(
            f"no linear module of the model is named {', '.join(missing)}; the closest are "
            f"{', '.join(dict.fromkeys(name for found in close.values() for name in found))}: give modules={','.join(better)}"
        )
    if missing and all(map(STANDARD_NAME.fullmatch, names)):
        there = ModelSpec(tuple(MatrixSpec(name, *_shape(tensors, name)[::-1]) for name in names))
        raise ValueError(no_such_modules([one for one in patterns if without_prefix(one) in missing], there))
    if missing or not patterns:
        return list(find_matrices(architecture_of(folder), patterns).names)
    return [name for name in names if len(unmatched([without_prefix(name)], short)) < len(set(short))]


def check_editors(model: str, editors: Mapping[str, Editor]) -> None:
    """Raise `ValueError` for a model that cannot be edited, and for each editor whose matrices it does not have."""
    folder, found = check_checkpoint(model), Problems()
    for name, editor in editors.items():
        found.checked(f"{name}.modules", matched, folder, headers(folder), editor.modules)
    if found:
        raise ValueError("; ".join(map(str, found)))


def _check_places(editor: LocateThenEdit, names: Sequence[str], there: Sequence[str]) -> None:
    """Raise `ValueError` where the editor's own start would: several matrices for one, or the last block."""
    kind = type(editor).__name__
    if editor.single_matrix and len(names) != 1:
        raise ValueError(f"{kind} writes into one matrix, and these match {_some(names)}: give one, modules={_tail(names[0])}")
    stem, _, index = block_of(names[-1]).rpartition(".")
    last = max(int(block_of(name).rpartition(".")[2]) for name in there if name.startswith(f"{stem}."))
    if editor.position != "prompt" and int(index) == last:
        earlier = _tail(names[-1]).replace(f".{index}.", f".{max(0, last - 1)}.", 1)
        raise ValueError(
            f"{_tail(names[-1])} is in the model's last block, where no later attention reads a change at the subject: give "
            f"earlier ones, such as modules={earlier}"
        )


def _tail(name: str) -> str:
    """Return a name from the part before its block's number on: `layers.3.mlp.down_proj`."""
    parts = name.split(".")
    number = next(index for index, part in enumerate(parts) if part.isdigit())
    return ".".join(parts[max(0, number - 1) :])


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} others" if len(names) > 3 else "")
