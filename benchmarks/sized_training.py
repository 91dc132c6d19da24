"""Training on tensors with sizes and without values: the trainer, its model, and the count of one episode's memory.

Tokens, labels and random numbers are replaced by tensors of the right shape, because a fake tensor has no values.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from benchmarks.accounting import Accounting, fakes
from benchmarks.random_llama import SIZES, make_language_model
from errata.edit import Edit, EditBatch, Probe
from errata.editors.hypernet.episode import AppliedUpdate
from errata.editors.hypernet.episode_batch import EpisodeBatch
from errata.editors.hypernet.hypernet_editor import Policy
from errata.editors.hypernet.net import Hypernetwork, ShapeNet
from errata.editors.hypernet.reward import Reward
from errata.editors.hypernet.training import Fold, Trainer
from errata.editors.solve import KeyPreconditioner, base_preconditioner
from errata.model.encoding import IGNORED, Encoded
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices, input_sources
from errata.model.prefix_cache import PrefixCache
from errata.text.dialogue import Prompt
from jobs.plan import Plan

SEEN = torch.tensor(2.0, dtype=torch.float64)  # made outside, where tensors have values
DEVICE = "meta"  # stands for the GPU
LLAMA3_8B = ("meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B-Instruct")


@dataclass(frozen=True)
class Texts:
    """Sizes of an edit: rephrasings, probes, tokens of each text, and answer tokens at its end.

    The numbers are CounterFact's; the length exceeds that of nearly all its prompts.
    """

    rephrasings: int = 2
    probes: int = 10
    tokens: int = 32
    answers: int = 3

    def edits(self, count: int) -> list[Edit]:
        others, probes = ("another",) * self.rephrasings, (Probe("a", "b"),) * self.probes
        return [Edit(f"question {i}", "answer", None, others, probes) for i in range(count)]

    def encoded(self, num_rows: int, device: Any) -> Encoded:
        ids_BS = torch.ones(num_rows, self.tokens, dtype=torch.long, device=device)
        labels_BS = torch.full_like(ids_BS, IGNORED)
        labels_BS[:, -self.answers :] = 1
        encoded = Encoded(ids_BS, torch.ones_like(ids_BS), labels_BS)
        if ids_BS.device.type == DEVICE:  # these would be derived from the labels, which have no values
            places_T = ids_BS.new_zeros(num_rows * self.answers)
            predicts_BS = torch.zeros_like(ids_BS, dtype=torch.bool)
            vars(encoded).update(predicts_BS=predicts_BS, predicts_T=places_T, targets_T=places_T)
            vars(encoded)["answer_lengths"] = [self.answers] * num_rows
        return encoded


class SizedBatch(EpisodeBatch):
    """An episode's batch whose texts have the sizes of `texts`."""

    texts = Texts()

    def _encode(self, pairs: Sequence[tuple[Prompt, str]]) -> Encoded:
        return self.texts.encoded(len(pairs), self.model.device)

    def _split(self, text: Encoded) -> list[Encoded]:
        num_rows = len(text.input_ids_BS)
        size = self.savings.micro_batch or num_rows
        return [self.texts.encoded(min(size, num_rows - start), self.model.device) for start in range(0, num_rows, size)]


class SizedTrainer(Trainer):
    """A trainer whose episodes consist of such batches."""

    texts = Texts()

    def step_of(self, batch: EditBatch) -> EpisodeBatch:
        step = SizedBatch(self.model, batch, self.editor.reward.score_prompts, self.savings)
        step.texts = self.texts
        return step


def model_of(plan: Plan, device: str) -> LanguageModel:
    """Build the plan's architecture. Raises `ValueError` if its config is not there; nothing is downloaded."""
    if plan.model in LLAMA3_8B:
        return make_language_model(SIZES["8b"], torch.device(device), seed=0)
    if not (plan.model_dir / "config.json").exists():
        raise ValueError(f"plan {plan.name} needs {plan.model_dir}/config.json: name the model's folder, model=PATH")
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(plan.model_dir)
    with torch.device(device):
        module: Any = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, plan.dtype))
    return LanguageModel(module.eval().requires_grad_(False), None, str(plan.model_dir))


def trainer_of(plan: Plan, model: LanguageModel, texts: Texts, device: str) -> SizedTrainer:
    """Build a trainer in mid-training: the normaliser has seen rows, Adam has its moments, the key preconditioner is zero."""
    spec, editor = find_matrices(model.module, plan.editor.modules), plan.hypernetwork
    with torch.device(device):
        net = Hypernetwork(spec, editor.rank, editor.num_blocks, editor.centred, plan.seed, editor.rule, editor.network)
        inputs = dict.fromkeys(input_sources(spec.names).values()) if editor.metric_strength else {}
        moments = {name: torch.zeros(spec[name].num_in, spec[name].num_in) for name in inputs}
        bases = {name: base_preconditioner(moment_II, editor.metric_strength) for name, moment_II in moments.items()}
    for module in net.modules():
        if isinstance(module, ShapeNet):
            _observed(module.normaliser.count)
    schedule = replace(plan.schedule, episodes=1, burn_in=0)
    ready = replace(editor, policy=Policy(net, bases))
    trainer = SizedTrainer(ready, model, [Fold(texts.edits(schedule.longest), bases)], schedule, plan.seed, plan.savings)
    trainer.texts = texts
    _begin_adam(trainer)
    return trainer


def _begin_adam(trainer: Trainer) -> None:
    """Allocate Adam's moments, which exist from the first step on."""
    for parameter in trainer.net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()


def _observed(count: Tensor) -> None:
    """Set the normaliser's count, also where tensors have no values."""
    if isinstance(count, FakeTensor):
        count.constant = SEEN
    else:
        count.copy_(SEEN)


def owners_of(trainer: SizedTrainer) -> Mapping[str, Sequence[Tensor]]:
    """List the tensors that an episode keeps deliberately; all others belong to graphs or are intermediate values."""
    alive: dict[type, list[Any]] = {PrefixCache: [], SizedBatch: [], AppliedUpdate: [], KeyPreconditioner: []}
    for one in gc.get_objects():
        if type(one) in alive:
            alive[type(one)].append(one)
    net = [*trainer.net.parameters(), *trainer.net.buffers()]
    metric = [t for metric in alive[KeyPreconditioner] for t in (metric.base_II, metric.whitened_mI)]
    updates = [
        factor
        for one in alive[AppliedUpdate]
        for proposal in (one.proposal, one.detached)
        for factor in vars(proposal).values()
        if factor is not None  # no departure without a residual network
    ]
    return {
        "prefix caches": _tensors([cache.outputs for cache in alive[PrefixCache]]),
        "base log-probs": _tensors([step._base_log_probs for step in alive[SizedBatch]]),
        "metric": metric,
        "updates": [*updates, *(factor.grad for factor in updates if factor.is_leaf and factor.grad is not None)],
        "model": [*trainer.model.module.parameters(), *trainer.model.module.buffers()],
        "network": [
            *net,
            *(p.grad for p in trainer.net.parameters() if p.grad is not None),
            *_tensors(list(trainer.optimizer.state.values())),
        ],
    }


def _tensors(value: Any) -> list[Tensor]:
    """All tensors in nested containers."""
    if isinstance(value, Tensor):
        return [value]
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [tensor for one in inside for tensor in _tensors(one)]


PARTS = (
    "model",
    "network",
    "metric",
    "updates",
    "network's graph",
    "prefix caches",
    "base log-probs",
    "logits",
    "model's graph",
)


@dataclass(frozen=True)
class Counted:
    """Bytes before an episode, at its peak, and at the peak by part."""

    start_bytes: int
    peak_bytes: int
    parts: Mapping[str, int]


@dataclass(frozen=True)
class ScoredOnce(Reward):
    """Reward that scores each step on its own batch only.

    Scoring earlier batches again needs no more memory, because one graph exists at a time; what is kept for them stays as long.
    """

    def backtracked(self, t: int, generator: random.Random) -> list[int]:
        return [t]


def scored_once(plan: Plan) -> Plan:
    """Replace the plan's reward by one without backtracking."""
    editor = plan.hypernetwork
    return replace(plan, editor=replace(editor, reward=ScoredOnce(**vars(editor.reward))))


def count_episode(plan: Plan, texts: Texts, make: Callable[[str], LanguageModel], device: str = DEVICE) -> Counted:
    """Count the bytes of one episode and the optimiser's step, on `meta`, or with values on `cpu`."""
    with ExitStack() as stack:
        if device == DEVICE:
            stack.enter_context(fakes())
        accounting = stack.enter_context(Accounting(device))
        model = make(device)
        trainer = trainer_of(plan, model, texts, device)
        start_bytes = accounting.now_bytes
        accounting.owners = partial(owners_of, trainer)
        accounting.named_by = {model.module.config.vocab_size: "logits"}
        stack.enter_context(accounting.labelled(list(trainer.net.nets.values()), "network's graph"))
        trainer.step()
        parts = dict(accounting.at_peak)
        parts["model's graph"] = parts.pop("other", 0)
        return Counted(start_bytes, accounting.peak_bytes, parts)
