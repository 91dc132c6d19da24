"""The whole of Errata on one machine: `make demo`, or `python jobs/demo.py seed=1`.

Starts Ray, MLflow and the Serve application on 127.0.0.1, then plays a client over HTTP: batches of edits arrive while
generation requests never stop. Every scored answer was generated freely by the served vLLM. `demo_facts.py` corrects a real
language model in chat; `demo_world.py`, with `plan=world`, a small Llama of an invented world. Writes report.json and
scores.png, and stops what it started.
"""

from __future__ import annotations

import json
import shutil
import time

from errata.client.client import Client
from errata.home import home
from errata.local.services import LocalServices, free_port
from errata.local.terminal import console
from errata.testbed.world_facts import WorldFacts
from jobs import demo_facts, demo_world
from jobs.arguments import main
from jobs.demo_report import plot
from jobs.demo_run import Demo
from jobs.demo_traffic import MemoryPeak
from jobs.plan import Plan

DEFAULT_PLAN = "smollm2"
EDIT_S = 600.0  # A batch of edits that is refused is made in parts, while other requests share the two cores.


def run(plan: Plan) -> None:
    """Run the demo and write its report."""
    began, memory = time.monotonic(), MemoryPeak()
    directory = home() / "demo"
    shutil.rmtree(directory, ignore_errors=True)
    console().print(f"demo: logs of the services in {directory}", highlight=False, soft_wrap=True)
    with LocalServices(directory, http_port=free_port()) as services:
        demo = Demo(plan, services, Client(services.url, timeout_s=EDIT_S), memory)
        (demo_facts.play if isinstance(plan.corpus, WorldFacts) else demo_world.play)(demo)
    demo.seconds["total"] = round(time.monotonic() - began, 1)
    demo.report["seconds"] = demo.seconds
    report = directory / "report.json"
    report.write_text(json.dumps(demo.report, indent=1))
    written = f"{report}, {plot(demo.curve, directory / 'scores.png')}"
    console().print(f"{demo.seconds['total']:.0f} s and {memory.gib} GiB in all; written: {written}", soft_wrap=True)
    console().print("`make serve` starts the service and keeps it up")


if __name__ == "__main__":
    main(run, default=DEFAULT_PLAN)
