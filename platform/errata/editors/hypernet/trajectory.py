"""One episode: a sequence of edit batches, played on the model as it becomes, with the gradient of its return.

Paper: RLEdit (2502.05759). State: the model so far. Action: the update of the next batch. The reward of step t is minus
    Σ_{i<=min(t,k)} μ^i [ CE(batch t-i, its prompts and rephrasings) + c KL(base | now; its locality probes) ] + η |S_t|²
and the return discounts step t by γ^t. Each step's loss is credited to every update before it: S_s enters W_t for all s <= t.
Deviations: see docs/rledit.md. Nothing is remembered; the network's parameters receive gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from errata.capture import capture
from errata.delta import LowRank, WeightDelta, applied
from errata.edit import EditBatch
from errata.editors.hypernet.net import Hypernetwork, Proposal
from errata.editors.solve import Metric
from errata.encode import Encoded, answer_log_probs, answer_nll, encode
from errata.model import LanguageModel


@dataclass(frozen=True)
class Reward:
    """What an episode is scored by; symbols as in the paper."""

    discount: float = 1.0  # gamma
    backtrack_decay: float = 0.95  # mu
    backtrack_depth: int = 10  # k
    update_penalty: float = 1e-4  # eta
    locality_weight: float = 0.6  # c


@dataclass(frozen=True)
class Step:
    """One edit batch, tokenised: what the editor sees, what follows from it, and what must stay."""

    seen: Encoded
    outcomes: Encoded
    unrelated: Encoded | None
    base_log_probs_TV: Tensor | None


def make_step(model: LanguageModel, batch: EditBatch) -> Step:
    """Tokenise a batch; the KL reference is the base model, which `model` must be when this is called."""
    device, tokenizer = model.device, model.tokenizer
    pairs = [(p, edit.target) for edit in batch for p in (edit.prompt, *edit.rephrasings)]
    outcomes = encode(tokenizer, [p for p, _ in pairs], [t for _, t in pairs], device)
    probes = [probe for edit in batch for probe in edit.locality]
    unrelated = reference_TV = None
    if probes:
        unrelated = encode(tokenizer, [p.prompt for p in probes], [p.target for p in probes], device)
        with torch.no_grad():
            reference_TV = answer_log_probs(model.module, unrelated)
    return Step(encode(tokenizer, batch.prompts, batch.targets, device), outcomes, unrelated, reference_TV)


@dataclass
class Played:
    """What is kept of an update: the graph to the network ends at `proposal.Z_nO`, the graph from the losses at `leaf_nO`."""

    proposal: Proposal
    leaf_nO: Tensor


def play(
    model: LanguageModel,
    net: Hypernetwork,
    steps: Sequence[Step],
    metrics: Mapping[str, Metric],
    reward: Reward,
    modules: Sequence[str],
) -> dict[str, float]:
    """Play an episode and add the gradient of its loss (minus its return) to the network's parameters.

    The losses are back-propagated one by one to the updates, and those once to the network, so memory does not grow with
    the backtracking depth. Returns means over the steps: edit loss, locality KL and squared norm of the update.
    """
    played: list[dict[str, Played]] = []
    sums = {"edit_loss": 0.0, "locality_kl": 0.0, "update_norm2": 0.0}
    metrics = dict(metrics)
    for t, step in enumerate(steps):
        with applied(model.module, _branch(played, detached=True)):
            captured, _ = capture(model.module, step.seen, modules)
        proposals = net.propose(captured, metrics)
        played.append({name: Played(p, p.Z_nO.detach().requires_grad_()) for name, p in proposals.items()})
        metrics = {name: metric.remember(captured[name].keys_TI) for name, metric in metrics.items()}
        for age in range(min(t, reward.backtrack_depth) + 1):
            edit_loss, kl = _score(model.module, steps[t - age], played)
            weight = reward.discount**t * reward.backtrack_decay**age
            (weight * (edit_loss + reward.locality_weight * kl)).backward()
            if age == 0:
                sums["edit_loss"] += float(edit_loss.detach())
                sums["locality_kl"] += float(kl.detach())
    surrogate = torch.zeros((), device=model.device)
    for t, updates in enumerate(played):
        for update in updates.values():
            assert update.leaf_nO.grad is not None
            norm2 = update.proposal.squared_norm()
            penalty = reward.discount**t * reward.update_penalty * norm2
            surrogate = surrogate + (update.proposal.Z_nO * update.leaf_nO.grad).sum() + penalty
            sums["update_norm2"] += float(norm2.detach())
    surrogate.backward()
    return {name: total / len(steps) for name, total in sums.items()}


def _branch(played: Sequence[dict[str, Played]], detached: bool) -> WeightDelta:
    """Every update so far beside the model, in one low-rank side branch for each matrix."""
    names = played[0] if played else ()
    parts = {}
    for name in names:
        Z_NO = torch.cat([updates[name].leaf_nO for updates in played])
        V_NI = torch.cat([updates[name].proposal.V_nI for updates in played])
        parts[name] = LowRank((Z_NO.detach() if detached else Z_NO).T, V_NI.T)
    return WeightDelta(parts)


def _score(module: Any, step: Step, played: Sequence[dict[str, Played]]) -> tuple[Tensor, Tensor]:
    """(mean -log p of the answers, mean KL to the base model on the unrelated ones) of the model so far."""
    with applied(module, _branch(played, detached=False)):
        edit_loss = answer_nll(answer_log_probs(module, step.outcomes), step.outcomes).mean()
        if step.unrelated is None or step.base_log_probs_TV is None:
            return edit_loss, torch.zeros_like(edit_loss)
        now_TV = answer_log_probs(module, step.unrelated)
    kl = (step.base_log_probs_TV.exp() * (step.base_log_probs_TV - now_TV)).sum(-1).mean()
    return edit_loss, kl
