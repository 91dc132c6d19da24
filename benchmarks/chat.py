"""Applied means answered: edits in mixed forms and scripts over HTTP, all asked of vLLM at the end: `make bench-chat`.

200 edits are posted to SmolLM2 in batches of 10, in chat and as completions, and some to the invented world's model. After the
last batch each edit is asked in the form in which it was posted, greedily. An edit that is `applied` must then be
answered, unless the service itself says that it is lost (`answered: false`); a rejected one must name the model's answer.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.chat_edits import FORMS, PostedEdit, mixed_edits, world_edits
from benchmarks.report import console, show, write_report
from errata.client.client import Client
from errata.edit import Edit
from errata.home import home
from errata.local.models import default_policy, resolved
from errata.local.services import LocalServices, free_port
from errata.testbed import smollm2
from errata.testbed.world import World
from jobs.arguments import from_arguments
from jobs.demo_facts import post
from jobs.demo_run import TRAINED_EDITOR, check_editor
from jobs.entry import run_job

EDIT_S = 900.0  # A refused batch is made in parts.
POLL_S = 0.5
MAX_TOKENS = 48  # of an answer
SETTLE_S = 600.0  # How long the service may repair edits that later ones have lost.


@dataclass(frozen=True)
class ChatSettings:
    """`edits` go to SmolLM2, `world_edits` to the world's model; 0 leaves a model out.

    `editor` is RLEdit, with each model's policy, or a memory.
    """

    edits: int = 200
    world_edits: int = 40
    batch_size: int = 10
    seed: int = 0
    editor: str = TRAINED_EDITOR

    @property
    def is_trained(self) -> bool:
        return self.editor == TRAINED_EDITOR


@dataclass(frozen=True)
class Outcome:
    """Outcome of an edit: its state as the service reports it, and the served model's answer to each of its prompts."""

    posted: PostedEdit
    reported: dict[str, Any]
    says: list[str]

    @property
    def edit(self) -> Edit:
        return self.posted.edit

    @property
    def is_answered(self) -> bool:
        return self.edit.first_wrong(self.says) is None

    @property
    def kind(self) -> str:
        """`answered`, `unchanged`, `lost` (and the service says so), `unanswered`, `rejected` or `superseded`."""
        if self.reported["state"] != "applied":
            return str(self.reported["state"])
        if not self.is_answered:
            return "lost" if self.reported.get("answered") is False else "unanswered"
        return "answered" if self.reported.get("changed", True) else "unchanged"

    @property
    def names_answer(self) -> bool:
        """The service names what the model says instead."""
        return self.reported.get("says") is not None

    def to_json(self) -> dict[str, Any]:
        reported = {name: self.reported[name] for name in REPORTED if name in self.reported}
        asked = {"form": self.posted.form, "script": self.posted.script, "posted": self.posted.body}
        return {**asked, "kind": self.kind, "says": self.says, "reported": reported}


REPORTED = ("version", "code", "reason", "answers", "answered", "says", "repaired_in")
KINDS = ("answered", "unchanged", "lost", "unanswered", "rejected", "superseded")


def table(outcomes: Sequence[Outcome], name: str) -> list[dict[str, Any]]:
    """Count the outcomes by `form` or `script`, with a last row for all of them."""
    groups = dict.fromkeys(FORMS) if name == "form" else dict.fromkeys(one.posted.script for one in outcomes)
    rows = []
    for group in (*groups, "all"):
        chosen = [one for one in outcomes if group in ("all", getattr(one.posted, name))]
        counts = Counter(one.kind for one in chosen)
        unnamed = sum(one.kind == "rejected" and not one.names_answer for one in chosen)
        if chosen:
            rows.append({name: group, "posted": len(chosen), **{kind: counts[kind] for kind in KINDS}, "unnamed": unnamed})
    return rows


def settled(client: Client, batch: Sequence[PostedEdit]) -> list[str]:
    """Post a batch, wait until each edit is settled, and return the ids. A refusal is an outcome, too."""
    made = post([one.body for one in batch], client)
    counts = ", ".join(f"{number} {state}" for state, number in sorted(Counter(one["state"] for one in made).items()))
    console().print(f"  {counts}", end="", highlight=False)
    return [one["id"] for one in made]


def play(client: Client, posted: Sequence[PostedEdit], batch_size: int) -> tuple[list[Outcome], list[float]]:
    """Post all edits, wait for repairs, and ask each edit; returns the outcomes and the seconds of each batch."""
    ids, seconds = list[str](), list[float]()
    for begin in range(0, len(posted), batch_size):
        console().print(f"  batch {begin // batch_size + 1} of {-(-len(posted) // batch_size)}:", end="", highlight=False)
        start = time.monotonic()
        ids += settled(client, posted[begin : begin + batch_size])
        seconds.append(round(time.monotonic() - start, 1))
        console().print(f"; {seconds[-1]:.1f} s", highlight=False)
    wait_for_repairs(client)
    head = client.status()["head"]
    prompts = list(dict.fromkeys(prompt for one in posted for prompt in one.edit.prompts))
    console().print(f"  asking {len(prompts)} prompts of version {head}", highlight=False)
    said = dict(zip(prompts, client.ask(prompts, MAX_TOKENS, at_least=head)["answers"], strict=True))
    reported = [dict(client.edit_status(id)) for id in ids]
    outcomes = [Outcome(one, its, [said[p] for p in one.edit.prompts]) for one, its in zip(posted, reported, strict=True)]
    return outcomes, seconds


def wait_for_repairs(client: Client) -> None:
    """Wait until the service has no lost edit that it would still make again."""
    deadline = time.monotonic() + SETTLE_S
    while time.monotonic() < deadline:
        held = client.status()["held_edits"]
        if not held["open"] and not held["repairable"]:
            return
        time.sleep(POLL_S)


def played(name: str, posted: Sequence[PostedEdit], batch_size: int, **service: object) -> dict[str, Any]:
    """Serve a model, play the edits, show the tables, and return the model's part of the report."""
    console().print(f"[bold]{name}: {len(posted)} edits in batches of {batch_size}[/bold]")
    directory = home() / "bench-chat" / name
    shutil.rmtree(directory, ignore_errors=True)
    with LocalServices(directory, http_port=free_port()) as services:
        services.start_ray()
        services.start_serve(ledger=directory / "ledger", **service)
        services.wait_serve()
        client = Client(services.url, timeout_s=EDIT_S)
        outcomes, seconds = play(client, posted, batch_size)
        timings, versions = client.status()["timings"], client.status()["head"]
    forms, scripts = table(outcomes, "form"), table(outcomes, "script")
    show(f"{name} by form", forms)
    show(f"{name} by script", scripts)
    for one in outcomes:
        if one.kind in ("lost", "unanswered", "rejected"):
            why = one.reported.get("reason") or f"the served model says {one.says}, the target is {one.edit.target!r}"
            console().print(f"{one.kind}, {one.posted.form}, {str(one.edit.prompts[0])[:70]!r}: {why[:200]}", highlight=False)
    median_s = sorted(seconds)[len(seconds) // 2]
    found = {"forms": forms, "scripts": scripts, "versions": versions, "batch_s": seconds, "median_batch_s": median_s}
    return {**found, "timings": timings, "outcomes": [one.to_json() for one in outcomes]}


def smollm2_part(settings: ChatSettings) -> dict[str, Any]:
    model = resolved(smollm2.NAME)
    posted = mixed_edits(settings.edits, settings.seed)
    policy = {"artifact": default_policy()} if settings.is_trained else {}
    return played("smollm2", posted, settings.batch_size, model=model, editor=settings.editor, **policy)


def world_part(settings: ChatSettings) -> dict[str, Any]:
    """Serve the model of `make demo ARGS=plan=world`; model and policy are made first if they do not exist."""
    plan = from_arguments(["plan=world", f"seed={settings.seed}"])
    jobs = [(plan.model_dir, "pretrain")] + [(plan.artifact_dir, "train")] * settings.is_trained
    missing = [(made, job) for made, job in jobs if not made.exists()]
    if missing:
        with LocalServices(home() / "bench-chat", http_port=free_port()) as services:
            services.start_ray()
            for _, job in missing:
                services.run_job(sys.executable, f"jobs/{job}.py", "plan=world", f"seed={settings.seed}")
    assert isinstance(plan.corpus, World)
    posted = world_edits(plan.corpus, settings.world_edits, settings.seed)
    policy = {"artifact": plan.artifact_dir} if settings.is_trained else {}
    return played("world", posted, settings.batch_size, model=plan.model_dir, editor=settings.editor, **policy)


def run(settings: ChatSettings, command: str) -> Path:
    """Measure, print, and write `$ERRATA_HOME/bench-chat/report.json`."""
    from errata.hardware import hardware

    about = {"command": command, "seed": settings.seed, "hardware": hardware()}
    console().print(*(f"{name}: {value}" for name, value in about.items()), sep="\n", highlight=False)
    parts = {"smollm2": smollm2_part(settings)} if settings.edits else {}
    parts |= {"world": world_part(settings)} if settings.world_edits else {}
    rows = [{"model": name, **part["forms"][-1], "median_batch_s": part["median_batch_s"]} for name, part in parts.items()]
    for row in rows:
        del row["form"]
    show("Applied means answered", rows, "unanswered: applied, and the served model says something else; it must be 0")
    return write_report("bench-chat", rows, **about, settings=asdict(settings), models=parts)


def read(arguments: Sequence[str]) -> ChatSettings:
    """Read `--name value` arguments. Raises `ValueError` if no edit is left, and for an editor that needs settings."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, value in asdict(ChatSettings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    settings = ChatSettings(**vars(parser.parse_args(arguments)))
    check_editor(settings.editor)
    if settings.edits + settings.world_edits < 1 or min(settings.edits, settings.world_edits) < 0 or settings.batch_size < 1:
        raise ValueError("give at least one edit, --edits or --world-edits, and a --batch-size of at least 1")
    return settings


def main() -> None:
    run_job(read, lambda settings: run(settings, f"python -m benchmarks.chat {' '.join(sys.argv[1:])}".strip()))


if __name__ == "__main__":
    main()
