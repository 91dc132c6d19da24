"""A stream of a million validated edits from Parquet: `make bench-stream`.

The file holds generated facts with a subject, a rephrasing, a locality probe and an id each. Each reading runs in its own
process, which imports only `errata.datasets.reader`; its memory is the peak resident set size. Beside it: the cost of the
search for contradictions (`errata data check`), and the same edits as JSON lines.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from errata.datasets.reader import read_edits, write_parquet
from errata.edit import Edit, Probe

RELATIONS = (
    ("The mother tongue of {} is", "Where {} is from, people speak"),
    ("{} was born in the city of", "The city in which {} was born is"),
    ("{} works in the field of", "The field that {} works in is"),
)


@dataclass(frozen=True)
class RecordsSettings:
    """Number of edits, `num_json` of them also read from JSON lines; each reading is the median of `repeats`."""

    num_edits: int = 1_000_000
    num_json: int = 200_000
    repeats: int = 3
    seed: int = 0


def invented(count: int, seed: int) -> Iterator[Edit]:
    """Generate edits as long as CounterFact's, each about another fact."""
    draw = random.Random(seed)
    for number in range(count):
        prompt, rephrasing = RELATIONS[number % len(RELATIONS)]
        subject = f"{draw.choice(('Ada', 'Boris', 'Chen', 'Dana'))} Person {number}"
        neighbour = Probe(prompt.format(f"Neighbour {draw.randrange(count)}"), f"answer {draw.randrange(1000)}")
        target = f"answer {draw.randrange(1000)}"
        yield Edit(prompt.format(subject), target, subject, (rephrasing.format(subject),), (neighbour,), id=f"edit-{number}")


def read(path: str, looks_for_conflicts: bool) -> dict[str, float]:
    """Measure one process that reads all edits of a file: seconds, CPU seconds, and peak memory in bytes."""
    started, used = time.perf_counter(), time.process_time()
    if looks_for_conflicts:
        from errata.datasets.duplicates import HashedEdits

        hashes = HashedEdits()
        for edit in read_edits(path):
            hashes.add(edit)
        assert hashes.repetitions().num_conflicts == 0
        count = len(hashes)
    else:
        count = sum(1 for _ in read_edits(path))
    status = Path("/proc/self/status").read_text().splitlines()
    peak = 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    return {
        "num_edits": count,
        "wall_s": time.perf_counter() - started,
        "cpu_s": time.process_time() - used,
        "peak_bytes": peak,
    }


def in_new_process(path: Path, looks_for_conflicts: bool = False) -> dict[str, float]:
    """Call `read` in an interpreter without torch, which the reports import."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.records",
        "--read",
        str(path),
        *(["--conflicts"] if looks_for_conflicts else []),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def row(name: str, readings: list[dict[str, float]]) -> dict[str, Any]:
    """Medians over the readings; an idle machine approaches `records_per_cpu_s`."""
    return {
        "what": name,
        "num_edits": int(readings[0]["num_edits"]),
        "records_per_s": round(median(one["num_edits"] / one["wall_s"] for one in readings)),
        "records_per_cpu_s": round(median(one["num_edits"] / one["cpu_s"] for one in readings)),
        "peak_rss_mb": round(max(one["peak_bytes"] for one in readings) / 1e6),
    }


def measure(settings: RecordsSettings, folder: Path) -> list[dict[str, Any]]:
    parquet, lines = folder / "edits.parquet", folder / "edits.jsonl"
    started = time.perf_counter()
    write_parquet(invented(settings.num_edits, settings.seed), parquet)
    print(f"{settings.num_edits:,} edits made and written in {time.perf_counter() - started:.0f} s")
    with lines.open("w") as out:
        out.writelines(json.dumps(edit.to_json()) + "\n" for edit in invented(settings.num_json, settings.seed))
    return [
        row("Parquet, edits", [in_new_process(parquet) for _ in range(settings.repeats)]),
        row("Parquet, edits and conflicts", [in_new_process(parquet, looks_for_conflicts=True)]),
        row("JSON lines, edits", [in_new_process(lines) for _ in range(settings.repeats)]),
    ]


def run(settings: RecordsSettings, command: str) -> Path:
    """Measure, print and write `$ERRATA_HOME/bench-stream/report.json`."""
    from benchmarks.report import console, show, write_report
    from errata.hardware import hardware

    about = {"command": command, "seed": settings.seed, "hardware": hardware()}
    console().print(*(f"{name}: {value}" for name, value in about.items()), sep="\n", highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(settings, Path(folder))
    show(
        "Edits taken one by one, validated",
        rows,
        "MB of 10^6 bytes, the whole process; per CPU second: without waiting for others.",
    )
    figures = {name: rows[0][name] for name in ("records_per_s", "records_per_cpu_s", "peak_rss_mb")}
    return write_report("bench-stream", rows, **about, settings=asdict(settings), **figures)


def main() -> None:
    parser = argparse.ArgumentParser(description="A million edits from Parquet.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--edits", type=int, default=RecordsSettings.num_edits)
    parser.add_argument("--read", help=argparse.SUPPRESS)
    parser.add_argument("--conflicts", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.read:
        print(json.dumps(read(given.read, given.conflicts)))
        return
    settings = RecordsSettings(num_edits=given.edits, num_json=min(given.edits, RecordsSettings.num_json), seed=given.seed)
    run(settings, f"make bench-stream ARGS='--seed={given.seed} --edits={given.edits}'")


if __name__ == "__main__":
    main()
