"""`errata import`: how far it is, on a terminal as a bar and elsewhere in lines, and what was not made."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TextIO

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from errata.cli.console import MAX_SHOWN, connect, console, errors, explained, say, say_waiting, shown
from errata.client.bulk_import import Import, Refusal
from errata.client.errors import ErrataError
from errata.datasets.reader import OnFault, read_edits
from errata.datasets.skip_report import SkipReport
from errata.edit import Edit

RETRY_S = 600.0  # a full queue empties as fast as edits are made
NUM_SHOWN = 50  # refusals in the table at the end
EVERY_S = 10.0  # between two lines where there is no terminal


@dataclass
class Refusals:
    """The first NUM_SHOWN for the table; all go to `sink`, if there is one."""

    sink: TextIO | None = None
    first: list[Refusal] = field(default_factory=list)
    count: int = 0

    def __call__(self, refusal: Refusal) -> None:
        self.count += 1
        if len(self.first) < NUM_SHOWN:
            self.first.append(refusal)
        if self.sink is not None:
            self.sink.write(json.dumps(asdict(refusal)) + "\n")
            self.sink.flush()


def play(source: str, format_name: str, skips: bool, limit: int, wait: bool, run: str, refused_to: str, url: str) -> bool:
    """Post the edits of `source` and print what becomes of them; whether all of them were made, or queued without `wait`.

    The file is read twice, so that one with a fault is seen before anything is posted. Raises what reading raises, and
    `ErrataError` if nothing could be posted at all.
    """
    on_fault: OnFault = "skip" if skips else "stop"

    def edits(skip_report: SkipReport) -> Iterator[Edit]:
        return islice(read_edits(source, format_name=format_name, on_fault=on_fault, skip_report=skip_report), limit or None)

    with connect(url, RETRY_S, _seldom(say_waiting)) as client, ExitStack() as stack:
        client.edits(limit=1)  # a wrong address is said before a long file is read
        skip_report = SkipReport()
        with _quiet(), console.status("reading …"):
            total = sum(1 for _ in edits(skip_report))
        if skip_report.num_skipped:
            console.print(shown(skip_report.report()), style="yellow", soft_wrap=True)
        if not total:
            raise ValueError(f"there is no edit in {source}")
        sink = stack.enter_context(Path(refused_to).open("w", encoding="utf-8")) if refused_to else None
        refusals = Refusals(sink)
        posting, broken = Import(client, refusals, lambda: None, wait), ""
        try:
            with _quiet(), _progress(posting, total):
                posting.run(edits(SkipReport()), run)
        except KeyboardInterrupt:
            broken = "broken off"
        except (ErrataError, ValueError, OSError) as failed:
            if not posting.num_done:
                raise
            broken = explained(failed, "edit") if isinstance(failed, ErrataError) else str(failed)
    _report(posting, refusals, total)
    if broken:
        advice = "The same command goes on from here, and posts nothing twice."
        errors.print(shown(f"{broken.rstrip('.')}. {advice}"), style="red", soft_wrap=True)
    return not broken and not posting.states["rejected"]


@contextmanager
def _quiet() -> Iterator[None]:
    """What was skipped is told here, so it is not wanted in the log too."""
    log = logging.getLogger("errata.datasets")
    was_disabled, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = was_disabled


def _seldom(tell: Callable[..., None]) -> Callable[..., None]:
    """The same, but silent for EVERY_S after it has spoken: a full queue asks for patience every second."""
    told_at = -EVERY_S

    def tell_seldom(*said: object) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= EVERY_S:
            told_at = time.monotonic()
            tell(*said)

    return tell_seldom


@contextmanager
def _progress(posting: Import, total: int) -> Iterator[None]:
    if not console.is_terminal:
        posting.moved = _seldom(lambda: say(_counts(posting, total)))
        yield
        return
    columns = SpinnerColumn(), TextColumn("posted"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}")
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("", total=total)
        posting.moved = lambda: progress.update(task, completed=posting.num_done, description=_states(posting))
        yield


def _states(posting: Import) -> str:
    return ", ".join(f"{posting.states[state]:,} {state}" for state in ("applied", *sorted(set(posting.states) - {"applied"})))


def _counts(posting: Import, total: int) -> str:
    return f"{posting.num_posted:,} of {total:,} posted: {_states(posting)}"


def _report(posting: Import, refusals: Refusals, total: int) -> None:
    if refusals.first:
        table = Table("edit", "state", "prompt", "target", "why")
        for one in refusals.first:
            texts = (shown(one.edit[name], MAX_SHOWN) for name in ("prompt", "target"))
            table.add_row(str(one.number), one.state, *texts, shown(one.reason))
        console.print(table)
        if refusals.count > len(refusals.first):
            say(f"and {refusals.count - len(refusals.first):,} more; --rejected FILE writes all of them down")
    say(_counts(posting, total))
