"""Where an edit is made: the model in memory, the editor and its state, the guard, the ledger. Plain, synchronous code."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from errata import model as models
from errata.delta import EditedModel, WeightDelta
from errata.edit import Edit, EditBatch, EditRejected
from errata.editors import make_editor
from errata.editors.editor import Editor, EditorState
from errata.guard import Guard, matrix_norms
from errata.ledger import Ledger, Version
from errata.lifelong import attempt


@dataclass(frozen=True)
class WorkshopOptions:
    """`editor` is a name as `make_editor` takes it, or `package.module:Class`; so are the artifact, the preset and settings."""

    model: str
    ledger: str
    editor: str
    artifact: str | None = None
    preset: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    dtype: str = "float32"
    device: str = "cpu"
    max_tokens: int | None = None


@dataclass(frozen=True)
class Made:
    """An accepted update that is not yet a version."""

    parent: int
    edits: tuple[Edit, ...]
    delta: WeightDelta
    state: EditorState
    scorecard: dict[str, Any]


class Workshop:
    """Stands at the ledger's head: `model` is edited as the head is, `state` is the editor's after it."""

    def __init__(self, options: WorkshopOptions) -> None:
        self.options = options
        self.model = models.load(options.model, getattr(torch, options.dtype), options.device)
        self.max_tokens = min(options.max_tokens or self.model.max_tokens, self.model.max_tokens)
        self.editor = load_editor(options)
        self.ledger = self._open()
        self.spec = models.find_matrices(self.model.module, self.ledger.base["matrices"])
        self.base_norms = matrix_norms(self.model, self.spec)
        self.edited = EditedModel(self.model.module, self.spec)
        self.guard = Guard()
        self._stand_at(self.ledger.head)

    def _open(self) -> Ledger:
        """The ledger that is there, if it is over this model and these matrices, else a new one."""
        names = models.find_matrices(self.model.module, self.editor.modules).names
        base = {
            "model": self.options.model,
            "fingerprint": models.checkpoint_fingerprint(self.options.model),
            "matrices": list(names),
        }
        return Ledger.create(self.options.ledger, base)

    def _stand_at(self, version: int) -> None:
        self.edited.set(self.ledger.segments(version))
        self.state = self.ledger.state(version) or self.editor.start(self.model, self.spec)
        self.version = version

    def move_to(self, version: int) -> None:
        """Make `version` the head, weights and state together. Raises `UnknownVersion`."""
        self.ledger.move_head(version)
        self._stand_at(version)

    def make(self, edits: Sequence[Edit]) -> Made:
        """The update for these edits. Raises `EditRejected` from the editor or from the guard; nothing is changed."""
        batch = EditBatch(tuple(edits))
        try:
            delta, state, scorecard = attempt(self.model, self.editor, batch, self.state, self.guard, self.base_norms)
        except (ArithmeticError, torch.linalg.LinAlgError, torch.OutOfMemoryError) as fault:
            raise EditRejected(f"{type(fault).__name__} in the editor: {fault}") from fault
        return Made(self.version, batch.edits, delta, state, scorecard.to_json())

    def append(self, made: Made) -> Version:
        """Raises `LedgerConflict` if the head is no longer where the update was made."""
        plan = Path(self.options.artifact).name if self.options.artifact else ""
        version = self.ledger.append(made.parent, made.delta, made.state, made.edits, made.scorecard, self.options.editor, plan)
        self.edited.add(self.ledger.delta(version.number))  # from the file, as the replicas read it: the same bits
        self.state, self.version = made.state, version.number
        return version


def load_editor(options: WorkshopOptions) -> Editor:
    """Raises `ValueError` naming the editors there are, or what is missing."""
    module, _, attribute = options.editor.partition(":")
    if not attribute:
        return make_editor(options.editor, options.artifact, options.preset, options.settings, options.device)
    kind: Any = getattr(importlib.import_module(module), attribute)
    return kind.made(options.artifact, options.preset, options.device)
