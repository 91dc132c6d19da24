"""Named plans: complete descriptions of a run. A job takes `plan=NAME` and `field=value` overrides, dots for nested fields.

A new plan is a function here, found by its name, or a row of the papers' table (errata/editors/presets.py), found by editor,
model and dataset: `rledit_llama3_8b_zsre`. `python jobs/train.py plans` lists all of them, docs/plans.md describes them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path

import torch

from errata.editors import EDITORS
from errata.editors.hypernet.learned import Learned
from errata.editors.hypernet.rledit import RLEdit
from errata.editors.hypernet.training import Schedule
from errata.editors.hypernet.trajectory import FOR_LARGE_MODELS, Reward, Savings
from errata.editors.presets import MODELS, Preset, in_short, preset_of, presets_of
from errata.home import home
from errata.overrides import overridden
from errata.testbed.counterfact import CounterFact
from errata.testbed.language_model import Shape
from errata.testbed.world import World

# Fields of a plan that change no result.
OF_THE_RUN = (
    "mlflow",
    "checkpoint_every",
    "name",
    "storage",
    "placement",
    "min_workers",
    "dataset",
    "savings",
    "gpus_per_worker",
)
MARK = 0.001  # of a custom resource that says where to run, not how much of it is used


@dataclass(frozen=True)
class Plan:
    """Editor x model x stream x run size.

    `model` is a Hugging Face folder or name, `edits` a file of training edits and `text` one of plain sentences (a line each);
    left empty, `corpus` stands in for all three, with a Llama of `shape` that has learned it. The editor's metric is measured
    on all that the model has learned (true sentences, never edits) or, with `metric_part`, on a part of it such as `train`.
    With `cross_fit` it is trained on edits that its metric knows nothing of: an episode's edits are of one fold of the
    corpus' train half, the metric that it is played in is of the other.

    With `dataset` no corpus stands in: it is the dataset that the plan's layers were chosen on, and `edits` is a file of it (or
    of our own format, into which it was converted); `any` takes whatever `edits` holds.

    On a cluster: `storage` is where Ray keeps checkpoints, a folder that all nodes share or a URI that pyarrow opens;
    `placement` a custom resource of the nodes that alone are to train, such as `train`; `mlflow` the tracking server. With
    `min_workers` training goes on with as few workers where nodes are lost, and takes up to `num_workers` again when there
    are more; without, it waits until there is place for all. The policy is the same. A model too large for one GPU is spread
    over `gpus_per_worker`; `savings` spare memory of each (docs/memory.md).
    """

    name: str
    editor: Learned
    schedule: Schedule = field(default_factory=Schedule)
    model: str = ""
    edits: str = ""
    text: str = ""
    dataset: str = ""
    dtype: str = "float32"
    corpus: World | CounterFact = field(default_factory=lambda: World(150))
    shape: Shape = field(default_factory=Shape)
    metric_part: str = ""
    cross_fit: bool = False
    seed: int = 0
    num_workers: int = 2
    min_workers: int = 0
    use_gpu: bool = False
    gpus_per_worker: int = 1
    savings: Savings = field(default_factory=Savings)
    checkpoint_every: int = 10
    mlflow: str = ""
    storage: str = ""
    placement: str = ""

    def __post_init__(self) -> None:
        if self.storage and "://" not in self.storage and not Path(self.storage).is_absolute():
            raise ValueError(f"storage is an absolute path or a URI such as s3://bucket/folder, not {self.storage!r}")
        if self.cross_fit and (self.edits or self.text):
            raise ValueError("cross_fit divides the plan's corpus: leave it out, or edits= and text=")

    def check_workers(self) -> None:
        """Apart from what is checked when a plan is made, so that its fields can be set one by one. Raises `ValueError`."""
        if self.num_workers < 1:
            raise ValueError(f"num_workers is at least 1, not {self.num_workers}")
        if self.gpus_per_worker < 1 or (self.gpus_per_worker > 1 and not self.use_gpu):
            raise ValueError(f"gpus_per_worker is at least 1, and above it with use_gpu=True, not {self.gpus_per_worker}")
        if not 0 <= self.min_workers <= self.num_workers:
            raise ValueError(f"min_workers is at most num_workers={self.num_workers}, or 0, not {self.min_workers}")

    def check_gpus(self) -> None:
        """Apart, too: not where the plan is read, but where it is to run. A cluster's GPUs may come when they are asked for; a
        Ray of this process has those of this machine, and would wait for others in vain. Raises `ValueError`.
        """
        wanted, there = (self.min_workers or self.num_workers) * self.gpus_per_worker, torch.cuda.device_count()
        if self.use_gpu and "RAY_ADDRESS" not in os.environ and there < wanted:
            raise ValueError(
                f"plan {self.name} wants {wanted} GPUs, and torch finds {there} on this machine: submit it to a cluster "
                "(`ray job submit`), or take fewer workers, num_workers=, or use_gpu=False"
            )

    def digest(self, *fields: str) -> str:
        """A short hash of some fields, or of all that change the result."""
        chosen = dataclasses.asdict(replace(self, editor=replace(self.editor, policy=None)))
        chosen = {k: v for k, v in chosen.items() if (k in fields if fields else k not in OF_THE_RUN)}
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def model_dir(self) -> Path:
        """Where the model is: as given, or the testbed's place in the cache."""
        return Path(self.model) if self.model else home() / "testbed" / self.digest("corpus", "shape")

    @property
    def artifact_dir(self) -> Path:
        return home() / "hypernets" / f"{self.name}-{self.digest()}"

    def storage_for(self, kind: str) -> str:
        """The folder or URI for Ray's runs of a kind, `train` or `tune`: under `storage`, $ERRATA_STORAGE or $ERRATA_HOME."""
        return f"{(self.storage or os.environ.get('ERRATA_STORAGE') or str(home())).rstrip('/')}/{kind}"


def tiny() -> Plan:
    """The smallest run that does everything, for tests: minutes of training are seconds here, and the scores are poor."""
    shape = Shape(hidden=64, layers=2, intermediate=192, heads=2, train_steps=60, sentences_per_step=128, peak_lr=5e-3)
    editor = RLEdit(modules=("layers.1.mlp.down_proj",), rank=32, reward=Reward(backtrack_depth=1))
    return Plan(
        "tiny", editor, Schedule(train_steps=4, batches=3, batch_size=4), corpus=World(20), shape=shape, checkpoint_every=2
    )


def demo() -> Plan:
    """What `make demo` trains: the last down-projection of the testbed's Llama."""
    editor = RLEdit(
        modules=("layers.3.mlp.down_proj",),
        metric_strength=1e5,
        first_step=0.4,
        first_ridge=1.0,
        num_passes=3,
        reward=Reward(backtrack_depth=2, backtrack_uniform=True, locality_weight=0.7),
    )
    return Plan("demo", editor, Schedule(train_steps=30, burn_in=6))


def demo_gate_up() -> Plan:
    """The demo with the matrices that the paper edits, gate and up, which a serving engine fuses."""
    plan = demo()
    editor = replace(plan.editor, modules=("layers.3.mlp.gate_proj", "layers.3.mlp.up_proj"))
    return replace(plan, name="demo_gate_up", editor=editor)


def of_model(model: str) -> Plan:
    """A model of the table, on a GPU: RLEdit's matrices and network, and our own settings for the rest."""
    known = MODELS[model]
    return Plan(
        model,
        RLEdit(modules=preset_of(RLEdit, model).modules, rank=1024, num_blocks=4, learning_rate=1e-4),
        Schedule(train_steps=400, batches=20, batch_size=20),
        model=known.hub,
        dataset="any",
        dtype=known.dtype,
        use_gpu=True,
        num_workers=1,
        savings=FOR_LARGE_MODELS,
    )


def of_paper(kind: type[Learned], name: str) -> Plan:
    """A row of the table: the paper's matrices, constants and batches."""
    row = preset_of(kind, name)
    plan = of_model(row.model)
    return replace(
        plan,
        name=f"{kind.__name__.lower()}_{name}",
        editor=kind.preset(name),
        schedule=replace(plan.schedule, **row.training),
        dataset=row.dataset_of(name) or "any",
    )


OWN: dict[str, Callable[[], Plan]] = {plan.__name__: plan for plan in (tiny, demo, demo_gate_up)}
OF_MODELS: dict[str, Callable[[], Plan]] = {model: partial(of_model, model) for model in MODELS}
ROWS: dict[str, tuple[type[Learned], str, Preset]] = {
    f"{kind.__name__.lower()}_{name}": (kind, name, row)
    for kind in EDITORS.values()
    if issubclass(kind, Learned)
    for name, row in presets_of(kind).items()
}
OF_PAPERS: dict[str, Callable[[], Plan]] = {plan: partial(of_paper, kind, name) for plan, (kind, name, _) in ROWS.items()}
PLANS = OWN | OF_MODELS | OF_PAPERS


def listing() -> str:
    """A line for each plan: its name, its model, what it edits and, of a paper's, who says so."""
    lines = []
    for name, make in PLANS.items():
        plan, row = make(), ROWS[name][2] if name in ROWS else None
        source = f"{row.basis}: {row.source}" if row else "our settings"
        editor = type(plan.editor).__name__
        lines.append((name, editor, plan.model or "the testbed's Llama", in_short(plan.editor.modules), source))
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    return "\n".join("  ".join([*map(str.ljust, line, widths), line[-1]]) for line in lines)


def _names() -> str:
    groups = {"to try out": OWN, "our settings": OF_MODELS, "the papers' constants": OF_PAPERS}
    return "\n".join(
        textwrap.fill(", ".join(names), 120, initial_indent=f"  {title}: ", subsequent_indent=" " * 4, break_on_hyphens=False)
        for title, names in groups.items()
    )


def _plan(chosen: str) -> Plan:
    """By its name, or from a file that a sweep wrote."""
    if chosen.endswith(".json"):
        from jobs.plan_files import read_plan  # it imports this module

        return read_plan(Path(chosen))
    if chosen not in PLANS:
        near = get_close_matches(chosen, PLANS)
        meant = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(
            f"no plan is named {chosen!r}{meant}\n{_names()}\n  or a .json file that jobs/tune.py wrote; "
            "`python jobs/train.py plans` says what each is"
        )
    return PLANS[chosen]()


def from_arguments(arguments: Sequence[str]) -> Plan:
    """A plan from `plan=NAME field=value ...`. Raises `ValueError` naming an unknown plan or field and what there is."""
    pairs = [argument.partition("=") for argument in arguments]
    wrong = [argument for argument, (_, sign, _) in zip(arguments, pairs, strict=True) if not sign]
    if wrong:
        raise ValueError(f"arguments are written field=value; not so: {', '.join(wrong)}")
    values = {name: value for name, _, value in pairs}
    chosen = values.pop("plan", "demo")
    plan = _plan(chosen)
    for name, value in values.items():
        plan = overridden(plan, name, value)
    plan.check_workers()
    return plan


def main(run: Callable[[Plan], None], check: Callable[[Plan], None] = lambda plan: None) -> None:
    """What every job's `__main__` does: a plan from the command line, or a line that says what was wrong with it; with `plans`
    alone, their list.

    `check` raises `ValueError` where the job cannot do what the plan says.
    """
    if sys.argv[1:] == ["plans"]:
        print(listing())
        return
    try:
        plan = from_arguments(sys.argv[1:])
        check(plan)
        plan.check_gpus()
    except (ValueError, FileNotFoundError) as wrong:
        sys.exit(f"{Path(sys.argv[0]).name}: {wrong}")
    run(plan)
