"""The whole of Errata on one machine: `make demo`, or `python jobs/demo.py seed=1 edits=500 editor=RLEdit`.

Starts Ray, MLflow and the Serve application on 127.0.0.1, then plays a client over HTTP: batches of edits arrive while
generation requests never stop. Every scored answer was generated freely by the served vLLM. `demo_facts.py` corrects a real
language model in chat; `demo_world.py`, with `plan=world`, a small Llama of an invented world. Writes report.json and
scores.png, and stops what it started.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from functools import partial

from errata.client.client import Client
from errata.durable import write_text
from errata.editors.build import DEFAULT_EDITOR
from errata.home import home
from errata.local.services import LocalServices, free_port
from errata.local.terminal import console
from errata.testbed.world_facts import WorldFacts
from jobs import demo_facts, demo_world
from jobs.arguments import main
from jobs.demo_report import plot
from jobs.demo_run import NUM_EDITS, TRAINED_EDITOR, Demo, check_editor
from jobs.demo_traffic import MemoryPeak
from jobs.plan import Plan

DEFAULT_PLAN = "smollm2"
CONSOLE = "http://127.0.0.1:8000/console"  # Of `make serve`.
COUNT, EDITOR = "edits=", "editor="  # the arguments that are not a plan's
EDIT_S = 600.0  # A batch of edits that is refused is made in parts, while other requests share the two cores.


def run(plan: Plan, num_edits: int = NUM_EDITS, editor: str = "") -> None:
    """Run the demo with so many edits and write its report. Without an editor, an invented world trains one."""
    began, memory = time.monotonic(), MemoryPeak()
    directory = home() / "demo"
    shutil.rmtree(directory, ignore_errors=True)
    console().print(f"demo: logs of the services in {directory}", highlight=False, soft_wrap=True)
    is_real = isinstance(plan.corpus, WorldFacts)
    editor = editor or (DEFAULT_EDITOR if is_real else TRAINED_EDITOR)
    with LocalServices(directory, http_port=free_port()) as services:
        demo = Demo(plan, services, Client(services.url, timeout_s=EDIT_S), memory, num_edits=num_edits, editor=editor)
        (demo_facts if is_real else demo_world).play(demo)
    demo.seconds["total"] = round(time.monotonic() - began, 1)
    demo.report["seconds"] = demo.seconds
    report = directory / "report.json"
    write_text(report, json.dumps(demo.report, indent=1))
    written = f"{report}, {plot(demo.curve, directory / 'scores.png')}"
    console().print(f"{demo.seconds['total']:.0f} s and {memory.gib} GiB in all; written: {written}", soft_wrap=True)
    console().print(f"`make serve` starts the service and keeps it up, with its console at {CONSOLE}")


def take_own(arguments: list[str]) -> tuple[int, str]:
    """Take `edits=N` and `editor=NAME` out of the arguments.

    Without an editor, its name is empty. Raises `ValueError` for anything but a whole number above zero, and for an editor that
    is neither RLEdit nor a memory.
    """
    count, editor = (_taken(arguments, name) for name in (COUNT, EDITOR))
    if count is not None and not (count.isascii() and count.isdigit() and int(count)):
        raise ValueError(f"edits is the number of corrections, such as edits=500, not {count!r}")
    if editor is not None:
        check_editor(editor)
    return int(count or NUM_EDITS), editor or ""


def _taken(arguments: list[str], name: str) -> str | None:
    """Take the last argument of this name out; None if there is none."""
    given = [argument for argument in arguments if argument.startswith(name)]
    arguments[:] = [argument for argument in arguments if argument not in given]
    return given[-1].removeprefix(name) if given else None


if __name__ == "__main__":
    try:
        count, editor = take_own(sys.argv)
    except ValueError as wrong:
        sys.exit(f"demo.py: {wrong}")
    main(partial(run, num_edits=count, editor=editor), default=DEFAULT_PLAN)
