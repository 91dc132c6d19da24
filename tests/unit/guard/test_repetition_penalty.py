"""The guard of a model with a repetition penalty measures what the model generates with that penalty."""

from __future__ import annotations

import pytest
import torch

from errata.delta.accumulator import EditedModel
from errata.delta.weight_delta import WeightDelta
from errata.edit import Edit, EditBatch
from errata.guard.inspector import FEW, Inspector
from errata.guard.probes import Probes
from errata.model.generation import greedy, greedy_texts
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from errata.model.packing import Packed
from errata.model.prefix_cache import BatchCache
from errata.text.answers import first_sentence
from tests.unit.conftest import MATRICES
from tests.unit.guard.test_inspector import LENIENT

PENALTIES = (1.0, 1.2)
COMMON = "the city where " * 7  # more than `packing.MIN_SHARED` tokens
LENGTH = 7  # tokens of an answer


def penalise(model: LanguageModel, penalty: float) -> None:
    model.module.generation_config.repetition_penalty = penalty


def end_answers(model: LanguageModel, prompts: list[str]) -> None:
    """Make what the model says after `LENGTH` tokens an end token, with each penalty: a random model ends no answer."""
    ends = {model.tokenizer.eos_token_id}
    for penalty in PENALTIES:
        penalise(model, penalty)
        ends |= {ids[-1] for ids in greedy(model, prompts, LENGTH + 1, min_tokens=LENGTH + 1)}
    model.module.generation_config.eos_token_id = sorted(ends)


def answered_with(model: LanguageModel, penalty: float, prompts: list[str]) -> list[Edit]:
    """Make edits that ask for what the model says with a penalty."""
    penalise(model, penalty)
    texts = greedy_texts(model, prompts, 12)
    return [Edit(prompt, text) for prompt, text in zip(prompts, texts, strict=True) if text.strip()]


def are_answered(model: LanguageModel, edits: list[Edit]) -> list[bool]:
    """Say which edits the model answers in free generation."""
    texts = greedy_texts(model, [edit.prompt for edit in edits], 12)
    return [edit.first_wrong([text.strip()]) is None for edit, text in zip(edits, texts, strict=True)]


@pytest.fixture
def prompts(world) -> list[str]:
    return [edit.prompt for edit in world.edits("test", 20)]


@pytest.mark.parametrize("matrices", [MATRICES, MATRICES[1:]], ids=["all", "behind the last attention"])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_each_edit_is_answered_if_the_edited_model_generates_its_target(tiny_model, prompts, random_delta, penalty, matrices):
    spec = find_matrices(tiny_model.module, matrices)
    delta = WeightDelta({name: random_delta(3, 0.1).parts[name] for name in matrices})
    edited = EditedModel(tiny_model.module, spec)
    edited.add(delta)
    end_answers(tiny_model, prompts)
    edits = [edit for one in PENALTIES for edit in answered_with(tiny_model, one, prompts)]
    penalise(tiny_model, penalty)
    answered = are_answered(tiny_model, edits)
    assert 0 < sum(answered) < len(edits), "each penalty leads to answers of its own"
    edited.set([])

    inspector = Inspector(tiny_model, spec, LENIENT, Probes((), ()))
    batch = EditBatch(tuple(edits))
    for _ in range(2):  # The second time, activations are replayed.
        found, observed = inspector.measure(batch, delta)
        assert found.unanswered == tuple(i for i, right in enumerate(answered) if not right)
        assert [observed.said[edit].is_answered for edit in edits] == answered
        assert found.efficacy == pytest.approx(sum(answered) / len(edits))


@pytest.mark.parametrize("penalty", PENALTIES)
def test_earlier_edits_and_probes_are_asked_with_the_penalty(tiny_model, world, prompts, random_delta, penalty):
    spec, delta = find_matrices(tiny_model.module, MATRICES), random_delta(3, 0.1)
    end_answers(tiny_model, prompts)
    questions = [prompt for prompt, _ in world.sentences("train")[:40:4]]
    held = answered_with(tiny_model, penalty, prompts)
    inspector = Inspector(tiny_model, spec, LENIENT, Probes(tuple(questions), ()))
    inspector.at_version(held)
    before = greedy_texts(tiny_model, questions, 8)
    assert all(are_answered(tiny_model, held))
    found, observed = inspector.measure(EditBatch((Edit("question", "answer"),)), delta)

    edited = EditedModel(tiny_model.module, spec)
    edited.add(delta)
    kept = are_answered(tiny_model, held)
    assert 0 < sum(kept) < len(held)
    assert set(observed.lost) == {edit for edit, is_kept in zip(held, kept, strict=True) if not is_kept}
    assert found.retention == pytest.approx(sum(kept) / len(held))
    after = greedy_texts(tiny_model, questions, 8)
    same = [first_sentence(then) == first_sentence(now) for then, now in zip(before, after, strict=True)]
    assert 0 < sum(same) < len(same)
    assert (found.locality, found.lost_locality) == (
        pytest.approx(sum(same) / len(same)),
        pytest.approx(same.count(False) / max(FEW, len(same))),
    )


@pytest.mark.parametrize("penalty", PENALTIES)
def test_no_text_of_the_guard_shares_a_row_under_a_penalty(tiny_model, penalty):
    """A penalty falls on all tokens of a row."""
    penalise(tiny_model, penalty)
    prompts = [COMMON + end for end in ("question", "answer", "river")]
    edits = [Edit(prompt, "answer") for prompt in prompts]
    inspector = Inspector(tiny_model, find_matrices(tiny_model.module, MATRICES), LENIENT, Probes(tuple(prompts), ()))
    inspector.at_version(edits)
    inspector.measure(EditBatch((Edit("question", "answer"),)), WeightDelta({}))
    batch = BatchCache.of(tiny_model, MATRICES, EditBatch(tuple(edits)))
    (earlier,) = inspector.earlier.groups
    texts = (inspector.probe_texts.encoded, batch.tokens, earlier.encoded)
    assert [isinstance(text, Packed) for text in texts] == [penalty == 1.0] * 3
    assert torch.equal(batch.tokens.targets_T, earlier.encoded.targets_T)


def test_a_model_without_an_end_token_is_measured_with_a_penalty(tiny_model, prompts):
    tiny_model.module.generation_config.eos_token_id = tiny_model.tokenizer.eos_token = None
    penalise(tiny_model, 1.2)
    edits = [Edit(prompts[0], tiny_model.tokenizer.decode(greedy(tiny_model, prompts[:1], 3)[0])), Edit(prompts[1], "answer")]
    inspector = Inspector(tiny_model, find_matrices(tiny_model.module, MATRICES), LENIENT, Probes((), ()))
    assert inspector.measure(EditBatch(tuple(edits)), WeightDelta({}))[0].unanswered == (1,)
