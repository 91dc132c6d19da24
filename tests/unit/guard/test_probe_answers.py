"""Passes for the log probabilities of answers, the tokens of an answer that count, and probes that are too short."""

from __future__ import annotations

import pytest
import torch

from errata.delta.parts import Dense
from errata.delta.side_branch import applied
from errata.delta.weight_delta import WeightDelta
from errata.guard import probe_answers
from errata.guard.inspector import Inspector
from errata.guard.limits import Guard
from errata.guard.probe_answers import NUM_WATCHED, AnswerPasses
from errata.guard.probes import Probes
from errata.model.encoding import answer_log_probs, encode, padded
from errata.model.matrices import find_matrices
from errata.model.prefix_cache import PrefixCache
from errata.testbed.world import World
from tests.unit.small_models import a_model

MODULE = "model.layers.1.mlp.down_proj"

# For each model kind, edited matrices and whether the rest of the model after them is pointwise.
CASES = {
    "llama": {
        ("model.layers.2.mlp.down_proj",): True,
        ("model.layers.2.mlp.gate_proj", "model.layers.2.mlp.up_proj"): True,
        ("model.layers.2.self_attn.o_proj",): False,  # The attention itself is no module and runs again.
        ("model.layers.2.self_attn.v_proj",): False,
        ("model.layers.1.mlp.down_proj", "model.layers.2.mlp.down_proj"): False,
    },
    "gpt2": {("transformer.h.2.mlp.c_proj",): True, ("transformer.h.1.mlp.c_proj",): False},
}


@pytest.mark.parametrize("kind, names", [(kind, names) for kind, found in CASES.items() for names in found])
def test_after_the_last_attention_a_pass_over_the_answer_positions_is_enough(kind, names):
    model = a_model(kind, torch.float32)
    edits = World(20).edits("test", 6)
    text = encode(model.renderer, [edit.prompt for edit in edits], [edit.target for edit in edits])
    cache, passes = PrefixCache(model.module, names), AnswerPasses(model.module)
    assert passes.rest_is_pointwise(cache, text) is CASES[kind][names] and not cache.outputs
    if not CASES[kind][names]:
        return
    generator = torch.Generator().manual_seed(0)
    shapes = {matrix.name: matrix.shape for matrix in find_matrices(model.module, names).matrices}
    delta = WeightDelta({name: Dense(0.1 * torch.randn(*shape, generator=generator)) for name, shape in shapes.items()})
    before_TV = passes.log_probs(cache, text, WeightDelta({}))
    short = passes.answer_positions_only(cache, text)
    assert passes.answer_positions_only(cache, text) is short and torch.equal(short.targets_T, text.targets_T)
    with applied(model.module, delta):
        expected_TV = answer_log_probs(model.module, text)
    torch.testing.assert_close(passes.log_probs(cache, text, delta), expected_TV, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected_TV, before_TV, atol=1e-2)
    cache.forget(text)
    assert not cache.outputs and not cache.derived


def test_a_text_of_one_position_does_not_show_what_depends_on_other_positions(tiny_model):
    passes, cache = AnswerPasses(tiny_model.module), PrefixCache(tiny_model.module, [MODULE])
    assert not passes.rest_is_pointwise(cache, padded([([5], [7]), ([6], [8])], 0))
    assert passes.rest_is_pointwise(cache, padded([([5, 6], [7]), ([6], [8])], 0))
    first_only = [([5], [7])] * NUM_WATCHED
    assert passes.rest_is_pointwise(cache, padded([*first_only, ([5, 6], [7])], 0)), "rows without another position are skipped"


def test_only_the_first_sentence_of_an_answer_counts(tiny_model):
    class Words:
        eos_token_id = 0

        def decode(self, ids, skip_special_tokens):
            return " ".join({1: "Paris", 2: ".", 3: "It", 4: "is", 5: "big"}[i] for i in ids).replace(" .", ".")

    assert probe_answers._first_sentence(Words(), [1, 2, 3, 4, 5]) == [1, 2]
    assert probe_answers._first_sentence(Words(), [3, 4, 5]) == [3, 4, 5, 0]
    assert probe_answers._first_sentence(Words(), [1, 2]) == [1, 2, 0]
    assert probe_answers._first_sentence(Words(), [5] * 8) == [5] * 8


def test_a_sentence_of_one_token_is_named(tiny_model):
    spec = find_matrices(tiny_model.module, [MODULE])
    with pytest.raises(ValueError, match="needs two tokens to have a perplexity, but the probe 'river'"):
        Inspector(tiny_model, spec, Guard(), Probes((), ("river",)))
