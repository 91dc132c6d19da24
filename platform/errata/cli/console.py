"""Shared parts of the commands: the consoles, the client, and one red line for each failure."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from errata.client.errors import ErrataError, Unreachable

if TYPE_CHECKING:  # httpx takes longer to import than `errata --help` should
    from errata.client.client import Client

DEFAULT_URL = "http://127.0.0.1:8000"
RETRY_S = 20.0  # short, because a person waits
MAX_SHOWN = 60  # characters of a prompt in a table

# A console over a pipe would wrap tables to 80 columns and cut words.
console = Console(width=None if sys.stdout.isatty() else 140)
errors = Console(stderr=True)

Url = Annotated[str, typer.Option(help="Address of the service.", envvar="ERRATA_URL")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the service's answer unchanged.")]


def say_waiting(wait_s: float, why: str) -> None:
    errors.print(shown(f"{why}; trying again in {wait_s:.0f} s"), style="yellow", soft_wrap=True)


def connect(url: str, retry_s: float | None = None, on_wait: Callable[[float, str], None] = say_waiting) -> Client:
    """Make the client, with the key of ERRATA_KEY, because other users of the machine see command lines."""
    from errata.client.client import Client

    return Client(url, os.environ.get("ERRATA_KEY") or None, retry_s=RETRY_S if retry_s is None else retry_s, on_wait=on_wait)


@contextmanager
def errors_as_one_line(role: str = "read", also: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn an expected error into one red line with advice, and exit code 1.

    `role` is the role of a key that the command requires, `also` are types of errors that only this command expects.
    """
    expected: tuple[type[Exception], ...] = (ValueError, OSError, *also)
    try:
        yield
    except ErrataError as refused:
        fail(with_advice(refused, role))
    except expected as wrong:
        fail(str(wrong))


@contextmanager
def logged(name: str) -> Iterator[Console]:
    """Write what frameworks print to a log file, which is named first and in the line of a failure; give our own console."""
    from errata.local.terminal import Terminal

    with Terminal(name) as terminal:
        if terminal.log is not None:
            terminal.console.print(Text(f"{name}: log in {terminal.log}"), soft_wrap=True)
        try:
            yield terminal.console
        except (ValueError, OSError) as wrong:
            terminal.log_traceback(wrong)
            terminal.fail(f"{name}: {wrong}")
            raise typer.Exit(1) from None


def fail(message: str) -> NoReturn:
    """Print the reason in one red line and end the command with exit code 1."""
    errors.print(shown(message), style="red", soft_wrap=True)
    raise typer.Exit(1) from None


def with_advice(refused: ErrataError, role: str = "read") -> str:
    """Make a sentence of a refusal: the service's message, and what to do about it."""
    if isinstance(refused, Unreachable):
        return f"{refused}. Is it running? `errata serve` (or `make serve`) starts it; ERRATA_URL or --url is its address."
    later = "" if refused.retry_after_s is None else f"; try again in {refused.retry_after_s:.0f} s"
    match refused.status:
        case 401:
            has_key = bool(os.environ.get("ERRATA_KEY"))
            how = "the key in ERRATA_KEY is unknown or has expired" if has_key else "ERRATA_KEY is not set"
            advice = f"{how}: a key of the role {role}, or of a higher one, is needed (`errata keys add` makes one)"
        case 403:
            advice = f"the key in ERRATA_KEY may not do this: a key of the role {role}, or of a higher one, is needed"
        case 404 if refused.code is None:  # What Errata itself does not find has a code.
            advice = "the service has no such route: it is an older release, or not Errata"
        case 404:
            advice = "`errata edits` lists the edits, `errata versions` the versions"
        case 409:
            advice = "look at `errata versions` and `errata edits`, then try again"
        case 413:
            advice = "post less at a time"
        case 422:
            advice = "nothing was changed"
        case 429:
            advice = f"too many edits wait, or requests come too fast{later}; `errata status` shows the queue"
        case 503:
            advice = f"a part of the service is unavailable at the moment{later}; `errata status` shows which"
        case _:
            advice = ""
    return f"{refused}. {advice}" if advice else str(refused)


def shown(value: Any, limit: int = 0) -> Text:
    """Make one line without markup; control characters are escaped. Cut to `limit` characters, 0 for all."""
    line = " ".join(str(value).split())
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)
    return Text(plain if not limit or len(plain) <= limit else plain[: limit - 1] + "…")


def edits_table(*columns: str, **options: Any) -> Table:
    """Make a table whose first column has the ids of edits, never cut, because other commands take them."""
    return Table(Column("id", min_width=32, no_wrap=True), *columns, title_justify="left", **options)


def prompt_and_target(edit: Mapping[str, Any]) -> Text:
    return Text.assemble(shown(edit.get("prompt", ""), MAX_SHOWN), " → ", shown(edit.get("target", ""), MAX_SHOWN))


def say(message: str, style: str = "") -> None:
    """Print one line, whatever its length."""
    console.print(shown(message), style=style or None, soft_wrap=True, highlight=False)


def say_neighbours(near: Mapping[str, Any]) -> None:
    """Print the answers that a dry run finds to change beside the edits, and how many were asked."""
    for name, what in (("edits", "edit"), ("probes", "probe")):
        for row in near[name]:
            lost = ", lost" if row.get("lost") else ""
            say(f"{what}{lost}: {row['prompt']} {row['before']} -> {row['after']}", "yellow")
    say(f"{near['num_edits_asked']:,} of {near['num_edits']:,} edits and {near['num_probes']:,} probes were asked", "dim")


def print_json(answer: Any) -> None:
    typer.echo(json.dumps(answer, indent=2))
