"""What a training plan is."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from errata.editors.hypernet.hypernet_editor import HypernetworkEditor
from errata.editors.hypernet.reward import MemoryOptions
from errata.editors.hypernet.training import Schedule
from errata.home import home
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
    editor: HypernetworkEditor
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
    savings: MemoryOptions = field(default_factory=MemoryOptions)
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
