"""Corrections of corrections with every editor: an edit, three other targets for the same facts, then the truth again.

An answer counts if the newest target is the likeliest of all objects of its relation. The model is random, so the figures say
how well an editor replaces what it wrote, and not how good it is.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from errata.delta.accumulator import EditedModel
from errata.edit import Edit, EditBatch
from errata.editors import EDITORS, Editor
from errata.editors.memory_based.questions import QuestionMemory
from errata.editors.memory_based.swea import SWEA
from errata.editors.memory_based.trained import TrainedMemory
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from errata.testbed.world import PHRASINGS, World
from tests.editors_under_test import STRONG, UNDER_TEST
from tests.tiny_models import make_tiny

WORLD, NUM_RE_EDITS = World(20), 3
# These memories are read before the model, with whole prompts: re-edits of them are in tests of their own.
ASKED_BEFORE = {editor for editor in EDITORS.values() if issubclass(editor, QuestionMemory | TrainedMemory | SWEA)}
BUILD = {name: UNDER_TEST[name].build for name in UNDER_TEST if name in EDITORS and EDITORS[name] not in ASKED_BEFORE} | STRONG

# Editors that do not reach the truth again, with the share of facts on which they do. An editor that is mended leaves the list.
UNMENDED = {
    "RLEdit": 0.67,
    "MALMEN": 0.17,
    "MEND": 0.00,
    "UltraEdit": 0.17,
    "O-Edit+": 0.50,
    # It writes every value at the norm of the unedited model, which is small on a random one: at 1.5 times that, all hold.
    "NAS": 0.83,
}


@pytest.fixture(scope="module")
def random_model() -> LanguageModel:
    return make_tiny("mistral")


def truths() -> list[Edit]:
    """Return an edit to the truth of each relation, of different people."""
    found = dict[str, Edit]()
    for edit in WORLD.edits("test", 36):
        relation = relation_of(edit)
        if relation not in found and edit.subject not in {other.subject for other in found.values()}:
            found[relation] = replace(edit, target=WORLD.facts[str(edit.subject), relation])
    assert len(found) == len(PHRASINGS)
    return list(found.values())


def relation_of(edit: Edit) -> str:
    return next(relation for relation, objects in WORLD.objects.items() if edit.target in objects)


def rounds() -> list[EditBatch]:
    """Return the edits of the first round, of three rounds of re-edits, and of the truth."""
    rng, right = random.Random(0), truths()
    now, found = right, list[EditBatch]()
    for _ in range(1 + NUM_RE_EDITS):
        used = [{edit.target, old.target} for edit, old in zip(right, now, strict=True)]
        others = [
            [o for o in WORLD.objects[relation_of(edit)] if o not in not_these]
            for edit, not_these in zip(right, used, strict=True)
        ]
        now = [replace(edit, target=rng.choice(objects)) for edit, objects in zip(right, others, strict=True)]
        found.append(EditBatch(tuple(now)))
    return [*found, EditBatch(tuple(right))]


@torch.no_grad()
def share_answered(model: LanguageModel, batch: EditBatch) -> float:
    """Return the share of edits whose target is the likeliest object of its relation."""
    right = 0
    for edit in batch:
        objects = WORLD.objects[relation_of(edit)]
        ids = [model.tokenizer(one)["input_ids"][0] for one in objects]
        logits_V = model.module(input_ids=torch.tensor([model.renderer.ids(edit.prompt)])).logits[0, -1]
        right += objects[int(logits_V[ids].argmax())] == edit.target
    return right / len(batch)


def shares(model: LanguageModel, editor: Editor) -> list[float]:
    """Make all rounds of edits; return the share that is answered after each."""
    spec = find_matrices(model.module, editor.modules)
    edited, state, found = EditedModel(model.module, spec), editor.start(model, spec), list[float]()
    try:
        for batch in rounds():
            delta, state = editor.edit(model, batch, state)
            edited.add(delta)
            found.append(share_answered(model, batch))
    finally:
        edited.set([])
    return found


def test_every_editor_is_re_edited(random_model: LanguageModel) -> None:
    assert {type(build(random_model)) for build in BUILD.values()} == set(EDITORS.values()) - ASKED_BEFORE
    assert set(UNMENDED) <= set(BUILD)


@pytest.mark.parametrize("name", BUILD)
def test_the_newest_edit_of_a_fact_holds_also_if_it_is_the_truth_again(name: str, random_model: LanguageModel) -> None:
    first, *_, truth = shares(random_model, BUILD[name](random_model))
    assert first == 1.0, "the settings of STRONG are too weak for a first edit"
    if name not in UNMENDED:
        assert truth == 1.0
        return
    assert truth < 1.0, f"{name} is mended: take it out of UNMENDED"
    one_fact = 1.01 / len(truths())
    assert truth == pytest.approx(UNMENDED[name], abs=one_fact)
