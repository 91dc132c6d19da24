"""Faults at random moments while clients contest a few prompts: `make chaos`, `FULL=1 make chaos`, `python -m tests.chaos.run`.

Clients post, roll back, revert, ask, look and page at two replicas while one fault follows the other. After each fault the
service must become whole by itself, with the fingerprint of the ledger's head at every replica. At the end the history of all
operations is checked against the chain and the journal (`tests/chaos/checks.py`), and the logs for texts that none may hold.
Prints a table, writes runs/chaos/report.json and history.json, and fails if anything does not hold. Ctrl-C ends the faults.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from errata.hardware import hardware
from tests.chaos.checks import SETTLED, doubled, lost, violations
from tests.chaos.faults import FAULTS
from tests.chaos.history import History, JournalRow
from tests.chaos.loop_disk import CannotMount, LoopDisk
from tests.chaos.record import chain_of, rows_of
from tests.chaos.service import Service
from tests.chaos.texts import send_texts
from tests.chaos.workload import TEXTS, Recorder, Workload

NUM_FAULTS, NUM_FAULTS_FULL = 10, 76
REPLICAS = 2
SETTLE_S = 300.0  # An edit that is put aside waits for minutes.
ACKNOWLEDGED_S = 120.0  # A client whose connection went with a process waits for its time limit first.
NEEDS_DISK = "power_cut"
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


def suffer(
    service: Service, parts: Sequence[str], seed: int, ending: threading.Event | None = None
) -> tuple[list[Outcome], History]:
    """Cause one fault after the other beside the clients, and return what they recorded, with the chain and the journal.

    No further fault is caused after `ending` is set.
    """
    draw, outcomes = random.Random(seed), list[Outcome]()
    num_earlier = len(list(service.ledger().head_log()))
    recorder = Recorder(str(service.http.base_url), service.headers)
    workload = Workload(recorder, seed)
    workload.start()
    for number, part in enumerate(parts, 1):
        time.sleep(draw.uniform(0.5, 2.0))  # So that the fault hits an edit, an append or a swap.
        before = recorder.num_acknowledged
        outcomes.append(_suffered(service, part, draw, recorder))
        outcome = outcomes[-1].fault or f"whole again after {outcomes[-1].recovery_s} s"
        console.print(f"{number}/{len(parts)} {part}: {outcome}; {recorder.num_acknowledged - before} edits acknowledged")
        if outcomes[-1].fault is not None or (ending is not None and ending.is_set()):
            break
    operations, rows = workload.stop(), settled_rows(service)
    return outcomes, History(operations, chain_of(service.ledger(), num_earlier), rows)  # The chain has all that is settled.


def _suffered(service: Service, part: str, draw: random.Random, recorder: Recorder) -> Outcome:
    try:
        FAULTS[part](service, draw)
        recovery_s = round(service.until_whole(), 2)
        _until_acknowledged(recorder)
        return Outcome(part, recovery_s, None)
    except AssertionError as fault:
        return Outcome(part, None, str(fault)[:2000])


def _until_acknowledged(recorder: Recorder) -> None:
    """Wait until a client's edit is acknowledged, so that the next fault hits clients at work. Raises `AssertionError`."""
    before, deadline = recorder.num_acknowledged, time.monotonic() + ACKNOWLEDGED_S
    while recorder.num_acknowledged == before:
        if time.monotonic() > deadline:
            raise AssertionError(f"the service was whole, and acknowledged no edit within {ACKNOWLEDGED_S:.0f} s")
        time.sleep(0.1)


def settled_rows(service: Service) -> tuple[JournalRow, ...]:
    """Read the journal when no edit is open, or after `SETTLE_S`; nothing if the service does not answer any more."""
    deadline = time.monotonic() + SETTLE_S
    rows: tuple[JournalRow, ...] = ()
    while time.monotonic() < deadline:
        with suppress(httpx.HTTPError):
            rows = rows_of(service.http)
            if all(row.state in SETTLED for row in rows):
                break
        time.sleep(1)
    return rows


def report_of(outcomes: Sequence[Outcome], history: History) -> dict[str, Any]:
    parts = list(dict.fromkeys(outcome.part for outcome in outcomes))
    times = {part: [o.recovery_s for o in outcomes if o.part == part and o.recovery_s is not None] for part in parts}
    found = violations(history)
    return {
        "faults": len(outcomes),
        "kinds": len(parts),
        "operations": len(history.operations),
        "acknowledged": len(history.acknowledged),
        "lost": len(list(lost(history))),
        "doubled": len(list(doubled(history))),
        "unsettled": sum(row.state not in SETTLED for row in history.rows),
        "diverged": sum(outcome.fault is not None for outcome in outcomes),
        "violations": {letter: len(sentences) for letter, sentences in found.items()},
        "recovery_s": {p: {"median": median(t), "max": max(t), "faults": len(t)} for p, t in times.items() if t},
        "versions": len(history.chain.versions),
        "moves": len(history.chain.moves),
        "succeeded": {kind: sum(one.succeeded for one in history.of_kind(kind)) for kind in _kinds(history)},
        "violating": {letter: sentences[:20] for letter, sentences in found.items() if sentences},
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }


def _kinds(history: History) -> list[str]:
    return sorted({operation.kind for operation in history.operations})


def shown(report: dict[str, Any]) -> Table:
    table = Table("fault", "times", "whole again after, median s", "max s", title="Faults")
    for part, found in sorted(report["recovery_s"].items()):
        table.add_row(part, str(found["faults"]), f"{found['median']:.1f}", f"{found['max']:.1f}")
    names = ("faults", "kinds", "operations", "acknowledged", "lost", "doubled", "unsettled", "diverged", "leaks")
    table.caption = ", ".join(f"{name} {report[name]}" for name in names) + f", violations {report['violations']}"
    return table


def is_wrong(report: dict[str, Any]) -> bool:
    wrong = any(report[name] for name in ("lost", "doubled", "unsettled", "diverged", "leaks"))
    return wrong or any(report["violations"].values())


def main(arguments: Sequence[str] | None = None) -> int:
    given = _arguments(arguments)
    home = Path(os.environ.get("ERRATA_HOME", "runs")) / "chaos"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    directory = Path(tempfile.mkdtemp(prefix="service-", dir=home))
    parts, skipped, disk = given.parts.split(","), dict[str, str](), None
    try:
        disk = LoopDisk.make(directory) if NEEDS_DISK in parts else None
    except CannotMount as fault:
        parts.remove(NEEDS_DISK)
        skipped[NEEDS_DISK] = str(fault)
        console.print(f"{NEEDS_DISK} is skipped: {fault}")
    service = Service(directory, with_jobs=False, replicas=REPLICAS, with_keys=True, disk=disk, secrets=TEXTS)
    began = time.monotonic()
    try:
        service.start()
        console.print(f"the service is whole after {service.until_whole():.0f} s")
        send_texts(service.http)  # For the logs, which are searched at the end.
        outcomes, history = suffer(service, schedule(given.seed, given.faults, parts), given.seed, _ending())
    finally:
        service.stop()
    history.save(home / "history.json")
    command = f"python -m tests.chaos.run --seed {given.seed} --faults {given.faults} --parts {given.parts}"
    report = report_of(outcomes, history) | {"command": command, "seed": given.seed, "hardware": hardware()}
    report |= {"leaks": len(service.leaked), "leaking": service.leaked[:20], "skipped": skipped}
    report["seconds"] = round(time.monotonic() - began, 1)
    (home / "report.json").write_text(json.dumps(report, indent=1))
    console.print(shown(report))
    console.print(*(f"({letter}) {text}" for letter, texts in report["violating"].items() for text in texts[:3]), sep="\n")
    console.print(f"{command}; {hardware()}; {report['seconds']} s; written to {home / 'report.json'}")
    return int(is_wrong(report))


def _ending() -> threading.Event:
    """Return what SIGINT and SIGTERM set: the run ends after the fault that it is at, and what it found is checked."""
    ending = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ending.set())
    return ending


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    full = os.environ.get("FULL", "0") not in ("", "0")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", type=int, default=NUM_FAULTS_FULL if full else NUM_FAULTS)
    parser.add_argument("--parts", default=",".join(FAULTS), help="with commas between them")
    given = parser.parse_args(arguments)
    if unknown := set(given.parts.split(",")) - set(FAULTS):
        parser.error(f"no fault is named {', '.join(sorted(unknown))}; there are {', '.join(FAULTS)}")
    return given


if __name__ == "__main__":
    sys.exit(main())
