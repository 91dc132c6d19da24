"""Faults at random moments during continuous edits: `make chaos`, `FULL=1 make chaos`, `python -m tests.chaos.run --seed 1`.

After each fault the service must become whole by itself, its fingerprint must be that of the ledger's head, and no acknowledged
edit may be lost or doubled. Prints a table, writes runs/chaos/report.json, and fails if any of it does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from errata.hardware import hardware
from tests.chaos.faults import FAULTS
from tests.chaos.poster import Account, Poster, account
from tests.chaos.service import Service

NUM_FAULTS, NUM_FAULTS_FULL = 10, 50
console = Console(width=120 if not sys.stdout.isatty() else None)


@dataclass(frozen=True)
class Outcome:
    """One fault: `recovery_s` from its end until the service is whole, and what was wrong afterwards, or None."""

    part: str
    recovery_s: float | None
    fault: str | None


def schedule(seed: int, num_faults: int, parts: Sequence[str]) -> list[str]:
    """Draw an order in which every part comes about equally often."""
    draw = random.Random(seed)
    wanted = [parts[i % len(parts)] for i in range(num_faults)]
    draw.shuffle(wanted)
    return wanted


def suffer(service: Service, parts: Sequence[str], seed: int) -> tuple[list[Outcome], Account]:
    """Cause one fault after the other; lost edits are counted at the end, over all faults."""
    draw, outcomes = random.Random(seed), list[Outcome]()
    poster = Poster(service.http)
    poster.start()
    for number, part in enumerate(parts, 1):
        time.sleep(draw.uniform(0.5, 2.0))  # So that the fault hits an edit, an append or a swap.
        before = len(poster.acknowledged)
        FAULTS[part](service, draw)
        try:
            outcomes.append(Outcome(part, round(service.until_whole(), 2), None))
        except AssertionError as fault:
            outcomes.append(Outcome(part, None, str(fault)[:2000]))
        outcome = outcomes[-1].fault or f"whole again after {outcomes[-1].recovery_s} s"
        console.print(
            f"{number}/{len(parts)} {part}: {outcome}; {len(poster.acknowledged) - before} edits acknowledged meanwhile"
        )
        if outcomes[-1].fault is not None:
            break
    poster.stop()
    return outcomes, account(poster, service.http, service.ledger())


def report_of(outcomes: Sequence[Outcome], found: Account) -> dict[str, Any]:
    parts = list(dict.fromkeys(outcome.part for outcome in outcomes))
    times = {part: [o.recovery_s for o in outcomes if o.part == part and o.recovery_s is not None] for part in parts}
    return {
        "faults": len(outcomes),
        "acknowledged": found.acknowledged,
        "lost": len(found.lost),
        "doubled": len(found.doubled),
        "unsettled": len(found.unsettled),
        "diverged": sum(outcome.fault is not None for outcome in outcomes),
        "recovery_s": {p: {"median": median(t), "max": max(t), "faults": len(t)} for p, t in times.items() if t},
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }


def shown(report: dict[str, Any]) -> Table:
    table = Table("fault", "times", "whole again after, median s", "max s", title="Faults")
    for part, found in sorted(report["recovery_s"].items()):
        table.add_row(part, str(found["faults"]), f"{found['median']:.1f}", f"{found['max']:.1f}")
    names = ("faults", "acknowledged", "lost", "doubled", "unsettled", "diverged")
    table.caption = ", ".join(f"{name} {report[name]}" for name in names)
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    full = os.environ.get("FULL", "0") not in ("", "0")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", type=int, default=NUM_FAULTS_FULL if full else NUM_FAULTS)
    parser.add_argument("--parts", default=",".join(FAULTS), help="with commas between them")
    given = parser.parse_args(arguments)
    if unknown := set(given.parts.split(",")) - set(FAULTS):
        parser.error(f"no fault is named {', '.join(sorted(unknown))}; there are {', '.join(FAULTS)}")
    home = Path(os.environ.get("ERRATA_HOME", "runs")) / "chaos"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    directory = Path(tempfile.mkdtemp(prefix="service-", dir=home))
    service = Service(directory)
    began = time.monotonic()
    try:
        service.start()
        console.print(f"the service is whole after {service.until_whole():.0f} s")
        outcomes, found = suffer(service, schedule(given.seed, given.faults, given.parts.split(",")), given.seed)
    finally:
        service.stop()
    command = f"python -m tests.chaos.run --seed {given.seed} --faults {given.faults} --parts {given.parts}"
    report = report_of(outcomes, found) | {"command": command, "seed": given.seed, "hardware": hardware()}
    report["seconds"] = round(time.monotonic() - began, 1)
    (home / "report.json").write_text(json.dumps(report, indent=1))
    console.print(shown(report))
    console.print(f"{command}; {hardware()}; {report['seconds']} s; written to {home / 'report.json'}")
    return int(any(report[name] for name in ("lost", "doubled", "unsettled", "diverged")))


if __name__ == "__main__":
    sys.exit(main())
