"""Training plan: editor, model, data and size of a run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from errata.editors.build import name_of
from errata.editors.hypernet.hypernet_editor import HypernetworkEditor
from errata.editors.hypernet.reward import MemoryOptions
from errata.editors.hypernet.training import Schedule
from errata.editors.trained_editor import TrainedEditor
from errata.home import home
from errata.testbed import smollm2
from errata.testbed.counterfact import CounterFact
from errata.testbed.language_model import Shape
from errata.testbed.world import World
from errata.testbed.world_facts import WorldFacts

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
NUM_TEXTS = 8192  # on which the keys' second moment is measured, at most
MARK = 0.001  # amount of a custom resource that only selects nodes


@dataclass(frozen=True)
class Plan:
    """Complete description of a training run: editor, model, stream of edits, and size.

    `model` is a Hugging Face folder or name, or the name of the default model, `edits` a file of training edits, and `text` a
    file of plain sentences, one a line. If they are empty, `corpus` supplies all three, with a Llama of `shape` trained on it.
    Of facts of the world, only those become edits that the model gets wrong. The editor's key preconditioner is measured on
    everything that the model has learned (true sentences, never edits) or, with `metric_part`, on a part of it such as `train`,
    on `num_texts` at most. With `cross_fit`, an episode's edits belong to one fold of the corpus' train half and its
    preconditioner to the other, so that the preconditioner excludes the facts that are edited.

    With `dataset`, no corpus is used: it names the dataset for which the plan's layers were chosen, and `edits` is a file of it
    or of our own schema. `any` accepts every format.

    On a cluster, `storage` is where Ray keeps checkpoints: a folder that all nodes share, or a URI that pyarrow opens.
    `placement` is a custom resource of the nodes that may train, such as `train`, and `mlflow` the tracking server. With
    `min_workers`, training continues with fewer workers after nodes are lost and returns to `num_workers` when there are more;
    otherwise it waits for all. The trained policy is the same. A model too large for one GPU is split over `gpus_per_worker`;
    `savings` reduce the memory of each (docs/device_memory.md).
    """

    name: str
    editor: TrainedEditor[Any]
    schedule: Schedule = field(default_factory=Schedule)
    model: str = ""
    edits: str = ""
    text: str = ""
    dataset: str = ""
    dtype: str = "float32"
    corpus: World | CounterFact | WorldFacts = field(default_factory=lambda: World(150))
    shape: Shape = field(default_factory=Shape)
    metric_part: str = ""
    num_texts: int = NUM_TEXTS
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
            raise ValueError("cross_fit splits the plan's corpus into folds: leave out cross_fit=, or edits= and text=")

    def check_workers(self) -> None:
        """Raise `ValueError` for impossible numbers of workers. Not in `__post_init__`: fields are set one by one."""
        if self.num_workers < 1:
            raise ValueError(f"num_workers is at least 1, not {self.num_workers}")
        if self.gpus_per_worker < 1 or (self.gpus_per_worker > 1 and not self.use_gpu):
            raise ValueError(f"gpus_per_worker is at least 1, and above it with use_gpu=True, not {self.gpus_per_worker}")
        if not 0 <= self.min_workers <= self.num_workers:
            raise ValueError(f"min_workers is at most num_workers={self.num_workers}, or 0, not {self.min_workers}")

    def check_gpus(self) -> None:
        """Raise `ValueError` if the run needs more GPUs than this machine has.

        Called where the plan runs, not where it is read. A cluster may add GPUs on demand; a Ray of this process would wait
        for them for ever.
        """
        wanted, there = (self.min_workers or self.num_workers) * self.gpus_per_worker, torch.cuda.device_count()
        if self.use_gpu and "RAY_ADDRESS" not in os.environ and there < wanted:
            raise ValueError(
                f"plan {self.name} needs {wanted} GPUs, and torch finds {there} on this machine: submit it to a cluster "
                "(`ray job submit`), or take fewer workers, num_workers=, or use_gpu=False"
            )

    def digest(self, *fields: str) -> str:
        """Hash the named fields, or all fields that change the result, to 12 hex digits."""
        chosen = dataclasses.asdict(replace(self, editor=self.editor.without_policy()))
        chosen = {k: v for k, v in chosen.items() if (k in fields if fields else k not in OF_THE_RUN)}
        if chosen.get("num_texts") == NUM_TEXTS:  # Plans were named before they had this field.
            del chosen["num_texts"]
        if not chosen.get("corpus", {}).get("note_share", True):
            del chosen["corpus"]["note_share"]
        if not self.schedule.re_edits and "schedule" in chosen:  # The same.
            del chosen["schedule"]["re_edits"], chosen["schedule"]["reversions"]
        network = self.editor.network if isinstance(self.editor, HypernetworkEditor) else None
        if "editor" in chosen and network == "full":  # The same.
            del chosen["editor"]["network"]
        if "editor" in chosen and not chosen["editor"].get("reward", {}).get("portability_weight", True):  # The same.
            del chosen["editor"]["reward"]["portability_weight"]
        if "editor" in chosen and network not in (None, "residual"):  # No other network departs from anything.
            del chosen["editor"]["reward"]["departure_penalty"]
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def hypernetwork(self) -> HypernetworkEditor:
        """The editor. Raises `ValueError` if it is a memory with a trained network, which lacks the fields of hypernetworks."""
        if isinstance(self.editor, HypernetworkEditor):
            return self.editor
        raise ValueError(
            f"plan {self.name} trains {name_of(self.editor)}, and a hypernetwork editor is needed here: choose another plan "
            "(`python jobs/train.py plans`)"
        )

    @property
    def model_dir(self) -> Path:
        """Folder or name of the model; the testbed's model is in the cache."""
        if self.model == smollm2.NAME:
            return smollm2.folder()
        return Path(self.model) if self.model else home() / "testbed" / self.digest("corpus", "shape")

    @property
    def artifact_dir(self) -> Path:
        """Folder of the trained policy."""
        return home() / "hypernets" / f"{self.name}-{self.digest()}"

    def storage_for(self, kind: str) -> str:
        """Folder or URI for Ray's runs of a kind (`train`, `tune`) under `storage`, $ERRATA_STORAGE or $ERRATA_HOME."""
        return f"{(self.storage or os.environ.get('ERRATA_STORAGE') or str(home())).rstrip('/')}/{kind}"
