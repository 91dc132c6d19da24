"""Replay with every editor: a version replayed without an edit has the bits of one that never had the edit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from errata.delta.accumulator import EditedModel
from errata.edit import Edit, EditBatch, batches_of
from errata.editors import Editor, EditorState
from errata.guard.inspector import Inspector
from errata.guard.limits import Guard, Limit
from errata.guard.probes import Probes
from errata.history.revert import revert
from errata.ledger import Ledger, Version
from errata.model.language_model import LanguageModel, load
from errata.model.matrices import ModelSpec, find_matrices
from errata.testbed.world import World
from tests.editors_under_test import TIERED, UNDER_TEST, editor_under_test

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

    def revert(self, ids: Sequence[str]) -> Version:
        head = self.ledger.head
        made = revert(self, ids, (), "replay")
        version = self.ledger.append(
            made.parent, made.delta, made.state, made.edits, made.scorecard, self.origin, expected_head=head
        )
        self.edited.set(self.ledger.segments(version.number))
        self.state = made.state
        return version


@pytest.mark.parametrize("name", [*UNDER_TEST, *TIERED])
def test_a_replayed_version_has_the_bits_of_one_without_the_edit(
    name: str, model_dir: Path, tiny_model: LanguageModel, tmp_path: Path
) -> None:
    edits = [replace(edit, id=f"e{i}") for i, edit in enumerate(World(20).edits("test", 11))]
    editor = editor_under_test(name, tiny_model)
    here = ModelAtHead(editor, model_dir, tmp_path / "here")
    never = ModelAtHead(editor, model_dir, tmp_path / "never")
    for batch in batches_of(edits[:9], 3):
        here.edit(batch.edits)
        never.edit([edit for edit in batch if edit.id != "e4"])
    version = here.revert(["e4"])
    assert version.parent == 1 and [e.id for e in version.edits] == ["e3", "e5", "e6", "e7", "e8"]
    _check_same(here, never)
    assert here.ledger.state(version.number).num_edits == 8
    here.edit(edits[9:])  # An edit after the revert is the same, too.
    never.edit(edits[9:])
    _check_same(here, never)


@pytest.mark.parametrize("name", ["RLEdit", "UltraEdit", "AlphaEdit"])
def test_a_second_revert_has_the_same_bits_too(name: str, model_dir: Path, tiny_model: LanguageModel, tmp_path: Path) -> None:
    """The replayed batches are those that were posted, although one version holds them all after the first revert."""
    edits = [replace(edit, id=f"e{i}") for i, edit in enumerate(World(20).edits("test", 9))]
    editor = editor_under_test(name, tiny_model)
    here = ModelAtHead(editor, model_dir, tmp_path / "here")
    never = ModelAtHead(editor, model_dir, tmp_path / "never")
    for batch in batches_of(edits, 3):
        here.edit(batch.edits)
        never.edit([edit for edit in batch if edit.id not in ("e0", "e4")])
    here.revert(["e0"])
    assert here.revert(["e4"]).parent == 0
    _check_same(here, never)


def _check_same(here: ModelAtHead, never: ModelAtHead) -> None:
    for matrix in here.spec.names:
        assert torch.equal(*(place.model.module.get_submodule(matrix).weight for place in (here, never))), matrix
    mine, theirs = (place.ledger.state(place.ledger.head).tensors for place in (here, never))
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
