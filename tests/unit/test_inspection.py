"""What the guard measures, against the same things found by editing the model and generating."""

from __future__ import annotations

import math

import pytest
import torch

from errata.delta import EditedModel, LowRank, WeightDelta
from errata.edit import Edit, EditBatch
from errata.evaluate import perplexity
from errata.generate import greedy
from errata.guard import Guard, Limit
from errata.inspection import FEW, Inspector, Sample
from errata.model import find_matrices
from errata.probes import FILE, PLAIN, Probes

MATRICES = ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]
LENIENT = Guard(change=Limit(math.inf, math.inf))


@pytest.fixture
def probes(world) -> Probes:
    questions = tuple(prompt for prompt, _ in world.sentences("train")[:40:4])
    return Probes(questions, tuple(world.plain_sentences(held_out=True)[:7]))


def answers(model, prompts) -> list[str]:
    return [model.tokenizer.decode(ids, skip_special_tokens=True) for ids in greedy(model, prompts, 8)]


def told(model, prompts) -> list[Edit]:
    """Edits that ask for the word that the model says anyway."""
    model.tokenizer.eos_token = None  # the random model ends no answer
    words = [model.tokenizer.decode(ids) for ids in greedy(model, prompts, 1)]
    return [Edit(prompt, word) for prompt, word in zip(prompts, words, strict=True)]


@pytest.mark.parametrize("scale", [0.0, 0.4, 4.0])
def test_it_measures_what_editing_and_generating_shows(tiny_model, world, probes, random_delta, scale):
    spec = find_matrices(tiny_model.module, MATRICES)
    inspector = Inspector(tiny_model, spec, LENIENT, probes)
    before, sentences = answers(tiny_model, probes.questions), probes.sentences
    alone = [perplexity(tiny_model, [sentence]) for sentence in sentences]
    edits = world.edits("test", 4)
    delta = random_delta(3, scale)
    found = inspector.measure(EditBatch(tuple(edits)), delta)

    edited = EditedModel(tiny_model.module, spec)
    edited.add(delta)
    after = answers(tiny_model, probes.questions)
    same = [a == b for a, b in zip(before, after, strict=True)]
    assert found.locality == pytest.approx(sum(same) / len(same))
    assert found.lost_locality == pytest.approx((len(same) - sum(same)) / FEW)
    ratios = sorted(perplexity(tiny_model, [s]) / old for s, old in zip(sentences, alone, strict=True))
    assert found.ppl_ratio == pytest.approx(ratios[len(ratios) // 2], rel=1e-4)
    said = answers(tiny_model, [edit.prompt for edit in edits])
    assert found.efficacy == sum(edit.target == text.strip() for edit, text in zip(edits, said, strict=True)) / len(edits)
    assert [one["answer"] for one in found.failed] == [
        text.strip() for edit, text in zip(edits, said, strict=True) if edit.target != text.strip()
    ]
    for name in MATRICES:
        weight = tiny_model.module.get_submodule(name).weight
        assert found.norm_growth[name] == pytest.approx(float(weight.double().norm()) / inspector.base_norms[name], rel=1e-5)
    assert found.retention is None


def test_it_changes_nothing(tiny_model, world, probes, random_delta):
    before = {name: tensor.clone() for name, tensor in tiny_model.module.state_dict().items()}
    inspector = Inspector(tiny_model, find_matrices(tiny_model.module, MATRICES), LENIENT, probes)
    batch = EditBatch(tuple(world.edits("test", 3)))
    first = inspector.measure(batch, random_delta(0))
    assert inspector.measure(batch, random_delta(0)) == first
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_model.module.state_dict().items())


def test_earlier_edits_are_asked_again_until_they_are_edited_anew(tiny_model, world, random_delta):
    prompts = [prompt for prompt, _ in world.sentences()[:3]]
    held = told(tiny_model, prompts[1:])
    inspector = Inspector(tiny_model, find_matrices(tiny_model.module, MATRICES), LENIENT, Probes((), ()))
    inspector.stand_at([*held, Edit(prompts[0], "nothing of the kind")])
    nothing, other = WeightDelta({}), EditBatch((Edit("question", "answer"),))
    assert (inspector.measure(other, nothing).retention, inspector.measure(other, nothing).lost_retention) == (
        pytest.approx(2 / 3),
        0.0,
    )
    ruin = inspector.measure(other, random_delta(1, 30.0))
    assert ruin.lost_retention == pytest.approx(2 / FEW)
    again = inspector.measure(EditBatch((Edit(held[0].prompt, "something else"),)), nothing)
    assert again.retention == pytest.approx(1 / 2)


def test_what_was_measured_of_an_update_is_known_of_its_version(tiny_model, world, probes, random_delta):
    spec = find_matrices(tiny_model.module, MATRICES)
    inspector, edited = Inspector(tiny_model, spec, LENIENT, probes), EditedModel(tiny_model.module, spec)
    edits, deltas = world.edits("test", 6), [random_delta(seed, 0.3) for seed in (1, 2)]
    first, second = EditBatch(tuple(edits[:3])), EditBatch(tuple(edits[3:]))
    inspector.measure(first, deltas[0])
    edited.add(deltas[0])
    inspector.published(first)
    known = inspector.measure(second, deltas[1])
    inspector.stand_at(first)  # nothing is known any more
    assert inspector.measure(second, deltas[1]) == known
    assert known.lost_locality is not None and known.retention is not None


def test_a_probe_that_is_edited_is_no_probe(tiny_model, probes, random_delta):
    inspector = Inspector(tiny_model, find_matrices(tiny_model.module, MATRICES), LENIENT, probes)
    every = EditBatch(tuple(Edit(question, "x") for question in probes.questions))
    assert inspector.measure(every, random_delta(0)).lost_locality is None


@pytest.mark.parametrize("value", [1e30, math.nan])
def test_no_numbers_are_seen(tiny_model, probes, value):
    inspector = Inspector(tiny_model, find_matrices(tiny_model.module, MATRICES), LENIENT, probes)
    broken = WeightDelta({MATRICES[0]: LowRank(torch.full((64, 1), value), torch.full((96, 1), value))})
    found = inspector.measure(EditBatch((Edit("question", "answer"),)), broken)
    assert not found.is_finite
    assert not LENIENT.check(found).publish


def test_few_earlier_edits_are_not_enough_to_refuse(tiny_model, world, random_delta):
    held = told(tiny_model, [prompt for prompt, _ in world.sentences()[:2]])
    inspector = Inspector(tiny_model, find_matrices(tiny_model.module, MATRICES), LENIENT, Probes((), ()))
    inspector.stand_at(held)
    found = inspector.measure(EditBatch((Edit("question", "answer"),)), random_delta(1, 30.0))
    assert found.retention == 0.0
    assert found.lost_retention == pytest.approx(2 / FEW)


def test_a_sample_is_the_same_however_the_edits_came():
    edits = [Edit(f"prompt {i}", "x") for i in range(100)]
    whole, parts = Sample(10, 0), Sample(10, 0)
    whole.add(edits)
    for i in range(0, 100, 7):
        parts.add(edits[i : i + 7])
    assert {e.prompt for e in whole} == {e.prompt for e in parts} and len(list(whole)) == 10
    assert {e.prompt for e in whole} != {e.prompt for e in _sampled(edits, seed=1)}
    newer = Edit(next(iter(whole)).prompt, "newer")
    whole.add([newer])
    assert newer in list(whole) and len(list(whole)) == 10


def _sampled(edits, seed):
    sample = Sample(10, seed)
    sample.add(edits)
    return sample


def test_probes_are_kept_in_a_file(tmp_path):
    probes = Probes(("a b", "c"), ("one two three", "four five"))
    probes.save(tmp_path / FILE)
    assert Probes.load(tmp_path / FILE) == probes == Probes.beside(tmp_path)
    assert Probes.beside(tmp_path / "elsewhere") == Probes((), PLAIN)
    assert Probes(tuple("abcdef"), ()).sample(3, 3) == Probes(("a", "c", "e"), ())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "line 1 is no JSON"),
        (b'{"prompt": "a"}\n["b"]', "line 2: a probe is"),
        (b'{"question": "a"}', "a probe is"),
        (b'{"prompt": " "}', "the prompt must be a text"),
        (b'{"sentence": "word"}', "at least two words"),
        (b'{"sentence": 3}', "the sentence must be a text"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_bad_probe_is_named(tmp_path, content, says):
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(ValueError, match=says):
        Probes.load(tmp_path / FILE)
    with pytest.raises(ValueError, match="cannot be read"):
        Probes.load(tmp_path / "none.jsonl")
