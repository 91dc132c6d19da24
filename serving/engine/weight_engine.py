"""The weight-transfer engine inside every vLLM worker: reads deltas, and reloads the edited matrices.

An update names its parent version and the files of its deltas (factors, not matrices). It is read and checked before the
engine is paused, in a thread of its own, since a reset takes as long as the sum over its whole chain. Then the edited modules
are reloaded from the base matrices plus an fp32 sum, a whole fused group at a time: a group is the matrices that vLLM keeps
in one module, and a part reloaded alone leaves the rest silently wrong. The base is read from the checkpoint, since a packed
CPU linear has no weight to read back. After a failure inside the reload the worker is unusable (`intact` is False), and the
replica must be replaced.

An update of a memory changes no matrix: it is read and checked as any other, and `follow` makes it the worker's version.

`load_weights` shards by itself, so each tensor-parallel worker gets whole matrices. All calls that change weights are here.
"""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from safetensors import SafetensorError
from torch import Tensor, nn, set_num_threads  # vLLM's worker for the CPU replaces torch's by a function that does nothing.
from transformers import AutoConfig, AutoModelForCausalLM
from vllm.config import set_current_vllm_config
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from errata.delta.accumulator import Accumulator
from errata.delta.kinds import Delta, memory_of, weights_of
from errata.delta.memory_delta import MemoryDelta, held_after
from errata.delta.weight_delta import WeightDelta
from errata.edit_memory.bank import IN_LAYERS, PER_TOKEN, READ_BEFORE, Bank
from errata.edit_memory.experts import ExpertsHooks
from errata.ledger import read_segments
from errata.model.matrices import editable_matrices
from serving.engine.checkpoint import Checkpoint, served_module
from serving.engine.edit_memory.fired_notes import FiredNotes
from serving.engine.edit_memory.logits_hook import LogitsHook, MixingHook
from serving.engine.edit_memory.memory_check import check_engine, check_site
from serving.engine.edit_memory.module_hook import experts_hook, places_of

logger = logging.getLogger("errata")

BACKEND = "errata"
EXTENSION = "serving.engine.weight_engine.WorkerExtension"
# The first call waits this long for the update: most updates are read by then, and need no second call.
FIRST_WAIT_S = 0.05


@dataclass
class InitInfo(WeightTransferInitInfo):
    """The folder of the served checkpoint, the names of the editable matrices, and the base model's fingerprint."""

    model: str
    matrices: list[str]
    fingerprint: str


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """An update from `parent` to `version` by the deltas of `files`; with `reset`, from the base model instead."""

    parent: int
    version: int
    reset: bool
    files: list[str]
    fingerprint: str


class UpdateFault(TypedDict):
    """The reason why a worker cannot make an update: reading failed, a file is invalid, or it belongs to another lineage.

    `io` may pass, as when a disk fails or memory runs out; the other kinds are permanent.
    """

    kind: Literal["io", "invalid", "lineage"]
    message: str


@dataclass
class _State:
    """The version of the worker's weights.

    `intact` is False from the start of a reload to its end. `dense_bytes` is the size of the last update as whole matrices.
    """

    version: int
    fingerprint: str
    intact: bool = True
    dense_bytes: int = 0


@dataclass
class _Prepared:
    """An update that is read and checked; `changed` are the names of the matrices that it changes.

    `records` are the changes of the memory that is read inside the model, and `bank` is that memory: first as it was.
    `sums` is the base with all deltas of a reset, summed before the pause; so a long chain is never in memory.
    """

    update: UpdateInfo
    bank: Bank | None
    changed: set[str] = field(default_factory=set)
    records: list[MemoryDelta] = field(default_factory=list)
    deltas: list[WeightDelta] = field(default_factory=list)
    sums: Accumulator | None = None

    def take(self, delta: WeightDelta) -> None:
        self.changed |= set(delta.parts)
        if self.sums is None:
            self.deltas.append(delta)
        else:
            self.sums.add(delta)


class DeltaEngine(WeightTransferEngine[InitInfo, UpdateInfo]):
    """The engine `errata` of vLLM's weight-transfer interface.

    Base matrices and sums stay in host memory, because GPU memory belongs to the KV cache, and because the bits are then the
    same on every device and equal to those of `EditedModel`.
    """

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo
    supports_draft_weight_update = False
    notes: FiredNotes | None = None

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Read the base of the editable matrices and of their fused partners. Raises `ValueError` naming what is missing."""
        architecture = self._architecture(init_info.model)
        self.checkpoint = Checkpoint(init_info.model, architecture)
        self.spec, self.embeddings = editable_matrices(architecture), embedding_sites(architecture)
        self.targets = self._served_modules(init_info.matrices)
        names = self._completed(init_info.matrices)
        self.accumulator = Accumulator({name: self._base(name) for name in names}, in_place=True)
        self.beside = {name: self.checkpoint.beside(name) for name in names}
        self.base_fingerprint = init_info.fingerprint
        self.state = _State(0, init_info.fingerprint)
        self.prepared: _Prepared | None = None
        self.bank: Bank | None = None
        self.hook: LogitsHook | MixingHook | ExpertsHooks | None = None
        self.reader = ThreadPoolExecutor(1, "errata-reader")

    def _architecture(self, model: str) -> nn.Module:
        """Make the transformers model without weights, for names, sizes and orientation.

        vLLM runs some models (Phi) by classes of transformers that it changes in this process; they need its configuration.
        """
        with torch.device("meta"), set_current_vllm_config(self.vllm_config):
            module: nn.Module = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
        return module

    def _served_modules(self, needed: Sequence[str]) -> dict[str, nn.Module]:
        """Find vLLM's module of every matrix. Raises `ValueError` with the matrices of `needed` that have none."""
        modules, keys = dict(self.model.named_modules()), self.checkpoint.keys
        weights = {matrix.name: matrix.weight for matrix in self.spec.matrices}
        found = {name: served_module(self.model, modules, (keys.get(full, full), full)) for name, full in weights.items()}
        if missing := [name for name in needed if found.get(name) is None]:
            raise ValueError(f"vLLM's {type(self.model).__name__} has no module for {', '.join(missing)}")
        return {name: module for name, module in found.items() if module is not None}

    def _completed(self, names: Iterable[str]) -> list[str]:
        """Complete names to whole fused groups, in the model's order."""
        wanted = {id(self.targets[name]) for name in names}
        return [name for name, module in self.targets.items() if id(module) in wanted]

    def _base(self, name: str) -> Tensor:
        return self.spec[name].oriented(self.checkpoint.weight(name)).to(self.model_config.dtype)

    def begin(self, update_info: dict[str, Any]) -> None:
        """Start to prepare an update in a thread, while tokens are generated."""
        self.reading: Future[UpdateFault | None] = self.reader.submit(self.prepare, update_info)

    def reading_after(self, seconds: float) -> dict[str, Any]:
        """Wait at most `seconds` for the update; report whether it is read, its fault or None, and if weights change."""
        wait([self.reading], seconds)
        is_read = self.reading.done()
        fault = _fault_of(self.reading) if is_read else None
        return {
            "is_read": is_read,
            "fault": fault,
            "changes_weights": self.prepared is not None and self._changes_weights(self.prepared),
        }

    def prepare(self, update_info: dict[str, Any]) -> UpdateFault | None:
        """Read and check an update, changing nothing. Returns the fault that prevents it, or None."""
        update = self.parse_update_info(update_info)
        if not update.reset and update.parent != self.state.version:
            message = f"the update starts from version {update.parent}, this worker has version {self.state.version}"
            return {"kind": "lineage", "message": message}
        self.prepared, prepared = None, _Prepared(update, None if update.reset else self.bank)
        if update.reset:
            prepared.sums, prepared.changed = self._unedited(), set(self.accumulator.sum_OI)
        lineage = self.base_fingerprint if update.reset else self.state.fingerprint
        try:
            for path in update.files:
                for delta in read_segments(Path(path)):
                    self._take(prepared, delta)
                    lineage = hashlib.sha256((lineage + delta.digest()).encode()).hexdigest()
            prepared.bank = held_after(prepared.records, prepared.bank)
        except (ValueError, OSError, SafetensorError) as fault:
            kind: Literal["io", "invalid"] = "io" if isinstance(fault, OSError) else "invalid"
            return {"kind": kind, "message": f"{type(fault).__name__}: {fault}"}
        if prepared.bank is not None and len(prepared.bank):
            prepared.bank.on(self.device)  # Here, where no request waits.
        if lineage != update.fingerprint:
            message = f"the files make {lineage}, not version {update.version}, which is {update.fingerprint}"
            return {"kind": "lineage", "message": message}
        self.prepared = prepared
        return None

    def _take(self, prepared: _Prepared, delta: Delta) -> None:
        """Check a delta and take it into an update. Raises `ValueError` for one that this model cannot have."""
        weights, memory = weights_of(delta), memory_of(delta)
        self.accumulator.check(weights)
        prepared.take(weights)
        if memory is None:
            return
        memory.check()
        if memory.kind not in READ_BEFORE:
            shapes = {name: (base_OI.shape[0], base_OI.shape[1]) for name, base_OI in self.accumulator.base_OI.items()}
            check_site(memory, shapes, self.embeddings)
            check_engine(self.model_config, self.parallel_config)
        if memory.kind in PER_TOKEN:
            prepared.records.append(memory)

    def _unedited(self) -> Accumulator:
        """Copy the accumulator: the same base matrices, without sums."""
        unedited = copy.copy(self.accumulator)
        unedited.reset()
        return unedited

    def start_weight_update(self) -> None:
        """Do nothing: `receive_weights` starts the reload, after every check that can refuse the update."""

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Reload the changed matrices. Raises `ValueError` before anything changes if the update cannot be made."""
        prepared = self._taken(update_info)
        self.state.intact = False
        self._adopt(prepared)
        dense_bytes = self._reload(prepared.changed) if prepared.changed else 0
        self.state = _State(update_info.version, update_info.fingerprint, dense_bytes=dense_bytes)

    def follow(self, update_info: UpdateInfo) -> None:
        """Make an update that changes no weights this worker's version. Raises `ValueError` if it is not one of these."""
        prepared = self._taken(update_info)
        if self._changes_weights(prepared):
            raise ValueError(f"version {update_info.version} changes weights, which are reloaded while the engine is paused")
        self._adopt(prepared)
        self.state = _State(update_info.version, update_info.fingerprint)

    def _changes_weights(self, prepared: _Prepared) -> bool:
        """Say if an update changes weights, or a bank that is as good as one, since keys and values depend on it."""
        banks = (self.bank, prepared.bank) if prepared.bank is not self.bank else ()
        return bool(prepared.changed) or any(bank is not None and bank.kind in IN_LAYERS for bank in banks)

    def _taken(self, update_info: UpdateInfo) -> _Prepared:
        """Return the prepared update, and keep it no longer. Raises `ValueError` if it cannot be prepared."""
        if self.prepared is None or self.prepared.update != update_info:
            fault = self.prepare(asdict(update_info))
            if fault is not None:
                raise ValueError(fault["message"])
        assert self.prepared is not None
        prepared, self.prepared = self.prepared, None
        return prepared

    def _adopt(self, prepared: _Prepared) -> None:
        """Take the sums and the bank of an update; its matrices are not reloaded yet."""
        if prepared.sums is not None:
            self.accumulator = prepared.sums
        for delta in prepared.deltas:
            self.accumulator.add(delta)
        if prepared.bank is not self.bank:
            self._read(prepared.bank)

    def _read(self, bank: Bank | None) -> None:
        """Make the model read a bank from the next step on. Without records there is no hook, and so the model's own bits."""
        if self.hook is not None:
            self.hook.remove()
        self.bank, self.hook = bank, None
        if bank is not None and len(bank):
            if bank.kind == "state":
                self.hook = LogitsHook(self.model, self.targets[bank.site], bank, self.notes)
            elif bank.kind == "experts":
                self.hook = experts_hook(self.model, places_of(self.spec, self.targets), bank, self.notes)
            else:
                self.hook = MixingHook(self.model, bank, self.notes)

    def finish_weight_update(self) -> None:
        """Do nothing; see `start_weight_update`."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":  # The base class always synchronises, which fails without an accelerator.
            torch.accelerator.synchronize(self.device)

    def shutdown(self) -> None:
        """Do nothing: the process frees everything."""

    def _reload(self, changed: set[str]) -> int:
        """Reload the changed matrices, completed to whole fused groups, with their biases; returns their bytes.

        A module that is reloaded without one of its tensors raises nothing and answers wrongly.
        """
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


def _fault_of(reading: Future[UpdateFault | None]) -> UpdateFault | None:
    """Return the fault of an update that was read. Any exception is one: raised here, it would be no refusal to the replica."""
    error = reading.exception()
    if error is None:
        return reading.result()
    logger.error("an update cannot be prepared", exc_info=error)
    kind: Literal["io", "invalid"] = "io" if isinstance(error, MemoryError | torch.OutOfMemoryError) else "invalid"
    return {"kind": kind, "message": f"{type(error).__name__}: {error}"}


def embedding_sites(architecture: Any) -> dict[str, int]:
    """Return the names of the input embeddings and of the output layer, with the size of the vectors at both."""
    layers = {id(layer) for layer in (architecture.get_input_embeddings(), architecture.get_output_embeddings())}
    return {name: module.weight.shape[1] for name, module in architecture.named_modules() if id(module) in layers}


class WorkerExtension:
    """Methods that vLLM adds to its workers for `collective_rpc`; unlike those of the interface they return an answer."""

    weight_transfer_engine: DeltaEngine
    model_runner: Any

    def errata_prepare(self, update_info: dict[str, Any]) -> dict[str, Any]:
        self.weight_transfer_engine.begin(update_info)
        return self.weight_transfer_engine.reading_after(FIRST_WAIT_S)

    def errata_reading(self) -> dict[str, Any]:
        return self.weight_transfer_engine.reading_after(0)

    def errata_follow(self, update_info: dict[str, Any]) -> dict[str, Any]:
        engine = self.weight_transfer_engine
        engine.follow(engine.parse_update_info(update_info))
        return self.errata_state()

    def errata_state(self) -> dict[str, Any]:
        return asdict(self.weight_transfer_engine.state)

    def errata_read_embeddings(self, are_read: bool) -> None:
        """Read prompts whose requests bring embeddings along, from the next step on.

        vLLM's own flag would open its routes to embeddings of clients, and add a token to the tokenizer.
        """
        if not hasattr(self.model_runner, "enable_prompt_embeds"):
            raise RuntimeError("this runner of vLLM reads no embeddings: set VLLM_USE_V2_MODEL_RUNNER=0, or use another editor")
        self.model_runner.enable_prompt_embeds = are_read

    def errata_note_fired(self) -> None:
        """Note the edits of a memory that is read here, by request."""
        engine = self.weight_transfer_engine
        engine.notes = engine.notes or FiredNotes(self.model_runner)

    def errata_fired(self, name: str) -> list[tuple[str, float]]:
        """Return the edits that fired for a request of this name, and forget them."""
        notes = self.weight_transfer_engine.notes
        return [] if notes is None else notes.take(name)

    def errata_threads(self, count: int) -> int:
        """Compute with so many threads from the next step on, if they are not bound to cores; returns their number."""
        set_num_threads(count)
        return torch.get_num_threads()
