"""Memory and time of a training episode by backtracking depth: loss by loss (ours) against one graph.

Both process the same batches on the same small random Llama and give the same gradient. T answer tokens, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import SavedTensors
from errata.delta.parts import LowRank
from errata.delta.side_branch import applied
from errata.delta.weight_delta import WeightDelta
from errata.edit import batches_of
from errata.editors.hypernet.episode import play
from errata.editors.hypernet.episode_batch import EpisodeBatch
from errata.editors.hypernet.net import Hypernetwork, Proposal
from errata.editors.hypernet.reward import Reward
from errata.editors.solve import KeyPreconditioner
from errata.model.capture import Captured, capture
from errata.model.encoding import answer_log_probs, answer_nll
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from errata.testbed.language_model import Shape, make_model, make_tokenizer
from errata.testbed.world import World

SMALL = Shape(hidden=64, layers=2, intermediate=192, heads=2, max_tokens=48)
MODULES = ("layers.*.mlp.gate_proj", "layers.*.mlp.up_proj")


@dataclass(frozen=True)
class EpisodeSettings:
    """Size of the model and length of the episode."""

    depths: tuple[int, ...] = (0, 2, 8)
    num_batches: int = 10
    batch_size: int = 4
    shape: Shape = SMALL
    num_subjects: int = 60
    seed: int = 0


def measure_episodes(episode: EpisodeSettings) -> list[dict[str, Any]]:
    """Measure each depth: peak bytes of graphs, seconds, and the difference of the two gradients."""
    rows = []
    for depth in episode.depths:
        ours, naive = (_measure(episode, depth, one_graph) for one_graph in (False, True))
        difference = (ours["grad"] - naive["grad"]).norm() / naive["grad"].norm()
        rows.append(
            {
                "backtrack_depth": depth,
                "saved_bytes_ours": ours["saved_bytes"],
                "saved_bytes_one_graph": naive["saved_bytes"],
                "seconds_ours": ours["seconds"],
                "seconds_one_graph": naive["seconds"],
                "gradient_difference": float(difference),
            }
        )
    return rows


def _measure(episode: EpisodeSettings, depth: int, one_graph: bool) -> dict[str, Any]:
    model = _small_model(episode)
    net, steps = _ready(model, episode)
    reward = Reward(discount=0.9, backtrack_depth=depth)
    run = play_in_one_graph if one_graph else play
    saved, seconds = SavedTensors(model.module), []
    with saved.watching():
        run(model, net, steps, {}, reward)
    for _ in range(3):  # hooks cost time, so memory and time are measured separately
        net.zero_grad()
        start = time.perf_counter()
        run(model, net, steps, {}, reward)
        seconds.append(time.perf_counter() - start)
    grad = torch.cat([p.grad.reshape(-1) for p in net.parameters() if p.grad is not None])
    return {"saved_bytes": saved.peak_bytes, "seconds": median(seconds), "grad": grad}


def _small_model(episode: EpisodeSettings) -> LanguageModel:
    tokenizer = make_tokenizer(World(episode.num_subjects), episode.shape)
    module = make_model(episode.shape, len(tokenizer), seed=episode.seed)
    return LanguageModel(module.eval().requires_grad_(False), tokenizer, "")


def _ready(model: LanguageModel, episode: EpisodeSettings) -> tuple[Hypernetwork, list[EpisodeBatch]]:
    edits = World(episode.num_subjects).edits("train", episode.num_batches * episode.batch_size, seed=episode.seed)
    steps = [EpisodeBatch(model, batch) for batch in batches_of(edits, episode.batch_size)]
    net = Hypernetwork(find_matrices(model.module, MODULES), rank=32, num_blocks=2, centred=False, seed=episode.seed)
    for step in steps:
        step.base_log_probs(0)  # computed now, while the model is unedited
        captured, _ = capture(model.module, step.edit_texts, net.spec.names)
        net.observe(captured)
    net.set_scale(captured, {}, step=0.5, ridge=0.1)
    return net, steps


def play_in_one_graph(
    model: LanguageModel,
    net: Hypernetwork,
    steps: Sequence[EpisodeBatch],
    preconditioners: Mapping[str, KeyPreconditioner],
    reward: Reward,
    num_passes: int = 1,
    num_burn_in: int = 0,
) -> None:
    """Compute the reference gradient: all losses of the episode in one graph, one backward pass at its end.

    Our loss-by-loss episode must give the same gradient; tests check that.
    """
    loss, made = torch.zeros(()), list[dict[str, Proposal]]()
    for t, step in enumerate(steps):
        discount, first = reward.discount ** (t - num_burn_in), dict[str, Captured]()
        for _ in range(num_passes):
            with torch.no_grad():
                so_far = _branch(made)
            with applied(model.module, so_far):
                captured, _ = capture(model.module, step.edit_texts, net.spec.names, all_tokens=net.rule == "outer")
            with torch.set_grad_enabled(t >= num_burn_in):
                made.append(net.propose(captured, preconditioners))
            first = first or captured
        preconditioners = {name: past.remember(first[name].keys_TI) for name, past in preconditioners.items()}
        if t < num_burn_in:
            continue
        for age in range(min(t, reward.backtrack_depth) + 1):
            loss = loss + discount * reward.backtrack_decay**age * _score(model, _branch(made), steps[t - age], reward)
        for proposals in made[-num_passes:]:
            norm2 = torch.stack([proposal.squared_norm() for proposal in proposals.values()]).sum()
            loss = loss + discount * reward.update_penalty * norm2
            departures = [proposal.departure for proposal in proposals.values() if proposal.departure is not None]
            loss = loss + discount * reward.departure_penalty * sum(departures)
    loss.backward()


def _branch(made: Sequence[Mapping[str, Proposal]]) -> WeightDelta:
    """Concatenate the factors of all updates so far."""
    factors = {n: ([p[n].Z_nO.T for p in made], [p[n].V_nI.T for p in made]) for n in (made[0] if made else ())}
    return WeightDelta({n: LowRank(torch.cat(U, 1), torch.cat(V, 1)) for n, (U, V) in factors.items()})


def _score(model: LanguageModel, branch: WeightDelta, step: EpisodeBatch, reward: Reward) -> Tensor:
    assert step.locality_texts is not None
    base_TV = step.base_log_probs(0)
    with applied(model.module, branch):
        edit_loss = answer_nll(answer_log_probs(model.module, step.in_scope_texts), step.in_scope_texts).mean()
        follows = torch.zeros(())
        if reward.portability_weight and (texts := step.portability_texts) is not None:
            follows = answer_nll(answer_log_probs(model.module, texts), texts).mean()
        now_TV = answer_log_probs(model.module, step.locality_texts)
    kl = (base_TV.exp() * (base_TV - now_TV)).sum(-1).mean()
    return reward.edit_weight * edit_loss + reward.locality_weight * kl + reward.portability_weight * follows
