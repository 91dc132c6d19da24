"""The commands `errata proposals list`, `approve` and `refuse`: edits that wait for a reviewer."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from errata.cli.console import (
    DEFAULT_URL,
    AsJson,
    Url,
    connect,
    console,
    edits_table,
    errors_as_one_line,
    print_json,
    prompt_and_target,
    say,
    shown,
)
from errata.client.responses import ProposalState

if TYPE_CHECKING:
    from errata.client.responses import ProposalOut

app = typer.Typer(help="List proposed edits, and decide on them. `errata edit --propose` makes one.", no_args_is_help=True)
STATES = get_args(ProposalState)
Id = Annotated[str, typer.Argument(help="The proposal's id, as `errata proposals list` shows it.")]
Reason = Annotated[str, typer.Option(help="The reason, for the author to read.")]


@app.command("list")
def list_proposals(
    state: Annotated[
        str, typer.Option(help=f"Only proposals in this state: {', '.join(STATES)}; `all` for every one.")
    ] = "open",
    limit: Annotated[int, typer.Option(help="Number of proposals, the newest first.", min=1, max=1000)] = 20,
    before: Annotated[
        int | None, typer.Option(help="Proposals before this cursor, which the last line of a page names.")
    ] = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """List proposals, newest first."""
    if state not in (*STATES, "all"):
        raise typer.BadParameter(f"--state is one of {', '.join(STATES)}, all, not {state!r}")
    with errors_as_one_line("propose"):
        page = connect(url).proposals(None if state == "all" else state, limit, before)
    if as_json:
        return print_json(page)
    table = edits_table("state", "edit", "proposed", "by", "decided by", "reason")
    for one in page["proposals"]:
        made = f"{datetime.fromtimestamp(one['created']):%Y-%m-%d %H:%M:%S}"
        row: Mapping[str, object] = one
        names = [shown(row.get(name) or "") for name in ("author", "decider", "reason")]
        table.add_row(shown(one["id"]), one["state"], prompt_and_target(one["edit"]), made, *names)
    console.print(table)
    if page["next"] is not None:
        say(f"older proposals: --before {page['next']}", "dim")


@app.command()
def approve(proposal: Id, reason: Reason = "", url: Url = DEFAULT_URL) -> None:
    """Approve a proposal, which is then made as an edit of the same id. Its author may not."""
    with errors_as_one_line("edit"):
        decided = connect(url).approve(proposal, reason or None)
    say(f"{_by(decided)}; `errata watch {decided['id']}` follows the edit")


@app.command()
def refuse(proposal: Id, reason: Reason = "", url: Url = DEFAULT_URL) -> None:
    """Refuse a proposal."""
    with errors_as_one_line("edit"):
        say(_by(connect(url).refuse(proposal, reason or None)))


def _by(decided: ProposalOut) -> str:
    return f"proposal {decided['id']} is {decided['state']}" + (f" by {decided['decider']}" if decided.get("decider") else "")
