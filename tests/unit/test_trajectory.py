"""The episode's gradient against plain automatic differentiation through every update."""

import pytest
import torch

from benchmarks.episode import play_in_one_graph
from errata.edit import batches_of
from errata.editors.hypernet.learned import Learned
from errata.editors.hypernet.mend import MEND
from errata.editors.hypernet.net import Proposal
from errata.editors.hypernet.rledit import RLEdit
from errata.editors.hypernet.trajectory import Reward, Step, play
from errata.editors.solve import Metric
from errata.model import LanguageModel
from errata.testbed.world import World

MODULES = ("layers.0.mlp.down_proj", "layers.1.mlp.gate_proj", "layers.1.mlp.up_proj")
REWARD = Reward(discount=0.9, backtrack_decay=0.7, backtrack_depth=2, update_penalty=1e-3, locality_weight=0.5, edit_weight=0.8)
UNDER_TEST = {
    "in-the-metric": RLEdit(MODULES, rank=8, metric_strength=10.0),
    "in-the-metric-two-passes": RLEdit(MODULES, rank=8, metric_strength=10.0, num_passes=2),
    "by-ridge": RLEdit(MODULES, rank=8, metric_strength=0.0),
    "by-ridge-two-passes": RLEdit(MODULES, rank=8, metric_strength=0.0, num_passes=2),
    "by-MEND": MEND(MODULES, rank=8),
}


def ready(model: LanguageModel, editor: Learned) -> tuple[Learned, list[Step], dict[str, Metric]]:
    batches = list(batches_of(World(20).edits("train", 12), 3))
    steps = [Step(model, batch) for batch in batches]
    editor = editor.untrained(model, [step.outcomes for step in steps], batches, seed=0)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in editor.trained_policy().net.named_parameters():
        if name.endswith("B_RF"):  # away from zero, so that every parameter has a gradient
            parameter.data.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return editor, steps, {n: Metric.start(b) for n, b in editor.trained_policy().metric_bases.items()}


@pytest.mark.parametrize("num_burn_in", [0, 1])
@pytest.mark.parametrize("editor", UNDER_TEST.values(), ids=UNDER_TEST)
def test_every_update_is_credited_with_every_later_loss(tiny_model: LanguageModel, editor: Learned, num_burn_in: int) -> None:
    editor, steps, metrics = ready(tiny_model, editor)
    net = editor.trained_policy().net
    play(tiny_model, net, steps, metrics, REWARD, num_passes=editor.num_passes, num_burn_in=num_burn_in)
    played = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    play_in_one_graph(tiny_model, net, steps, metrics, REWARD, editor.num_passes, num_burn_in)
    expected = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
    assert played.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(played[name], grad, rtol=2e-3, atol=2e-5 * max(1.0, float(grad.abs().max())), msg=name)


def test_the_size_of_an_update_is_that_of_its_matrix() -> None:
    V_nI, Z_nO = torch.randn(3, 5), torch.randn(3, 4)
    torch.testing.assert_close(Proposal(V_nI, Z_nO, V_nI).squared_norm(), (V_nI.T @ Z_nO).square().sum())


def test_the_regulariser_has_a_gradient(tiny_model: LanguageModel) -> None:
    editor, steps, metrics = ready(tiny_model, UNDER_TEST["in-the-metric"])
    net = editor.trained_policy().net

    def gradient(update_penalty: float) -> torch.Tensor:
        net.zero_grad()
        play(tiny_model, net, steps[:1], metrics, Reward(update_penalty=update_penalty))
        return torch.cat(
            [p.grad.reshape(-1) for n, p in net.named_parameters() if n.endswith("log_step_M") and p.grad is not None]
        )

    assert (gradient(1.0) > gradient(0.0)).all(), "a penalty on |S|² must push the step size down"
