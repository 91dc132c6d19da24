"""A model over two devices (two_devices.py): edits, scores, training and generation equal those on one device."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from errata import hardware
from errata.delta.accumulator import EditedModel
from errata.delta.memory_delta import MemoryDelta
from errata.delta.parts import Dense, LowRank
from errata.delta.side_branch import applied
from errata.delta.weight_delta import WeightDelta
from errata.edit import Edit, EditBatch, batches_of
from errata.editors import Editor
from errata.editors.hypernet.episode import EpisodeOptions, play
from errata.editors.hypernet.episode_batch import EpisodeBatch
from errata.editors.hypernet.reward import MemoryOptions, Reward
from errata.editors.hypernet.rledit import RLEdit
from errata.editors.solve import KeyPreconditioner
from errata.guard.inspector import Inspector
from errata.guard.limits import Guard, Limit, Measurements
from errata.guard.probes import Probes
from errata.hardware import PeakMemory
from errata.model import devices
from errata.model.devices import device_of, devices_of, devices_with, num_gpus, spread
from errata.model.encoding import answer_log_probs, encode
from errata.model.generation import greedy
from errata.model.language_model import LanguageModel, load
from errata.model.matrices import find_matrices
from errata.testbed.language_model import make_model, make_tokenizer
from errata.testbed.world import World
from tests.conftest import SHAPE
from tests.editors_under_test import UNDER_TEST
from tests.unit.model.two_devices import FIRST, SECOND, two_accelerators
from tests.unit.small_models import a_model

BATCHES = list(batches_of(World(20).edits("test", 6), 3))

# One of each way to compute and to hold a delta; the others differ from these in settings, which no device sees.
BY_DEFAULT = ("RLEdit-gate-up-two-passes", "UltraEdit-gate-up", "MEND", "ROME", "MEMIT-with-memory", "NSE-some-neurons")
BY_DEFAULT += ("RECT-of-RLEdit", "PRUNE-at-work", "O-Edit", "FT-L", "LocFT")


def on_one() -> LanguageModel:
    tokenizer = make_tokenizer(World(20), SHAPE)
    return LanguageModel(make_model(SHAPE, len(tokenizer), seed=0).eval().requires_grad_(False), tokenizer, "")


def on_two() -> LanguageModel:
    model = on_one()
    spread(model.module, [FIRST, SECOND])
    return model


def edited(make: Callable[[LanguageModel], Editor], model: LanguageModel) -> tuple[list[WeightDelta], EditedModel]:
    """Edit batch after batch, and return the deltas and the edited model."""
    editor = make(model)
    spec = find_matrices(model.module, editor.modules)
    into, state, deltas = EditedModel(model.module, spec), editor.start(model, spec), list[WeightDelta]()
    for batch in BATCHES:
        delta, state = editor.edit(model, batch, state)
        into.add(delta)
        deltas.append(delta)
    return deltas, into


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(one.build, id=name, marks=() if name in BY_DEFAULT else pytest.mark.long)
        for name, one in UNDER_TEST.items()
        if one.made_of.kinds
    ],
)
def test_every_editor_returns_the_same_delta_as_on_one_device(make: Callable[[LanguageModel], Editor]) -> None:
    expected, _ = edited(make, on_one())
    with two_accelerators():
        model = on_two()
        found, into = edited(make, model)
        for delta, of_one in zip(found, expected, strict=True):
            for name, part in delta:
                at, wanted_OI = device_of(model.module, name), of_one.parts[name].dense()
                assert all(t.device == at for t in part.tensors().values() if t.is_floating_point()), name
                error = (part.dense().cpu().double() - wanted_OI.double()).norm() / wanted_OI.double().norm()
                assert float(error) < 2e-4, name
                assert into.accumulator.sum_OI[name].device == at
        prompts = [edit.prompt for edit in BATCHES[0]]
        on_two_ids = greedy(model, prompts, max_tokens=4)
    model = on_one()
    EditedModel(model.module, into.spec).set(expected)
    assert on_two_ids == greedy(model, prompts, max_tokens=4)


@pytest.mark.parametrize("name", ["state", "state-early", "ELDER"])
def test_a_memory_is_read_over_two_devices(name: str) -> None:
    """Its module may be on another device than the tokens and the output layer are."""
    make = UNDER_TEST[name].build
    batch = BATCHES[0]

    def answered(model: LanguageModel) -> tuple[MemoryDelta, list[list[int]]]:
        editor = make(model)
        delta, _ = editor.edit(model, batch, editor.start(model, find_matrices(model.module, editor.modules)))
        assert isinstance(delta, MemoryDelta)
        EditedModel(model.module, find_matrices(model.module, editor.modules)).add(delta)
        return delta, greedy(model, [edit.prompt for edit in batch], max_tokens=4)

    expected, said = answered(on_one())
    with two_accelerators():
        found, on_two_said = answered(on_two())
    assert on_two_said == said
    for one, other in zip(found.records, expected.records, strict=True):
        if name == "ELDER":  # Its codes are whole bits, of which rounding decides a few.
            assert one.rows["code"].shape == other.rows["code"].shape
            continue
        assert torch.allclose(one.rows["key"].cpu(), other.rows["key"], atol=1e-4)
        assert torch.equal(one.rows["token"].cpu(), other.rows["token"])


@pytest.mark.parametrize(
    "savings", [MemoryOptions(), MemoryOptions(micro_batch=3, recompute=True, on_host=True)], ids=["plain", "saving"]
)
def test_a_policy_is_trained_over_two_devices(savings: MemoryOptions) -> None:
    def gradient(model: LanguageModel) -> tuple[torch.Tensor, dict[str, float]]:
        editor = RLEdit(("layers.*.mlp.gate_proj", "layers.*.mlp.up_proj"), rank=8, metric_strength=10.0)
        text = [EpisodeBatch(model, batch).in_scope_texts for batch in BATCHES]
        policy = editor.initialised(model, text, BATCHES, seed=0).trained_policy()
        preconditioners = {name: KeyPreconditioner.start(base_II) for name, base_II in policy.base_preconditioners.items()}
        steps = [EpisodeBatch(model, batch, savings=savings) for batch in BATCHES]
        losses = play(model, policy.net, steps, preconditioners, Reward(), EpisodeOptions(savings=savings))
        grads = [p.grad for p in policy.net.parameters() if p.grad is not None]
        assert {grad.device for grad in grads} == {model.device}
        return torch.cat([grad.reshape(-1).cpu() for grad in grads]), losses

    expected, of_one = gradient(on_one())
    with two_accelerators():
        found, losses = gradient(on_two())
    assert float((found - expected).norm() / expected.norm()) < 1e-4
    assert losses == pytest.approx(of_one, rel=1e-3)


@pytest.mark.parametrize("layer", [0, 1], ids=["first block", "last block"])
def test_an_update_is_measured_over_two_devices(layer: int, random_delta: Callable[..., WeightDelta]) -> None:
    name = f"model.layers.{layer}.mlp.down_proj"
    delta = WeightDelta({name: random_delta(1, 4.0).parts[name]})
    sentences = tuple(World(20).plain_sentences(held_out=True)[:3])

    def measured(model: LanguageModel) -> tuple[Measurements, bool | None]:
        model.tokenizer.eos_token = None  # The random model never ends an answer.
        prompts = [edit.prompt for batch in BATCHES for edit in batch]
        said = [model.tokenizer.decode(ids) for ids in greedy(model, prompts, max_tokens=1)]
        edits = [Edit(prompt, word) for prompt, word in zip(prompts, said, strict=True)]
        lenient, probes = Guard(change=Limit(math.inf, math.inf)), Probes(tuple(prompts[:2]), sentences)
        inspector = Inspector(model, find_matrices(model.module, [name]), lenient, probes)
        inspector.at_version(edits[2:4])
        inspector.measure(EditBatch(tuple(edits[4:])), WeightDelta({}))  # Fills the prefix cache of each text.
        return inspector.measure(EditBatch(tuple(edits[4:])), delta)[0], inspector.passes.is_pointwise

    expected, is_pointwise = measured(on_one())
    with two_accelerators():
        found, was_pointwise = measured(on_two())
    assert was_pointwise is is_pointwise is (layer == 1)
    assert expected.ppl_ratio is not None and expected.ppl_ratio != 1.0 and expected.retention is not None
    assert found.ppl_ratio == pytest.approx(expected.ppl_ratio, rel=1e-4)
    for part in ("efficacy", "retention", "lost_retention", "locality", "lost_locality", "broken_sentences", "failed"):
        assert getattr(found, part) == getattr(expected, part) is not None, part


def test_consecutive_blocks_of_about_equal_size_share_a_device() -> None:
    with two_accelerators():
        model = a_model("llama", torch.float32)  # It has three blocks.
        spread(model.module, [FIRST, SECOND])
        base = model.module.model
        assert [block.mlp.up_proj.weight.device for block in base.layers] == [FIRST, FIRST, SECOND]
        assert base.embed_tokens.weight.device == base.rotary_emb.inv_freq.device == model.device == FIRST
        assert base.norm.weight.device == model.module.lm_head.weight.device == SECOND


def test_a_tied_embedding_stays_tied() -> None:
    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1)
    torch.manual_seed(0)
    module = GPT2LMHeadModel(config).eval().requires_grad_(False)
    ids_BS = torch.tensor([[5, 6, 7]])
    expected = module(ids_BS).logits
    with two_accelerators():
        spread(module, [FIRST, SECOND])
        assert module.lm_head.weight is module.transformer.wte.weight and module.lm_head.weight.device == FIRST
        assert module.transformer.ln_f.weight.device == module.transformer.h[1].attn.c_attn.weight.device == SECOND
        assert torch.allclose(module(ids_BS.to(FIRST)).logits.cpu(), expected, atol=1e-6)


def test_a_delta_in_cpu_memory_is_applied_on_the_device_of_its_module() -> None:
    name, generator = "model.layers.1.mlp.down_proj", torch.Generator().manual_seed(0)
    U_OR, V_IR = torch.randn(64, 2, generator=generator), torch.randn(96, 2, generator=generator)
    for part in (LowRank(U_OR, V_IR), Dense(U_OR @ V_IR.T)):
        model = on_one()
        encoded = encode(model.renderer, ["the old river"], ["street"])
        with applied(model.module, WeightDelta({name: part})):
            expected_TV = answer_log_probs(model.module, encoded)
        with two_accelerators():
            model = on_two()
            with applied(model.module, WeightDelta({name: part})):
                encoded = encode(model.renderer, ["the old river"], ["street"], model.device)
                found_TV = answer_log_probs(model.module, encoded)
            assert found_TV.device == SECOND
        torch.testing.assert_close(found_TV.cpu(), expected_TV)


@pytest.mark.parametrize(
    "name, says",
    [
        ("auto", "finds none: give cpu"),
        ("tpu:zero", "is not a device: give cpu, cuda, auto, or several such as cuda:0,cuda:1"),
        ("cuda:0,cuda:7", "there is no device cuda:0: torch .* finds no GPUs"),
        ("cpu,cpu", "cpu,cpu names a device twice"),
        ("", "is not a device"),
    ],
)
def test_a_wrong_device_is_refused_before_anything_is_loaded(name: str, says: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has GPUs")
    with pytest.raises(ValueError, match=says):
        load("no/such/folder", device=name)


def test_gpus_are_named_by_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.torch.cuda, "device_count", lambda: 3)
    assert devices_of("auto") == tuple(torch.device("cuda", index) for index in range(3))
    assert devices_of("cuda:0, cuda:2") == (torch.device("cuda:0"), torch.device("cuda:2"))
    assert devices_of("cuda") == (torch.device("cuda"),)
    for name, says in (("cuda,cuda:1", "GPUs with their numbers"), ("cuda:0,cpu", "GPUs with their numbers")):
        with pytest.raises(ValueError, match=says):
            devices_of(name)
    assert [num_gpus(name) for name in ("cpu", "cuda", "cuda:0,cuda:1")] == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("auto", "name the GPUs that are to be reserved"),
        ("gpu", "'gpu' is not a device: give cpu, cuda, auto"),
        ("cuda:0,cuda:0", "cuda:0,cuda:0 names a device twice"),
        ("cuda:1", "numbered from 0 among the 1 that are reserved: give cuda:0, not cuda:1"),
        ("cuda:1,cuda:2", "give cuda:0,cuda:1, not cuda:1,cuda:2"),
    ],
)
def test_a_service_refuses_devices_before_it_reserves_any(name: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        num_gpus(name)


def test_the_memory_of_all_devices_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    reset, gpus = [], [torch.device("cuda:0"), torch.device("cuda:1")]
    monkeypatch.setattr(hardware.torch.cuda, "reset_peak_memory_stats", reset.append)
    monkeypatch.setattr(hardware.torch.cuda, "memory_allocated", lambda gpu: 100 * (gpu.index + 1))
    monkeypatch.setattr(hardware.torch.cuda, "max_memory_allocated", lambda gpu: 1000 * (gpu.index + 1))
    with PeakMemory(*gpus) as memory:
        pass
    assert reset == gpus and (memory.num_bytes, memory.total_bytes) == (2700, 3000)
    with two_accelerators():
        assert devices_with(on_two().module) == [FIRST, SECOND]


def test_a_tied_embedding_is_counted_once() -> None:
    """The first device has the embedding and the second the blocks if the embedding is as large as all blocks."""
    config = GPT2Config(vocab_size=3072, n_positions=16, n_embd=32, n_layer=8, n_head=2, bos_token_id=1, eos_token_id=1)
    module = GPT2LMHeadModel(config)
    with two_accelerators():
        blocks = sum(parameter.nbytes for parameter in module.transformer.h.parameters())
        assert module.transformer.wte.weight.nbytes == pytest.approx(blocks, rel=0.05)
        spread(module, [FIRST, SECOND])
        assert [block.mlp.c_fc.weight.device for block in module.transformer.h] == [SECOND] * 8


def test_more_devices_than_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="the model has 2 blocks, too few for 3 devices: meta:0, meta:1, cpu"):
        spread(on_one().module, [FIRST, SECOND, torch.device("cpu")])
