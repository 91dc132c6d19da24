"""Check before a service starts: everything that would stop it, found without Ray, vLLM and weights.

Each problem is a field and a line: what is wrong, and what works. `errata serve` prints all lines and starts nothing;
`serving.app:build` raises them. The model is judged by its small files and by the headers of its weights.
"""

from __future__ import annotations

import errno
import math
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch

from errata.access_keys import check_binding
from errata.edit_memory.bank import KINDS
from errata.editors.build import (
    DEFAULT_EDITOR,
    editor_for,
    memory_named,
    needs,
    outline,
    own_editor,
    tier_settings,
    with_memory,
)
from errata.editors.editor import Editor
from errata.editors.hypernet.hypernet_editor import HypernetworkEditor
from errata.editors.table import EDITORS
from errata.editors.wrappers.wrapper import EditorWrapper
from errata.guard.limits import Guard, Limit
from errata.guard.probes import Probes
from errata.ledger import Ledger, LedgerDamaged, check_base
from errata.local.consolidation_policy import policy_from
from errata.local.matrix_check import check_matrices, innermost, same_matrices
from errata.local.models import ready
from errata.local.problems import Problems
from errata.local.service_limits import limits_from
from errata.model.checkpoint import check_checkpoint
from errata.model.devices import devices_of, num_gpus
from errata.model.language_model import checkpoint_fingerprint
from errata.overrides import WrongSetting, overridden

DTYPES = ("float32", "bfloat16", "float16")
MAX_DIGESTED_BYTES = 2 * 10**9  # About two seconds, as measured on two cores.


@dataclass(frozen=True)
class StartSettings:
    """Everything that a service is started with and that can be checked before; the fields are those of `serving.app:build`.

    Without `editor`, it is that of the artifact, or the default. `gpus` is the number for each of the `replicas`, `limits` are
    fields of `ServiceLimits`. An empty `model` is not checked. `memory` is read before the weights of the editor, and
    `consolidate` is a `ConsolidationPolicy`.
    """

    model: str
    ledger: str = ""
    editor: str = ""
    artifact: str | None = None
    preset: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    guard: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, str] = field(default_factory=dict)
    probes: str | None = None
    keys: str | None = None
    dtype: str = "float32"
    device: str = "cpu"
    gpus: float = 0
    replicas: int = 1
    memory: str | None = None
    consolidate: str | None = None


def problems_of(start: StartSettings, is_here: bool = True) -> Problems:
    """Find everything that would stop the service.

    A model that is made on first use is not made: until it exists, only what does not need it is checked. Without `is_here`,
    the service runs on other machines, and only what does not depend on files and devices is checked.
    """
    found = Problems()
    named = found.checked("artifact", editor_for, start.editor, start.artifact, start.preset, start.memory)
    start, of_tiers = replace(start, editor=named or DEFAULT_EDITOR), dict[str, str]()
    if start.memory:
        settings, of_tiers = tier_settings(start.settings)
        start = replace(start, settings=settings)
    _check_tiers(start, found)
    if start.dtype not in DTYPES:
        found.note("dtype", f"{start.dtype!r} is not a type of weights: give one of {', '.join(DTYPES)}")
    _check_guard(start.guard, found)
    found.checked("limits", limits_from, start.limits)
    found.checked("device", num_gpus, start.device)
    if not is_here:
        _editor(replace(start, artifact=None), found, is_here=False)
        return found
    start = replace(start, model=(found.checked("model", ready, start.model) or "") if start.model else "")
    folder = found.checked("model", check_checkpoint, start.model) if start.model else None
    if folder is not None and folder != Path(start.model):
        found.note("model", f"{start.model} is a name in Hugging Face's cache: give its folder, {folder}")
    if start.probes or folder is not None:
        found.checked("probes", Probes.load if start.probes else Probes.beside, start.probes or start.model)
    if start.keys:
        found.checked("keys", check_binding, None, start.keys)
    editor, names = _editor(start, found, is_here=True), None
    if editor is not None and start.memory and not found.of("memory"):
        found.checked("memory", with_memory, editor, start.memory, of_tiers)
    if folder is not None and editor is not None:
        names = check_matrices(folder, editor, start.artifact, found, start.model)
    if start.ledger:
        found.checked("ledger", _check_ledger, start, folder, names)
    return found


def _editor(start: StartSettings, found: Problems, is_here: bool) -> Editor | None:
    """Build the editor's outline, and note what is wrong with its name, preset, artifact and settings; None if it has none."""
    if ":" in start.editor:  # `package.module:Class`, the operator's own, which exists where it is used
        own = found.checked("editor", own_editor, start.editor) if is_here else None
        if own is not None and found.checked("editor", _check_served, start.editor, own) is not None:
            _check_own_settings(start, own, found)
        return None
    kind = found.checked("editor", needs, start.editor)
    if kind is None or found.checked("editor", _check_served, start.editor, *map(EDITORS.get, start.editor.split("/"))) is None:
        return None
    if found.checked("preset", needs, start.editor, start.preset or "") is None:
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
        found.note("settings", f"{start.editor} was trained with its settings: leave out {given}, or train another policy")
        return editor
    for name, value in start.settings.items():
        editor = found.checked(f"settings.{name}", _set, editor, name, value) or editor
    return editor


def _check_tiers(start: StartSettings, found: Problems) -> None:
    """Check the memory in front of the weights by its name, and the policy by which the weights learn what it holds."""
    if start.memory:
        found.checked("memory", memory_named, start.memory)
    if start.consolidate:
        found.checked("consolidate", policy_from, start.consolidate)
        if not start.memory:
            found.note("consolidate", "there is no memory whose edits the weights could learn: give one (memory=answer)")


def _check_served(name: str, *kinds: type[Editor] | None) -> bool:
    """Raise `ValueError` for an editor whose memory no replica reads, and for a wrapper of a memory; else return True."""
    memories = [kind for kind in kinds if kind is not None and kind.writes == "memory"]
    if memories and len(kinds) > 1:
        raise ValueError(
            f"{name} keeps its edits in a memory, which a wrapper cannot change: give the memory's editor alone, or wrap an "
            "editor of weights, such as RLEdit"
        )
    if any(memory.kind not in KINDS for memory in memories):
        raise ValueError(
            f"{name} keeps its edits in a memory of a kind that no replica reads: those that are served are "
            f"{', '.join(sorted(KINDS))}; `errata bench` and `errata.lifelong` run this one as it is"
        )
    return True


def _set(editor: Editor, name: str, value: str) -> Editor:
    try:
        return overridden(editor, name, value)
    except WrongSetting as wrong:
        raise ValueError(wrong.reason) from None


def _check_own_settings(start: StartSettings, own: type[Editor], found: Problems) -> None:
    """Check the names of the settings of an editor that is not made here."""
    there: list[str] = [one.name for one in fields(own)] if is_dataclass(own) else []
    for name in start.settings:
        if name.partition(".")[0] not in there:
            found.note(f"settings.{name}", f"{own.__name__} has no field {name!r}; it has {', '.join(there) or 'none'}")


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


def machine_problems(start: StartSettings) -> Problems:
    """Find what this machine lacks for a service that runs on it alone; Ray would wait for missing GPUs without an end."""
    found = Problems()
    if found.checked("device", num_gpus, start.device) is None or found.checked("device", devices_of, start.device) is None:
        return found
    own, there = num_gpus(start.device), torch.cuda.device_count()
    is_shared = own == 1 and 0 < start.gpus < 1
    wanted = start.replicas * start.gpus + (0 if is_shared else own)
    if wanted > there:
        found.note(
            "gpus",
            f"{start.replicas} replicas with {start.gpus:g} GPUs each and the editor on {start.device} need {wanted:g}, and "
            f"this machine has {there}: give gpus=0 and device=cpu, or fewer replicas",
        )
    return found


def _check_ledger(start: StartSettings, checkpoint: Path | None, names: Sequence[str] | None) -> None:
    """Raise `ValueError` for a folder that cannot be written, or a ledger over another model, other matrices or weights.

    The weights are compared unless reading them takes long; the service itself compares them in any case.
    """
    folder = Path(start.ledger).absolute()
    parent = next(path for path in (folder, *folder.parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(
            f"{folder} cannot be written, because {parent} is no folder that one may write to: give another folder"
        )
    try:
        held = Ledger.open(folder).base
    except (FileNotFoundError, LedgerDamaged):  # The worker repairs what can be repaired.
        return
    if start.model:
        check_base(folder, held, {"model": start.model})
    if checkpoint is None:
        return
    if names is not None and not same_matrices(checkpoint, names, held["matrices"]):
        check_base(folder, held, {"matrices": names})
    if sum(file.stat().st_size for file in checkpoint.glob("*.safetensors")) <= MAX_DIGESTED_BYTES:
        check_base(folder, held, {"model": start.model, "fingerprint": checkpoint_fingerprint(checkpoint)})


# -- the address ------------------------------------------------------------------------------------------------------


def address_problems(host: str, port: int, has_keys: bool) -> Problems:
    """Find what is wrong with the address of a service on this machine: unsafe without keys, not its own, or in use."""
    found = Problems()
    if not has_keys:
        found.checked("keys", check_binding, host, None)
    wrong = _binding_fault(host, port)
    if wrong == errno.EADDRINUSE:
        free = next((other for other in range(port + 1, 65536) if not _binding_fault(host, other)), 0)
        found.note("port", f"another process listens on port {port} of {host}: end it, or give another, such as {free}")
    elif wrong:
        found.note("host", f"{host!r} is no address of this machine: give 127.0.0.1, or 0.0.0.0 for all of its addresses")
    return found


def _binding_fault(host: str, port: int) -> int:
    """Return why one cannot listen there: EADDRINUSE, EADDRNOTAVAIL, or 0 if one can, or if the server knows better."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (socket.gaierror, UnicodeError):  # The second for a name with an empty or a too long part.
        return errno.EADDRNOTAVAIL
    except OSError as wrong:  # A port below 1024 may be forbidden and not taken.
        return wrong.errno if wrong.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL) else 0
    return 0
