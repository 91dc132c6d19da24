"""The commands `errata data convert` and `check`, on files of edits."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, cast, get_args

import typer
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from errata.cli.console import console, errors_as_one_line, say, shown
from errata.datasets.completion import AbsentSubject
from errata.datasets.duplicates import HashedEdits, Repetitions
from errata.datasets.formats.table import FORMATS
from errata.datasets.reader import OnFault, read_edits, write_parquet
from errata.datasets.skip_report import SkipReport
from errata.edit import Code, Edit, EditRejected

app = typer.Typer(help="Check and convert files of edits.", no_args_is_help=True)
Source = Annotated[str, typer.Argument(help="A file, folder, pattern or URI, or hf:NAME; docs/data.md has them.")]
FormatName = Annotated[
    str, typer.Option("--format", help=f"Format of the records; without it, it is detected: {', '.join(FORMATS)}.")
]
Limit = Annotated[int, typer.Option(help="Number of edits to read; 0 for all.", min=0)]
AbsentSubjects = Annotated[
    str, typer.Option("--absent-subject", help="refuse an edit whose subject is not in its prompt, or drop the subject.")
]
EVERY = 100_000  # edits between two lines of progress if there is no terminal


@app.command()
def convert(
    source: Source,
    out: Annotated[Path, typer.Argument(help="Parquet file to write; it appears complete or not at all.")],
    format_name: FormatName = "",
    on_fault: Annotated[str, typer.Option(help="stop at a faulty record, or skip and count it.")] = "stop",
    absent_subject: AbsentSubjects = "refuse",
    limit: Limit = 0,
) -> None:
    """Convert a dataset of any known format to Parquet of our own schema."""
    reading = Reading.of(source, format_name, on_fault, absent_subject)
    if out.is_dir():
        raise typer.BadParameter(f"{out} is a folder; name a file to write")
    if out.suffix.lower() != ".parquet":
        raise typer.BadParameter(f"the output is Parquet, so its name must end in .parquet: {out.name}")
    report = SkipReport()
    with _reported(report):
        count = write_parquet(_counted(_edits(reading, report, limit)), out)
    say(f"{_count(count, 'edit')} written to {out}")


@app.command()
def check(source: Source, format_name: FormatName = "", absent_subject: AbsentSubjects = "refuse", limit: Limit = 0) -> None:
    """Count edits, faults, duplicates and conflicts; the exit code is 1 if there is a fault or a conflict."""
    reading = Reading.of(source, format_name, "skip", absent_subject)
    report, hashes = SkipReport(), HashedEdits()
    with _reported(report):
        for edit in _counted(_edits(reading, report, limit)):
            hashes.add(edit)
        found = hashes.repetitions()
        examples = _examples(reading, found)
    left_out = f", {_count(report.num_left_out, 'field')} left out" if report.num_left_out else ""
    say(f"{_count(len(hashes), 'edit')}, {_count(report.num_skipped, 'record')} at fault{left_out}")
    say(f"{_count(found.num_duplicates, 'duplicate')} of an earlier edit")
    _pairs(found.duplicates, found.num_duplicates, examples)
    in_conflict = f"{_count(found.num_in_conflict, 'edit')} in {'it' if found.num_conflicts == 1 else 'them'}"
    say(f"{_count(found.num_conflicts, 'conflict')}, {in_conflict}")
    _pairs(found.conflicts, found.num_conflicts, examples)
    if report.num_skipped or found.num_conflicts:
        raise typer.Exit(1)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class Reading:
    """A source of edits and how it is read."""

    source: str
    format_name: str
    on_fault: OnFault
    absent_subject: AbsentSubject

    @classmethod
    def of(cls, source: str, format_name: str, on_fault: str, absent_subject: str) -> Reading:
        """Read the options of a command. Raises `typer.BadParameter` for a value that an option does not take."""
        chosen = (("--on-fault", on_fault, get_args(OnFault)), ("--absent-subject", absent_subject, get_args(AbsentSubject)))
        for option, given, values in chosen:
            if given not in values:
                raise typer.BadParameter(f"{option} is {' or '.join(values)}, not {given!r}")
        return cls(source, format_name, cast(OnFault, on_fault), cast(AbsentSubject, absent_subject))

    def edits(self, report: SkipReport, limit: int = 0) -> Iterator[Edit]:
        """Iterate over the edits, the first `limit` unless that is 0."""
        found = read_edits(
            self.source,
            format_name=self.format_name,
            on_fault=self.on_fault,
            absent_subject=self.absent_subject,
            skip_report=report,
        )
        return islice(found, limit or None)


def _edits(reading: Reading, report: SkipReport, limit: int) -> Iterator[Edit]:
    """Read edits. Raises `EditRejected` if there is none, because an empty table would look like a success."""
    edits = reading.edits(report, limit)
    first = next(edits, None)
    if first is None:
        why = "every record is faulty, so there is no edit" if report.num_skipped else "the file holds no record"
        raise EditRejected(f"{why} ({reading.source})", code=Code.UNREADABLE_RECORD if report.num_skipped else Code.EMPTY_FILE)
    yield first
    yield from edits


@contextmanager
def _reported(report: SkipReport) -> Iterator[None]:
    """Print the report, then a failure in one line. The log of the datasets is silent, because it would repeat the report."""
    log = logging.getLogger("errata.datasets")
    was_disabled, log.disabled = log.disabled, True
    try:
        with errors_as_one_line():
            try:
                yield
            finally:
                _print_report(report)
    finally:
        log.disabled = was_disabled


def _counted(edits: Iterable[Edit]) -> Iterator[Edit]:
    """Pass edits on, with a growing count on a terminal and plain lines elsewhere."""
    if not console.is_terminal:
        for count, edit in enumerate(edits, 1):
            yield edit
            if count % EVERY == 0:
                say(f"{count:,} edits")
        return
    columns = SpinnerColumn(), TextColumn("edits"), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        yield from progress.track(edits, total=None)


def _print_report(report: SkipReport) -> None:
    for name, format_name in report.formats.items():
        say(f"{name}: {format_name}")
    print_omissions(report)


def print_omissions(report: SkipReport) -> None:
    """Print what was skipped and left out, if anything was."""
    for line in report.report().splitlines():
        indent = " " * (len(line) - len(line.lstrip()))
        console.print(Text.assemble(indent, shown(line)), style="yellow", soft_wrap=True)


def _examples(reading: Reading, found: Repetitions) -> dict[int, Edit]:
    """Read the edits of the pairs again, because their texts were not kept."""
    wanted = {number for pair in (*found.duplicates, *found.conflicts) for number in pair}
    edits = _edits(reading, SkipReport(), max(wanted, default=-1) + 1) if wanted else iter(())
    return {number: edit for number, edit in enumerate(edits) if number in wanted}


def _pairs(pairs: Sequence[tuple[int, int]], num_pairs: int, examples: dict[int, Edit]) -> None:
    for pair in pairs:
        one, other = (examples[number] for number in pair)
        line = f"  edits {pair[0]} and {pair[1]}: {one.prompt!r} is {one.target!r} and {other.target!r}"
        console.print(Text(line), soft_wrap=True)
    if num_pairs > len(pairs):
        console.print(Text(f"  and {num_pairs - len(pairs):,} more"), soft_wrap=True)
