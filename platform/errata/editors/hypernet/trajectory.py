"""One episode: a sequence of edit batches, played on the model as it becomes, with the gradient of its return.

Paper: RLEdit (2502.05759). State: the model so far. Action: the update of the next batch. The reward of step t is minus
    Σ_{i<=min(t,k)} μ^i [ CE(batch t-i, its prompts and rephrasings) + c KL(base | now; its locality probes) ] + η |S_t|²
and the return discounts step t by γ^t. Each step's loss is credited to every update before it: S_s enters W_t for all s <= t.
Deviations: see docs/rledit.md. Nothing is remembered; the network's parameters receive gradients.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from errata.capture import Captured, Trunk, capture
from errata.delta import LowRank, WeightDelta, applied, chained
from errata.edit import EditBatch
from errata.editors.hypernet.net import Hypernetwork, Proposal
from errata.editors.past import remembered
from errata.editors.solve import Metric
from errata.encode import Encoded, answer_log_probs, answer_nll, encode
from errata.model import LanguageModel


@dataclass(frozen=True)
class Reward:
    """What an episode is scored by; symbols as in the paper.

    With `backtrack_uniform` the k earlier batches are drawn from all of the episode instead of being the last ones: in a long
    sequence it is the old edits that are forgotten. `edit_weight` scales CE, `score_prompts` says whether it counts the edit
    prompts or their rephrasings alone.
    """

    discount: float = 1.0  # gamma
    backtrack_decay: float = 0.95  # mu
    backtrack_depth: int = 10  # k
    update_penalty: float = 1e-4  # eta
    locality_weight: float = 0.6  # c
    backtrack_uniform: bool = False
    edit_weight: float = 1.0
    score_prompts: bool = True

    def backtracked(self, t: int, generator: random.Random) -> list[int]:
        """The batches that step t is scored on: itself, then up to k earlier ones."""
        earlier = list(range(t - 1, -1, -1))
        depth = min(t, self.backtrack_depth)
        return [t, *(generator.sample(earlier, depth) if self.backtrack_uniform else earlier[:depth])]


class Step:
    """One edit batch, tokenised when first asked for: what the editor sees, what follows from it, and what must stay.

    `model` must be the base model, without side branches, whenever the base's log-probabilities are first asked for.
    """

    def __init__(self, model: LanguageModel, batch: EditBatch, score_prompts: bool = True) -> None:
        self.model, self.batch, self.score_prompts = model, batch, score_prompts

    def _encode(self, pairs: Sequence[tuple[str, str]]) -> Encoded:
        return encode(self.model.tokenizer, [p for p, _ in pairs], [t for _, t in pairs], self.model.device)

    @cached_property
    def seen(self) -> Encoded:
        return self._encode([(edit.prompt, edit.target) for edit in self.batch])

    @cached_property
    def outcomes(self) -> Encoded:
        prompts = [
            (p, edit.target)
            for edit in self.batch
            for p in ((edit.prompt, *edit.rephrasings) if self.score_prompts or not edit.rephrasings else edit.rephrasings)
        ]
        return self._encode(prompts)

    @cached_property
    def unrelated(self) -> Encoded | None:
        probes = [(probe.prompt, probe.target) for edit in self.batch for probe in edit.locality]
        return self._encode(probes) if probes else None

    @cached_property
    def base_log_probs_TV(self) -> Tensor | None:
        if self.unrelated is None:
            return None
        with torch.no_grad():
            return answer_log_probs(self.model.module, self.unrelated)


@dataclass
class Played:
    """What is kept of an update: the graph to the network ends at `proposal`, the graph from the losses at `leaf`."""

    proposal: Proposal
    leaf: Proposal

    @classmethod
    def of(cls, proposal: Proposal) -> Played:
        V_nI, Z_nO = (t.detach().requires_grad_(t.requires_grad) for t in (proposal.V_nI, proposal.Z_nO))
        return cls(proposal, Proposal(V_nI, Z_nO, proposal.keys_nI))

    def surrogate(self) -> Tensor:
        """Its gradient by the network's parameters is that of the losses."""
        pairs = ((self.proposal.V_nI, self.leaf.V_nI), (self.proposal.Z_nO, self.leaf.Z_nO))
        return torch.stack([(made * leaf.grad).sum() for made, leaf in pairs if leaf.grad is not None]).sum()


def play(
    model: LanguageModel,
    net: Hypernetwork,
    steps: Sequence[Step],
    metrics: Mapping[str, Metric],
    reward: Reward,
    memory: float = 1.0,
    num_passes: int = 1,
    num_burn_in: int = 0,
    seed: int = 0,
) -> dict[str, float]:
    """Play an episode and add the gradient of its loss (minus its return) to the network's parameters.

    The first `num_burn_in` steps only bring the model into the state from which the others are played. The losses are
    back-propagated one by one to the updates, and those once to the network, so graphs do not grow with the backtracking
    depth; what stays as long as the episode is each scored batch's trunk (`capture.Trunk`). Returns means over the scored
    steps: edit loss, locality KL and squared norm of the update.
    """
    generator, scored = random.Random(seed), Trunk(model.module, net.spec.names)
    before, played = WeightDelta({}), list[dict[str, Played]]()
    sums = {"edit_loss": 0.0, "locality_kl": 0.0, "update_norm2": 0.0}
    for t, step in enumerate(steps):
        keys: dict[str, Tensor] = {}
        trunk = scored.anew()
        for _ in range(num_passes):
            captured = _capture(model, net, step, trunk, before, played)
            keys = keys or {name: captured[name].keys_TI for name in metrics}
            if t < num_burn_in:
                with torch.no_grad():
                    before = chained([before, _delta(net.propose(captured, metrics))]).folded()
            else:
                played.append({name: Played.of(p) for name, p in net.propose(captured, metrics).items()})
        metrics = remembered(metrics, keys, memory)
        if t < num_burn_in:
            continue
        discount = reward.discount ** (t - num_burn_in)
        for age, index in enumerate(reward.backtracked(t, generator)):
            edit_loss, kl = _score(model.module, steps[index], scored, before, played)
            loss = reward.edit_weight * edit_loss + reward.locality_weight * kl
            (discount * reward.backtrack_decay**age * loss).backward()
            if age == 0:
                sums["edit_loss"] += float(edit_loss.detach())
                sums["locality_kl"] += float(kl.detach())
    surrogate = torch.zeros((), device=model.device)
    for t, updates in enumerate(played):
        for update in updates.values():
            norm2 = update.proposal.squared_norm()
            weight = reward.discount ** (t // num_passes) * reward.update_penalty
            surrogate = surrogate + update.surrogate() + weight * norm2
            sums["update_norm2"] += float(norm2.detach())
    surrogate.backward()
    return {name: total / (len(steps) - num_burn_in) for name, total in sums.items()}


def _capture(
    model: LanguageModel,
    net: Hypernetwork,
    step: Step,
    trunk: Trunk,
    before: WeightDelta,
    played: Sequence[dict[str, Played]],
) -> dict[str, Captured]:
    with torch.no_grad():
        branch = _branch(played)
    with trunk.once(step.seen), applied(model.module, before, branch):
        captured, _ = capture(model.module, step.seen, net.spec.names, all_tokens=net.rule == "outer")
    return captured


def _delta(proposals: Mapping[str, Proposal]) -> WeightDelta:
    return WeightDelta({name: LowRank(p.Z_nO.T, p.V_nI.T) for name, p in proposals.items()})


def _branch(played: Sequence[dict[str, Played]]) -> WeightDelta:
    """Every scored update so far beside the model, in one low-rank side branch for each matrix."""
    return chained([_delta({name: update.leaf for name, update in updates.items()}) for updates in played])


def _score(
    module: Any, step: Step, trunk: Trunk, before: WeightDelta, played: Sequence[dict[str, Played]]
) -> tuple[Tensor, Tensor]:
    """(mean -log p of the answers, mean KL to the base model on the unrelated ones) of the model so far."""
    branch = _branch(played)
    with trunk.once(step.outcomes), applied(module, before, branch):
        edit_loss = answer_nll(answer_log_probs(module, step.outcomes), step.outcomes).mean()
    if step.unrelated is None:
        return edit_loss, torch.zeros_like(edit_loss)
    with trunk.once(step.unrelated):
        base_TV = step.base_log_probs_TV
        assert base_TV is not None
        with applied(module, before, branch):
            now_TV = answer_log_probs(module, step.unrelated)
    kl = (base_TV.exp() * (base_TV - now_TV)).sum(-1).mean()
    return edit_loss, kl
