"""Replay with every editor: a version replayed without an edit has the bits of one that never had the edit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from errata.edit import batches_of
from errata.model.language_model import LanguageModel
from errata.testbed.world import World
from tests.contract.model_at_head import ModelAtHead
from tests.editors_under_test import TIERED, UNDER_TEST, editor_under_test


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
