"""The vLLM plugin: weight deltas in, edited matrices reloaded, inside every vLLM worker. Every weight call is here.

An update names its parent version and the files of its deltas (factors, not matrices). It is read and checked before the
engine is paused, in a thread of its own, since a reset takes as long as its whole chain takes to sum. Only then are the
edited modules reloaded, a whole fused group at a time (the matrices that vLLM keeps in one module; a part of it reloaded
alone leaves the rest silently wrong), from the base matrices (read from the checkpoint, since a packed CPU linear has no
weight to read back) plus an fp32 sum. A failure inside the reload leaves the worker unusable and says so (`intact`): the
replica must then be replaced.

`load_weights` shards by itself, so each tensor-parallel worker is given whole matrices.
"""

from __future__ import annotations

import copy
import hashlib
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from vllm.config import set_current_vllm_config
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from errata.delta.accumulator import Accumulator
from errata.delta.weight_delta import WeightDelta
from errata.ledger import read_segments
from errata.model.matrices import editable_matrices
from serving.engine.checkpoint import Checkpoint, _served_module

BACKEND = "errata"
EXTENSION = "serving.engine.weight_engine.WorkerExtension"
PARENT_PERIOD_S = 1.0
# The loop that generates waits so long for an update to be read: most are, and a swap then costs no second call.
READ_AT_ONCE_S = 0.05


@dataclass
class InitInfo(WeightTransferInitInfo):
    """The checkpoint folder that vLLM loaded, the module names that may be edited, and the base's fingerprint."""

    model: str
    matrices: list[str]
    fingerprint: str


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """From `parent` to `version` by the deltas of `files`; with `reset`, from the base model instead."""

    parent: int
    version: int
    reset: bool
    files: list[str]
    fingerprint: str


class UpdateFault(TypedDict):
    """The reason why a worker cannot make an update: reading failed, a file is invalid, or it belongs to another lineage."""

    kind: Literal["io", "invalid", "lineage"]
    message: str


@dataclass
class _State:
    """What the worker's weights are: `intact` is False from the start of a reload until its end. `dense_bytes` is what
    the last update would have weighed as whole matrices."""

    version: int
    fingerprint: str
    intact: bool = True
    dense_bytes: int = 0


@dataclass
class _Prepared:
    """`sums` is the base with all deltas of a reset: a long chain is not kept in memory, and is summed before the pause."""

    update: UpdateInfo
    deltas: list[WeightDelta] = field(default_factory=list)
    sums: Accumulator | None = None

    def take(self, delta: WeightDelta) -> None:
        if self.sums is None:
            self.deltas.append(delta)
        else:
            self.sums.add(delta)


class DeltaEngine(WeightTransferEngine[InitInfo, UpdateInfo]):
    """Keeps base matrices and sums in host memory: the GPU's was given to the KV cache, and the bits are then the same on
    every device and equal to those of `EditedModel`."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo
    supports_draft_weight_update = False

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Read the base of the editable matrices and of their fused partners. Raises `ValueError` naming what is missing."""
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
        architecture = self._architecture(init_info.model)
        self.checkpoint = Checkpoint(init_info.model, architecture)
        self.spec = editable_matrices(architecture)
        self.targets = self._served_modules(init_info.matrices)
        names = self._completed(init_info.matrices)
        self.accumulator = Accumulator({name: self._base(name) for name in names}, in_place=True)
        self.beside = {name: self.checkpoint.beside(name) for name in names}
        self.base_fingerprint = init_info.fingerprint
        self.state = _State(0, init_info.fingerprint)
        self.prepared: _Prepared | None = None
        self.reader = ThreadPoolExecutor(1, "errata-reader")

    def _architecture(self, model: str) -> nn.Module:
        """The transformers model without its weights: names, sizes and orientation. vLLM runs some models (Phi) by classes of
        transformers that it changes in this process, which then need its configuration to be made."""
        with torch.device("meta"), set_current_vllm_config(self.vllm_config):
            module: nn.Module = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
        return module

    def _served_modules(self, needed: Sequence[str]) -> dict[str, nn.Module]:
        """vLLM's module of every matrix that has one. Raises `ValueError` with those of `needed` that have none."""
        modules, keys = dict(self.model.named_modules()), self.checkpoint.keys
        weights = {matrix.name: matrix.weight for matrix in self.spec.matrices}
        found = {name: _served_module(self.model, modules, (keys.get(full, full), full)) for name, full in weights.items()}
        if missing := [name for name in needed if found.get(name) is None]:
            raise ValueError(f"vLLM's {type(self.model).__name__} has no module for {', '.join(missing)}")
        return {name: module for name, module in found.items() if module is not None}

    def _completed(self, names: Iterable[str]) -> list[str]:
        """The matrices, each with all that are in its module of vLLM's."""
        wanted = {id(self.targets[name]) for name in names}
        return [name for name, module in self.targets.items() if id(module) in wanted]

    def _base(self, name: str) -> Tensor:
        return self.spec[name].oriented(self.checkpoint.weight(name)).to(self.model_config.dtype)

    def begin(self, update_info: dict[str, Any]) -> None:
        """Have an update prepared while tokens are made."""
        self.reading: Future[UpdateFault | None] = self.reader.submit(self.prepare, update_info)

    def reading_after(self, seconds: float) -> dict[str, Any]:
        """Whether the update is prepared then, and what is wrong with it."""
        wait([self.reading], seconds)
        is_read = self.reading.done()
        return {"is_read": is_read, "fault": self.reading.result() if is_read else None}

    def prepare(self, update_info: dict[str, Any]) -> UpdateFault | None:
        """Read and check an update, changing nothing. Returns the fault that prevents it, or None."""
        update = self.parse_update_info(update_info)
        if not update.reset and update.parent != self.state.version:
            message = f"the update starts from version {update.parent}, this worker has version {self.state.version}"
            return {"kind": "lineage", "message": message}
        self.prepared, prepared = None, _Prepared(update, sums=self._unedited() if update.reset else None)
        lineage = self.base_fingerprint if update.reset else self.state.fingerprint
        try:
            for path in update.files:
                for delta in read_segments(Path(path)):
                    self.accumulator.check(delta)
                    lineage = hashlib.sha256((lineage + delta.digest()).encode()).hexdigest()
                    prepared.take(delta)
        except (ValueError, OSError, SafetensorError) as fault:
            kind: Literal["io", "invalid"] = "io" if isinstance(fault, OSError) else "invalid"
            return {"kind": kind, "message": f"{type(fault).__name__}: {fault}"}
        if lineage != update.fingerprint:
            message = f"the files make {lineage}, not version {update.version}, which is {update.fingerprint}"
            return {"kind": "lineage", "message": message}
        self.prepared = prepared
        return None

    def _unedited(self) -> Accumulator:
        """The same base, without sums."""
        unedited = copy.copy(self.accumulator)
        unedited.reset()
        return unedited

    def start_weight_update(self) -> None:
        """Nothing: the reload is opened in `receive_weights`, after everything that can be refused has been."""

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Reload what changes. Raises `ValueError` before anything is touched if the update cannot be made."""
        if self.prepared is None or self.prepared.update != update_info:
            fault = self.prepare(asdict(update_info))
            if fault is not None:
                raise ValueError(fault["message"])
        assert self.prepared is not None
        prepared, self.prepared = self.prepared, None
        self.state.intact = False
        changed: set[str] = set()
        if prepared.sums is not None:
            changed = set(self.accumulator.sum_OI) | set(prepared.sums.sum_OI)
            self.accumulator = prepared.sums
        for delta in prepared.deltas:
            self.accumulator.add(delta)
            changed |= set(delta.parts)
        dense_bytes = self._reload(changed)
        self.state = _State(update_info.version, update_info.fingerprint, dense_bytes=dense_bytes)

    def finish_weight_update(self) -> None:
        """Nothing: see `start_weight_update`."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":  # the base class synchronises always, which a CPU has no accelerator for
            torch.accelerator.synchronize(self.device)

    def shutdown(self) -> None:
        """Nothing is held that the process does not free."""

    def _reload(self, changed: set[str]) -> int:
        """Give vLLM the changed matrices, completed to whole fused groups, with their biases: a module that is reloaded
        without one of its tensors raises nothing and answers wrongly. Returns the bytes of the changed matrices."""
        names = self._completed(changed)
        modules = list({id(self.targets[name]): self.targets[name] for name in names}.values())
        for module in modules:
            initialize_layerwise_reload(module)
        self.model.load_weights(self._tensors(names))  # type: ignore[operator]
        for module in modules:
            finalize_layerwise_reload(module, self.model_config)
        return sum(self.accumulator.base_OI[name].nbytes for name in changed)

    def _tensors(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        for name in names:
            yield self.checkpoint.key_of(name), self.spec[name].oriented(self.accumulator.weight(name)).to(self.device)
            yield from ((key, tensor.to(self.device)) for key, tensor in self.beside[name])


def _end_with_parent(parent: int) -> None:
    """A replica that is killed outright leaves its engine running, with all its memory and nobody to ask it anything."""
    while os.getppid() == parent:
        time.sleep(PARENT_PERIOD_S)
    os._exit(1)


class WorkerExtension:
    """Methods that vLLM adds to its workers, for `collective_rpc`: they answer, where the interface's own return nothing."""

    weight_transfer_engine: DeltaEngine

    def errata_prepare(self, update_info: dict[str, Any]) -> dict[str, Any]:
        self.weight_transfer_engine.begin(update_info)
        return self.weight_transfer_engine.reading_after(READ_AT_ONCE_S)

    def errata_reading(self) -> dict[str, Any]:
        return self.weight_transfer_engine.reading_after(0)

    def errata_state(self) -> dict[str, Any]:
        return asdict(self.weight_transfer_engine.state)
