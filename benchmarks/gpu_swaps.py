"""Swaps of a large model to another version, and one training step of RLEdit on it. Part of gpu_8b.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from benchmarks.gpu_edits import METRIC_STRENGTH, attempt, clear, gib, ready_policy
from benchmarks.random_llama import PROBES, REPHRASINGS, Size, made_edits
from errata.delta.accumulator import EditedModel
from errata.delta.weight_delta import WeightDelta
from errata.editors.hypernet.reward import FOR_LARGE_MODELS, MemoryOptions
from errata.editors.hypernet.training import Fold, Schedule, Trainer
from errata.hardware import PeakMemory
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from errata.timing import stage_seconds

LEARNING_RATE = 1e-5
SAVINGS = {"as planned for 8B": FOR_LARGE_MODELS, "none": MemoryOptions()}
_SECONDS = ("seconds", "seconds_min", "seconds_max")


def measure_training(model: LanguageModel, size: Size, repeats: int, seed: int) -> list[dict[str, Any]]:
    """Measure one optimiser step on one episode of RLEdit with its key preconditioner and the usual rewards.

    Once with the memory options for large models, once without any.
    """
    rows = []
    for name, savings in SAVINGS.items():
        row: dict[str, Any] = {"savings": name, "batches": size.episode_batches, "batch_size": size.episode_batch_size}
        found, error = attempt(partial(_training, model, size, savings, repeats, seed))
        clear()
        rows.append(row | dict.fromkeys((*_SECONDS, "peak_gib")) | (found or {}) | {"error": error})
    return rows


def _training(model: LanguageModel, size: Size, savings: MemoryOptions, repeats: int, seed: int) -> dict[str, Any]:
    schedule = Schedule(1 + repeats, 1, size.episode_batches, size.episode_batch_size)
    editor = replace(ready_policy(model, size, seed, METRIC_STRENGTH), learning_rate=LEARNING_RATE)
    fold = Fold(made_edits(schedule.longest, seed + 2, REPHRASINGS, PROBES), editor.trained_policy().base_preconditioners)
    trainer = Trainer(editor, model, [fold], schedule, seed, savings)
    trainer.step()
    with PeakMemory(model.device) as peak:
        seconds = _timed(trainer.step, repeats)
    return _spread(seconds) | {"peak_gib": gib(peak)}


def measure_swaps(model: LanguageModel, delta: WeightDelta, repeats: int, checkpoint: str = "") -> list[dict[str, Any]]:
    """Measure the seconds until the model in memory is another version, by what is loaded."""
    edited = EditedModel(model.module, find_matrices(model.module, tuple(delta.parts)))
    in_host_memory = WeightDelta.from_tensors(delta.to_tensors())
    model_bytes = sum(parameter.numel() * parameter.element_size() for parameter in model.module.parameters())
    ways: dict[str, tuple[int, Callable[[], Callable[[], Any]]]] = {
        "delta, made on this device": (delta.num_bytes, lambda: partial(edited.add, delta)),
        "delta from host memory, as a service adds it": (delta.num_bytes, lambda: partial(edited.add, in_host_memory)),
        "all weights, from pinned memory": (model_bytes, lambda: all_weights(model)),
    }
    if checkpoint:
        ways["all weights, from disk"] = model_bytes, lambda: partial(load_weights, model, checkpoint)
    rows: list[dict[str, Any]] = []
    for name, (num_bytes, ready) in ways.items():
        found, error = attempt(partial(_swapped, ready, repeats))
        edited.set(())
        blank: dict[str, Any] = {"swap": name, "num_bytes": num_bytes, **dict.fromkeys(_SECONDS)}
        rows.append(blank | (found or {}) | {"error": error})
    return rows


def _swapped(ready: Callable[[], Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Time a swap. The first is not counted, because no accumulated delta exists before it."""
    swap = ready()
    swap()
    return _spread(_timed(swap, repeats))


def _timed(work: Callable[[], Any], repeats: int) -> list[float]:
    found = []
    for _ in range(repeats):
        with stage_seconds() as seconds:
            work()
        found.append(seconds["total"])
    return found


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    return dict(zip(_SECONDS, (median(seconds), min(seconds), max(seconds)), strict=True))


def all_weights(model: LanguageModel) -> Callable[[], None]:
    """Copy every parameter from host memory, pinned if there is a GPU."""
    on_host = [parameter.detach().to("cpu", copy=True) for parameter in model.module.parameters()]
    if model.device.type == "cuda":
        on_host = [tensor.pin_memory() for tensor in on_host]

    def load() -> None:
        for parameter, tensor in zip(model.module.parameters(), on_host, strict=True):
            parameter.data.copy_(tensor, non_blocking=True)

    return load


def shards(folder: str) -> list[Path]:
    return sorted(Path(folder).glob("*.safetensors"))


def check_checkpoint(model: LanguageModel, folder: str) -> None:
    """Raise `ValueError` unless the folder's shards hold exactly the model's parameters."""
    found: dict[str, tuple[int, ...]] = {}
    for file in shards(folder):
        try:
            with safe_open(str(file), framework="pt") as opened:
                found |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        except SafetensorError as fault:
            raise ValueError(f"{file} cannot be read: {fault}") from fault
    wanted = {name: tuple(parameter.shape) for name, parameter in model.module.named_parameters()}
    if unlike := [name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)]:
        raise ValueError(f"{folder} is no checkpoint of this architecture: see {', '.join(sorted(unlike)[:3])}")


def load_weights(model: LanguageModel, folder: str) -> None:
    """Load every shard to the device and into the parameters, with the page cache as it is."""
    parameters = dict(model.module.named_parameters())
    for file in shards(folder):
        for name, tensor in load_file(str(file), device=str(model.device)).items():
            parameters[name].data.copy_(tensor)
