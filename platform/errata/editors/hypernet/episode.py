"""Training episode: a sequence of edit batches on one model, and the policy gradient of its discounted return.

Paper: RLEdit (2502.05759). State: the model so far. Action: the update of the next batch. The reward of step t is minus
    Σ_{i<=min(t,k)} μ^i [ CE(batch t-i, its prompts and rephrasings) + c KL(base | now; its locality probes) ] + η |S_t|²
and minus two terms that the paper does not have: the weighted CE of the edits' consequences, and the weighted departure of a
residual network from the identity (net.py),
and the return discounts step t by γ^t. Each step's loss is credited to every update before it: S_s enters W_t for all s <= t.
Deviations: see docs/rledit.md. Nothing is remembered between episodes; the network's parameters receive gradients.
n edited tokens, I in-features, O out-features, T answer tokens, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from errata.delta.parts import LowRank, Part
from errata.delta.side_branch import applied
from errata.delta.weight_delta import WeightDelta, chained
from errata.editors.hypernet.episode_batch import EpisodeBatch
from errata.editors.hypernet.net import Hypernetwork, Proposal
from errata.editors.hypernet.reward import MemoryOptions, Reward
from errata.editors.past_keys import edits_by_answer, next_state, preconditioners_for
from errata.editors.solve import KeyGram, KeyPreconditioner
from errata.editors.state import EditorState
from errata.model.capture import Captured, capture, joined
from errata.model.encoding import Encoded, answer_log_probs, answer_nll
from errata.model.language_model import LanguageModel
from errata.model.matrices import input_sources
from errata.model.prefix_cache import PrefixCache, recomputed


@dataclass
class AppliedUpdate:
    """An update cut out of the graph: the network's graph ends at `proposal`, the graphs of the losses at `detached`."""

    proposal: Proposal
    detached: Proposal

    @classmethod
    def of(cls, proposal: Proposal) -> AppliedUpdate:
        return cls(proposal, Proposal(_detached(proposal.V_nI), _detached(proposal.Z_nO), proposal.keys_nI))

    def surrogate(self) -> Tensor:
        """Return a scalar whose gradient with respect to the network's parameters is that of the losses."""
        pairs = ((self.proposal.V_nI, self.detached.V_nI), (self.proposal.Z_nO, self.detached.Z_nO))
        return torch.stack([(factor * leaf.grad).sum() for factor, leaf in pairs if leaf.grad is not None]).sum()


@dataclass(frozen=True, kw_only=True)
class EpisodeOptions:
    """Settings of one episode besides its reward.

    `past_weight` is the weight of past keys in the key preconditioner, `num_passes` the passes over each batch. The first
    `num_burn_in` batches are edited and not scored. `seed` draws the batches that are scored again.
    """

    past_weight: float = 1.0
    num_passes: int = 1
    num_burn_in: int = 0
    seed: int = 0
    savings: MemoryOptions = field(default_factory=MemoryOptions)


def play(
    model: LanguageModel,
    net: Hypernetwork,
    batches: Sequence[EpisodeBatch],
    preconditioners: Mapping[str, KeyPreconditioner],
    reward: Reward,
    options: EpisodeOptions | None = None,
) -> dict[str, float]:
    """Play an episode and add the gradient of its loss, minus its return, to the network's parameters.

    Returns means over the scored steps: edit loss, locality KL, squared Frobenius norm of the update, and, where the reward
    counts consequences, their loss.
    """
    options = options or EpisodeOptions()
    episode = Episode(model, net, preconditioners, reward, options)
    sums = {"edit_loss": 0.0, "locality_kl": 0.0} | ({"portability_loss": 0.0} if reward.portability_weight else {})
    for t, batch in enumerate(batches):
        episode.edit(batch, t)
        for index, weight in episode.scored_at(t):
            losses = episode.score(episode.batches[index], weight)
            if index == t:
                sums = {name: total + float(losses[name]) for name, total in sums.items()}
        episode.forget(t)
    sums["update_norm2"] = episode.backward()
    return {name: total / (len(batches) - options.num_burn_in) for name, total in sums.items()}


class Episode:
    """The state of an episode, and its four moves: `edit`, `score`, `forget` and, at the end, `backward`.

    `base_delta` is the sum of the burn-in's updates and `updates` are the scored ones, in order. `batches` are those so far,
    without edits that later ones supersede. `preconditioners` are by input, with the keys of those edits. `cache` holds the
    activations below the edited modules for every text that may be scored again. `score` back-propagates each loss to the
    factors of the updates, and `backward` those gradients to the network, so that the graphs do not grow with the backtracking
    depth.
    """

    def __init__(
        self,
        model: LanguageModel,
        net: Hypernetwork,
        preconditioners: Mapping[str, KeyPreconditioner],
        reward: Reward,
        options: EpisodeOptions,
    ) -> None:
        self.model, self.net, self.reward, self.options = model, net, reward, options
        self.base_delta, self.updates = WeightDelta({}), list[dict[str, AppliedUpdate]]()
        self.preconditioners = preconditioners
        self.state = EditorState(0, {}, {"preconditioners": preconditioners})
        self.cache = PrefixCache(model.module, net.spec.names, options.savings.on_host)
        self.batches: list[EpisodeBatch] = []
        self._generator = random.Random(options.seed)

    def edit(self, batch: EpisodeBatch, t: int) -> None:
        """Add the network's update for the batch of step t, computed on the model so far."""
        self._supersede(batch)
        self.batches.append(batch)
        weight = self.options.past_weight
        self.preconditioners = preconditioners_for(batch.batch, self.state, lambda: {}, weight)
        keys: dict[str, Tensor] = {}
        grams: dict[str, KeyGram] = {}
        cache = self.cache.empty_copy()  # The edit texts are read in this step alone.
        for _ in range(self.options.num_passes):
            captured = self._capture(batch, cache)
            keys = keys or {name: captured[name].keys_TI for name in self.preconditioners}
            shared: dict[str, KeyGram] = {}
            if t < self.options.num_burn_in:
                with torch.no_grad():
                    update = _delta(self.net.propose(captured, self.preconditioners, shared))
                self.base_delta = chained([self.base_delta, update]).folded()
            else:
                self.updates.append({name: AppliedUpdate.of(p) for name, p in self._propose(captured, shared).items()})
            grams = grams or {name: shared[name] for name in self.preconditioners}
        edits = edits_by_answer(batch.batch, batch.edit_texts.answer_lengths) if self.preconditioners and weight else []
        self.state = next_state(self.state, edits, self.preconditioners, keys, weight, grams, len(batch.batch))
        self.preconditioners = self.state.derived.get("preconditioners", {})

    def _supersede(self, batch: EpisodeBatch) -> None:
        """Leave the edits out of earlier batches whose facts a batch edits again."""
        for index, earlier in enumerate(self.batches):
            self.batches[index] = earlier.without(batch.keys)
            if self.batches[index] is not earlier:
                self._forget(earlier)

    def scored_at(self, t: int) -> Iterator[tuple[int, float]]:
        """Yield index and weight of every batch whose loss counts in step t: its own first; none during the burn-in.

        A batch whose edits are all superseded is left out.
        """
        if t < self.options.num_burn_in:
            return
        discount = self.reward.discount ** (t - self.options.num_burn_in)
        for age, index in enumerate(self.reward.backtracked(t, self._generator)):
            if len(self.batches[index].batch):
                yield index, discount * self.reward.backtrack_decay**age

    def score(self, batch: EpisodeBatch, weight: float) -> dict[str, float | Tensor]:
        """Score a batch on the model so far: edit loss, mean KL to the base model on its locality texts, and portability loss.

        Adds the gradient of `weight` times the step's loss to the detached factors of the updates. One part of the texts has a
        graph at a time; it ends at a copy of the side branch, whose gradient then goes on to the updates in one call.
        """
        branch = self._branch()
        copied = WeightDelta({name: LowRank(*(_detached(factor) for factor in _factors(part))) for name, part in branch})
        losses = {
            "edit_loss": self._nll(batch.in_scope_parts, batch, copied, weight * self.reward.edit_weight),
            "locality_kl": self._locality_kl(batch, copied, weight),
        }
        if of_consequences := self.reward.portability_weight:
            losses["portability_loss"] = self._nll(batch.portability_parts, batch, copied, weight * of_consequences)
        pairs = [pair for name, part in branch for pair in zip(_factors(part), _factors(copied.parts[name]), strict=True)]
        pairs = [(factor, copy) for factor, copy in pairs if copy.grad is not None]
        torch.autograd.backward([factor for factor, _ in pairs], [copy.grad for _, copy in pairs])
        return losses

    def forget(self, t: int) -> None:
        """Free what is kept for batches that no step after t scores."""
        if t < self.options.num_burn_in:
            return
        for batch in self.batches[self.reward.earliest(t) : self.reward.earliest(t + 1)]:
            self._forget(batch)

    def _forget(self, batch: EpisodeBatch) -> None:
        batch.forget()
        for text in batch.scored_parts if len(batch.batch) else ():
            self.cache.forget(text)

    def backward(self) -> float:
        """Back-propagate the updates' gradients, and the penalties on their size and departure, to the network.

        Returns the sum of the updates' squared Frobenius norms.
        """
        surrogate, total = torch.zeros((), device=self.model.device), 0.0
        for t, updates in enumerate(self.updates):
            for update in updates.values():
                norm2, departure = update.proposal.squared_norm(), update.proposal.departure
                discount = self.reward.discount ** (t // self.options.num_passes)
                weight = discount * self.reward.update_penalty
                surrogate = surrogate + update.surrogate() + weight * norm2
                if departure is not None:
                    surrogate = surrogate + discount * self.reward.departure_penalty * departure
                total += float(norm2.detach())
        surrogate.backward()
        return total

    def _capture(self, batch: EpisodeBatch, cache: PrefixCache) -> dict[str, Captured]:
        with torch.no_grad():
            branch = self._branch()
        found = []
        with applied(self.model.module, self.base_delta, branch):
            for text in batch.edit_text_parts:
                with cache.reusing(text):
                    captured, _ = capture(self.model.module, text, self.net.spec.names, all_tokens=self.net.rule == "outer")
                found.append(captured)
        return joined(found)

    def _branch(self) -> WeightDelta:
        """Return every scored update so far as one low-rank side branch for each matrix."""
        return chained([_delta({name: update.detached for name, update in updates.items()}) for updates in self.updates])

    def _propose(self, captured: Mapping[str, Captured], shared: dict[str, KeyGram]) -> dict[str, Proposal]:
        """Return the network's update, and add the Gram matrices of its solve to `shared`."""
        if not self.options.savings.recompute:
            return self.net.propose(captured, self.preconditioners, shared)
        for name in dict.fromkeys(input_sources(captured).values()) if self.net.rule == "solve" else ():
            shared[name] = KeyGram.of(captured[name].keys_TI, self.preconditioners.get(name))
        # The checkpoint keeps its arguments until `backward`, so it takes neither the preconditioners nor the fp64 products.
        grams = {name: replace(gram, product_nI=None) for name, gram in shared.items()}
        proposals: dict[str, Proposal] = checkpoint(
            self.net.propose, captured, {}, grams, use_reentrant=False, preserve_rng_state=False
        )
        return proposals

    def _nll(self, texts: Sequence[Encoded], batch: EpisodeBatch, branch: WeightDelta, weight: float) -> float | Tensor:
        """Return the mean -log p of all answer tokens of the texts, and add the gradient of `weight` times it to `branch`."""
        total: float | Tensor = 0.0
        num_answers = sum(text.num_answers for text in texts)
        module = self.model.module
        for text in texts:
            with self._forward_over(text, batch), applied(module, self.base_delta, branch):
                loss = text.num_answers / num_answers * answer_nll(answer_log_probs(module, text), text).mean()
                (weight * loss).backward()
            total = total + loss.detach()
        return total

    def _locality_kl(self, batch: EpisodeBatch, branch: WeightDelta, weight: float) -> float | Tensor:
        kl: float | Tensor = 0.0
        module = self.model.module
        for index, text in enumerate(batch.locality_parts):
            with self._forward_over(text, batch):
                base_TV = batch.base_log_probs(index)
                with applied(module, self.base_delta, branch):
                    share = text.num_answers / sum(part.num_answers for part in batch.locality_parts)
                    loss = share * _divergence(base_TV, answer_log_probs(module, text))
                    (weight * (self.reward.locality_weight * loss)).backward()
            kl = kl + loss.detach()
        return kl

    @contextmanager
    def _forward_over(self, text: Encoded, batch: EpisodeBatch) -> Iterator[None]:
        """Prepare a forward and backward pass over `text`, with activation checkpointing if the batch asks for it."""
        with self.cache.reusing(text), recomputed(self.cache.later_blocks if batch.savings.recompute else ()):
            yield


def _delta(proposals: Mapping[str, Proposal]) -> WeightDelta:
    return WeightDelta({name: LowRank(p.Z_nO.T, p.V_nI.T) for name, p in proposals.items()})


def _divergence(base_TV: Tensor, now_TV: Tensor) -> Tensor:
    """Return the mean KL divergence from the base model over T answer tokens."""
    base_TV = base_TV.to(now_TV.device)
    return (base_TV.exp() * (base_TV - now_TV)).sum(-1).mean()


def _factors(part: Part) -> tuple[Tensor, Tensor]:
    assert isinstance(part, LowRank)
    return part.U_OR, part.V_IR


def _detached(tensor: Tensor) -> Tensor:
    """Return the same values as a leaf, which collects a gradient if the original would pass one on."""
    return tensor.detach().requires_grad_(tensor.requires_grad)
