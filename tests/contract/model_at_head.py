"""A ledger of any editor, with a model in memory at its head, for the contract tests of reverts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from errata.delta.accumulator import EditedModel
from errata.edit import Edit, EditBatch
from errata.editors import Editor, EditorState
from errata.editors.repeated import edit_repeatedly
from errata.guard.inspector import Inspector
from errata.guard.limits import Guard, Limit
from errata.guard.probes import Probes
from errata.history.revert import revert
from errata.ledger import Ledger, Version
from errata.model.language_model import load
from errata.model.matrices import ModelSpec, find_matrices

OPEN = Guard(change=Limit(1e9, 1e9), growth=Limit(1e9, 1e9), forgotten=Limit(1.0, 1.0))


class ModelAtHead:
    """A ledger, and a model in memory at the version of its head."""

    def __init__(self, editor: Editor, directory: Path, ledger: Path) -> None:
        self.editor, self.model = editor, load(directory)
        self.spec: ModelSpec = find_matrices(self.model.module, editor.modules)
        base = {"model": str(directory), "fingerprint": "base", "matrices": list(self.spec.names)}
        self.ledger = Ledger.create(ledger, base)
        self.inspector = Inspector(self.model, self.spec, OPEN, Probes((), ()))
        self.edited = EditedModel(self.model.module, self.spec)
        self.state: EditorState = editor.start(self.model, self.spec)

    @property
    def version(self) -> int:
        return self.ledger.head

    @property
    def origin(self) -> tuple[str, str]:
        return "this", ""

    def edit(self, batch: Sequence[Edit]) -> Version:
        delta, self.state = self.editor.edit(self.model, EditBatch(tuple(batch)), self.state)
        version = self.ledger.append(self.ledger.head, delta, self.state, batch, {}, self.origin)
        self.edited.add(self.ledger.delta(version.number))
        return version

    def edit_again(self, batch: Sequence[Edit], again: Sequence[Edit]) -> Version:
        """Make a batch, and some edits again on top of it, as one version."""
        own, more = EditBatch(tuple(batch)), EditBatch(tuple(again))
        delta, self.state = edit_repeatedly(self.editor, self.model, own, self.state, [more])
        card = {"again": [[edit.to_json() for edit in again]]}
        version = self.ledger.append(self.ledger.head, delta, self.state, batch, card, self.origin)
        self.edited.add(self.ledger.delta(version.number))
        return version

    def revert(self, ids: Sequence[str], mode: str = "replay") -> Version:
        head = self.ledger.head
        made = revert(self, ids, (), mode)
        version = self.ledger.append(
            made.parent, made.delta, made.state, made.edits, made.scorecard, self.origin, expected_head=head
        )
        self.edited.set(self.ledger.segments(version.number))
        self.state = made.state
        return version

    def weights(self) -> Tensor:
        """Return the edited matrices as one vector, in fp64."""
        return torch.cat([self.model.module.get_submodule(name).weight.double().flatten() for name in self.spec.names])
