"""The generator of this process: greedy decoding, versions, and swaps."""

from __future__ import annotations

import pickle

import pytest
import torch

from errata.editors.state import EditorState
from errata.generate import HFGenerator, SwapFailed
from errata.ledger import UnknownVersion
from errata.model.language_model import load
from errata.model.matrices import find_matrices

MATRICES = ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]

PROMPTS = ["question", "question answer question answer", "the old river", "a"]


def grown(ledger, random_delta, count=3):
    for seed in range(count):
        ledger.append(ledger.head, random_delta(seed, scale=0.2), EditorState(), [], {}, ("test", "test"))
    return ledger


def generator_of(model, ledger):
    return HFGenerator(model, find_matrices(model.module, MATRICES), ledger)


def alone(model, prompt, max_tokens):
    """Generate the same greedy tokens with one forward pass each, without padding and without a cache."""
    ids = list(model.tokenizer(prompt)["input_ids"])
    made = []
    while len(made) < max_tokens:
        token = int(model.module(torch.tensor([ids + made])).logits[0, -1].argmax())
        if token == model.tokenizer.eos_token_id:
            break
        made.append(token)
    return made


def test_a_padded_batch_gives_the_tokens_of_each_prompt_alone(tiny_model, ledger):
    generator = generator_of(tiny_model, ledger)
    assert generator.token_ids(PROMPTS, 6) == [alone(tiny_model, prompt, 6) for prompt in PROMPTS]


def test_completions_carry_the_version_and_stop_at_the_end_token(tiny_model, ledger, random_delta):
    generator = generator_of(tiny_model, grown(ledger, random_delta))
    (completion,) = generator.generate(["question"], max_tokens=3)
    assert (completion.prompt, completion.version_min, completion.version_max) == ("question", 3, 3)
    assert completion.text == tiny_model.tokenizer.decode(generator.token_ids(["question"], 3)[0])
    tiny_model.module.lm_head.weight.zero_()[tiny_model.tokenizer.eos_token_id] = 0.0
    tiny_model.module.generation_config.eos_token_id = [
        0,
        tiny_model.tokenizer.eos_token_id,
        # All logits are equal, so token 0 is the argmax.
    ]
    assert generator.generate(PROMPTS)[0].text == ""
    assert generator.generate([]) == []


def test_every_path_to_a_version_gives_the_same_bits(tiny_model, ledger, random_delta, model_dir):
    grown(ledger, random_delta, 6)
    stepped = generator_of(tiny_model, ledger)
    for version in (0, 1, 2, 6, 2, 3, 4, 4, 5):
        stepped.swap(version)
    jumped = generator_of(load(model_dir), ledger)
    jumped.swap(5)
    for name, tensor in jumped.language_model.module.state_dict().items():
        assert torch.equal(tensor, stepped.language_model.module.state_dict()[name]), name
    stepped.swap(0)
    for name, tensor in load(model_dir).module.state_dict().items():
        assert torch.equal(tensor, stepped.language_model.module.state_dict()[name]), name


def test_at_least_makes_the_generator_follow_the_ledger(tiny_model, ledger, random_delta):
    generator = generator_of(tiny_model, ledger)
    grown(ledger, random_delta)
    assert generator.generate(["question"])[0].version_max == 0
    assert generator.generate(["question"], at_least=2)[0].version_min == 3
    with pytest.raises(SwapFailed, match="version 4"):
        generator.generate(["question"], at_least=4)
    with pytest.raises(UnknownVersion):
        generator.swap(9)
    assert generator.version == 3


def test_at_least_is_a_question_of_lineage(tiny_model, ledger, random_delta):
    generator = generator_of(tiny_model, ledger)
    grown(ledger, random_delta, 2)
    ledger.move_head(1)
    ledger.append(1, random_delta(3), EditorState(), (), {}, ("E", "p"))
    assert generator.generate(["question"], at_least=1)[0].version_min == 3
    with pytest.raises(SwapFailed, match="version 2 is not served"):
        generator.generate(["question"], at_least=2)


def test_a_prompt_without_room_is_refused(tiny_model, ledger):
    generator = generator_of(tiny_model, ledger)
    with pytest.raises(ValueError, match="1 to 40 tokens"):
        generator.generate(["question " * 41])
    with pytest.raises(ValueError, match="1 to 40 tokens"):
        generator.generate([""])


def test_swap_failed_survives_pickling():
    failed = pickle.loads(pickle.dumps(SwapFailed(4, ["replica-1", "replica-2"], "no answer")))
    assert (failed.version, failed.replicas) == (4, ("replica-1", "replica-2"))
    assert str(failed) == "version 4 is not served by replica-1, replica-2: no answer"
