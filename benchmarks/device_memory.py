"""The device memory that an episode of training needs, by parts, and that an editor which serves keeps: `make bench-memory`.

The code that trains and edits runs as it is, on tensors with sizes and without numbers (benchmarks/accounting.py): the model of
a plan in its own dtype, one episode and one step of Adam, for every way to spare memory. How far that is from the truth is
measured on a small model, which the same code trains with numbers, too.
"""

from __future__ import annotations

import ctypes
import gc
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from benchmarks.accounting import Accounting, fakes
from benchmarks.measure import in_fresh_process
from benchmarks.random_llama import SIZES, make_language_model
from benchmarks.report import console, show, write_report
from errata.edit import Edit, EditBatch, Probe
from errata.editors.hypernet.episode import AppliedUpdate, EpisodeBatch
from errata.editors.hypernet.hypernet_editor import Policy
from errata.editors.hypernet.net import Hypernetwork, ShapeNet
from errata.editors.hypernet.reward import MemoryOptions, Reward
from errata.editors.hypernet.training import Fold, Schedule, Trainer
from errata.editors.solve import KeyPreconditioner, base_preconditioner
from errata.editors.state import EditorState
from errata.hardware import PeakMemory, hardware
from errata.model.encoding import IGNORED, Encoded
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices, fused_partners, input_sources
from errata.model.prefix_cache import BatchCache, PrefixCache
from errata.overrides import overridden
from jobs.arguments import from_arguments
from jobs.plan import Plan

GPU_GIB = 79.0  # of an 80 GB GPU, what a process can have beside the CUDA context
SEEN = torch.tensor(2.0, dtype=torch.float64)  # has its number, being made out here
M_MMAP_THRESHOLD = -3  # of malloc.h
DEVICE = "meta"  # what stands for the GPU
LLAMA3_8B = ("meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B-Instruct")


@dataclass(frozen=True)
class Texts:
    """What an edit brings: `rephrasings` and `probes`, each text of `tokens` tokens, of which the last `answers` are the answer
    with its end. The numbers are CounterFact's, the length is above that of nearly all of its prompts."""

    rephrasings: int = 2
    probes: int = 10
    tokens: int = 32
    answers: int = 3

    def edits(self, count: int) -> list[Edit]:
        return [Edit("a question", "answer", None, ("another",) * self.rephrasings, (Probe("a", "b"),) * self.probes)] * count

    def encoded(self, num_rows: int, device: Any) -> Encoded:
        ids_BS = torch.ones(num_rows, self.tokens, dtype=torch.long, device=device)
        labels_BS = torch.full_like(ids_BS, IGNORED)
        labels_BS[:, -self.answers :] = 1
        encoded = Encoded(ids_BS, torch.ones_like(ids_BS), labels_BS)
        if ids_BS.device.type == DEVICE:  # what is looked up by the labels, which have no numbers
            places_T = ids_BS.new_zeros(num_rows * self.answers)
            predicts_BS = torch.zeros_like(ids_BS, dtype=torch.bool)
            vars(encoded).update(predicts_BS=predicts_BS, predicts_T=places_T, targets_T=places_T)
        return encoded


class ShapedStep(EpisodeBatch):
    """A batch whose texts have the sizes of `texts`."""

    texts = Texts()

    def _encode(self, pairs: Sequence[tuple[str, str]]) -> Encoded:
        return self.texts.encoded(len(pairs), self.model.device)

    def _split(self, text: Encoded) -> list[Encoded]:
        num_rows = len(text.input_ids_BS)
        size = self.savings.micro_batch or num_rows
        return [self.texts.encoded(min(size, num_rows - start), self.model.device) for start in range(0, num_rows, size)]


class ShapedTrainer(Trainer):
    texts = Texts()

    def step_of(self, batch: EditBatch) -> EpisodeBatch:
        step = ShapedStep(self.model, batch, self.editor.reward.score_prompts, self.savings)
        step.texts = self.texts
        return step


def model_of(plan: Plan, device: str) -> LanguageModel:
    """The plan's architecture. Raises `ValueError` where it is not known: nothing is downloaded."""
    if plan.model in LLAMA3_8B:
        return make_language_model(SIZES["8b"], torch.device(device), seed=0)
    if not (plan.model_dir / "config.json").exists():
        raise ValueError(f"plan {plan.name} needs {plan.model_dir}/config.json: name the model's folder, model=PATH")
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(plan.model_dir)
    with torch.device(device):
        module: Any = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, plan.dtype))
    return LanguageModel(module.eval().requires_grad_(False), None, str(plan.model_dir))


def trainer_of(plan: Plan, model: LanguageModel, texts: Texts, device: str) -> ShapedTrainer:
    """Ready to play another episode: a policy whose normaliser has seen rows, Adam, and a metric of keys that are nothing."""
    spec, editor = find_matrices(model.module, plan.editor.modules), plan.editor
    with torch.device(device):
        net = Hypernetwork(spec, editor.rank, editor.num_blocks, editor.centred, plan.seed, editor.rule)
        inputs = dict.fromkeys(input_sources(spec.names).values()) if editor.metric_strength else {}
        moments = {name: torch.zeros(spec[name].num_in, spec[name].num_in) for name in inputs}
        bases = {name: base_preconditioner(moment_II, editor.metric_strength) for name, moment_II in moments.items()}
    for module in net.modules():
        if isinstance(module, ShapeNet):
            _observed(module.normaliser.count)
    schedule = replace(plan.schedule, episodes=1, burn_in=0)
    ready = replace(editor, policy=Policy(net, bases))
    trainer = ShapedTrainer(ready, model, [Fold(texts.edits(schedule.longest), bases)], schedule, plan.seed, plan.savings)
    trainer.texts = texts
    _begin_adam(trainer)
    return trainer


def _begin_adam(trainer: Trainer) -> None:
    """Its moments are there from the first step on."""
    for parameter in trainer.net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()


def _observed(count: Tensor) -> None:
    """The normaliser has seen rows, and says so also where tensors have no numbers."""
    if isinstance(count, FakeTensor):
        count.constant = SEEN
    else:
        count.copy_(SEEN)


def owners_of(trainer: ShapedTrainer) -> Mapping[str, Sequence[Tensor]]:
    """What an episode keeps on purpose; the rest of its tensors are graphs and values in between."""
    alive: dict[type, list[Any]] = {PrefixCache: [], ShapedStep: [], AppliedUpdate: [], KeyPreconditioner: []}
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
    ]
    return {
        "trunks": _tensors([cache.outputs for cache in alive[PrefixCache]]),
        "base log-probs": _tensors([step._base_log_probs for step in alive[ShapedStep]]),
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
    """Those in containers in containers."""
    if isinstance(value, Tensor):
        return [value]
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [tensor for one in inside for tensor in _tensors(one)]


PARTS = ("model", "network", "metric", "updates", "network's graph", "trunks", "base log-probs", "logits", "model's graph")


@dataclass(frozen=True)
class Counted:
    """Bytes before an episode, at its peak, and what the peak is made of."""

    start_bytes: int
    peak_bytes: int
    parts: Mapping[str, int]


@dataclass(frozen=True)
class ScoredOnce(Reward):
    """Every step is scored on its own batch alone. What is scored again needs no more than it did at first: there is one graph
    at a time. What is kept for later stays as long as by the depth of backtracking."""

    def backtracked(self, t: int, generator: random.Random) -> list[int]:
        return [t]


def scored_once(plan: Plan) -> Plan:
    return replace(plan, editor=replace(plan.editor, reward=ScoredOnce(**vars(plan.editor.reward))))


def count_episode(plan: Plan, texts: Texts, make: Callable[[str], LanguageModel], device: str = DEVICE) -> Counted:
    """One episode and the step after it. The device is `meta`, or `cpu` for the same with numbers."""
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


def episode_rows(plan: Plan, texts: Texts, ways: Sequence[MemoryOptions]) -> list[dict[str, Any]]:
    rows = []
    for savings in ways:
        console.print(f"an episode with {savings} ...", highlight=False)
        counted = count_episode(replace(scored_once(plan), savings=savings), texts, partial(model_of, plan))
        gib = {part: counted.parts.get(part, 0) / 2**30 for part in PARTS}
        total = counted.peak_bytes / 2**30
        rows.append({**asdict(savings), "peak_gib": total, "left_gib": GPU_GIB - total, **gib})
    return rows


def ways_of(plan: Plan) -> list[MemoryOptions]:
    """None, each alone, the plan's, and all."""
    most = MemoryOptions(plan.savings.micro_batch or 64, recompute=True, on_host=True)
    alone = [replace(MemoryOptions(), **{name: value}) for name, value in asdict(most).items()]
    return list(dict.fromkeys([MemoryOptions(), *alone, plan.savings, most]))


# -- how far the count is from the truth ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """A Llama of an eighth of 8B's widths and a quarter of its layers, in fp32, trained for an episode with numbers, too."""

    layers: int = 8
    hidden: int = 512
    intermediate: int = 1792
    vocabulary: int = 16032
    batches: int = 4
    batch_size: int = 5
    texts: Texts = Texts()

    def plan(self, plan: Plan, savings: MemoryOptions) -> Plan:
        """The plan's editor at that size: the last third of the layers is edited."""
        edited = range(self.layers * 2 // 3, self.layers - 1)
        modules = tuple(f"layers.{layer}.mlp.{matrix}" for layer in edited for matrix in ("gate_proj", "up_proj"))
        editor = replace(plan.editor, modules=modules, rank=128)
        return replace(plan, editor=editor, schedule=Schedule(1, 1, self.batches, self.batch_size), savings=savings)

    def make(self, device: str) -> LanguageModel:
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=8,
            num_key_value_heads=2,
        )
        with torch.device(device):
            module: nn.Module = LlamaForCausalLM(config)
        return LanguageModel(module.eval().requires_grad_(False), None, "random")


def resident(plan: Plan, check: Check) -> int:
    """Bytes of memory that Linux counts for an episode, beyond what the model, the policy and Adam have."""
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)  # what is let go of goes back to the system at once
    trainer_of(plan, check.make("cpu"), Texts(1, 1), "cpu").step()  # libraries are loaded, and make their code, on first use
    trainer = trainer_of(plan, check.make("cpu"), check.texts, "cpu")
    with PeakMemory() as peak:
        trainer.step()
    assert peak.num_bytes is not None, "the kernel does not tell: /proc/self/clear_refs cannot be written"
    return peak.num_bytes


def check_rows(plan: Plan, check: Check, ways: Sequence[MemoryOptions]) -> list[dict[str, Any]]:
    """What an episode adds to model, policy and Adam, counted without numbers and with them, and as the system sees it."""
    rows = []
    for savings in ways:
        small = check.plan(plan, savings)
        without, having = (count_episode(small, check.texts, check.make, device) for device in (DEVICE, "cpu"))
        counted, resident_bytes = without.peak_bytes - without.start_bytes, in_fresh_process(resident, small, check)
        rows.append(
            {
                **asdict(savings),
                "counted_bytes": counted,
                "with_numbers_bytes": having.peak_bytes - having.start_bytes,
                "resident_bytes": resident_bytes,
                "error": counted / resident_bytes - 1,
            }
        )
    return rows


# -- serving ---------------------------------------------------------------------------------------------------------------


def serving_rows(plan: Plan, texts: Texts, batch_sizes: Sequence[int] = (16, 100)) -> list[dict[str, Any]]:
    """What an edit worker and a replica keep for a policy of the plan, and what a batch of edits takes in between."""
    itemsize = getattr(torch, plan.dtype).itemsize
    with fakes(), Accounting(DEVICE) as accounting:
        model = model_of(plan, DEVICE)
        model_bytes = accounting.now_bytes
        trainer = trainer_of(plan, model, texts, DEVICE)
        spec = trainer.net.spec
        editing = {f"a batch of {n} edits, at most": _edit_bytes(accounting, trainer, n) for n in batch_sizes}
    policy = sum(t.nbytes for t in (*trainer.net.parameters(), *trainer.net.buffers()))
    entries = sum(m.num_in * m.num_out for m in spec.matrices)
    partners = {name for matrix in spec.names for name in fused_partners(matrix)}
    fused_entries = sum(model.module.get_submodule(name).weight.numel() for name in partners)
    widths = [len(base_II) for base_II in trainer.folds[0].base_preconditioners.values()] if plan.editor.memory else []
    keys = 1000 * texts.answers
    whitened = sum(8 * min(keys, width // 2 + 1) * width for width in widths)
    parts = {
        "edit worker": {
            f"the model, in {plan.dtype}": model_bytes,
            "the policy, in fp32": policy,
            "its metric, in fp64": sum(8 * width**2 for width in widths),
            "base of the edited matrices": itemsize * entries,
            "their fp32 sums": 4 * entries,
            "keys of 1,000 past edits, in fp32": 4 * keys * sum(widths),
            "the same whitened, in fp64": whitened,
            **editing,
        },
        "replica, in host memory": {
            "base of the edited matrices and their partners": itemsize * fused_entries,
            "fp32 sums of the edited ones": 4 * entries,
        },
    }
    return [{"where": where, "what": what, "gib": n / 2**30} for where, found in parts.items() for what, n in found.items()]


def _edit_bytes(accounting: Accounting, trainer: ShapedTrainer, num_edits: int) -> int:
    """What one edit of so many facts needs beyond what is there before it."""
    batch, net, model = EditBatch(tuple(trainer.texts.edits(num_edits))), trainer.net, trainer.model
    encoded = trainer.texts.encoded(num_edits, model.device)
    cache = BatchCache(encoded, PrefixCache(model.module, net.spec.names))
    gc.collect()
    before = accounting.peak_bytes = accounting.now_bytes
    trainer.editor.edit(model, batch, EditorState(), cache)
    return accounting.peak_bytes - before


# -- the command -----------------------------------------------------------------------------------------------------------

NOTE = (
    f"GiB at the peak of an episode and the optimiser's step. left: of the {GPU_GIB:g} of an 80 GB GPU beside its context.\n"
    "model's graph: what the passes behind the trunk keep for their gradient, and every other value in between."
)
CHECK_NOTE = (
    "what an episode adds to model, policy and Adam. resident: as Linux counts it, in a process of its own; error: of the\n"
    "count, which is made without numbers, against that."
)


def run(plan: Plan, texts: Texts, check: Check, command: str) -> Path:
    """Everything, printed and written to `$ERRATA_HOME/bench-memory/report.json`."""
    about = {"command": command, "seed": plan.seed, "hardware": hardware(), "texts": asdict(texts)}
    console.print(*(f"{name}: {value}" for name, value in about.items()), sep="\n", highlight=False)
    found = check_rows(plan, check, [MemoryOptions(), plan.savings])
    show("The count against the truth, on a small model", found, CHECK_NOTE)
    serving = serving_rows(plan, texts)
    show(f"An editor of plan {plan.name} that serves", serving)
    rows = episode_rows(plan, texts, ways_of(plan))
    size = f"{plan.schedule.batches} x {plan.schedule.batch_size}"
    show(f"An episode of plan {plan.name}, {size} edits", rows, NOTE)
    return write_report("bench-memory", rows, **about, check=found, serving=serving)


def main(arguments: Sequence[str]) -> None:
    own = [argument for argument in arguments if argument.startswith("texts.")]
    texts = Texts()
    for argument in own:
        name, _, value = argument.partition("=")
        texts = overridden(texts, name.removeprefix("texts."), value)
    rest = [argument for argument in arguments if argument not in own]
    plan = from_arguments(rest if any(a.startswith("plan=") for a in rest) else ["plan=llama3_8b", *rest])
    run(plan, texts, Check(), f"make bench-memory ARGS='{' '.join(arguments)}'")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as wrong:
        sys.exit(f"memory: {wrong}")
