"""What the commands that call the service share: the console, the address, and one red line for whatever goes wrong."""

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
RETRY_S = 20.0  # a person waits
MAX_SHOWN = 60  # characters of a prompt in a table

# A console over a pipe would wrap tables to 80 columns and cut words.
console = Console(width=None if sys.stdout.isatty() else 140)
errors = Console(stderr=True)

Url = Annotated[str, typer.Option(help="Address of the service.", envvar="ERRATA_URL")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the service's answer as it is.")]


def say_waiting(wait_s: float, why: str) -> None:
    errors.print(shown(f"{why}; trying again in {wait_s:.0f} s"), style="yellow", soft_wrap=True)


def connect(url: str, retry_s: float | None = None, on_wait: Callable[[float, str], None] = say_waiting) -> Client:
    """The client, with the key of ERRATA_KEY: on the command line other users of the machine would see it."""
    from errata.client.client import Client

    return Client(url, os.environ.get("ERRATA_KEY") or None, retry_s=RETRY_S if retry_s is None else retry_s, on_wait=on_wait)


@contextmanager
def errors_as_one_line(role: str = "read") -> Iterator[None]:
    """What goes wrong becomes one red line that says what to do, and exit code 1. `role` is what the command takes."""
    try:
        yield
    except ErrataError as refused:
        end(explained(refused, role))
    except (ValueError, OSError) as wrong:
        end(str(wrong))


def end(message: str) -> NoReturn:
    errors.print(shown(message), style="red", soft_wrap=True)
    raise typer.Exit(1) from None


def explained(refused: ErrataError, role: str = "read") -> str:
    """What the service said, and what to do about it."""
    if isinstance(refused, Unreachable):
        return f"{refused}. Is it running? `errata serve` (or `make serve`) starts it; ERRATA_URL or --url says where it is."
    later = "" if refused.retry_after_s is None else f"; it asks to be tried again in {refused.retry_after_s:.0f} s"
    match refused.status:
        case 401:
            has_key = bool(os.environ.get("ERRATA_KEY"))
            how = "the key in ERRATA_KEY is unknown or has expired" if has_key else "ERRATA_KEY is not set"
            advice = f"{how}: it must hold a key of the role {role}, or of a higher one (`errata keys add` makes one)"
        case 403:
            advice = f"the key in ERRATA_KEY may not do this: it takes one of the role {role} or a higher one"
        case 404 if refused.message == "Not Found":
            advice = "the service has no such route: is it an older one, or not Errata?"
        case 404:
            advice = "`errata edits` lists the edits, `errata versions` the versions"
        case 409:
            advice = "look at `errata versions` and `errata edits`, then ask again"
        case 413:
            advice = "post less at a time"
        case 422:
            advice = "nothing was changed by what is refused"
        case 429:
            advice = f"too much is waiting, or asked too fast{later}; `errata status` shows the queue"
        case 503:
            advice = f"a part of the service is not there just now{later}; `errata status` shows which"
        case _:
            advice = ""
    return f"{refused}. {advice}" if advice else str(refused)


def shown(value: Any, limit: int = 0) -> Text:
    """On one line and without markup; what would steer a terminal is written out. Cut to `limit` characters, 0 for all."""
    line = " ".join(str(value).split())
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)
    return Text(plain if not limit or len(plain) <= limit else plain[: limit - 1] + "…")


def edits_table(*columns: str, **options: Any) -> Table:
    """With the ids of edits, which are whole whatever the width: other commands take them."""
    return Table(Column("id", min_width=32, no_wrap=True), *columns, title_justify="left", **options)


def asked(edit: Mapping[str, Any]) -> Text:
    """The prompt and what answers it."""
    return Text.assemble(shown(edit.get("prompt", ""), MAX_SHOWN), " → ", shown(edit.get("target", ""), MAX_SHOWN))


def say(message: str, style: str = "") -> None:
    """One line, however long."""
    console.print(shown(message), style=style or None, soft_wrap=True, highlight=False)


def print_json(answer: Any) -> None:
    typer.echo(json.dumps(answer, indent=2))
