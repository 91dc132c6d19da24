"""One episode: a sequence of edit batches, played on the model as it becomes, with the gradient of its return.

Paper: RLEdit (2502.05759). State: the model so far. Action: the update of the next batch. The reward of step t is minus
    Σ_{i<=min(t,k)} μ^i [ CE(batch t-i, its prompts and rephrasings) + c KL(base | now; its locality probes) ] + η |S_t|²
and the return discounts step t by γ^t. Each step's loss is credited to every update before it: S_s enters W_t for all s <= t.
Deviations: see docs/rledit.md. Nothing is remembered; the network's parameters receive gradients.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from errata.delta.parts import LowRank, Part
from errata.delta.side_branch import applied
from errata.delta.weight_delta import WeightDelta, chained
from errata.edit import EditBatch
from errata.editors.hypernet.net import Hypernetwork, Proposal
from errata.editors.hypernet.reward import MemoryOptions, Reward
from errata.editors.past_keys import with_keys
from errata.editors.solve import KeyGram, KeyPreconditioner
from errata.model.capture import Captured, capture, joined
from errata.model.encoding import Encoded, answer_log_probs, answer_nll, encode, split
from errata.model.language_model import LanguageModel
from errata.model.matrices import input_sources
from errata.model.prefix_cache import PrefixCache, recomputed


class EpisodeBatch:
    """One edit batch, tokenised when first asked for: what the editor sees, what follows from it, and what must stay.

    `model` must be the base model, without side branches, whenever the base's log-probabilities are first asked for.
    """

    def __init__(
        self, model: LanguageModel, batch: EditBatch, score_prompts: bool = True, savings: MemoryOptions | None = None
    ) -> None:
        self.model, self.batch, self.score_prompts, self.savings = model, batch, score_prompts, savings or MemoryOptions()
        self._base_log_probs: dict[int, Tensor] = {}

    def _encode(self, pairs: Sequence[tuple[str, str]]) -> Encoded:
        return encode(self.model.tokenizer, [p for p, _ in pairs], [t for _, t in pairs], self.model.device)

    @cached_property
    def seen(self) -> Encoded:
        return self._encode([(edit.prompt, edit.target) for edit in self.batch])

    @cached_property
    def seen_parts(self) -> list[Encoded]:
        return self._split(self.seen)

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
    def outcome_parts(self) -> list[Encoded]:
        return self._split(self.outcomes)

    @cached_property
    def unrelated_parts(self) -> list[Encoded]:
        return self._split(self.unrelated) if self.unrelated is not None else []

    def _split(self, text: Encoded) -> list[Encoded]:
        return split(text, self.savings.micro_batch)

    @torch.no_grad()
    def base_log_probs(self, index: int) -> Tensor:
        """The base model's, [T, V], at the answers of a part of the unrelated."""
        if index not in self._base_log_probs:
            log_probs_TV = answer_log_probs(self.model.module, self.unrelated_parts[index])
            self._base_log_probs[index] = log_probs_TV.cpu() if self.savings.on_host else log_probs_TV
        return self._base_log_probs[index]

    def forget(self) -> None:
        """The base model's log-probabilities: the batch is scored no more."""
        self._base_log_probs.clear()


@dataclass
class AppliedUpdate:
    """What is kept of an update: the graph to the network ends at `proposal`, the graph from the losses at `leaf`."""

    proposal: Proposal
    leaf: Proposal

    @classmethod
    def of(cls, proposal: Proposal) -> AppliedUpdate:
        return cls(proposal, Proposal(_detached(proposal.V_nI), _detached(proposal.Z_nO), proposal.keys_nI))

    def surrogate(self) -> Tensor:
        """Its gradient by the network's parameters is that of the losses."""
        pairs = ((self.proposal.V_nI, self.leaf.V_nI), (self.proposal.Z_nO, self.leaf.Z_nO))
        return torch.stack([(made * leaf.grad).sum() for made, leaf in pairs if leaf.grad is not None]).sum()


def play(
    model: LanguageModel,
    net: Hypernetwork,
    steps: Sequence[EpisodeBatch],
    metrics: Mapping[str, KeyPreconditioner],
    reward: Reward,
    memory: float = 1.0,
    num_passes: int = 1,
    num_burn_in: int = 0,
    seed: int = 0,
    savings: MemoryOptions | None = None,
) -> dict[str, float]:
    """Play an episode and add the gradient of its loss (minus its return) to the network's parameters.

    The first `num_burn_in` steps only bring the model into the state from which the others are played. The losses are
    back-propagated one by one to the updates, and those once to the network, so graphs do not grow with the backtracking
    depth; what stays for as long as a batch can be scored is its trunk (`capture.Trunk`). Returns means over the scored
    steps: edit loss, locality KL and squared norm of the update.
    """
    savings = savings or MemoryOptions()
    generator, scored = random.Random(seed), PrefixCache(model.module, net.spec.names, savings.on_host)
    before, played = WeightDelta({}), list[dict[str, AppliedUpdate]]()
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
                played.append({name: AppliedUpdate.of(p) for name, p in _proposals(net, captured, metrics, savings).items()})
        metrics = with_keys(metrics, keys, memory)
        if t < num_burn_in:
            continue
        discount = reward.discount ** (t - num_burn_in)
        for age, index in enumerate(reward.backtracked(t, generator)):
            weight = discount * reward.backtrack_decay**age
            edit_loss, kl = _score(model.module, steps[index], scored, before, played, reward, weight)
            if age == 0:
                sums["edit_loss"] += float(edit_loss)
                sums["locality_kl"] += float(kl)
        for index in range(reward.earliest(t), reward.earliest(t + 1)):
            steps[index].forget()
            for text in (*steps[index].outcome_parts, *steps[index].unrelated_parts):
                scored.forget(text)
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
    step: EpisodeBatch,
    trunk: PrefixCache,
    before: WeightDelta,
    played: Sequence[dict[str, AppliedUpdate]],
) -> dict[str, Captured]:
    with torch.no_grad():
        branch = _branch(played)
    found = []
    with applied(model.module, before, branch):
        for text in step.seen_parts:
            with trunk.once(text):
                captured, _ = capture(model.module, text, net.spec.names, all_tokens=net.rule == "outer")
            found.append(captured)
    return joined(found)


def _delta(proposals: Mapping[str, Proposal]) -> WeightDelta:
    return WeightDelta({name: LowRank(p.Z_nO.T, p.V_nI.T) for name, p in proposals.items()})


def _branch(played: Sequence[dict[str, AppliedUpdate]]) -> WeightDelta:
    """Every scored update so far beside the model, in one low-rank side branch for each matrix."""
    return chained([_delta({name: update.leaf for name, update in updates.items()}) for updates in played])


def _proposals(
    net: Hypernetwork, captured: Mapping[str, Captured], metrics: Mapping[str, KeyPreconditioner], savings: MemoryOptions
) -> dict[str, Proposal]:
    if not savings.recompute:
        return net.propose(captured, metrics)
    inputs = dict.fromkeys(input_sources(captured).values()) if net.rule == "solve" else {}
    shared = {name: KeyGram.of(captured[name].keys_TI, metrics.get(name)) for name in inputs}
    # Not given the metrics, which grow with the episode and would be kept as long as it.
    made: dict[str, Proposal] = checkpoint(net.propose, captured, {}, shared, use_reentrant=False, preserve_rng_state=False)
    return made


def _score(
    module: Any,
    step: EpisodeBatch,
    trunk: PrefixCache,
    before: WeightDelta,
    played: Sequence[dict[str, AppliedUpdate]],
    reward: Reward,
    weight: float,
) -> tuple[float | Tensor, float | Tensor]:
    """(mean -log p of the answers, mean KL to the base model on the unrelated ones) of the model so far.

    Adds the gradient of `weight` times the step's loss to the updates' leaves. Of the texts one part at a time has a graph: it
    ends at a copy of the side branch, whose gradient then goes on to the leaves at once.
    """
    branch = _branch(played)
    copied = WeightDelta({name: LowRank(*(_detached(factor) for factor in _factors(part))) for name, part in branch})
    edit_loss: float | Tensor = 0.0
    kl: float | Tensor = 0.0
    for text in step.outcome_parts:
        with _forward_over(trunk, text, step.savings), applied(module, before, copied):
            share = text.num_answers / step.outcomes.num_answers
            loss = share * answer_nll(answer_log_probs(module, text), text).mean()
            (weight * (reward.edit_weight * loss)).backward()
        edit_loss = edit_loss + loss.detach()
    for index, text in enumerate(step.unrelated_parts):
        with _forward_over(trunk, text, step.savings):
            base_TV = step.base_log_probs(index)
            with applied(module, before, copied):
                share = text.num_answers / sum(part.num_answers for part in step.unrelated_parts)
                loss = share * _divergence(base_TV, answer_log_probs(module, text))
                (weight * (reward.locality_weight * loss)).backward()
        kl = kl + loss.detach()
    pairs = [pair for name, part in branch for pair in zip(_factors(part), _factors(copied.parts[name]), strict=True)]
    pairs = [(factor, copy) for factor, copy in pairs if copy.grad is not None]
    torch.autograd.backward([factor for factor, _ in pairs], [copy.grad for _, copy in pairs])
    return edit_loss, kl


@contextmanager
def _forward_over(trunk: PrefixCache, text: Encoded, savings: MemoryOptions) -> Iterator[None]:
    """For a pass over `text` with its backward pass."""
    with trunk.once(text), recomputed(trunk.behind if savings.recompute else ()):
        yield


def _divergence(base_TV: Tensor, now_TV: Tensor) -> Tensor:
    """The mean KL."""
    base_TV = base_TV.to(now_TV.device)
    return (base_TV.exp() * (base_TV - now_TV)).sum(-1).mean()


def _factors(part: Part) -> tuple[Tensor, Tensor]:
    assert isinstance(part, LowRank)
    return part.U_OR, part.V_IR


def _detached(tensor: Tensor) -> Tensor:
    """The same numbers, where a gradient ends if it went on there."""
    return tensor.detach().requires_grad_(tensor.requires_grad)
