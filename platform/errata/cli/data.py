"""`errata data`: files of edits, looked at and converted."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from errata.datasets.duplicates import Repetitions, Watch
from errata.datasets.formats.table import FORMATS
from errata.datasets.reader import OnFault, read_edits, write_parquet
from errata.datasets.skip_report import SkipReport
from errata.edit import Code, Edit, EditRejected

app = typer.Typer(help="Look at files of edits, and convert them.", no_args_is_help=True)
console = Console(soft_wrap=True)
Source = Annotated[str, typer.Argument(help="A file, folder, pattern or URI, or hf:NAME; docs/data.md has them.")]
FormatName = Annotated[
    str, typer.Option("--format", help=f"Of the records, if it is not to be detected: {', '.join(FORMATS)}.")
]
Limit = Annotated[int, typer.Option(help="Take that many edits; 0 for all.", min=0)]
EVERY = 100_000  # edits between two lines of progress where there is no terminal


@app.command()
def convert(
    source: Source,
    out: Annotated[Path, typer.Argument(help="Parquet file to write; it appears whole or not at all.")],
    format_name: FormatName = "",
    on_fault: Annotated[str, typer.Option(help="stop at a record at fault, or skip it and count it.")] = "stop",
    limit: Limit = 0,
) -> None:
    """Convert a dataset of any known format to Parquet of our own schema."""
    if on_fault not in ("stop", "skip"):
        raise typer.BadParameter(f"--on-fault is stop or skip, not {on_fault!r}")
    if out.is_dir():
        raise typer.BadParameter(f"{out} is a folder; name a file to write")
    if out.suffix.lower() != ".parquet":
        raise typer.BadParameter(f"what is written is Parquet, so its name must end in .parquet: {out.name}")
    skip_report = SkipReport()
    with _told(skip_report):
        count = write_parquet(
            _counted(_edits(source, format_name, "skip" if on_fault == "skip" else "stop", skip_report, limit)), out
        )
    _tell(skip_report)
    console.print(f"{_count(count, 'edit')} written to {out}", highlight=False)


@app.command()
def check(source: Source, format_name: FormatName = "", limit: Limit = 0) -> None:
    """Count edits, faults, duplicates and conflicts; the exit code is 1 if there is a fault or a conflict."""
    skip_report, watch = SkipReport(), Watch()
    with _told(skip_report):
        for edit in _counted(_edits(source, format_name, "skip", skip_report, limit)):
            watch.see(edit)
        found = watch.repetitions()
        examples = _examples(source, format_name, found)
    _tell(skip_report)
    console.print(f"{_count(len(watch), 'edit')}, {_count(skip_report.num_skipped, 'record')} at fault", highlight=False)
    console.print(f"{_count(found.num_duplicates, 'duplicate')} of an earlier edit", highlight=False)
    _pairs(found.duplicates, found.num_duplicates, examples)
    of_whom = f"{_count(found.num_in_conflict, 'edit')} in {'it' if found.num_conflicts == 1 else 'them'}"
    console.print(f"{_count(found.num_conflicts, 'conflict')}, {of_whom}", highlight=False)
    _pairs(found.conflicts, found.num_conflicts, examples)
    if skip_report.num_skipped or found.num_conflicts:
        raise typer.Exit(1)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _edits(source: str, format_name: str, on_fault: OnFault, skip_report: SkipReport, limit: int) -> Iterator[Edit]:
    """Raises `EditRejected` if there is none: a table without rows would pass for a success."""
    edits = islice(read_edits(source, format_name=format_name, on_fault=on_fault, skip_report=skip_report), limit or None)
    first = next(edits, None)
    if first is None:
        why = "every record is at fault, so there is no edit" if skip_report.num_skipped else "the file holds no record"
        raise EditRejected(f"{why} ({source})", code=Code.UNREADABLE_RECORD if skip_report.num_skipped else Code.EMPTY_FILE)
    yield first
    yield from edits


@contextmanager
def _told(skip_report: SkipReport) -> Iterator[None]:
    """A failure is printed instead of a traceback, after what was met until then; so the skip_report is not wanted in the log."""
    log = logging.getLogger("errata.datasets")
    was_disabled, log.disabled = log.disabled, True
    try:
        yield
    except (ValueError, OSError) as wrong:
        _tell(skip_report)
        console.print(str(wrong), style="red", markup=False, highlight=False)
        raise typer.Exit(1) from None
    finally:
        log.disabled = was_disabled


def _counted(edits: Iterable[Edit]) -> Iterator[Edit]:
    """The same edits, with their number on a terminal as it grows, and plain lines elsewhere."""
    if not console.is_terminal:
        for count, edit in enumerate(edits, 1):
            yield edit
            if count % EVERY == 0:
                console.print(f"{count:,} edits", highlight=False)
        return
    columns = SpinnerColumn(), TextColumn("edits"), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        yield from progress.track(edits, total=None)


def _tell(skip_report: SkipReport) -> None:
    for name, format_name in skip_report.formats.items():
        console.print(f"{name}: {format_name}", markup=False, highlight=False)
    if skip_report.num_skipped:
        console.print(skip_report.report(), style="yellow", markup=False, highlight=False)


def _examples(source: str, format_name: str, found: Repetitions) -> dict[int, Edit]:
    """The edits of the pairs, read again: their texts were not kept."""
    wanted = {number for pair in (*found.duplicates, *found.conflicts) for number in pair}
    edits = _edits(source, format_name, "skip", SkipReport(), max(wanted, default=-1) + 1) if wanted else iter(())
    return {number: edit for number, edit in enumerate(edits) if number in wanted}


def _pairs(pairs: Sequence[tuple[int, int]], num_pairs: int, examples: dict[int, Edit]) -> None:
    for pair in pairs:
        one, other = (examples[number] for number in pair)
        said = f"  edits {pair[0]} and {pair[1]}: {one.prompt!r} is {one.target!r} and {other.target!r}"
        console.print(said, markup=False, highlight=False)
    if num_pairs > len(pairs):
        console.print(f"  and {num_pairs - len(pairs):,} more", highlight=False)
