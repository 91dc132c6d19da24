"""Time from the post of an edit until every replica answers by it: `make bench-edit-latency`.

The service runs as `errata serve` starts it, with MLflow beside it. Single edits and batches are posted, one post after the
other is answered: `alone`, with a pause between two of them in which the work that follows an edit ends, and `in a row`, where
the next post competes with that work. The ledger holds so many records before; then it is rolled back. Edits are about
invented subjects, so that none is the answer already.

Stages of a post: `edit` (make and measure the update), `append` (until the version is durable), `swap` (until every replica
has it), and `rest` (HTTP, calls between processes, the journal).
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import console, show, write_report
from benchmarks.retrieval import invented, percentile
from benchmarks.serving_load import pairs_of
from errata.client.client import Client
from errata.editors.build import DEFAULT_EDITOR
from errata.hardware import hardware
from errata.home import home
from errata.local.models import resolved
from errata.local.services import LocalServices, free_port
from errata.overrides import overridden
from errata.testbed import smollm2
from jobs.demo_run import check_editor
from jobs.entry import run_job

LARGEST_POST = 1000
STAGES = ("edit", "append", "swap")
START_S = 15.0  # The mirror starts some seconds after the engines.


@dataclass(frozen=True)
class LatencySettings:
    """Posts of each kind, by the number of `held` records; `pause_s` is that between posts that stand alone."""

    editor: str = DEFAULT_EDITOR
    held: tuple[int, ...] = (0, 100, 1000)
    num_single: int = 30
    num_batches: int = 10
    batch_size: int = 10
    pause_s: float = 3.0
    replicas: int = 1
    with_mlflow: bool = True
    seed: int = 0

    def check(self) -> None:
        """Raise `ValueError` for a number or an editor that cannot be run."""
        check_editor(self.editor)
        counts = {name: getattr(self, name) for name in ("num_single", "num_batches", "batch_size", "replicas")}
        if wrong := [name for name, count in counts.items() if count < 1]:
            raise ValueError(f"must be a whole number of at least 1: {', '.join(wrong)}")
        if min(self.held, default=-1) < 0 or self.batch_size > LARGEST_POST or self.pause_s < 0:
            raise ValueError(f"held and pause_s are not negative, and a post has at most {LARGEST_POST} edits")

    @property
    def num_edits(self) -> int:
        """The edits that are posted in all."""
        return sum(self.held) + 2 * len(self.held) * (self.num_single + self.num_batches * self.batch_size)


@dataclass(frozen=True)
class Post:
    """One post that was applied: its milliseconds in all and by stage."""

    all_ms: float
    stages: dict[str, float]

    @classmethod
    def of(cls, all_ms: float, timing: dict[str, Any]) -> Post:
        known = dict(zip(STAGES, (1e3 * timing["edit_s"], 1e3 * timing["append_s"], timing["swap_ms"]), strict=True))
        return cls(all_ms, known | {"rest": all_ms - sum(known.values())})


def bodies(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield edits about different invented subjects, each asked for something else, so that no question was encoded before."""
    names = iter(invented(3 * count, seed))
    for subject, relation, target in zip(names, names, names, strict=True):
        yield {"question": f"What is the {relation.casefold()} of {subject}?", "target": target, "subject": subject}


def applied(client: Client, edits: Sequence[dict[str, Any]]) -> tuple[int, float]:
    """Post edits and wait until they are served; return their version and the milliseconds. Raises `ErrataError`."""
    begin = time.perf_counter()
    made = client.edit(edits)["edits"]
    return max(edit["version"] for edit in made), (time.perf_counter() - begin) * 1e3


def measured(client: Client, settings: LatencySettings, edits: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield a row for each number of held records, size of a post, and pause."""
    for num_held in settings.held:
        before = client.status()["head"]
        for begin in range(0, num_held, LARGEST_POST):
            applied(client, [next(edits) for _ in range(min(LARGEST_POST, num_held - begin))])
        for name, pause_s in (("alone", settings.pause_s), ("in a row", 0.0)):
            for size, count in ((1, settings.num_single), (settings.batch_size, settings.num_batches)):
                time.sleep(settings.pause_s)
                made = []
                for _ in range(count):
                    made.append(applied(client, [next(edits) for _ in range(size)]))
                    time.sleep(pause_s)
                timings = {timing["version"]: timing for timing in client.status()["timings"]}
                posts = [Post.of(all_ms, timings[version]) for version, all_ms in made]
                yield {"held": num_held, "edits": size, "posts": name, **row_of(posts)}
        client.rollback(before)


def row_of(posts: Sequence[Post]) -> dict[str, Any]:
    """Return the figures of posts of one kind."""
    whole = [post.all_ms for post in posts]
    row = {"num_posts": len(posts), "ms_p50": percentile(whole, 0.5), "ms_p99": percentile(whole, 0.99)}
    stages = {name: [post.stages[name] for post in posts] for name in posts[0].stages}
    return row | {f"{name}_ms_p50": percentile(values, 0.5) for name, values in stages.items()}


def run(settings: LatencySettings) -> Path:
    """Measure, print and write `$ERRATA_HOME/bench-edit-latency/report.json`."""
    command = f"python -m benchmarks.edit_latency {' '.join(sys.argv[1:])}".strip()
    directory = home() / "bench-edit-latency"
    shutil.rmtree(directory, ignore_errors=True)
    with LocalServices(directory, http_port=free_port(), with_jobs=False) as services:
        started(services, settings)
        with Client(services.url) as client:
            rows = []
            for row in measured(client, settings, bodies(settings.num_edits, settings.seed)):
                rows.append(row)
                what = f"{row['held']} records held, {row['edits']} edits a post, {row['posts']}"
                console().print(f"bench-edit-latency: {what}: {row['ms_p50']:.0f} ms", highlight=False)
    show("Milliseconds from the post of edits until every replica answers by them", rows)
    alone = next(row for row in rows if row["edits"] == 1)
    figures = {"ms_p50": alone["ms_p50"], "ms_p99": alone["ms_p99"]}
    about = {"command": command, "model": smollm2.NAME, "seed": settings.seed, "hardware": hardware()}
    return write_report("bench-edit-latency", rows, **about, **figures, settings=asdict(settings))


def started(services: LocalServices, settings: LatencySettings) -> None:
    """Start the service and what runs beside it."""
    model = resolved(smollm2.NAME)
    services.start_ray()
    mirror: dict[str, str] = {}
    if settings.with_mlflow:
        services.start_mlflow()
        mirror = {"mlflow": services.mlflow_url}
    console().print("bench-edit-latency: starting the service", highlight=False)
    ledger = services.directory / "ledger"
    services.start_serve(model=model, editor=settings.editor, ledger=ledger, replicas=settings.replicas, **mirror)
    services.wait_serve()
    time.sleep(START_S)


def parsed(arguments: Sequence[str]) -> LatencySettings:
    """Read settings from `field=value` or `--field value`. Raises `ValueError` that names a wrong one."""
    settings = LatencySettings()
    for name, value in pairs_of(arguments):
        settings = overridden(settings, name, value)
    settings.check()
    smollm2.check()
    return settings


if __name__ == "__main__":
    run_job(parsed, run)
