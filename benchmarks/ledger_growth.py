"""A ledger that grows from version 1 to 10,000: `make bench-ledger`.

Every version has random factors of the testbed's size, of rank 10 to 30, and an editor state that grows by as many past keys,
as RLEdit's and AlphaEdit's do. At each measured point, separate processes open the ledger as a restarted edit worker and as a
replica; the operating system still caches the files.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.report import console, show, write_report
from errata.delta.parts import LowRank
from errata.delta.weight_delta import WeightDelta
from errata.durable import replaced
from errata.edit import Edit
from errata.editors.state import EditorState
from errata.hardware import hardware
from errata.home import home
from errata.ledger import Ledger, read_segments
from errata.ledger.recovery import recover

NAME, MATRIX = "bench-ledger", "model.layers.3.mlp.down_proj"
POINTS = (1, 10, 100, 1_000, 10_000)


@dataclass(frozen=True)
class LedgerGrowthSettings:
    """One edited matrix [out_features, in_features]; `window` appends before each measured point are timed."""

    num_versions: int = 10_000
    in_features: int = 768
    out_features: int = 256
    ranks: tuple[int, int] = (10, 30)
    edits_each: int = 10
    window: int = 100
    seed: int = 0


def change(settings: LedgerGrowthSettings, number: int) -> WeightDelta:
    generator = torch.Generator().manual_seed(1_000_003 * settings.seed + number)
    low, high = settings.ranks
    rank = int(torch.randint(low, high + 1, (), generator=generator))
    sides = (torch.randn(size, rank, generator=generator) for size in (settings.out_features, settings.in_features))
    return WeightDelta({MATRIX: LowRank(*sides)})


def facts(settings: LedgerGrowthSettings, number: int) -> list[Edit]:
    ids = (f"{number}-{i}" for i in range(settings.edits_each))
    return [
        Edit(f"Person {i} was born in the city of", f"City {i}", f"Person {i}", (f"The birthplace of Person {i} is",), id=i)
        for i in ids
    ]


CARD = {name: 0.98 for name in ("efficacy", "retention", "locality", "ppl_ratio", "edit_s", "guard_s")}


def timed(what: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = what()
    return time.perf_counter() - started, result


def open_as_worker(directory: Path) -> dict[str, Any]:
    """Measure each step of a restarted edit worker before it accepts edits, except loading the model.

    `open_s` is the total, and `open_cpu_s` the process's CPU time, which an idle machine approaches.
    """
    ledger = Ledger.open(directory)
    steps: dict[str, Callable[[], Any]] = {
        "recover": partial(recover, ledger),
        "segments": lambda: len(ledger.segments(ledger.head)),
        "state": lambda: ledger.state(ledger.head),
        "edits": lambda: sum(1 for _ in ledger.edits(ledger.head)),
        "find": lambda: [ledger.find_edit(name) for name in ("1-0", f"{ledger.head}-0", "none")],
    }
    seconds, found, used = {}, {}, time.process_time()
    for name, step in steps.items():
        seconds[name], found[name] = timed(step)
    cpu_s = time.process_time() - used
    assert found["find"] == [1, ledger.head, None] and found["segments"] == ledger.head
    return {**{f"{name}_s": s for name, s in seconds.items()}, "open_s": sum(seconds.values()), "open_cpu_s": cpu_s}


def open_as_replica(directory: Path) -> dict[str, Any]:
    """Measure what a replica reads to catch up, and one read of the head, which it repeats every 0.2 s."""
    seconds, ledger = timed(lambda: Ledger.open(directory))
    read_s, count = timed(lambda: sum(len(read_segments(file)) for file in ledger.files_to(ledger.head)))
    assert count == ledger.head
    looks = [timed(lambda: ledger.head)[0] for _ in range(100)]
    return {"replica_s": seconds + read_s, "head_us": 1e6 * median(looks)}


def in_new_process(directory: Path, role: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.ledger_growth", "--open", str(directory), "--as", role]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def size_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def measure(settings: LedgerGrowthSettings, directory: Path) -> list[dict[str, Any]]:
    """Measure each point: the median append before it, with and without a snapshot, and the openings."""
    ledger = Ledger.create(directory, {"model": "random", "fingerprint": "random", "matrices": [MATRIX]})
    state, rows, taken, used_cpu = EditorState(), [], [], []
    factor_bytes = key_bytes = 0
    for number in range(1, settings.num_versions + 1):
        delta, edits = change(settings, number), facts(settings, number)
        (part,) = delta.parts.values()
        state = state.grown(len(edits), {MATRIX: part.V_IR.T.clone(), "num_rows": torch.tensor([part.rank])}, {})  # type: ignore[union-attr]
        used = time.process_time()
        seconds, _ = timed(lambda: ledger.append(number - 1, delta, state, edits, CARD, ("random", NAME)))  # noqa: B023
        taken.append(seconds)
        used_cpu.append(time.process_time() - used)
        factor_bytes, key_bytes = factor_bytes + delta.num_bytes, key_bytes + 4 * settings.in_features * part.rank
        if number in POINTS or number == settings.num_versions:
            window = sorted(taken[-settings.window :])
            row = {"versions": number, "append_ms": 1e3 * median(window), "append_mean_ms": 1e3 * sum(window) / len(window)}
            row["append_cpu_ms"] = 1e3 * median(used_cpu[-settings.window :])
            row |= in_new_process(directory, "worker") | in_new_process(directory, "replica")
            sizes = {"bytes_per_version": size_of(directory) / number, "factor_bytes": factor_bytes / number}
            rows.append({**row, **sizes, "key_bytes": key_bytes / number})
            console().print(f"version {number:,} after {sum(taken):.0f} s of appending", highlight=False)
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    versions = [row["versions"] for row in rows]
    lines = (
        ("append", "ms", {"median": "append_ms", "mean": "append_mean_ms", "CPU": "append_cpu_ms"}, 1.0),
        ("open", "s", {"edit worker": "open_s", "replica": "replica_s"}, 1.0),
        (
            "bytes per version",
            "kB",
            {"ledger": "bytes_per_version", "factors alone": "factor_bytes", "keys": "key_bytes"},
            1e-3,
        ),
    )
    for axis, (title, unit, series, scale) in zip(axes, lines, strict=True):
        for label, name in series.items():
            axis.plot(versions, [scale * row[name] for row in rows], marker="o", label=label)
        axis.set(title=title, xlabel="versions", ylabel=unit, xscale="log", ylim=(0, None))
        axis.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as file:
        figure.savefig(file, format="png", dpi=110)
    pyplot.close(figure)


def run(settings: LedgerGrowthSettings, command: str) -> Path:
    """Measure, print, draw and write `$ERRATA_HOME/bench-ledger`."""
    about = {"command": command, "seed": settings.seed, "hardware": hardware()}
    console().print(*(f"{name}: {value}" for name, value in about.items()), sep="\n", highlight=False)
    folder = home() / NAME
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:  # not /tmp, which may be in memory, where syncing is free
        rows = measure(settings, Path(scratch) / "ledger")
    draw(rows, folder / "growth.png")
    columns: tuple[str, ...] = (
        "versions",
        "append_ms",
        "append_mean_ms",
        "append_cpu_ms",
        "open_s",
        "open_cpu_s",
        "replica_s",
        "head_us",
    )
    columns += ("bytes_per_version", "factor_bytes", "key_bytes")
    show("A ledger as it grows", [{name: row[name] for name in columns} for row in rows], f"Drawn in {folder / 'growth.png'}.")
    return write_report(NAME, rows, **about, settings=asdict(settings))


def main() -> None:
    parser = argparse.ArgumentParser(description="A ledger from its first version to its 10,000th.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--versions", type=int, default=LedgerGrowthSettings.num_versions)
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--as", dest="role", default="worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)  # the matrices are small; several threads would mostly wait for each other
    if given.open:
        print(json.dumps({"worker": open_as_worker, "replica": open_as_replica}[given.role](given.open)))
        return
    run(
        LedgerGrowthSettings(num_versions=given.versions, seed=given.seed),
        f"make bench-ledger ARGS='--seed={given.seed} --versions={given.versions}'",
    )


if __name__ == "__main__":
    main()
