"""The prefix cache: what is computed once, what is replayed, and what it must not change."""

from __future__ import annotations

import pytest
import torch

from errata.delta.parts import Dense
from errata.delta.side_branch import applied
from errata.delta.weight_delta import WeightDelta
from errata.edit import Edit, EditBatch
from errata.model.capture import capture
from errata.model.encoding import answer_log_probs, encode
from errata.model.language_model import LanguageModel
from errata.model.prefix_cache import BatchCache, PrefixCache, UnreadOutput, recomputed
from errata.testbed.world import World
from tests.unit.small_models import a_model

LAST = "model.layers.1.mlp.down_proj"


def test_modules_before_the_edited_matrices_run_once(tiny_model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = encode(tiny_model.renderer, ["Vais Prais was born in"], ["Kurk"])
    name, calls = LAST, list[str]()
    blocks = tiny_model.module.model.layers
    attention, up, forward = blocks[0].self_attn, blocks[1].mlp.up_proj, blocks[1].mlp.up_proj.forward
    handle = attention.register_forward_hook(lambda *_: calls.append("attention"))
    monkeypatch.setattr(up, "forward", own := lambda x: (calls.append("up"), forward(x))[1])
    delta = WeightDelta({name: Dense(0.1 * torch.randn(64, 96, generator=torch.Generator().manual_seed(0)))})
    with applied(tiny_model.module, delta):
        expected, _ = capture(tiny_model.module, encoded, [name])
    calls.clear()
    cache = PrefixCache(tiny_model.module, [name])
    with cache.reusing(encoded):
        capture(tiny_model.module, encoded, [name])
    with cache.reusing(encoded), applied(tiny_model.module, delta):
        found, _ = capture(tiny_model.module, encoded, [name])
    handle.remove()
    assert calls == ["attention", "up"]
    assert torch.equal(found[name].grads_TO, expected[name].grads_TO)
    assert up.forward is own and "forward" not in vars(blocks[0])


@pytest.mark.parametrize("kind, name", [("llama", "model.layers.2.mlp.down_proj"), ("gpt2", "transformer.h.2.mlp.c_proj")])
def test_only_the_last_of_consecutive_blocks_is_cached(kind: str, name: str) -> None:
    model = a_model(kind, torch.float32)
    edits = World(20).edits("test", 6)
    text = encode(model.renderer, [edit.prompt for edit in edits], [edit.target for edit in edits])
    cache = PrefixCache(model.module, [name])
    with cache.reusing(text):
        expected_TV = answer_log_probs(model.module, text)
    (outputs,) = (outputs for _, outputs in cache.outputs.values())
    unread = [output.shape for output in outputs if isinstance(output, UnreadOutput)]
    assert unread == [(*text.input_ids_BS.shape, 32)], "the third block is edited, and the second is its input"
    with cache.reusing(text):
        assert torch.equal(answer_log_probs(model.module, text), expected_TV)


def test_recording_again_replaces_the_outputs(tiny_model: LanguageModel) -> None:
    cache, text = PrefixCache(tiny_model.module, [LAST]), encode(tiny_model.renderer, ["question"], ["answer"])
    with pytest.raises(KeyError), cache.replaying(text):
        pass
    with cache.recording(text):
        expected_TV = answer_log_probs(tiny_model.module, text)
        answer_log_probs(tiny_model.module, text)
    assert cache.has(text) and not cache.empty_copy().has(text)
    with cache.replaying(text):
        assert torch.equal(answer_log_probs(tiny_model.module, text), expected_TV)
        assert torch.equal(answer_log_probs(tiny_model.module, text), expected_TV)
    cache.forget(text)
    assert not cache.has(text)


@pytest.mark.parametrize("offload", [False, True])
def test_a_block_runs_again_for_activation_checkpointing_while_the_cache_replays(
    tiny_model: LanguageModel, offload: bool
) -> None:
    cache, text = PrefixCache(tiny_model.module, [LAST], offload), encode(tiny_model.renderer, ["question"], ["answer"])
    expected, _ = capture(tiny_model.module, text, [LAST])
    for _ in range(2):
        with cache.reusing(text), recomputed(cache.later_blocks):
            found, _ = capture(tiny_model.module, text, [LAST])
        assert torch.equal(found[LAST].grads_TO, expected[LAST].grads_TO)


def test_a_failed_pass_leaves_no_hook(tiny_model: LanguageModel) -> None:
    cache, text = PrefixCache(tiny_model.module, [LAST]), encode(tiny_model.renderer, ["question"], ["answer"])
    for _ in range(2):
        with pytest.raises(RuntimeError), cache.reusing(text):
            answer_log_probs(tiny_model.module, text)
            raise RuntimeError
        modules = list(tiny_model.module.modules())
        assert not any(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module) for module in modules)


def test_a_batch_is_encoded_once_for_the_editor_and_the_inspector(tiny_model: LanguageModel) -> None:
    batch = EditBatch((Edit("question", "answer"), Edit("the old river", "street")))
    cache = BatchCache.of(tiny_model, [LAST], batch)
    expected = encode(tiny_model.renderer, batch.prompts, batch.targets)
    assert torch.equal(cache.tokens.input_ids_BS, expected.input_ids_BS) and not cache.prefix.has(cache.tokens)
