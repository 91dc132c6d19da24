"""Where an edit is made: the model in memory, the editor and its state, the guard, the ledger. Plain, synchronous code."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from errata.candidate import CandidateVersion, make_candidate
from errata.delta.accumulator import EditedModel
from errata.delta.weight_delta import WeightDelta
from errata.edit import Edit, EditBatch
from errata.editors import make_editor
from errata.editors.editor import Editor
from errata.editors.state import EditorState
from errata.guard.inspector import Inspector
from errata.guard.limits import Guard, Limit
from errata.guard.probes import Probes
from errata.history.blame import Blamed, blamed
from errata.history.checkout import checked_out
from errata.history.lineage import live_edits
from errata.history.revert import revert
from errata.ledger import Ledger, Version
from errata.model import language_model as models
from errata.model import matrices
from errata.model.devices import first_device
from errata.model.generation import check_question, greedy_texts
from errata.overrides import overridden


@dataclass(frozen=True)
class LiveModelOptions:
    """`editor` is a name as `make_editor` takes it, or `package.module:Class`; so are the artifact, the preset and settings.

    `guard` sets fields of the `Guard`, such as `perplexity.refuse`; `probes` is a file of what no edit may change, without
    it the one beside the model.
    """

    model: str
    ledger: str
    editor: str
    artifact: str | None = None
    preset: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    guard: Mapping[str, str] = field(default_factory=dict)
    probes: str | None = None
    dtype: str = "float32"
    device: str = "cpu"
    max_tokens: int | None = None


@dataclass(frozen=True)
class _VersionState:
    """A version, read: what it takes to stand there."""

    version: int
    deltas: Sequence[WeightDelta]
    state: EditorState | None
    edits: Sequence[Edit]


class LiveModel:
    """Stands at the ledger's head: `model` is edited as the head is, `state` is the editor's after it.

    What can fail comes before the head moves: it never is where nobody can stand, nor the workshop where the head is not.
    """

    def __init__(self, options: LiveModelOptions) -> None:
        self.options = options
        guard = guard_from(options.guard)  # first what may be wrong: nothing is left behind
        probes = Probes.load(options.probes) if options.probes else Probes.beside(options.model)
        self.model = models.load(options.model, getattr(torch, options.dtype), options.device)
        self.max_tokens = min(options.max_tokens or self.model.max_tokens, self.model.max_tokens)
        self.editor = load_editor(options)
        self.ledger = self._open()
        self.spec = matrices.find_matrices(self.model.module, self.ledger.base["matrices"])
        self.inspector = Inspector(self.model, self.spec, guard, probes)
        self.edited = EditedModel(self.model.module, self.spec)
        self._load(self._read(self.ledger.head))

    @property
    def plan(self) -> str:
        return Path(self.options.artifact).name if self.options.artifact else ""

    @property
    def origin(self) -> tuple[str, str]:
        """The editor and the plan, as the ledger's versions name them."""
        return self.options.editor, self.plan

    def _open(self) -> Ledger:
        """The ledger that is there, if it is over this model and these matrices, else a new one."""
        names = matrices.find_matrices(self.model.module, self.editor.modules).names
        base = {
            "model": self.options.model,
            "fingerprint": models.checkpoint_fingerprint(self.options.model),
            "matrices": list(names),
        }
        return Ledger.create(self.options.ledger, base)

    def _read(self, version: int) -> _VersionState:
        """Raises `UnknownVersion`, `LedgerDamaged`, and `ValueError` if its deltas are of other matrices than the model's."""
        deltas = self.ledger.segments(version)
        for delta in deltas:
            self.edited.accumulator.check(delta)
        return _VersionState(version, deltas, self.ledger.state(version), tuple(live_edits(self.ledger, version)))

    def _load(self, place: _VersionState) -> None:
        self.edited.set(place.deltas)
        self.state = place.state or self.editor.start(self.model, self.spec)
        self.inspector.at_version(place.edits)
        self.version = place.version

    def move_to(self, version: int, by: str = "") -> None:
        """Make `version` the head, weights and state together; `by` is who asked for it.

        Raises `UnknownVersion`, `LedgerDamaged`: head and workshop are then where they were.
        """
        place = self._read(version)
        self.ledger.move_head(version, by)
        self._load(place)

    def retract(self, number: int, to: int) -> None:
        """Take back version `number`, which nobody could serve, and stand at `to`, the head before it. Raises as `move_to`."""
        place = self._read(to)
        self.ledger.retract(number, to)
        self._load(place)

    def make(self, edits: Sequence[Edit]) -> CandidateVersion:
        """The update for these edits. Raises `EditRejected` from the editor or from the guard; nothing is changed."""
        batch = EditBatch(tuple(edits))
        return make_candidate(self.editor, batch, self.state, self.inspector, self.version)

    def revert(self, ids: Sequence[str], versions: Sequence[int], mode: str = "auto") -> CandidateVersion:
        """The version without the edits of these ids and of these versions, for `append`; nothing is changed.

        Raises `RevertRefused`, and `VersionRefused` from the guard.
        """
        return revert(self, ids, versions, mode)

    def blame(self, prompt: str, max_tokens: int = 8) -> Blamed:
        """The version to which the live answer is due; the model is elsewhere meanwhile, and back when this returns or raises.

        Raises `EditRejected` for a prompt that is empty, or that leaves no room for an answer in the model's context.
        """
        check_question(prompt, max_tokens, self.model)
        with checked_out(self.edited, self.ledger, self.version) as checkout:

            def answer(version: int) -> str:
                checkout.to(version)
                return greedy_texts(self.model, [prompt], max_tokens)[0].strip()

            return blamed(self.ledger, self.version, prompt, answer)

    def append(self, candidate: CandidateVersion) -> Version:
        """Raises `LedgerConflict` if the head is no longer where the update was made, `LedgerDamaged`; nothing is changed."""
        is_revert = "reverted" in candidate.scorecard
        delta = WeightDelta.from_tensors(candidate.delta.to_tensors())  # as the replicas read it: the same bits
        self.edited.accumulator.check(delta)
        deltas = [*self.ledger.segments(candidate.parent), delta] if is_revert else [delta]
        version = self.ledger.append(
            candidate.parent,
            candidate.delta,
            candidate.state,
            candidate.edits,
            candidate.scorecard,
            self.origin,
            expected_head=candidate.expected_head,
        )
        if is_revert:
            edits = tuple(live_edits(self.ledger, version.number))  # read already, with the deltas
            self._load(_VersionState(version.number, deltas, candidate.state, edits))
            return version
        self.edited.add(delta)
        self.inspector.committed(EditBatch(candidate.edits), candidate.observed)
        self.state, self.version = candidate.state, version.number
        return version


def guard_from(settings: Mapping[str, str]) -> Guard:
    """Raises `ValueError` naming a field that is unknown, or a value that is none."""
    guard, wanted = Guard(), dict(settings)
    for name in {name.partition(".")[0] for name in settings if "." in name}:
        if isinstance(now := getattr(guard, name, None), Limit):
            wanted = {f"{name}.warn": str(now.warn), f"{name}.refuse": str(now.refuse)} | wanted
            anything: dict[str, Any] = {name: Limit(-math.inf, math.inf)}
            guard = replace(guard, **anything)  # one side alone might pass the other on the way
    for name, value in wanted.items():
        guard = overridden(guard, name, value)
    return guard


def load_editor(options: LiveModelOptions) -> Editor:
    """Raises `ValueError` naming the editors there are, or what is missing."""
    module, _, attribute = options.editor.partition(":")
    device = str(first_device(options.device))
    if not attribute:
        return make_editor(options.editor, options.artifact, options.preset, options.settings, device)
    kind: Any = getattr(importlib.import_module(module), attribute)
    return kind.from_artifact(options.artifact, options.preset, device)
