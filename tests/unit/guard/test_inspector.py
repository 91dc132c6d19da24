"""Measurements of an update, compared with an edited model that generates."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from errata.delta.accumulator import EditedModel
from errata.delta.parts import LowRank
from errata.delta.weight_delta import WeightDelta
from errata.edit import Edit, EditBatch, Probe
from errata.evaluate.perplexity import perplexity
from errata.guard import probe_answers
from errata.guard.inspector import FEW, MAX_EXCLUDED, Inspector, _excluded
from errata.guard.limits import Guard, Limit, Measurements
from errata.guard.probes import Probes
from errata.model.encoding import encode
from errata.model.generation import greedy
from errata.model.matrices import find_matrices
from errata.text.answers import first_sentence

MATRICES = ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]

LENIENT = Guard(change=Limit(math.inf, math.inf))


@pytest.fixture
def probes(world) -> Probes:
    questions = tuple(prompt for prompt, _ in world.sentences("train")[:40:4])
    return Probes(questions, tuple(world.plain_sentences(held_out=True)[:7]))


def answers(model, prompts) -> list[str]:
    return [model.tokenizer.decode(ids, skip_special_tokens=True) for ids in greedy(model, prompts, 8)]


def already_answered(model, prompts) -> list[Edit]:
    """Make edits whose targets the model already answers."""
    model.tokenizer.eos_token = None  # The random model ends no answer.
    words = [model.tokenizer.decode(ids) for ids in greedy(model, prompts, 1)]
    return [Edit(prompt, word) for prompt, word in zip(prompts, words, strict=True)]


def scores(inspector: Inspector, batch: EditBatch, delta: WeightDelta) -> Measurements:
    found, _ = inspector.measure(batch, delta)
    return found


@pytest.mark.parametrize("matrices", [MATRICES, MATRICES[1:]], ids=["all", "behind the last attention"])
@pytest.mark.parametrize("scale", [0.0, 0.4, 4.0])
def test_measurements_equal_those_of_an_edited_model_that_generates(tiny_model, world, probes, random_delta, scale, matrices):
    spec = find_matrices(tiny_model.module, matrices)
    inspector = Inspector(tiny_model, spec, LENIENT, probes)
    assert inspector.passes.is_pointwise is (matrices == MATRICES[1:])
    before, sentences = answers(tiny_model, probes.questions), probes.sentences
    alone = [perplexity(tiny_model, [sentence]) for sentence in sentences]
    edits = world.edits("test", 4)
    delta = WeightDelta({name: random_delta(3, scale).parts[name] for name in matrices})
    batch = EditBatch(tuple(edits))
    inspector.measure(batch, WeightDelta({}))  # This fills the prefix cache of each text.
    found = scores(inspector, batch, delta)

    edited = EditedModel(tiny_model.module, spec)
    edited.add(delta)
    after = answers(tiny_model, probes.questions)
    same = [first_sentence(a) == first_sentence(b) for a, b in zip(before, after, strict=True)]
    assert found.locality == pytest.approx(sum(same) / len(same))
    assert found.lost_locality == pytest.approx((len(same) - sum(same)) / FEW)
    ratios = sorted(perplexity(tiny_model, [s]) / old for s, old in zip(sentences, alone, strict=True))
    assert found.ppl_ratio == pytest.approx(ratios[len(ratios) // 2], rel=1e-4)
    said = answers(tiny_model, [edit.prompt for edit in edits])
    assert found.efficacy == sum(edit.target == text.strip() for edit, text in zip(edits, said, strict=True)) / len(edits)
    wrong = [text.strip() for edit, text in zip(edits, said, strict=True) if edit.target != text.strip()]
    named = [one["answer"] for one in found.failed]
    assert len(named) == len(wrong) and all(map(str.startswith, wrong, named)), "generated up to the end of a sentence"
    for name in matrices:
        weight = tiny_model.module.get_submodule(name).weight
        assert found.norm_growth[name] == pytest.approx(float(weight.double().norm()) / inspector.base_norms[name], rel=1e-5)
    assert found.retention is None


def test_measuring_changes_no_weight(tiny_model, world, probes, random_delta):
    before = {name: tensor.clone() for name, tensor in tiny_model.module.state_dict().items()}
    inspector = Inspector(tiny_model, find_matrices(tiny_model.module, MATRICES), LENIENT, probes)
    batch = EditBatch(tuple(world.edits("test", 3)))
    first = scores(inspector, batch, random_delta(0))
    assert scores(inspector, batch, random_delta(0)) == first
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_model.module.state_dict().items())


def test_earlier_edits_are_sampled_until_they_are_edited_again(tiny_model, world, random_delta):
    prompts = [prompt for prompt, _ in world.sentences()[:3]]
    held = already_answered(tiny_model, prompts[1:])
    inspector = Inspector(tiny_model, find_matrices(tiny_model.module, MATRICES), LENIENT, Probes((), ()))
    inspector.at_version([*held, Edit(prompts[0], "nothing of the kind")])
    nothing, other = WeightDelta({}), EditBatch((Edit("question", "answer"),))
    assert (scores(inspector, other, nothing).retention, scores(inspector, other, nothing).lost_retention) == (
        pytest.approx(2 / 3),
        0.0,
    )
    ruin = scores(inspector, other, random_delta(1, 30.0))
    assert ruin.lost_retention == pytest.approx(2 / FEW)
    again = scores(inspector, EditBatch((Edit(held[0].prompt, "something else"),)), nothing)
    assert again.retention == pytest.approx(1 / 2)


def test_answers_observed_with_an_update_are_those_of_its_version(tiny_model, world, probes, random_delta):
    spec = find_matrices(tiny_model.module, MATRICES)
    inspector, edited = Inspector(tiny_model, spec, LENIENT, probes), EditedModel(tiny_model.module, spec)
    edits, deltas = world.edits("test", 6), [random_delta(seed, 0.3) for seed in (1, 2)]
    first, second = EditBatch(tuple(edits[:3])), EditBatch(tuple(edits[3:]))
    _, observed = inspector.measure(first, deltas[0])
    edited.add(deltas[0])
    inspector.committed(first, observed)
    known = scores(inspector, second, deltas[1])
    inspector.at_version(first)  # This drops all answers.
    assert scores(inspector, second, deltas[1]) == known
    assert known.lost_locality is not None and known.retention is not None


def test_edited_probes_are_excluded(tiny_model, probes, random_delta):
    inspector = Inspector(tiny_model, find_matrices(tiny_model.module, MATRICES), LENIENT, probes)
    every = EditBatch(tuple(Edit(question, "x") for question in probes.questions))
    assert scores(inspector, every, random_delta(0)).lost_locality is None
    probed, other, *rest = probes.questions
    wordings = EditBatch((Edit("question", "x", rephrasings=(probed,), portability=(Probe(other, "y"),)),))
    ruin = scores(inspector, wordings, random_delta(1, 30.0))
    assert ruin.lost_locality is not None and ruin.lost_locality <= len(rest) / FEW


def test_rephrasings_cannot_exclude_most_of_the_probes(tiny_model, world, probes, random_delta):
    """An edit names every question and every earlier edit as its rephrasings."""
    spec = find_matrices(tiny_model.module, MATRICES)
    inspector = Inspector(tiny_model, spec, LENIENT, probes)
    texts = [probe.prompt for probe in world.edits("test", 30)]
    some = int(MAX_EXCLUDED * FEW)
    assert _excluded(texts, ["edited"], texts[:some]) == {*texts[:some]}
    assert _excluded(texts, ["edited"], texts) == set() and _excluded(texts, texts, texts[:some]) == set(texts)
    plain = Edit("question", "answer")
    named = replace(plain, rephrasings=(*probes.questions, *(f"wording {i}" for i in range(3))))
    found = [scores(inspector, EditBatch((edit,)), random_delta(1, 30.0)) for edit in (plain, named)]
    assert found[0].lost_locality is not None and found[1].lost_locality == found[0].lost_locality


@pytest.mark.parametrize("value", [1e30, math.nan])
def test_a_delta_that_is_not_finite_is_refused(tiny_model, probes, value):
    inspector = Inspector(tiny_model, find_matrices(tiny_model.module, MATRICES), LENIENT, probes)
    broken = WeightDelta({MATRICES[0]: LowRank(torch.full((64, 1), value), torch.full((96, 1), value))})
    found = scores(inspector, EditBatch((Edit("question", "answer"),)), broken)
    assert not found.is_finite
    assert not LENIENT.check(found).publish


def test_one_sentence_that_is_not_finite_is_refused(tiny_model, probes, monkeypatch):
    inspector = Inspector(tiny_model, find_matrices(tiny_model.module, MATRICES), LENIENT, probes)
    healthy = probe_answers.answer_log_probs

    def broken(model, encoded, **more):
        log_probs_TV = healthy(model, encoded, **more)
        if encoded is inspector.probe_texts.encoded:
            log_probs_TV[-1] = math.nan
        return log_probs_TV

    monkeypatch.setattr(probe_answers, "answer_log_probs", broken)
    found = scores(inspector, EditBatch((Edit("question", "answer"),)), WeightDelta({}))
    assert not found.is_finite and not LENIENT.check(found).publish


def test_a_few_broken_sentences_are_found_although_the_median_is_unchanged(tiny_model, probes, monkeypatch):
    inspector = Inspector(tiny_model, find_matrices(tiny_model.module, MATRICES), LENIENT, probes)
    assert scores(inspector, EditBatch((Edit("question", "answer"),)), WeightDelta({})).broken_sentences == 0.0
    healthy = inspector.base_answers
    now = replace(healthy, perplexities=[1e9 * p if i < 3 else p for i, p in enumerate(healthy.perplexities)])
    monkeypatch.setattr(inspector, "_probe_answers", lambda delta: now)
    inspector.probed = healthy
    found = scores(inspector, EditBatch((Edit("question", "answer"),)), WeightDelta({}))
    assert (found.ppl_ratio, found.broken_sentences) == (1.0, pytest.approx(3 / 7))
    assert "0.43 of other sentences would have more than 1.5 times their perplexity" in str(LENIENT.check(found).breaches[0])


def test_any_end_token_ends_an_answer(tiny_model, world):
    (edit,) = world.edits("test", 1)
    inspector = Inspector(tiny_model, find_matrices(tiny_model.module, MATRICES), LENIENT, Probes((), ()))
    inspector.passes.is_pointwise = False  # No pass is run, so that there is no gradient to tell.
    end, other = tiny_model.tokenizer.eos_token_id, 7
    answer = tiny_model.tokenizer(edit.target)["input_ids"]
    assert len(answer) == 1
    for said, ends, right in ((end, [end], True), (other, [end], False), (other, [end, other], True)):
        inspector.end_ids = torch.tensor(ends)

        def rigged(model, encoded, said=said, **more):
            return torch.nn.functional.one_hot(torch.tensor([answer[0], said]), len(tiny_model.tokenizer)).float()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(probe_answers, "answer_log_probs", rigged)
            encoded = encode(tiny_model.renderer, [edit.prompt], [edit.target])
            assert inspector.texts_answered(inspector.prefix_cache.empty_copy(), encoded, WeightDelta({})) == [right]


def test_answers_are_computed_again_after_rounding_to_bf16(tiny_model, world, probes, random_delta):
    tiny_model.module.to(torch.bfloat16)
    spec = find_matrices(tiny_model.module, MATRICES)
    inspector, edited = Inspector(tiny_model, spec, LENIENT, probes), EditedModel(tiny_model.module, spec)
    first, second = (EditBatch((edit,)) for edit in world.edits("test", 2))
    _, observed = inspector.measure(first, random_delta(1, 0.3))
    edited.add(random_delta(1, 0.3))
    inspector.committed(first, observed)
    known = scores(inspector, second, random_delta(2, 0.3))
    inspector.at_version(first)
    assert scores(inspector, second, random_delta(2, 0.3)) == known


def test_losses_in_a_small_sample_are_divided_by_the_minimum_size(tiny_model, world, random_delta):
    held = already_answered(tiny_model, [prompt for prompt, _ in world.sentences()[:2]])
    inspector = Inspector(tiny_model, find_matrices(tiny_model.module, MATRICES), LENIENT, Probes((), ()))
    inspector.at_version(held)
    found = scores(inspector, EditBatch((Edit("question", "answer"),)), random_delta(1, 30.0))
    assert found.retention == 0.0
    assert found.lost_retention == pytest.approx(2 / FEW)


def test_an_earlier_edit_that_is_right_in_other_words_is_not_lost(tiny_model, world, random_delta):
    """The model with the update says something else about both edits; for one of them, that is an alias."""
    lost, held = already_answered(tiny_model, [prompt for prompt, _ in world.sentences()[:2]])
    inspector = Inspector(tiny_model, find_matrices(tiny_model.module, MATRICES), LENIENT, Probes((), ()))
    delta, other = random_delta(1, 30.0), EditBatch((Edit("question", "answer"),))
    inspector.at_version((lost, held))
    assert inspector.measure(other, delta)[1].lost == (lost, held)
    ((text,),) = inspector.answers(EditBatch((held,)), delta)
    held = replace(held, aliases=(text,))
    inspector.at_version((lost, held))
    found, observed = inspector.measure(other, delta)
    assert observed.lost == (lost,)
    assert {edit: said.is_answered for edit, said in observed.said.items() if edit in (lost, held)} == {lost: False, held: True}
    assert (found.retention, found.lost_retention) == (pytest.approx(1 / 2), pytest.approx(1 / FEW))


def test_only_edits_that_the_version_before_answers_can_be_lost(tiny_model, world, random_delta):
    (held,) = already_answered(tiny_model, [world.sentences()[0][0]])
    never = Edit(world.sentences()[1][0], "nothing of the kind")
    inspector = Inspector(tiny_model, find_matrices(tiny_model.module, MATRICES), LENIENT, Probes((), ()))
    inspector.at_version((held, never))
    assert inspector.measure(EditBatch((Edit("question", "answer"),)), random_delta(1, 30.0))[1].lost == (held,)
    again = EditBatch((replace(held, target="something else"),))
    assert inspector.measure(again, random_delta(1, 30.0))[1].lost == (), "the batch replaces it"
