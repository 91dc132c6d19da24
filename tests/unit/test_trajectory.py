"""The episode's gradient against plain automatic differentiation through every update."""

import torch

from errata.capture import capture
from errata.delta import LowRank, WeightDelta, applied
from errata.edit import batches_of
from errata.editors.hypernet.rledit import RLEdit
from errata.editors.hypernet.trajectory import Reward, Step, play
from errata.editors.solve import Metric
from errata.encode import answer_log_probs, answer_nll
from errata.model import LanguageModel
from errata.testbed.world import World

MODULES = ("layers.0.mlp.down_proj", "layers.1.mlp.gate_proj", "layers.1.mlp.up_proj")
REWARD = Reward(discount=0.9, backtrack_decay=0.7, backtrack_depth=2, update_penalty=1e-3, locality_weight=0.5)


def ready(model: LanguageModel, metric_strength: float) -> tuple[RLEdit, list[Step]]:
    batches = list(batches_of(World(20).edits("train", 12), 3))
    editor = RLEdit(modules=MODULES, rank=8, reward=REWARD, metric_strength=metric_strength)
    text = [Step(model, batch).outcomes for batch in batches]
    editor = editor.untrained(model, text, batches, seed=0)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in editor.trained_policy().net.named_parameters():
        if name.endswith("B_RF"):  # away from zero, so that every parameter has a gradient
            parameter.data.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return editor, [Step(model, batch) for batch in batches]


def naive_loss(model: LanguageModel, editor: RLEdit, steps: list[Step]) -> torch.Tensor:
    """The loss of the episode as one graph: states enter only through the weights, captured features are constants."""
    net = editor.trained_policy().net
    metrics = {n: Metric.start(b) for n, b in editor.trained_policy().metric_bases.items()}
    loss, parts = torch.zeros(()), []

    def so_far(detached: bool) -> WeightDelta:
        names = parts[0] if parts else ()
        U = {n: torch.cat([p[n].Z_nO.T for p in parts], 1) for n in names}
        V = {n: torch.cat([p[n].V_nI.T for p in parts], 1) for n in names}
        return WeightDelta({n: LowRank(U[n].detach() if detached else U[n], V[n]) for n in names})

    for t, step in enumerate(steps):
        with applied(model.module, so_far(True)):
            captured, _ = capture(model.module, step.seen, net.spec.names)
        parts.append(net.propose(captured, metrics))
        metrics = {n: m.remember(captured[n].keys_TI) for n, m in metrics.items()}
        for age in range(min(t, REWARD.backtrack_depth) + 1):
            old = steps[t - age]
            with applied(model.module, so_far(False)):
                nll = answer_nll(answer_log_probs(model.module, old.outcomes), old.outcomes).mean()
                now = answer_log_probs(model.module, old.unrelated)
            kl = (old.base_log_probs_TV.exp() * (old.base_log_probs_TV - now)).sum(-1).mean()
            loss = loss + REWARD.discount**t * REWARD.backtrack_decay**age * (nll + REWARD.locality_weight * kl)
        for proposal in parts[-1].values():
            dense_IO = proposal.V_nI.T @ proposal.Z_nO
            loss = loss + REWARD.discount**t * REWARD.update_penalty * dense_IO.square().sum()
    return loss


def check_gradients(model: LanguageModel, metric_strength: float) -> None:
    editor, steps = ready(model, metric_strength)
    net = editor.trained_policy().net
    metrics = {n: Metric.start(b) for n, b in editor.trained_policy().metric_bases.items()}
    play(model, net, steps, metrics, REWARD)
    played = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    naive_loss(model, editor, steps).backward()
    expected = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
    assert played.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(played[name], grad, rtol=2e-3, atol=2e-5 * max(1.0, float(grad.abs().max())), msg=name)


def test_every_update_is_credited_with_every_later_loss_in_the_metric(tiny_model: LanguageModel) -> None:
    check_gradients(tiny_model, metric_strength=10.0)


def test_every_update_is_credited_with_every_later_loss_by_ridge(tiny_model: LanguageModel) -> None:
    check_gradients(tiny_model, metric_strength=0.0)


def test_the_regulariser_has_a_gradient(tiny_model: LanguageModel) -> None:
    editor, steps = ready(tiny_model, 10.0)
    net = editor.trained_policy().net

    def gradient(update_penalty: float) -> torch.Tensor:
        net.zero_grad()
        metrics = {n: Metric.start(b) for n, b in editor.trained_policy().metric_bases.items()}
        play(tiny_model, net, steps[:1], metrics, Reward(update_penalty=update_penalty))
        return torch.cat(
            [p.grad.reshape(-1) for n, p in net.named_parameters() if n.endswith("log_step_M") and p.grad is not None]
        )

    assert (gradient(1.0) > gradient(0.0)).all(), "a penalty on |S|² must push the step size down"
