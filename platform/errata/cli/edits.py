"""The commands `errata edit`, `edits`, `import`, `ask` and `watch`."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.text import Text

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
    say_neighbours,
    shown,
)
from errata.client.errors import ErrataError
from errata.edit import EditState
from errata.text.dialogue import FORMS, Dialogue

if TYPE_CHECKING:
    from errata.client.events import Event
    from errata.client.responses import DryRunOut, EditOut, TriedEditOut

app = typer.Typer()
FORM_HELP = "How the model is asked: completion, chat or both. Without it: chat, if the model has a chat template."
STATES = get_args(EditState)


@app.command()
def edit(
    prompt: str,
    target: str,
    subject: Annotated[str | None, typer.Option(help="The subject of the fact, as it occurs in the prompt.")] = None,
    rephrasing: Annotated[list[str] | None, typer.Option(help="Another wording of the prompt; may be repeated.")] = None,
    alias: Annotated[list[str] | None, typer.Option(help="Another text that counts as the target; may be repeated.")] = None,
    answer: Annotated[str, typer.Option(help="In chat, the whole answer, with the target in it.")] = "",
    form: Annotated[str, typer.Option(help=FORM_HELP)] = "",
    source: Annotated[str, typer.Option(help="Where the fact is from: a URL, or a note.")] = "",
    valid_from: Annotated[str, typer.Option(help="First day on which the fact holds, as YYYY-MM-DD.")] = "",
    valid_to: Annotated[str, typer.Option(help="First day on which it does not hold any more.")] = "",
    reason: Annotated[str, typer.Option(help="Why it is corrected.")] = "",
    wait: Annotated[bool, typer.Option(help="Wait until the edit is served; otherwise print its id and return.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what the edit would do, and change nothing.")] = False,
    propose: Annotated[
        bool, typer.Option("--propose", help="Propose the edit: a reviewer decides whether it is made.")
    ] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Correct one answer and wait until the served model gives it."""
    if form and form not in FORMS:
        raise typer.BadParameter(f"--form is {', '.join(FORMS)}, not {form!r}")
    given = {"subject": subject, "rephrasings": rephrasing, "aliases": alias, "answer": answer, "form": form}
    given |= {"source": source, "valid_from": valid_from, "valid_to": valid_to, "reason": reason}
    body: dict[str, Any] = {"prompt": prompt, "target": target} | {name: value for name, value in given.items() if value}
    if dry_run and propose:
        raise typer.BadParameter("--dry-run and --propose exclude each other")
    if propose:
        with errors_as_one_line("propose"):
            (proposed,) = connect(url).propose([body])
        return say(f"proposed as {proposed['id']}; `errata proposals approve {proposed['id']}` makes it")
    if dry_run:
        with errors_as_one_line("propose"):
            found = connect(url).dry_run([body])
        _print_dry_run(found)
        raise typer.Exit(int(found["edits"][0]["state"] == "rejected"))
    with errors_as_one_line("edit"):
        try:
            (made,) = connect(url).edit([body], wait)["edits"]
        except ErrataError as refused:
            if not refused.answer.get("edits"):
                raise
            (made,) = refused.answer["edits"]
    say(_outcome(made))
    _say_contradictions(made)
    if made["state"] == "rejected":
        raise typer.Exit(1)


def _print_dry_run(found: DryRunOut) -> None:
    """Print the answers before and after an edit, what the guard measures, and the neighbours whose answers would change."""
    (one,) = found["edits"]
    for name in ("unedited", "before", "after"):
        if name in one:
            console.print(Text.assemble((f"{name}: ", "dim"), (shown(one[name]).plain, "bold")), soft_wrap=True)
    if one["state"] == "rejected":
        say(f"it would be rejected: {one.get('reason', 'without a reason')}", "red")
    elif one.get("changed") is False:
        say(f"nothing to change: version {found['head']} answers so already")
    _say_contradictions(one)
    for attempt in found["guard"]:
        scores = {name: value for name, value in attempt["scores"].items() if isinstance(value, float | int)}
        say("guard: " + ", ".join(f"{name} {value:.3g}" for name, value in scores.items()))
        for warning in attempt["warnings"]:
            say(f"warning: {warning}", "yellow")
    say_neighbours(found["neighbours"])
    say(f"nothing was changed (head: version {found['head']})", "dim")


def _say_contradictions(made: EditOut | TriedEditOut) -> None:
    if ids := made.get("contradicts"):
        say(
            f"it contradicts {', '.join(ids)}, with another target for the same time: `errata edits --subject` shows both",
            "yellow",
        )


def _outcome(made: EditOut) -> str:
    state = made["state"]
    if state == "applied":
        if made.get("changed") is False:
            return f"nothing to change: version {made['version']} answers so already"
        asked = {"chat": " in chat", "both": " in chat and as a completion"}.get(made["edit"].get("form", ""), "")
        return f"applied{asked} in version {made['version']}"
    if state == "rejected":
        field = f"{made['field']}: " if made.get("field") else ""
        return f"rejected: {field}{made.get('reason', 'without a reason')}"
    if state in ("queued", "applying"):
        return f"{state} as {made['id']}; `errata watch {made['id']}` follows it"
    return f"{state}: {made.get('reason', '')} (version {made.get('version')})"


@app.command()
def edits(
    state: Annotated[str, typer.Option(help=f"Only edits in this state: {', '.join(STATES)}.")] = "",
    limit: Annotated[int, typer.Option(help="Number of edits, the newest first.", min=1, max=1000)] = 20,
    before: Annotated[str, typer.Option(help="Edits before this cursor, which the last line of a page names.")] = "",
    subject: Annotated[
        str, typer.Option(help="The history of one subject: all its edits, oldest first, with their times.")
    ] = "",
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """List posted edits with their states, newest first, or the history of a subject."""
    if state and state not in STATES:
        raise typer.BadParameter(f"--state is one of {', '.join(STATES)}, not {state!r}")
    if subject:
        return _print_history(subject, state, as_json, url)
    with errors_as_one_line():
        page = connect(url).edits(state or None, limit, before or None)
    if as_json:
        return print_json(page)
    table = edits_table("state", "version", "edit", "posted", "by", "reason")
    for made in page["edits"]:
        version = "" if made.get("version") is None else str(made["version"])
        by, why = shown(made.get("poster") or ""), shown(made.get("reason") or "")
        table.add_row(shown(made["id"]), _state(made), version, prompt_and_target(made["edit"]), _posted(made), by, why)
    console.print(table)
    if page["next"] is not None:
        say(f"older edits: --before {page['next']}", "dim")


def _print_history(subject: str, state: str, as_json: bool, url: str) -> None:
    """Print the edits of a subject, oldest first: by the day from which each held, or on which it was posted."""
    with errors_as_one_line():
        found = list(connect(url).each_edit(state or None, subject))[::-1]
    found.sort(key=lambda made: made["edit"].get("valid_from") or _posted(made))
    if as_json:
        return print_json({"subject": subject, "edits": found})
    for made in found:
        edit = made["edit"]
        begin, end = (made.get(f"held_{name}") or edit.get(f"valid_{name}") for name in ("from", "to"))
        time = " ".join([f"from {begin}"] * bool(begin) + [f"until {end}"] * bool(end)) or "at no known time"
        console.print(Text.assemble((time, "bold"), ": ", prompt_and_target(edit)), soft_wrap=True)
        named = {"by": made.get("poster"), "source": edit.get("source"), "reason": edit.get("reason")}
        about = [f"{name} {text}" for name, text in named.items() if text]
        say("; ".join([f"  {made['id']}: {_state(made)}, posted {_posted(made)}", *about]), "dim")
    if not found:
        say(f"no edit is about {subject!r}: a subject is found by its words, whole and in order", "dim")


def _state(made: EditOut) -> str:
    return f"{made['state']}, not live" if made["state"] == "applied" and made.get("live") is False else made["state"]


def _posted(made: EditOut) -> str:
    return f"{datetime.fromtimestamp(made['created']):%Y-%m-%d %H:%M:%S}"


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(help="A file, folder, pattern or URI; docs/data.md has the formats.")],
    format_name: Annotated[str, typer.Option("--format", help="Format of the records; without it, it is detected.")] = "",
    on_fault: Annotated[str, typer.Option(help="stop at a faulty record before anything is posted, or skip it.")] = "stop",
    absent_subject: Annotated[
        str, typer.Option(help="refuse an edit whose subject is not in its prompt, or drop the subject.")
    ] = "refuse",
    limit: Annotated[int, typer.Option(help="Number of edits to post; 0 for all.", min=0)] = 0,
    wait: Annotated[bool, typer.Option(help="Wait until all edits are settled; otherwise until they are queued.")] = True,
    run: Annotated[str, typer.Option(help="Name of this run; under another name the same file is posted again.")] = "",
    refused_to: Annotated[str, typer.Option("--rejected", help="File for rejected edits with reasons, as JSON lines.")] = "",
    url: Url = DEFAULT_URL,
) -> None:
    """Post a file of edits. After an interruption the same command continues, and posts no edit twice."""
    from errata.cli.data import Reading
    from errata.cli.import_file import ImportOptions, import_file

    reading = Reading.of(source, format_name, on_fault, absent_subject)
    options = ImportOptions(limit=limit, wait=wait, run=run, refused_to=refused_to)
    with errors_as_one_line("edit"):
        ended_well = import_file(reading, options, url)
    if not ended_well:
        raise typer.Exit(1)


@app.command()
def ask(
    prompts: list[str],
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)] = 32,
    at_least: Annotated[int | None, typer.Option(help="Wait until this version is served.")] = None,
    form: Annotated[str, typer.Option(help="completion or chat; without it, the form in which the model is corrected.")] = "",
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Print the served model's greedy answers, and the version that gave them."""
    if form not in ("", "completion", "chat"):
        raise typer.BadParameter(f"--form is completion or chat, not {form!r}")
    with errors_as_one_line():
        client = connect(url)
        in_chat = (form or client.form()) == "chat"
        answer = client.ask([Dialogue.of(prompt) if in_chat else prompt for prompt in prompts], max_tokens, at_least)
    if as_json:
        return print_json({**answer, "form": "chat" if in_chat else "completion"})
    for prompt, text in zip(prompts, answer["answers"], strict=True):
        console.print(Text.assemble(shown(prompt), " ", (shown(text).plain, "bold")), soft_wrap=True)
    say(f"version {answer['version_max']}{', in chat' if in_chat else ''}", "dim")


@app.command()
def watch(
    edit_id: Annotated[str | None, typer.Argument(help="Follow this edit until it is settled; without it, all events.")] = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Print events as they happen, one line each, until Ctrl-C."""
    try:
        with errors_as_one_line(), connect(url, float("inf")) as client:
            for event in client.events(edit_id) if edit_id else client.watch():
                if as_json:
                    print_json({"event": event.name, "data": event.data})
                else:
                    say(f"{datetime.now():%H:%M:%S} {_line(event)}")
    except KeyboardInterrupt:
        say("")


def _line(event: Event) -> str:
    data = event.data
    match event.name:
        case "version":
            return f"version {data['version']}: {data['num_edits']} edits on version {data['parent']}"
        case "listening":
            return f"listening; live: version {data['head']}"
        case "head":
            return f"live: version {data['head']} (before: {data['before']})"
        case "proposal":
            return f"proposal {data['id']} {data['state']}" + (f" by {data['decider']}" if data.get("decider") else "")
        case "reconnected":
            return "connected again; events in between are not shown (`errata edits`, `errata versions`)"
        case "lagged":
            return f"connecting again: {data['message']}"
    if not isinstance(data, dict) or "id" not in data:
        return f"{event.name}: {data}"
    version = f" (version {data['version']})" if data.get("version") is not None else ""
    why = f": {data['reason']}" if data.get("reason") else ""
    return f"edit {data['id']} {data['state']}{version}{why}"
