"""The commands `errata versions`, `diff`, `rollback`, `revert`, `blame` and `export`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from errata.cli.console import (
    DEFAULT_URL,
    MAX_SHOWN,
    AsJson,
    Url,
    connect,
    console,
    edits_table,
    errors_as_one_line,
    print_json,
    prompt_and_target,
    say,
    say_neighbours,
    shown,
)
from errata.text.dialogue import Dialogue

if TYPE_CHECKING:
    from errata.client.client import Client
    from errata.client.responses import RevertDryRunOut, VersionPage

app = typer.Typer()
ExpectedHead = Annotated[
    int | None, typer.Option(help="Change nothing unless this is the live version, so that no edit between is lost.", min=0)
]
NUM_BLAMED, NUM_LISTED = 10, 100  # edits in a table


class Mode(StrEnum):
    AUTO = "auto"
    SUBTRACT = "subtract"
    DOWNDATE = "downdate"
    REPLAY = "replay"


@app.command()
def versions(
    number: Annotated[int | None, typer.Argument(help="One version, with its edits and its scorecard.", min=0)] = None,
    limit: Annotated[int, typer.Option(help="Number of versions, the newest; 0 for all.", min=0)] = 20,
    before: Annotated[int | None, typer.Option(help="Versions before this one.", min=0)] = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """List versions; the live version is marked."""
    with errors_as_one_line():
        client = connect(url)
        answer: Any = _page(client, limit, before) if number is None else client.version(number)
    if as_json:
        return print_json(answer)
    if number is not None:
        return _print_version(answer)
    table = Table("", "version", "parent", "edits", "bytes", "made")
    for version in answer["versions"]:
        live = "●" if version["version"] == answer["head"] else ""
        parent = "" if version["parent"] is None else str(version["parent"])
        table.add_row(
            live, str(version["version"]), parent, str(version["num_edits"]), f"{version['num_bytes']:,}", version["created"]
        )
    console.print(table)


def _page(client: Client, limit: int, before: int | None) -> VersionPage:
    """Get the newest versions; with the limit 0 all of them, page by page."""
    page = client.versions(limit or 1, before)
    return page if limit else {**page, "versions": list(client.each_version(before))[::-1]}


def _print_version(version: Mapping[str, Any]) -> None:
    parent = "the unedited model" if version["parent"] is None else f"on version {version['parent']}"
    made = f", {version['created']}, by {version['editor']}, {version['num_bytes']:,} bytes"
    say(f"version {version['version']}, {parent}{made}")
    _print_edits("edits", version["edits"])
    if numbers := _numbers(version["scorecard"]):
        table = Table("scorecard", "")
        for name, value in numbers.items():
            table.add_row(shown(name), _number(value))
        console.print(table)


@app.command()
def diff(a: int, b: int, as_json: AsJson = False, url: Url = DEFAULT_URL) -> None:
    """Compare two versions: edits that only one of them holds, their answers, norms of the change, both scorecards."""
    with errors_as_one_line():
        answer = connect(url).diff(a, b)
    if as_json:
        return print_json(answer)
    say(f"from version {answer['from']} to {answer['to']}; version {answer['common']} is their last common ancestor")
    _print_edits(f"only in {b}", answer["added"])
    _print_edits(f"only in {a}", answer["removed"])
    if answer["answers"]:
        table = Table("prompt", f"version {a}", f"version {b}")
        for pair in answer["answers"]:
            table.add_row(*(shown(pair[name], MAX_SHOWN) for name in ("prompt", "from", "to")))
        console.print(table)
    if answer["norms"]:
        table = Table("matrix", "norm of the change")
        for name, norm in answer["norms"].items():
            table.add_row(shown(name), f"{norm:.4g}")
        console.print(table)
    if answer["scorecard"]:
        table = Table("score", f"version {a}", f"version {b}")
        for name, (one, other) in answer["scorecard"].items():
            table.add_row(shown(name), _number(one), _number(other))
        console.print(table)


@app.command()
def rollback(
    version: Annotated[int, typer.Argument(min=0)], expected_head: ExpectedHead = None, url: Url = DEFAULT_URL
) -> None:
    """Serve an earlier or later version again; nothing is deleted."""
    with errors_as_one_line("admin"):
        answer = connect(url).rollback(version, expected_head)
    swap = f"; the swap took {answer['swap_ms']:.0f} ms" if answer.get("swap_ms") is not None else ""
    say(f"version {version} is live{swap}")
    _say_late(answer)


@app.command()
def revert(
    edit_ids: Annotated[list[str] | None, typer.Argument(help="Ids of edits; `errata edits` lists them.")] = None,
    version: Annotated[list[int] | None, typer.Option(help="All edits of this version; may be repeated.", min=1)] = None,
    mode: Annotated[
        Mode,
        typer.Option(
            help="subtract their factors, downdate the equations of later edits by them, replay later edits without them, or "
            "auto: the best that is possible."
        ),
    ] = Mode.AUTO,
    expected_head: ExpectedHead = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what the revert would do, and change nothing.")] = False,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Make a new version without the chosen edits, and with all others."""
    if not edit_ids and not version:
        raise typer.BadParameter("name the edits to take out by their ids, or a version of edits (--version N)")
    if dry_run:
        with errors_as_one_line("admin"):
            found = connect(url).dry_run_revert(edit_ids or [], version or [], mode.value, expected_head)
        return print_json(found) if as_json else _print_dry_run(found)
    with errors_as_one_line("admin"):
        answer = connect(url).revert(edit_ids or [], version or [], mode.value, expected_head)
    if as_json:
        return print_json(answer)
    say(f"version {answer['version']} is live, without {len(answer['reverted'])} edits ({answer['mode']})")
    _say_late(answer)
    _print_answers(answer["scorecard"].get("reverted_answers", ()))
    if numbers := _numbers(answer["scorecard"]):
        table = Table("score", "")
        for name, value in numbers.items():
            table.add_row(shown(name), _number(value))
        console.print(table)


def _say_late(answer: Mapping[str, Any]) -> None:
    if why := answer.get("swap_error"):
        say(f"not served everywhere yet: {why}", "yellow")


def _print_dry_run(found: RevertDryRunOut) -> None:
    """Print what a revert would do: the answers after it, the figures of its version, and other answers that would change."""
    if not found["publish"]:
        for breach in found["breaches"]:
            say(f"the guard would refuse it: {breach['message']}", "red")
        raise typer.Exit(1)
    say(f"it would take out {len(found['reverted'])} edits ({found['mode']}) of version {found['head']}; nothing was changed")
    _print_answers(found["scorecard"].get("reverted_answers", ()), ("until now", "then"))
    say_neighbours(found["neighbours"])


def _print_answers(answers: Sequence[Mapping[str, Any]], times: tuple[str, str] = ("until now", "now")) -> None:
    """Print the answers to the reverted prompts: before the edit, with it, and by the new version."""
    if not answers:
        return
    table = Table("prompt", "before the edits", *times)
    for one in answers:
        table.add_row(*(shown(one[name], MAX_SHOWN) for name in ("prompt", "was", "said", "says")))
    console.print(table)


@app.command()
def blame(
    prompt: str,
    max_tokens: Annotated[int, typer.Option(help="Length of the compared answers, in tokens.", min=1)] = 8,
    form: Annotated[str, typer.Option(help="completion or chat; without it, the form in which the model is corrected.")] = "",
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Find the version that changed the answer to this prompt, and the most likely of its edits."""
    if form not in ("", "completion", "chat"):
        raise typer.BadParameter(f"--form is completion or chat, not {form!r}")
    with errors_as_one_line():
        client = connect(url)
        in_chat = (form or client.form()) == "chat"
        answer = client.blame(Dialogue.of(prompt) if in_chat else prompt, max_tokens)
    if as_json:
        return print_json(answer)
    if answer["version"] is None:
        return say(f"no version changed it: the unedited model says {answer['after']!r} ({answer['num_asked']} versions tried)")
    say(f"version {answer['version']} changed it ({answer['num_asked']} versions tried)")
    say(f"before: {answer['before']}")
    say(f"since:  {answer['after']}")
    _print_edits("its edits, most likely first", answer["edits"], NUM_BLAMED)


@app.command()
def export(version: int, directory: Path, ledger: Annotated[Path, typer.Option(help="Folder of the ledger.")]) -> None:
    """Write a version as a plain Hugging Face checkpoint; needs no service."""
    from errata.ledger import Ledger, LedgerDamaged, UnknownVersion
    from errata.ledger.export import IN_MEMORY

    with errors_as_one_line(also=(LedgerDamaged, UnknownVersion)):
        opened = Ledger.open(ledger)
        opened.export(version, directory)
        memory = opened.memory(version)
    say(f"version {version} is in {directory}")
    if memory is not None:
        say(
            f"without {len(memory):,} edits that it keeps in a memory ({IN_MEMORY} lists them): no checkpoint holds these",
            "yellow",
        )


def _print_edits(title: str, edits: Sequence[Mapping[str, Any]], limit: int = NUM_LISTED) -> None:
    if not edits:
        return
    table = edits_table("edit", "by", title=f"{title} ({len(edits)})")
    for edit in edits[:limit]:
        names = edit.get("poster") or "", f"approved by {edit['approver']}" if edit.get("approver") else ""
        table.add_row(shown(edit.get("id") or ""), prompt_and_target(edit), shown(", ".join(filter(None, names))))
    console.print(table)
    if len(edits) > limit:
        say(f"and {len(edits) - limit:,} more; --json has all", "dim")


def _numbers(scorecard: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in scorecard.items() if isinstance(value, int | float)}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
