"""An edit by each editor on a large model: parts, memory, and the device's lower bound. Part of gpu_8b.py."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from typing import Any, TypeVar

import torch

from benchmarks.device_rates import Rates, Work, counted
from benchmarks.random_llama import Size, made_edits, made_text
from errata.delta.accumulator import EditedModel
from errata.delta.kinds import weights_alone
from errata.delta.weight_delta import WeightDelta
from errata.edit import EditBatch, EditRejected, batches_of
from errata.editors import Editor, EditorState
from errata.editors.closed_form.alphaedit import AlphaEdit
from errata.editors.closed_form.locate_then_edit import LocateThenEdit
from errata.editors.closed_form.memit import MEMIT
from errata.editors.closed_form.moments import Moments
from errata.editors.closed_form.ultraedit import UltraEdit
from errata.editors.fine_tuning.locft import LocFT
from errata.editors.hypernet.hypernet_editor import HypernetworkEditor
from errata.editors.hypernet.rledit import RLEdit
from errata.editors.solve import KeyPreconditioner
from errata.hardware import PeakMemory
from errata.model.key_moments import key_moment
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from errata.timing import stage_seconds

Found = TypeVar("Found")
Start = Callable[[LanguageModel, Size, int], tuple[Editor, EditorState]]  # the int is the seed

METRIC_STRENGTH = 1000.0
# Share of the moment's mean diagonal added to it, because the texts have fewer tokens than a key has features.
MOMENT_FLOOR = 1e-3


def ready_policy(model: LanguageModel, size: Size, seed: int, metric_strength: float) -> HypernetworkEditor:
    """Initialise a policy as for training; the time of an edit does not depend on what was learned."""
    editor = RLEdit(modules=size.learned, rank=size.rank, num_blocks=size.num_blocks, metric_strength=metric_strength)
    first = batches_of(made_edits(2 * size.episode_batch_size, seed), size.episode_batch_size)
    return editor.initialised(model, made_text(model, size.num_texts, seed), first, seed)


def start_plainly(model: LanguageModel, editor: Editor) -> tuple[Editor, EditorState]:
    return editor, editor.start(model, find_matrices(model.module, editor.modules))


def start_located(model: LanguageModel, size: Size, seed: int, editor: LocateThenEdit) -> tuple[Editor, EditorState]:
    """Start a locate-then-edit editor with one moment for all matrices, measured on few texts and decomposed once.

    Each matrix gets its own copy of the derived matrices, as large as real ones.
    """
    names = find_matrices(model.module, editor.modules).names
    moment_II = key_moment(model.module, made_text(model, size.num_texts, seed), names[:1])[names[0]]
    moment_II.diagonal().add_(MOMENT_FLOOR * moment_II.diagonal().mean())
    first = replace(editor, modules=editor.modules[:1], moments=Moments({names[0]: moment_II}))
    state = first.start(model, find_matrices(model.module, first.modules))
    base_II = state.derived["preconditioners"][names[0]].base_II
    return editor, EditorState(
        0, state.tensors, {"preconditioners": {name: KeyPreconditioner.start(base_II.clone()) for name in names}}
    )


STARTS: dict[str, Start] = {
    "RLEdit": lambda model, size, seed: start_plainly(model, ready_policy(model, size, seed, 0.0)),
    "RLEdit-metric": lambda model, size, seed: start_plainly(model, ready_policy(model, size, seed, METRIC_STRENGTH)),
    "UltraEdit": lambda model, size, seed: start_plainly(model, UltraEdit.preset("llama3_8b", modules=size.ultra)),
    "AlphaEdit": lambda m, size, seed: start_located(m, size, seed, AlphaEdit.preset("llama3_8b", modules=size.spread)),
    "MEMIT": lambda m, size, seed: start_located(m, size, seed, MEMIT.preset("llama3_8b", modules=size.spread)),
    "LocFT": lambda model, size, seed: start_plainly(model, LocFT(modules=size.tuned)),
}

PARTS = ("capture", "targets", "network", "solve", "rest", "merge")
_TIMES = ("ms_per_edit", "ms_min", "ms_max", "edits_per_s", *(f"{part}_ms" for part in PARTS), "solve_share")
BLANK = dict.fromkeys((*_TIMES, "peak_gib", "tflop_per_edit", "floor_ms", "times_floor", "start_s", "error"))


@dataclass
class Timed:
    """Seconds of repetitions by part; `edit` is everything except the merge."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def add(self, spent: Mapping[str, float], merge_s: float) -> None:
        """Add the seconds of one repetition by stage; `network` is part of `solve`."""
        parts = {name: spent.get(name, 0.0) for name in ("capture", "targets", "network", "solve")}
        parts["solve"] -= parts["network"]
        parts["rest"] = spent["total"] - sum(parts.values())
        for name, value in {**parts, "merge": merge_s, "edit": spent["total"]}.items():
            self.seconds.setdefault(name, []).append(value)

    def figures(self, num_edits: int) -> dict[str, float]:
        """Milliseconds per edit, and edits a second including the merge."""
        ms = {name: [1e3 * second / num_edits for second in found] for name, found in self.seconds.items()}
        both = [edit + merge for edit, merge in zip(ms["edit"], ms["merge"], strict=True)]
        total = {"ms_per_edit": median(both), "ms_min": min(both), "ms_max": max(both), "edits_per_s": 1e3 / median(both)}
        parts = {f"{part}_ms": median(ms[part]) for part in PARTS}
        return total | parts | {"solve_share": parts["solve_ms"] / median(ms["edit"])}


@dataclass
class GpuEditBenchmark:
    """A model to edit on a device of known rates; `last_delta` is the last delta of a policy."""

    model: LanguageModel
    size: Size
    rates: Rates
    repeats: int
    seed: int
    last_delta: WeightDelta | None = None

    def rows(self, name: str, batches: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Measure each batch size; one that does not fit or is refused gets its reason."""
        with stage_seconds() as seconds:
            started, error = attempt(lambda: STARTS[name](self.model, self.size, self.seed))
        for num_edits in batches:
            row: dict[str, Any] = {"editor": name, "batch": num_edits, **BLANK, "start_s": seconds["total"], "error": error}
            if started is not None:
                found, row["error"] = attempt(partial(self.figures, *started, num_edits))
                row |= found or {}
            yield row

    def figures(self, editor: Editor, state: EditorState, num_edits: int) -> dict[str, Any]:
        """Time repetitions with different edits.

        An uncounted batch comes first, so that past keys and an accumulated delta exist.
        """
        made = made_edits(num_edits * (self.repeats + 2), self.seed + 1)
        first, counting, *batches = batches_of(made, num_edits)
        edited, timed = EditedModel(self.model.module, find_matrices(self.model.module, editor.modules)), Timed()
        try:
            one, state = editor.edit(self.model, first, state)
            edited.add(one)
            start = edited.content()
            with counted(self.model.module) as work:
                editor.edit(self.model, counting, state)
            with PeakMemory(self.model.device) as peak:
                for batch in batches:
                    delta = self._timed_edit(editor, batch, state, edited, timed)
                    edited.set((), start)
        finally:
            edited.set(())
        if isinstance(editor, HypernetworkEditor):
            add_network(work, editor, delta)
            self.last_delta = delta
        return timed.figures(num_edits) | {"peak_gib": gib(peak)} | self._floor(work, timed, num_edits)

    def _timed_edit(
        self, editor: Editor, batch: EditBatch, state: EditorState, edited: EditedModel, timed: Timed
    ) -> WeightDelta:
        with stage_seconds() as spent:
            made, _ = editor.edit(self.model, batch, state)
        delta = weights_alone(made, "this benchmark")
        with stage_seconds() as merge:
            edited.add(delta)
        timed.add(spent, merge["total"])
        return delta

    def _floor(self, work: Work, timed: Timed, num_edits: int) -> dict[str, float]:
        floor_s = self.rates.floor_s(work)
        return {
            "tflop_per_edit": 1e-12 * (work.flops + work.network_flops) / num_edits,
            "floor_ms": 1e3 * floor_s / num_edits,
            "times_floor": median(timed.seconds["edit"]) / floor_s,
        }


def add_network(work: Work, editor: HypernetworkEditor, delta: WeightDelta) -> None:
    """Add the work of the policy: two products a block over every row of every matrix, and its parameters, read once."""
    net = editor.trained_policy().net
    widths = {matrix.name: sum(matrix.shape) for matrix in net.spec.matrices}
    values = sum(widths[name] * rank for name, rank in delta.ranks().items())
    work.network_flops += 2 * 2.0 * values * editor.rank * editor.num_blocks
    work.num_bytes += sum(parameter.numel() * parameter.element_size() for parameter in net.parameters())


def attempt(work: Callable[[], Found]) -> tuple[Found | None, str | None]:
    """Return the result of `work`, or the reason why there is none.

    A measurement that does not fit becomes a line of the report, and the rest is measured.
    """
    try:
        return work(), None
    except torch.OutOfMemoryError:
        error = "out of memory"
    except (EditRejected, FloatingPointError, RuntimeError) as fault:  # CUDA and its libraries raise RuntimeError
        error = str(fault).partition("\n")[0]
    clear()
    return None, error


def clear() -> None:
    """Return unreferenced memory to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def gib(peak: PeakMemory) -> float | None:
    """Peak memory in GiB, including the model."""
    return None if peak.total_bytes is None else peak.total_bytes / 2**30
