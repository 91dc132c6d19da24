"""The work of `errata import`: progress as a bar on a terminal and as lines elsewhere, and a table of rejected edits."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TextIO

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from errata.cli.console import MAX_SHOWN, connect, console, errors, say, say_waiting, shown, with_advice
from errata.cli.data import Reading, print_omissions
from errata.client.bulk_import import Import, Refusal
from errata.client.errors import ErrataError
from errata.datasets.skip_report import SkipReport

RETRY_S = 600.0  # long, because a full queue empties only as fast as edits are made
NUM_SHOWN = 50  # refusals in the table at the end
EVERY_S = 10.0  # between two lines of progress if there is no terminal


@dataclass
class Refusals:
    """Refused edits: the first NUM_SHOWN for the table; all are written to `sink`, if it is given."""

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


@dataclass(frozen=True)
class ImportOptions:
    """Options of the posting, as `errata import --help` explains them."""

    limit: int = 0
    wait: bool = True
    run: str = ""
    refused_to: str = ""


def import_file(reading: Reading, options: ImportOptions, url: str) -> bool:
    """Post the edits of a source and print their states. True if all were made, or queued without `wait`.

    The file is read twice, so that a faulty one is found before anything is posted. Raises what reading raises, and
    `ErrataError` if nothing could be posted.
    """
    with connect(url, RETRY_S, _at_most_every(EVERY_S, say_waiting)) as client, ExitStack() as stack:
        client.edits(limit=1)  # a wrong address is reported before a long file is read
        report = SkipReport()
        with _quiet(), console.status("reading …"):
            total = sum(1 for _ in reading.edits(report, options.limit))
        print_omissions(report)
        if not total:
            raise ValueError(f"there is no edit in {reading.source}")
        path = options.refused_to
        sink = stack.enter_context(Path(path).open("w", encoding="utf-8")) if path else None
        refusals = Refusals(sink)
        posting, broken = Import(client, refusals, lambda: None, options.wait), ""
        try:
            with _quiet(), _progress(posting, total):
                posting.run(reading.edits(SkipReport(), options.limit), options.run)
        except KeyboardInterrupt:
            broken = "interrupted"
        except (ErrataError, ValueError, OSError) as failed:
            if not posting.num_done:
                raise
            broken = with_advice(failed, "edit") if isinstance(failed, ErrataError) else str(failed)
    _report(posting, refusals, total)
    if broken:
        advice = "The same command continues from here, and posts no edit twice."
        errors.print(shown(f"{broken.rstrip('.')}. {advice}"), style="red", soft_wrap=True)
    return not broken and not posting.states["rejected"]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the log of the datasets: the command prints skipped records itself."""
    log = logging.getLogger("errata.datasets")
    was_disabled, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = was_disabled


def _at_most_every(period_s: float, print_line: Callable[..., None]) -> Callable[..., None]:
    """Wrap a function so that calls within `period_s` of the last effective one do nothing."""
    last = -period_s

    def print_seldom(*arguments: object) -> None:
        nonlocal last
        if time.monotonic() - last >= period_s:
            last = time.monotonic()
            print_line(*arguments)

    return print_seldom


@contextmanager
def _progress(posting: Import, total: int) -> Iterator[None]:
    if not console.is_terminal:
        posting.moved = _at_most_every(EVERY_S, lambda: say(_counts(posting, total)))
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
        table = Table("edit", "state", "prompt", "target", "reason")
        for one in refusals.first:
            texts = (shown(text, MAX_SHOWN) for text in (one.prompt, one.edit["target"]))
            table.add_row(str(one.number), one.state, *texts, shown(one.reason))
        console.print(table)
        if refusals.count > len(refusals.first):
            say(f"and {refusals.count - len(refusals.first):,} more; --rejected FILE lists all of them")
    say(_counts(posting, total))
