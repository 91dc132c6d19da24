"""Check before a service starts: everything that would stop it, found without Ray, vLLM and weights.

Each problem is one line: the field to set, what is wrong, and a value that works. `errata serve` prints all lines and starts
nothing; `serving.app:build` raises them. The model is judged by its small files and by the headers of its weights.
"""

from __future__ import annotations

import errno
import math
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from errata.access_keys import check_binding
from errata.editors.build import matrices_of, needs, outline
from errata.editors.closed_form.locate_then_edit import LocateThenEdit, block_of
from errata.editors.editor import Editor
from errata.editors.hypernet.hypernet_editor import HypernetworkEditor
from errata.editors.wrappers.wrapper import EditorWrapper
from errata.guard.limits import Guard, Limit
from errata.guard.probes import Probes
from errata.ledger import Ledger, LedgerDamaged
from errata.model.checkpoint import TensorHeader, check_checkpoint, headers, matrix_names, without_prefix
from errata.model.devices import devices_of, num_gpus
from errata.model.matrices import MatrixSpec, ModelSpec, closest, find_matrices, no_such_modules, unmatched
from errata.model.weights import architecture_of
from errata.overrides import overridden

DTYPES = ("float32", "bfloat16", "float16")
SURE = 0.9  # A pattern that is so like the name of a matrix is a misspelling of it.
# Of Llama and the models like it. A checkpoint of these names is read without renaming.
STANDARD_NAME = re.compile(r"model\.layers\.\d+\.(self_attn\.(q|k|v|o|qkv)_proj|mlp\.(gate|up|down|gate_up)_proj)")

Found = TypeVar("Found")


@dataclass(frozen=True)
class StartSettings:
    """Everything that a service is started with and that can be checked before; the fields are those of `serving.app:build`.

    `gpus` is the number for each of the `replicas`. An empty `model` is not checked.
    """

    model: str
    ledger: str = ""
    editor: str = "RLEdit"
    artifact: str | None = None
    preset: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    guard: Mapping[str, str] = field(default_factory=dict)
    probes: str | None = None
    keys: str | None = None
    dtype: str = "float32"
    device: str = "cpu"
    gpus: float = 0
    replicas: int = 1


class Problems(list[str]):
    """The lines that were found so far."""

    def checked(self, name: str, check: Callable[..., Found], *arguments: Any) -> Found | None:
        """Return what the check returns; None if it raises `ValueError` or `OSError`, whose message becomes a line."""
        try:
            return check(*arguments)
        except (ValueError, OSError) as wrong:
            line = f"{name}: {' '.join(str(wrong).split())}"
            if line not in self:
                self.append(line)
            return None


def problems_of(start: StartSettings, is_here: bool = True) -> list[str]:
    """Find everything that would stop the service, a line each.

    Without `is_here`, the service runs on other machines, and only what does not depend on files and devices is checked.
    """
    found = Problems()
    if start.dtype not in DTYPES:
        found.append(f"dtype: {start.dtype!r} is not a type of weights: give one of {', '.join(DTYPES)}")
    _check_guard(start.guard, found)
    found.checked("device", num_gpus, start.device)
    if not is_here:
        _editor(replace(start, artifact=None), found, is_here=False)
        return found
    folder = found.checked("model", check_checkpoint, start.model) if start.model else None
    if folder is not None and folder != Path(start.model):
        found.append(f"model: {start.model} is a name in Hugging Face's cache: give its folder, {folder}")
    if start.probes or folder is not None:
        found.checked("probes", Probes.load if start.probes else Probes.beside, start.probes or start.model)
    if start.keys:
        found.checked("keys", check_binding, None, start.keys)
    editor = _editor(start, found, is_here=True)
    if folder is not None and editor is not None:
        _check_matrices(start, folder, editor, found)
    if start.ledger:
        found.checked("ledger", _check_ledger, start)
    return found


def _editor(start: StartSettings, found: Problems, is_here: bool) -> Editor | None:
    """Build the editor's outline, and note what is wrong with its name, preset, artifact and settings; None if it has none."""
    if ":" in start.editor:  # `package.module:Class`, the operator's own, which is imported where it is used
        return None
    kind = found.checked("editor", needs, start.editor)
    if kind is None or found.checked("preset", needs, start.editor, start.preset or "") is None:
        return None
    if kind == "hypernets" and not is_here:
        return None
    editor = found.checked("artifact", outline, start.editor, start.artifact, start.preset)
    if editor is None and kind == "moments":
        editor = outline(start.editor, None, start.preset)  # for what else is wrong
    if editor is None:
        return None
    if start.settings and isinstance(innermost(editor), HypernetworkEditor) and not isinstance(editor, EditorWrapper):
        given = ", ".join(start.settings)
        found.append(f"settings: {start.editor} was trained with its settings: leave out {given}, or train another policy")
        return editor
    for name, value in start.settings.items():
        editor = found.checked(f"settings.{name}", _set, editor, name, value) or editor
    return editor


def _set(editor: Editor, name: str, value: str) -> Editor:
    try:
        return overridden(editor, name, value)
    except ValueError as wrong:
        raise ValueError(str(wrong).removeprefix(f"{name}: ")) from None


def innermost(editor: Editor) -> Editor:
    """Return the editor that makes the change: the innermost one of wrappers."""
    while isinstance(editor, EditorWrapper):
        editor = editor.host
    return editor


# -- the matrices -----------------------------------------------------------------------------------------------------


def _check_matrices(start: StartSettings, folder: Path, editor: Editor, found: Problems) -> None:
    """Check that the model has the editor's matrices, and that the artifact is of them."""
    tensors, inner = headers(folder), innermost(editor)
    artifact = found.checked("artifact", matrices_of, start.artifact) if start.artifact else {}
    if artifact is None:
        return
    if isinstance(inner, HypernetworkEditor) or tuple(artifact) == inner.modules:
        fits = found.checked("artifact", check_fits, artifact, tensors, start.artifact)
        if not fits or not isinstance(inner, LocateThenEdit):
            return
    names = found.checked("settings.modules", matched, folder, tensors, inner.modules)
    if names and isinstance(inner, LocateThenEdit):
        found.checked("settings.modules", _check_places, inner, names, matrix_names(tensors))
        known = {without_prefix(name) for name in artifact}
        if inner.needs_moments and (missing := [name for name in names if without_prefix(name) not in known]):
            kind = type(inner).__name__
            found.append(
                f"artifact: {kind} needs the key moments of {_some(missing)}: give the folder that `python jobs/moments.py "
                f"model={start.model} modules={','.join(inner.modules)}` makes"
            )


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
        better = [close[one][0] if one in missing else one for one in short]
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
        raise ValueError("; ".join(found))


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


# -- the guard, the machine, the ledger -------------------------------------------------------------------------------


def guard_from(settings: Mapping[str, str]) -> Guard:
    """Make a guard from settings by field. Raises `ValueError` for an unknown field or a value of the wrong type."""
    guard, wanted = Guard(), dict(settings)
    for name in {name.partition(".")[0] for name in settings if "." in name}:
        if isinstance(now := getattr(guard, name, None), Limit):
            wanted = {f"{name}.warn": str(now.warn), f"{name}.refuse": str(now.refuse)} | wanted
            anything: dict[str, Any] = {name: Limit(-math.inf, math.inf)}
            guard = replace(guard, **anything)  # Set one after the other, the sides of a limit might cross.
    for name, value in wanted.items():
        guard = overridden(guard, name, value)
    return guard


def _check_guard(settings: Mapping[str, str], found: Problems) -> None:
    """Check each limit by itself, so that every wrong one is a line."""
    for limit in dict.fromkeys(name.partition(".")[0] for name in settings):
        own = {name: value for name, value in settings.items() if name.partition(".")[0] == limit}
        found.checked("guard", guard_from, own)


def machine_problems(start: StartSettings) -> list[str]:
    """Find what this machine lacks for a service that runs on it alone; Ray would wait for missing GPUs without an end."""
    found = Problems()
    if found.checked("device", num_gpus, start.device) is None or found.checked("device", devices_of, start.device) is None:
        return found
    own, there = num_gpus(start.device), torch.cuda.device_count()
    is_shared = own == 1 and 0 < start.gpus < 1
    wanted = start.replicas * start.gpus + (0 if is_shared else own)
    if wanted > there:
        found.append(
            f"gpus: {start.replicas} replicas with {start.gpus:g} GPUs each and the editor on {start.device} need {wanted:g}, "
            f"and this machine has {there}: give gpus=0 and device=cpu, or fewer replicas"
        )
    return found


def _check_ledger(start: StartSettings) -> None:
    """Raise `ValueError` for a folder that cannot be written, or a ledger over another model."""
    folder = Path(start.ledger).absolute()
    parent = next(path for path in (folder, *folder.parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(
            f"{folder} cannot be written, because {parent} is no folder that one may write to: give another folder"
        )
    try:
        base = Ledger.open(folder).base
    except (FileNotFoundError, LedgerDamaged):  # The worker repairs what can be repaired.
        return
    if base["model"] != start.model:
        raise ValueError(f"the ledger in {folder} is over {base['model']}, not {start.model}: give that model, or a new folder")


def port_problems(host: str, ports: Mapping[str, int]) -> Iterator[str]:
    """Yield a line for each port, by its name, on which another process listens; the port `port` is the one of HTTP."""
    for name, port in ports.items():
        address = host if name == "port" else "127.0.0.1"
        if not _is_free(address, port):
            free = next((other for other in range(port + 1, 65536) if _is_free(address, other)), 0)
            yield f"{name}: another process listens on port {port} of {address}: end it, or give another, such as {free}"


def _is_free(host: str, port: int) -> bool:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except PermissionError:
        return True  # a port below 1024, which may be forbidden and not taken: the server says so
    except OSError as wrong:
        return wrong.errno != errno.EADDRINUSE
    return True
