"""The model that edits are made on, with the editor and its state, the guard and the ledger. Synchronous code."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from errata.candidate import CandidateVersion, make_candidate, make_repair
from errata.delta.accumulator import EditedModel, with_own_storage
from errata.delta.kinds import Delta, stored
from errata.delta.weight_delta import WeightDelta
from errata.edit import Code, Edit, EditBatch, EditRejected
from errata.edit_memory.bank import SAID
from errata.edit_memory.hooks import bank_of
from errata.editors import make_editor
from errata.editors.build import own_editor, tier_settings, with_memory
from errata.editors.editor import Editor
from errata.editors.state import EditorState
from errata.editors.tiers import Tiers
from errata.guard.inspector import Inspector
from errata.guard.probes import Probes
from errata.history.blame import Blamed
from errata.history.budget import WalkBudget
from errata.history.lineage import live_edits, repairs
from errata.history.revert import revert
from errata.ledger import Ledger, Version
from errata.local.preflight import guard_from
from errata.model import language_model as models
from errata.model import matrices
from errata.model.composing import composed
from errata.model.devices import first_device
from errata.model.edit_check import check_edits
from errata.model.language_model import LanguageModel
from errata.overrides import overridden
from errata.text.dialogue import Prompt
from serving.worker.walks import BlameWalk


@dataclass(frozen=True)
class LiveModelOptions:
    """Settings of the live model.

    `editor` is a name of `make_editor`'s or `package.module:Class`; artifact, preset and settings are its arguments. `guard`
    sets fields of the `Guard`, such as `perplexity.refuse`. `probes` is a file of sentences and questions whose answers no
    edit may change; the default is the file beside the model. `memory` names a memory that answers by an edit until the
    editor's weights do.
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
    memory: str | None = None


@dataclass(frozen=True)
class _VersionState:
    """Everything that is read from the ledger to load a version."""

    version: int
    deltas: Sequence[Delta]
    state: EditorState | None
    edits: Sequence[Edit]
    repaired_in: Mapping[str, int] = field(default_factory=dict)  # By edit, the version that made it again as a repair.


class LiveModel:
    """The model at the ledger's head: `model` has the head's weights, `state` is the editor's state after it.

    Everything that can fail is done before the head moves, so the head is always a version that can be loaded, and the model
    is always at the head. `bank` is the head's memory, if it has one; any thread may read it.
    """

    def __init__(self, options: LiveModelOptions) -> None:
        self.options = options
        guard = guard_from(options.guard)  # Checked first, so that a wrong setting leaves no ledger behind.
        probes = Probes.load(options.probes) if options.probes else Probes.beside(options.model)
        self.model = models.load(options.model, getattr(torch, options.dtype), options.device)
        self.max_tokens = min(options.max_tokens or self.model.max_tokens, self.model.max_tokens)
        self.editor = load_editor(options)
        self.ledger = self._open()
        self.ledger.snapshots_later = True  # In the service (`snapshots.py`).
        self.spec = matrices.find_matrices(self.model.module, self.ledger.base["matrices"])
        if isinstance(self.editor, Tiers):
            with_own_storage(self.model.module, self.spec)
        self.inspector = Inspector(self.model, self.spec, guard, probes)
        self.edited = EditedModel(self.model.module, self.spec)
        self.num_loads = 0  # `hold` is forgotten at each.
        self._first: EditorState | None = None
        self._load(self._read(self.ledger.head))

    @property
    def plan(self) -> str:
        return Path(self.options.artifact).name if self.options.artifact else ""

    @property
    def origin(self) -> tuple[str, str]:
        """The editor and the plan, as the ledger's versions name them."""
        memory = f"+{self.options.memory}" if self.options.memory else ""
        return f"{self.options.editor}{memory}", self.plan

    def _open(self) -> Ledger:
        """Open the ledger over this model and these matrices, or create it. Raises `ValueError` for a ledger over others."""
        names = matrices.find_matrices(self.model.module, self.editor.modules).names
        base = {
            "model": self.options.model,
            "fingerprint": models.checkpoint_fingerprint(self.options.model),
            "matrices": list(names),
        }
        return Ledger.create(self.options.ledger, base)

    def _read(self, version: int) -> _VersionState:
        """Read a version. Raises `UnknownVersion`, `LedgerDamaged`, and `ValueError` for deltas of other matrices."""
        deltas = self.ledger.segments(version)
        for delta in deltas:
            self.edited.check(delta)
        edits, repaired_in = tuple(live_edits(self.ledger, version)), repairs(self.ledger, version)
        return _VersionState(version, deltas, self.ledger.state(version), edits, repaired_in)

    def _load(self, read: _VersionState) -> None:
        self.edited.set(read.deltas)
        self.state = read.state or self._first_state()
        self.inspector.at_version(read.edits)
        self.version, self.repaired_in, self.bank = read.version, dict(read.repaired_in), bank_of(self.model.module)
        self.num_loads += 1
        self._count()

    def move_to(self, version: int, by: str = "", expected_head: int | None = None) -> None:
        """Make `version` the head, weights and state together; `by` is the name of the caller's key.

        Raises `UnknownVersion`, `LedgerDamaged`, and `HeadMoved` if the head is not `expected_head`; head and model are then as
        before.
        """
        read = self._read(version)
        self.ledger.move_head(version, by, expected_head)
        self._load(read)

    def retract(self, number: int, to: int) -> None:
        """Retract version `number`, which no replica could serve, and load `to`, the head before it. Raises as `move_to`."""
        read = self._read(to)
        self.ledger.retract(number, to)
        self._load(read)

    @property
    def knows_answers(self) -> bool:
        """Say if the answers to edits are known without the model: they are said as given, so nothing is asked or composed."""
        return self.editor.kind in SAID

    @property
    def max_batch(self) -> int:
        """The number of edits that the editor takes at most; 1 for one that does not say it."""
        return int(getattr(self.editor, "max_batch", 1))

    def expect(self, edits: Sequence[Edit]) -> None:
        """Let the editor begin what it can of edits that will be made soon; any thread may call it."""
        if (begin := getattr(self.editor, "expect", None)) is not None:
            begin(edits)

    def remembered(self, edits: Sequence[Edit]) -> list[list[str] | None]:
        """Return the texts that the head's memory says to each edit's prompts; None where it does not say any."""
        memory = self.inspector.memory
        return [memory.texts(edit, memory.bank_with(WeightDelta({}))) for edit in edits]

    def answers(self, edits: Sequence[Edit]) -> list[list[str]]:
        """Generate the head's answers to each edit's prompts. Raises `EditRejected` if they do not fit into the memory."""
        with refused_without_memory():
            return self.inspector.answers(EditBatch(tuple(edits)))

    def unedited(self, edits: Sequence[Edit]) -> list[list[str]]:
        """Generate version 0's answers to each edit's prompts, on a copy. Raises as `answers`."""
        with refused_without_memory():
            edited, model = self.copied()
            edited.set([])
            return self.inspector.answers(EditBatch(tuple(edits)), model=model)

    def make(
        self,
        edits: Sequence[Edit],
        before: Sequence[str | None] | None = None,
        in_chat: Sequence[str | None] | None = None,
    ) -> CandidateVersion:
        """Make the candidate version of these edits, whose answers so far are `before`; nothing changes.

        An edit in chat that has a target alone gets the answer that the model would say it in, made of what it says `in_chat`
        now, which is `before` unless edits are asked in two forms. Raises `EditRejected` from the
        editor or the guard, and for edits that have no effect.
        """
        said = before if in_chat is None else in_chat
        if said is not None and not self.knows_answers:
            check_edits(edits, self.model.renderer, self.model.max_tokens)
            with refused_without_memory():
                edits = self._composed(edits, said)
        batch = EditBatch(tuple(edits))
        return make_candidate(self.editor, batch, self.state, self.inspector, self.version, before)

    def hold(self, edits: Sequence[Edit], said: Sequence[str]) -> None:
        """Hold edits that the version answers by `said` without having made them, where it holds none of the same prompts."""
        self.inspector.earlier.hold(self._composed(edits, said))
        self._count()

    def _composed(self, edits: Sequence[Edit], said: Sequence[str | None]) -> Sequence[Edit]:
        """Compose the whole answers that edits in chat lack, of what is said now; where that is not known, leave the edits."""
        known = [i for i, text in enumerate(said) if text is not None and not self.knows_answers]
        made = composed(self.model, [edits[i] for i in known], [said[i] or "" for i in known])
        answers = dict(zip(known, made, strict=True))
        return [answers.get(i, edit) for i, edit in enumerate(edits)]

    def release(self, edit: Edit) -> None:
        """Hold an edit no more that was refused after all."""
        if edit.id is not None:
            self.inspector.earlier.held.release(edit.id)

    def still_answers(self, edit: Edit) -> bool:
        """Say if this version was asked a held edit when it was made, and answers it."""
        return self.inspector.guard.strict and self.inspector.earlier.held.still_answers(edit)

    def look(self, count: int) -> bool:
        """Ask at most `count` of the edits that this version was not asked yet; False if there are none.

        A guard that is not strict asks nothing, and neither does a model whose memory is full.
        """
        try:
            return self.inspector.guard.strict and self.inspector.look(count)
        except torch.OutOfMemoryError:
            return False
        finally:
            self._count()

    def to_repair(self, count: int) -> list[Edit]:
        """Return at most `count` lost edits that are to be made again: several that were never repaired, or one that was.

        None in an earlier version that was rolled back to: it stays the head until the next edit.
        """
        if not self.inspector.guard.strict or self.version != self.ledger.newest:
            return []
        lost = sorted(self.inspector.earlier.held.repairable, key=lambda held: held.num_repairs)
        fresh = [held for held in lost if held.num_repairs == 0]
        return [held.edit for held in fresh[:count] or lost[:1]]

    def repair(self, lost: Sequence[Edit]) -> CandidateVersion:
        """Make the candidate version that answers lost edits again; nothing but the number of their tries changes.

        Raises `EditRejected` from the editor or the guard, and if an edit is still not answered.
        """
        self.inspector.earlier.held.tried(lost)
        self._count()
        return make_repair(self.editor, EditBatch(tuple(lost)), self.state, self.inspector, self.version)

    def _first_state(self) -> EditorState:
        """Return the editor's state before the first edit; that of a memory is small and kept, since probes are read for it."""
        if self._first is not None:
            return self._first
        first = self.editor.start(self.model, self.spec)
        self._first = first if self.editor.writes == "memory" else None
        return first

    def _count(self) -> None:
        """Count the held edits for other threads: those not asked yet, those that are lost, and those to be made again."""
        held = self.inspector.earlier.held
        counts = (len(held.open), len(held.lost), len(held.repairable)) if self.inspector.guard.strict else (0, 0, 0)
        self.held_counts = dict(zip(("open", "lost", "repairable"), counts, strict=True))
        bank = bank_of(self.model.module)
        in_memory = len({record.edit or record.fact for record in bank if not record.is_past}) if bank is not None else 0
        self.carried_counts = {"memory": in_memory, "weights": max(0, len(held) - in_memory)}

    def answered(self, id: str) -> dict[str, Any]:
        """Return what is known of the live version's answer to an edit: `answered`, and `says` if it is wrong."""
        held = self.inspector.earlier.held.by_id.get(id)
        found: dict[str, Any] = {"repaired_in": self.repaired_in[id]} if id in self.repaired_in else {}
        if held is None or held.is_answered is None or not self.inspector.guard.strict:
            return found
        return found | {"answered": held.is_answered} | ({} if held.is_answered else {"says": held.says})

    def revert(self, ids: Sequence[str], versions: Sequence[int], mode: str = "auto") -> CandidateVersion:
        """Make the candidate version without the edits of these ids and of these versions; nothing changes.

        Raises `RevertRefused`, and `VersionRefused` from the guard.
        """
        try:
            return revert(self, ids, versions, mode)
        finally:
            self.num_loads += 1  # It was measured with other edits held; those that no version holds are forgotten.
            self._count()

    def walk(self) -> BlameWalk:
        """Copy what a blame needs, so that edits may go on while it runs. Raises `EditRejected` if the memory has no room."""
        with refused_without_memory():
            edited, model = self.copied()
            return BlameWalk(model, edited, self.ledger, self.version)

    def copied(self) -> tuple[EditedModel, LanguageModel]:
        """Copy the live model, with matrices, sums and a tokenizer of its own."""
        edited = self.edited.copy()
        return edited, LanguageModel(edited.module, copy.deepcopy(self.model.tokenizer), self.model.path)

    def blame(self, prompt: Prompt, max_tokens: int = 8) -> Blamed:
        """Find the version that brought the live answer, without a limit. Raises as `BlameWalk.blame` and `walk`."""
        return self.walk().blame(prompt, max_tokens, WalkBudget())

    def append(self, candidate: CandidateVersion) -> Version:
        """Append a candidate to the ledger, and load it.

        Raises `LedgerConflict` if the head has moved since the candidate was made, and `LedgerDamaged`; nothing changes then.
        """
        is_revert = "reverted" in candidate.scorecard
        delta = stored(candidate.delta)  # The same bits as the replicas read.
        self.edited.check(delta)
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
            number = version.number
            edits, repaired_in = tuple(live_edits(self.ledger, number)), repairs(self.ledger, number)
            self._load(_VersionState(number, deltas, candidate.state, edits, repaired_in))
            return version
        self.edited.add(delta)
        self.inspector.committed(EditBatch(candidate.edits), candidate.observed)
        self.state, self.version, self.bank = candidate.state, version.number, bank_of(self.model.module)
        self.repaired_in |= dict.fromkeys(candidate.scorecard.get("repaired", ()), version.number)
        self._count()
        return version


@contextmanager
def refused_without_memory() -> Iterator[None]:
    """Raise `EditRejected` if the model's answers do not fit into the memory."""
    try:
        yield
    except torch.OutOfMemoryError as fault:
        raise EditRejected(f"OutOfMemoryError before the edit: {fault}", code=Code.EDITOR_FAILED) from fault


def load_editor(options: LiveModelOptions) -> Editor:
    """Make the editor of the options. Raises `ValueError` with the names of the editors, or of what is missing."""
    device, settings, of_tiers = str(first_device(options.device)), options.settings, dict[str, str]()
    if options.memory:
        settings, of_tiers = tier_settings(settings)
    if ":" not in options.editor:
        editor = make_editor(options.editor, options.artifact, options.preset, settings, device)
    else:
        editor = own_editor(options.editor).from_artifact(options.artifact, options.preset, device)
        for name, value in settings.items():
            editor = overridden(editor, name, value)
    return with_memory(editor, options.memory, of_tiers) if options.memory else editor
