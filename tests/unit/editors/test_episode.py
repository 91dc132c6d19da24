"""The episode's gradient against plain automatic differentiation through every update."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks.episode import play_in_one_graph
from benchmarks.measure import SavedTensors
from errata.edit import batches_of
from errata.editors.hypernet.episode import EpisodeOptions, play
from errata.editors.hypernet.episode_batch import EpisodeBatch
from errata.editors.hypernet.hypernet_editor import HypernetworkEditor
from errata.editors.hypernet.mend import MEND
from errata.editors.hypernet.net import Proposal
from errata.editors.hypernet.reward import MemoryOptions, Reward
from errata.editors.hypernet.rledit import RLEdit
from errata.editors.solve import KeyPreconditioner
from errata.model.language_model import LanguageModel
from errata.testbed.world import World

MODULES = ("layers.0.mlp.down_proj", "layers.1.mlp.gate_proj", "layers.1.mlp.up_proj")
REWARD = Reward(discount=0.9, backtrack_decay=0.7, backtrack_depth=2, update_penalty=1e-3, locality_weight=0.5, edit_weight=0.8)
UNDER_TEST = {
    "preconditioned": RLEdit(MODULES, rank=8, metric_strength=10.0),
    "preconditioned-two-passes": RLEdit(MODULES, rank=8, metric_strength=10.0, num_passes=2),
    "by-ridge": RLEdit(MODULES, rank=8, metric_strength=0.0),
    "by-ridge-two-passes": RLEdit(MODULES, rank=8, metric_strength=0.0, num_passes=2),
    "by-MEND": MEND(MODULES, rank=8),
    "residual": RLEdit(MODULES, rank=8, metric_strength=10.0, num_passes=2, network="residual"),
    "identity": RLEdit(MODULES, rank=8, metric_strength=10.0, network="identity"),
}


Prepared = tuple[HypernetworkEditor, list[EpisodeBatch], dict[str, KeyPreconditioner]]


def ready(model: LanguageModel, editor: HypernetworkEditor) -> Prepared:
    batches = list(batches_of(World(20).edits("train", 12), 3))
    steps = [EpisodeBatch(model, batch) for batch in batches]
    editor = editor.initialised(model, [step.in_scope_texts for step in steps], batches, seed=0)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in editor.trained_policy().net.named_parameters():
        if name.endswith(("B_RF", "head_F")):  # Not zero, so that every parameter has a gradient.
            parameter.data.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return editor, steps, {n: KeyPreconditioner.start(b) for n, b in editor.trained_policy().base_preconditioners.items()}


@pytest.mark.parametrize("num_burn_in", [0, 1])
@pytest.mark.parametrize("editor", UNDER_TEST.values(), ids=UNDER_TEST)
def test_every_update_is_credited_with_every_later_loss(
    tiny_model: LanguageModel, editor: HypernetworkEditor, num_burn_in: int
) -> None:
    check_gradients(tiny_model, editor, REWARD, num_burn_in)


def test_an_update_is_credited_with_what_follows_from_its_edits(tiny_model: LanguageModel) -> None:
    editor = UNDER_TEST["preconditioned"]
    assert any(step.portability_texts is not None for step in ready(tiny_model, editor)[1])
    check_gradients(tiny_model, editor, replace(REWARD, portability_weight=2.0), 0)


def check_gradients(model: LanguageModel, editor: HypernetworkEditor, reward: Reward, num_burn_in: int) -> None:
    editor, steps, preconditioners = ready(model, editor)
    net = editor.trained_policy().net
    options = EpisodeOptions(num_passes=editor.num_passes, num_burn_in=num_burn_in)
    losses = play(model, net, steps, preconditioners, reward, options)
    assert ("portability_loss" in losses) == (reward.portability_weight > 0)
    played = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    play_in_one_graph(model, net, steps, preconditioners, reward, editor.num_passes, num_burn_in)
    expected = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
    assert played.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(played[name], grad, rtol=2e-3, atol=2e-5 * max(1.0, float(grad.abs().max())), msg=name)


def test_the_size_of_an_update_is_that_of_its_matrix() -> None:
    V_nI, Z_nO = torch.randn(3, 5), torch.randn(3, 4)
    torch.testing.assert_close(Proposal(V_nI, Z_nO, V_nI).squared_norm(), (V_nI.T @ Z_nO).square().sum())


def test_the_departure_of_a_residual_network_has_a_gradient_and_a_weight(tiny_model: LanguageModel) -> None:
    editor, steps, preconditioners = ready(tiny_model, UNDER_TEST["residual"])

    def gradient_of(penalty: float) -> dict[str, torch.Tensor]:
        net = editor.trained_policy().net
        net.zero_grad()
        play(tiny_model, net, steps[:1], preconditioners, replace(REWARD, departure_penalty=penalty))
        return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}

    without, once, twice = (gradient_of(penalty) for penalty in (0.0, 0.5, 1.0))
    for name in (name for name in without if name.endswith(("B_RF", "head_F"))):
        assert (once[name] - without[name]).norm() > 1e-6, name
        torch.testing.assert_close(twice[name] - without[name], 2 * (once[name] - without[name]), rtol=1e-2, atol=1e-5)
    for name in (name for name in without if name.endswith(("log_step_M", "log_ridge_M"))):
        torch.testing.assert_close(once[name], without[name])


def test_the_regulariser_has_a_gradient(tiny_model: LanguageModel) -> None:
    editor, steps, preconditioners = ready(tiny_model, UNDER_TEST["preconditioned"])
    net = editor.trained_policy().net

    def gradient_of(update_penalty: float) -> torch.Tensor:
        net.zero_grad()
        play(tiny_model, net, steps[:1], preconditioners, Reward(update_penalty=update_penalty))
        return torch.cat(
            [p.grad.reshape(-1) for n, p in net.named_parameters() if n.endswith("log_step_M") and p.grad is not None]
        )

    assert (gradient_of(1.0) > gradient_of(0.0)).all(), "a penalty on |S|² must push the step size down"


def gradient(
    model: LanguageModel, prepared: Prepared, savings: MemoryOptions, reward: Reward = REWARD
) -> tuple[Tensor, dict[str, float]]:
    """Play an episode of five batches with fresh caches; returns its gradient as one vector, and its losses."""
    editor, _, preconditioners = prepared
    net = editor.trained_policy().net
    net.zero_grad()
    steps = [EpisodeBatch(model, batch, savings=savings) for batch in batches_of(World(20).edits("train", 20), 4)]
    losses = play(model, net, steps, preconditioners, reward, EpisodeOptions(num_passes=editor.num_passes, savings=savings))
    return torch.cat([p.grad.reshape(-1) for p in net.parameters() if p.grad is not None]), losses


@pytest.mark.parametrize(
    ("editor", "uniform"),
    [
        # Which batches are scored again does not depend on the editor: two of them show it by default.
        pytest.param(editor, uniform, id=f"{name}-{'of all' if uniform else 'the last ones'}", marks=marks)
        for name, editor in UNDER_TEST.items()
        for uniform, marks in (
            (False, ()),
            (True, () if name in ("preconditioned-two-passes", "by-MEND") else pytest.mark.long),
        )
    ],
)
def test_memory_options_change_no_gradient(tiny_model: LanguageModel, editor: HypernetworkEditor, uniform: bool) -> None:
    reward, prepared = replace(REWARD, backtrack_uniform=uniform), ready(tiny_model, editor)
    whole, losses = gradient(tiny_model, prepared, MemoryOptions(), reward)
    for savings in (MemoryOptions(recompute=True), MemoryOptions(on_host=True), MemoryOptions(recompute=True, on_host=True)):
        found, same = gradient(tiny_model, prepared, savings, reward)
        assert torch.equal(found, whole) and same == losses, savings
    tiny_model.module.double()
    prepared = ready(tiny_model, editor)
    # In fp32, keys that a forward pass of another size rounds differently are far apart after a solve.
    whole, losses = gradient(tiny_model, prepared, MemoryOptions(), reward)
    for savings in (MemoryOptions(micro_batch=3), MemoryOptions(micro_batch=5, recompute=True, on_host=True)):
        found, close = gradient(tiny_model, prepared, savings, reward)
        assert float((found - whole).norm() / whole.norm()) < 2e-6, savings
        assert close == pytest.approx(losses, rel=1e-5), savings


def test_memory_options_save_fewer_tensors_for_the_backward_pass(tiny_model: LanguageModel) -> None:
    """Tensors of the block after the last edited one, which has no side branch, count too."""
    editor, _, _ = ready(tiny_model, RLEdit(("layers.0.mlp.down_proj",), rank=8, metric_strength=0.0))

    def held(savings: MemoryOptions) -> int:
        saved = SavedTensors(tiny_model.module)
        with saved.watching():
            steps = [EpisodeBatch(tiny_model, batch, savings=savings) for batch in batches_of(World(20).edits("train", 20), 10)]
            play(tiny_model, editor.trained_policy().net, steps, {}, REWARD, EpisodeOptions(savings=savings))
        return saved.peak_bytes

    whole = held(MemoryOptions())
    assert held(MemoryOptions(micro_batch=4)) < 0.7 * whole
    assert held(MemoryOptions(recompute=True)) < 0.7 * whole
    assert held(MemoryOptions(micro_batch=4, recompute=True)) < 0.4 * whole


@pytest.mark.parametrize("rule", ["preconditioned-two-passes", "by-MEND"])
def test_no_pass_has_more_texts_than_a_micro_batch(tiny_model: LanguageModel, rule: str) -> None:
    """The passes are those of first batches, of edits, and of scored texts."""
    editor, _, preconditioners = ready(tiny_model, UNDER_TEST[rule])
    batches, found = list(batches_of(World(20).edits("train", 8), 4)), []
    text = [EpisodeBatch(tiny_model, batch).in_scope_texts for batch in batches]
    with tiny_model.module.register_forward_pre_hook(
        lambda _module, _args, kwargs: found.append(len(kwargs["input_ids"])), with_kwargs=True
    ):
        editor.initialised(tiny_model, text, batches, seed=0, micro_batch=3)
        assert found == [3, 1, 3, 1]
        savings = MemoryOptions(micro_batch=3)
        steps = [EpisodeBatch(tiny_model, batch, savings=savings) for batch in batches]
        play(
            tiny_model,
            editor.trained_policy().net,
            steps,
            preconditioners,
            REWARD,
            EpisodeOptions(num_passes=editor.num_passes, savings=savings),
        )
    assert max(found) == 3


def test_micro_batches_give_the_same_first_scales(tiny_model: LanguageModel) -> None:
    batches, editor = list(batches_of(World(20).edits("train", 8), 4)), UNDER_TEST["by-ridge"]
    whole, parts = (
        editor.initialised(tiny_model, [], batches, seed=0, micro_batch=size).trained_policy().net for size in (0, 3)
    )
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_batches_that_are_not_scored_again_are_freed(tiny_model: LanguageModel) -> None:
    editor, _, preconditioners = ready(tiny_model, UNDER_TEST["preconditioned"])
    steps = [EpisodeBatch(tiny_model, batch) for batch in batches_of(World(20).edits("train", 20), 4)]
    play(tiny_model, editor.trained_policy().net, steps, preconditioners, REWARD)  # A step scores at most two earlier batches.
    assert [bool(step._base_log_probs) for step in steps] == [False, False, False, True, True]
    assert [REWARD.earliest(t) for t in range(5)] == [0, 0, 0, 1, 2]
    assert replace(REWARD, backtrack_uniform=True).earliest(4) == 0


def test_a_negative_micro_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="micro_batch is a number of texts, or 0"):
        MemoryOptions(micro_batch=-1)
