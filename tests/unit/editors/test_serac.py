"""SERAC: its classifier and loss against naive implementations, its training, and what is said."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from errata.delta.memory_delta import MemoryDelta
from errata.delta.side_branch import applied
from errata.edit import Edit, EditBatch
from errata.edit_memory.encoder import SentenceEncoder
from errata.editors import make_editor
from errata.editors.memory_based.questions import statement
from errata.editors.memory_based.serac import SERAC
from errata.editors.memory_based.trained import MemoryTrainer
from errata.model.generation import greedy, greedy_texts
from errata.model.language_model import LanguageModel, load
from errata.model.matrices import find_matrices
from errata.testbed.world import World

WORLD = World(20)
EDITOR = SERAC(("layers.1.mlp.down_proj",), learning_rate=2e-2)
STREAM, HELD_OUT = WORLD.edits("train", 36), WORLD.edits("test", 8)


@pytest.fixture(scope="module")
def trained(model_dir: Path) -> SERAC:
    editor = EDITOR.initialised(load(model_dir), seed=0)
    trainer = MemoryTrainer(editor, load(model_dir), STREAM, (60, 1, 16), seed=0)
    losses = [trainer.step() for _ in range(60)]
    assert sum(losses[-1].values()) < 0.5 * sum(losses[0].values())
    return editor


def edited_by(editor: SERAC, model: LanguageModel, edits: list[Edit]) -> MemoryDelta:
    state = editor.start(model, find_matrices(model.module, editor.modules))
    return editor.edit(model, EditBatch(tuple(edits)), state)[0]


def probability(editor: SERAC, text: str, question: str) -> float:
    """Compute p(e, x) by the equation."""
    net = editor.trained_policy()
    weight, bias = net.weight_EE.tolist(), net.bias.item()
    text_E, question_E = SentenceEncoder.load().encode([text, question]).tolist()
    key = [sum(w * u for w, u in zip(row, text_E, strict=True)) for row in weight]
    return 1 / (1 + math.exp(-sum(k * u for k, u in zip(key, question_E, strict=True)) - bias))


def test_a_record_has_the_classifier_of_its_correction(trained: SERAC, tiny_model: LanguageModel) -> None:
    made = edited_by(trained, tiny_model, HELD_OUT[:3])
    assert (made.kind, made.site) == ("answer", "all-MiniLM-L6-v2")
    for row, record in zip(EditBatch(tuple(HELD_OUT[:3])).rows, made.records, strict=True):
        for question in (row.prompt, HELD_OUT[5].prompt):
            (vector_E,) = SentenceEncoder.load().encode([str(question)])
            logit = float(record.rows["key"][0] @ vector_E - record.rows["threshold"][0])
            assert 1 / (1 + math.exp(-logit)) == pytest.approx(probability(trained, statement(row), str(question)), abs=1e-4)
        assert record.answer == row.answer and record.text == statement(row)


def test_the_loss_is_that_of_a_naive_implementation(tiny_model: LanguageModel) -> None:
    editor = EDITOR.initialised(tiny_model, seed=0)
    batch = [replace(edit, rephrasings=edit.rephrasings[:1]) for edit in STREAM[:4]]
    found = editor.losses(tiny_model, batch, torch.Generator().manual_seed(0))
    texts = [statement(row) for row in EditBatch(tuple(batch)).rows]
    inside = [probability(editor, t, q) for t, edit in zip(texts, batch, strict=True) for q in (edit.prompt, *edit.rephrasings)]
    outside = [probability(editor, t, other.prompt) for t, e in zip(texts, batch, strict=True) for other in batch if other != e]
    outside += [probability(editor, t, probe.prompt) for t, edit in zip(texts, batch, strict=True) for probe in edit.locality]
    assert found["inside"].item() == pytest.approx(-sum(map(math.log, inside)) / len(inside), rel=1e-3)
    assert found["outside"].item() == pytest.approx(-sum(math.log(1 - p) for p in outside) / len(outside), rel=1e-3)


def test_the_answer_is_said_in_scope_and_the_model_speaks_elsewhere(trained: SERAC, tiny_model: LanguageModel) -> None:
    model, prompts = tiny_model, [edit.prompt for edit in STREAM[:6]]
    unrelated = [edit.locality[0].prompt for edit in HELD_OUT[:4]]
    plain = greedy(model, unrelated, 3)
    with applied(model.module, edited_by(trained, model, STREAM[:6])):
        said = greedy_texts(model, prompts, 3)
        assert greedy(model, unrelated, 3) == plain
    assert [text == edit.target for text, edit in zip(said, STREAM, strict=False)].count(True) >= 5


def test_an_artifact_gives_the_same_editor(trained: SERAC, tiny_model: LanguageModel, tmp_path: Path) -> None:
    trained.save(tmp_path, {"seed": 0})
    made = make_editor("SERAC", tmp_path)
    assert isinstance(made, SERAC) and made == trained
    assert edited_by(made, tiny_model, STREAM[:2]).digest() == edited_by(trained, tiny_model, STREAM[:2]).digest()
