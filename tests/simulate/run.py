"""Simulated schedules: `make simulate`, `FULL=1 make simulate`, `python -m tests.simulate.run --seeds 5 --first 100`.

The real edit worker and its journal run over a ledger in memory, replicas that answer by tables, and a virtual clock. Each seed
draws requests and delays; its schedule is played without a crash, then once with a crash at each resumption of a coroutine and
at each durable write, and once with a failure of each transaction of the journal. A second crash is drawn for a part of them.
In further schedules the whole machine ends five times.
Prints the violations, writes runs/simulate/report.json, and fails if there is any.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import Any

from errata.hardware import hardware
from tests.simulate.schedule import PlayedSchedule, Schedule, Service

NUM_SEEDS, NUM_SEEDS_FULL = 10, 200
NUM_REBOOTS = 20  # Schedules in which the machine ends.
MEMORY = Path("/dev/shm")


def schedules(seed: int) -> Iterator[Schedule]:
    """Yield the schedules of one seed; the first is played to count its points and transactions."""
    whole = played(Schedule(seed))
    draws = random.Random(seed)
    yield whole.schedule
    for point in range(1, whole.num_points + 1):
        second = (point + draws.randrange(1, whole.num_points),) if draws.random() < 0.3 else ()
        yield Schedule(seed, (point, *second))
    for _ in range(NUM_REBOOTS):
        later = accumulate(draws.randrange(5, 60) for _ in range(4))
        start = draws.randrange(1, whole.num_points)
        yield Schedule(seed, (start, *(start + more for more in later)), whole_machine=True)
    for number in range(1, whole.num_transactions + 1):
        yield Schedule(seed, failing=(number,))
        yield Schedule(seed, (draws.randrange(1, whole.num_points),), (number,))


def played(schedule: Schedule) -> PlayedSchedule:
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as directory:
        return Service(schedule, Path(directory)).play()


def report_of(found: Sequence[PlayedSchedule], seeds: Sequence[int], seconds: float) -> dict[str, Any]:
    wrong = [one for one in found if one.violations]
    return {
        "schedules": len(found),
        "violations": sum(len(one.violations) for one in wrong),
        "starts": sum(one.num_starts for one in found),
        "seeds": list(seeds),
        "seconds": round(seconds, 1),
        "wrong": [asdict(one) for one in wrong],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    full = os.environ.get("FULL", "0") not in ("", "0")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=NUM_SEEDS_FULL if full else NUM_SEEDS, help="their number")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    given = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)  # The worker logs every crash that it recovers from.
    seeds, found, began = range(given.first, given.first + given.seeds), list[PlayedSchedule](), time.monotonic()
    for seed in seeds:
        for schedule in schedules(seed):
            found.append(played(schedule))
            for violation in found[-1].violations:
                print(f"{schedule}: {violation}")
    command = f"python -m tests.simulate.run --seeds {given.seeds} --first {given.first}"
    report = report_of(found, seeds, time.monotonic() - began) | {"command": command, "hardware": hardware()}
    home = Path(os.environ.get("ERRATA_HOME", "runs")) / "simulate"
    home.mkdir(parents=True, exist_ok=True)
    (home / "report.json").write_text(json.dumps(report, indent=1))
    rate = report["schedules"] / max(report["seconds"], 0.1)
    print(f"{report['schedules']} schedules, {report['violations']} violations, {report['seconds']} s ({rate:.0f} a second)")
    print(f"{command}; written to {home / 'report.json'}")
    return int(report["violations"] > 0)


if __name__ == "__main__":
    sys.exit(main())
