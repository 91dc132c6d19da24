"""Speed and memory at Llama-3-8B's size on a GPU, with random weights: `make bench-gpu`. Needs only torch and transformers.

* an edit by each editor, in parts, against the lower bound by the device's measured rates (gpu_edits.py);
* a training step of RLEdit on an episode, and a swap of a version, against loading all weights (gpu_swaps.py).

`--size tiny` runs the same code in a minute without a GPU, to try it; its figures say nothing about a GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.device_rates import measure_rates
from benchmarks.gpu_edits import PARTS, STARTS, GpuEditBenchmark, clear
from benchmarks.gpu_swaps import check_checkpoint, measure_swaps, measure_training, shards
from benchmarks.random_llama import SIZES, make_language_model
from benchmarks.report import console, show, write_report
from errata.hardware import hardware

MUST_EDITS_A_SECOND, AIM_EDITS_A_SECOND, MOST_SOLVE_SHARE, MOST_TRAINING_GB = 36.0, 200.0, 0.05, 80.0

NO_GPU = "no GPU: the device is the CPU, and these figures say nothing about a GPU or a model of 8B parameters"
NOTE = (
    "Medians, in ms an edit; ms_per_edit and edits_per_s are with the merge, times_floor and solve_share without it.\n"
    "peak: all that is in use, with the model, and the bases and sums of the edited matrices. start: before the first\n"
    "edit, of AlphaEdit and MEMIT for one matrix of several. floor: products with weights at the device's measured rates,\n"
    "or the bytes of weights at its rate of copying, if that is longer."
)
PARTS_NOTE = (
    "network: the policy's; solve is without it, and of LocFT the whole descent. targets: AlphaEdit's and MEMIT's search.\n"
    "rest: tokens, checks, what is remembered. merge: the change added in fp32, and the weights cast once."
)


@dataclass(frozen=True)
class GpuSettings:
    """Editors (all by default) and batch sizes to measure, each by the median of `repeats`.

    Raises `ValueError` for impossible values.
    """

    size: str = "8b"
    batches: tuple[int, ...] = (20, 100)
    repeats: int = 5
    editors: tuple[str, ...] = ()
    checkpoint: str = ""
    tf32: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise ValueError(f"no size is named {self.size!r}; there are {', '.join(SIZES)}")
        if self.size != "tiny" and self.device.type != "cuda":
            raise ValueError(
                f"--size {self.size} needs a CUDA GPU, and torch sees none; --size tiny tries the script without one"
            )
        if unknown := [name for name in self.editors if name not in STARTS]:
            raise ValueError(f"no editor here is named {', '.join(unknown)}; there are {', '.join(STARTS)}")
        if not self.batches or min(*self.batches, self.repeats) < 1:
            raise ValueError("--batches and --repeats take numbers from 1 on")
        if self.checkpoint and not shards(self.checkpoint):
            raise ValueError(f"{self.checkpoint} holds no *.safetensors to load weights from")

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def run(settings: GpuSettings, command: str) -> Path:
    """Measure, print and write `$ERRATA_HOME/bench-gpu/report.json`.

    Raises `ValueError` for a checkpoint of another model.
    """
    torch.backends.cuda.matmul.allow_tf32 = settings.tf32
    size, device = SIZES[settings.size], settings.device
    about: dict[str, Any] = {"command": command, "seed": settings.seed, "hardware": hardware()}
    about |= {"note": NO_GPU} if device.type == "cpu" else {}
    rates = measure_rates(device, size.rate_size, size.copied_bytes)
    about["rates"] = asdict(rates)
    console().print(*(f"{name}: {value}" for name, value in about.items()), sep="\n", highlight=False)
    model = make_language_model(size, device, settings.seed)
    if settings.checkpoint:
        check_checkpoint(model, settings.checkpoint)
    bench = GpuEditBenchmark(model, size, rates, settings.repeats, settings.seed)
    rows = edits(bench, settings)
    training = measure_training(model, size, min(settings.repeats, 3), settings.seed)
    show("One training step of RLEdit, on one episode", training)
    swaps = []
    if bench.last_delta is not None:
        swaps = measure_swaps(model, bench.last_delta, settings.repeats, settings.checkpoint)
        show("Another version in the model", swaps)
    checks = checked(rows, training, settings)
    show("What must hold at 8B on a GPU", checks)
    return write_report("bench-gpu", rows, **about, settings=asdict(settings), training=training, swaps=swaps, checks=checks)


def edits(bench: GpuEditBenchmark, settings: GpuSettings) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name in settings.editors or STARTS:
        for row in bench.rows(name, settings.batches):
            rows.append(row)
            console().print(_line(row), highlight=False)  # shown immediately, so that an interrupted run has shown its results
        clear()
    parts = [f"{part}_ms" for part in PARTS]
    show("An edit", [{name: value for name, value in row.items() if name not in parts} for row in rows], NOTE)
    show("An edit by its parts", [{name: row[name] for name in ("editor", "batch", *parts)} for row in rows], PARTS_NOTE)
    return rows


def _line(row: Mapping[str, Any]) -> str:
    shown = {name: f"{v:.4g}" if isinstance(v, float) else v for name, v in row.items() if v is not None and v != 0.0}
    return " ".join(f"{name}={value}" for name, value in shown.items())


def checked(
    rows: Sequence[Mapping[str, Any]], training: Sequence[Mapping[str, Any]], settings: GpuSettings
) -> list[dict[str, Any]]:
    """List the claims that must hold at full size on a GPU, with their figures."""
    peak_gib = training[0]["peak_gib"]  # with the savings
    peak_gb = None if peak_gib is None else peak_gib * 2**30 / 1e9
    lines: list[tuple[str, float | None, float]] = [("an episode's peak memory in GB: at most", peak_gb, MOST_TRAINING_GB)]
    for row in rows:
        if row["editor"].startswith("RLEdit") and row["batch"] == max(settings.batches):
            what = f"{row['editor']}, batches of {row['batch']}"
            lines += [
                (f"{what}, edits a second: at least", row["edits_per_s"], MUST_EDITS_A_SECOND),
                (f"{what}, edits a second, the aim: at least", row["edits_per_s"], AIM_EDITS_A_SECOND),
                (f"{what}, the solve's share of an edit: at most", row["solve_share"], MOST_SOLVE_SHARE),
            ]
    counts = settings.size == "8b"
    return [
        {"check": what, "bound": bound, "found": found, "holds": _holds(what, found, bound) if counts else None}
        for what, found, bound in lines
    ]


def _holds(what: str, found: float | None, bound: float) -> bool:
    """Return True unless the figure is missing because the work did not fit or was refused."""
    return found is not None and (found >= bound if what.endswith("at least") else found <= bound)


def parsed(arguments: Sequence[str] | None = None) -> GpuSettings:
    parser = argparse.ArgumentParser(description="Milliseconds per edit, training and swaps at Llama-3-8B's size on a GPU.")
    parser.add_argument("--size", default=GpuSettings.size, help=", ".join(SIZES))
    parser.add_argument("--batches", default=",".join(map(str, GpuSettings.batches)), help="numbers of edits, with commas")
    parser.add_argument("--repeats", type=int, default=GpuSettings.repeats)
    parser.add_argument("--editors", default="", help=f"some of {', '.join(STARTS)}, with commas; all if left out")
    parser.add_argument("--checkpoint", default="", help="a folder of safetensors of this architecture, to time loading it")
    parser.add_argument("--tf32", action="store_true", help="fp32 products in TF32, those of the policy's network too")
    parser.add_argument("--seed", type=int, default=GpuSettings.seed)
    given = vars(parser.parse_args(arguments))
    try:
        given["batches"] = tuple(int(number) for number in given["batches"].split(","))
        given["editors"] = tuple(name for name in given["editors"].split(",") if name)
        return GpuSettings(**given)
    except ValueError as fault:
        parser.error(str(fault))


def command_of(settings: GpuSettings) -> str:
    texts = {name: ",".join(map(str, v)) if isinstance(v, tuple) else v for name, v in asdict(settings).items()}
    given = [f"--{name}" if v is True else f"--{name}={v}" for name, v in texts.items() if v is not False and v != ""]
    return f"make bench-gpu ARGS='{' '.join(given)}'"


def main() -> None:
    settings = parsed()
    try:
        run(settings, command_of(settings))
    except ValueError as fault:
        raise SystemExit(f"error: {fault}") from fault


if __name__ == "__main__":
    main()
