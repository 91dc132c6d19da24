"""The whole of Errata on one machine: `make demo`, or `python jobs/demo.py seed=1`.

Starts Ray, MLflow and the Serve application on 127.0.0.1, makes the testbed's model and an RLEdit policy if they are not cached
(as Ray jobs), then plays a client over HTTP: batches of edits arrive while generation requests never stop. Every answer that
is scored was generated freely by the served vLLM. Writes report.json and scores.png, and stops what it started.
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from errata.client.client import Client, ErrataError
from errata.edit import Edit, EditBatch, batches_of
from errata.evaluate.answers import normalise_answer
from errata.evaluate.perplexity import perplexity
from errata.evaluate.questions import Questions
from errata.evaluate.scorecard import score
from errata.generate import HFGenerator
from errata.home import home
from errata.ledger import Ledger
from errata.local.services import LocalServices, free_port
from errata.model.language_model import load
from errata.model.matrices import find_matrices
from errata.registry import Registry
from jobs.arguments import main
from jobs.plan import Plan

NUM_BATCHES, BATCH_SIZE, NUM_PARITY, NUM_STREAMS, MAX_TOKENS = 10, 10, 20, 2, 5
# A Console over a pipe would wrap tables to 80 columns and cut words.
console = Console(width=120 if not sys.stdout.isatty() else None)


@dataclass
class Traffic:
    """Clients that never stop asking. Counts failures, and answers older than an edit that had already returned."""

    url: str
    prompts: list[str]
    applied: int = 0
    num_requests: int = 0
    failed: list[str] = field(default_factory=list)
    num_unversioned: int = 0
    num_stale: int = 0
    num_mixed: int = 0
    stopping: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def ask_on(self, offset: int) -> None:
        client, i = Client(self.url, retry_s=0), offset
        while not self.stopping.is_set():
            i, expected = i + 1, self.applied
            prompts = [self.prompts[(i * 4 + j) % len(self.prompts)] for j in range(4)]
            try:
                self.count(client.complete(prompts, MAX_TOKENS).get("errata"), expected)
            except (ErrataError, OSError) as failure:
                with self.lock:
                    self.num_requests += 1
                    self.failed.append(str(failure)[:200])
            time.sleep(0.02)

    def count(self, stamp: dict[str, int] | None, expected: int) -> None:
        with self.lock:
            self.num_requests += 1
            if not stamp:
                self.num_unversioned += 1
                return
            self.num_stale += stamp["version_min"] < expected
            self.num_mixed += stamp["version_min"] != stamp["version_max"]

    @contextmanager
    def flowing(self) -> Iterator[None]:
        threads = [threading.Thread(target=self.ask_on, args=(i * 7,), daemon=True) for i in range(NUM_STREAMS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.stopping.set()
            for thread in threads:
                thread.join(timeout=30)


class Memory:
    """The machine's memory in use, sampled: how far it rises above where it stood at the start."""

    def __init__(self) -> None:
        self.start = self.peak = psutil.virtual_memory().used
        threading.Thread(target=self._sample, daemon=True).start()

    def _sample(self) -> None:
        while True:
            self.peak = max(self.peak, psutil.virtual_memory().used)
            time.sleep(0.5)

    @property
    def peak_gib(self) -> float:
        return round((self.peak - self.start) / 2**30, 2)


@dataclass
class Demo:
    """One run; `report` fills up as it goes."""

    plan: Plan
    stack: LocalServices
    directory: Path
    client: Client
    seconds: dict[str, float] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)
    parity_checked: int = 0
    parity_failed: int = 0

    @contextmanager
    def stage(self, name: str, says: str) -> Iterator[None]:
        console.print(f"[bold]▸ {says}[/bold]")
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 1)
        console.print(f"  {self.seconds[name]:.1f} s")

    def answers(self, prompts: list[str], at_least: int | None = None) -> dict[str, str]:
        found: dict[str, str] = {}
        for i in range(0, len(prompts), 128):
            part = prompts[i : i + 128]
            choices = self.client.complete(part, MAX_TOKENS, at_least)["choices"]
            found |= {prompt: choice["text"] for prompt, choice in zip(part, choices, strict=True)}
        return found

    def check_parity(self, reference: HFGenerator, version: int, prompts: list[str]) -> None:
        """Greedy tokens of the served vLLM against transformers with the same version merged."""
        choices = self.client.complete(prompts, MAX_TOKENS, at_least=version)["choices"]
        reference.swap(version)
        end = reference.language_model.tokenizer.eos_token_id
        served = [[token for token in choice["token_ids"] if token != end] for choice in choices]
        self.parity_checked += len(prompts)
        self.parity_failed += sum(a != b for a, b in zip(served, reference.token_ids(prompts, MAX_TOKENS), strict=True))


def start(demo: Demo) -> None:
    stack, plan = demo.stack, demo.plan
    with demo.stage("start", "starting MLflow and Ray on 127.0.0.1"):
        stack.start_mlflow()
        stack.start_ray()
    arguments = [a for a in sys.argv[1:] if not a.startswith("mlflow=")]
    if not plan.model_dir.exists():
        with demo.stage("pretrain", "making the testbed's model (a Ray job; cached for the next time)"):
            stack.run_job(sys.executable, "jobs/pretrain.py", *arguments)
    if not plan.artifact_dir.exists():
        with demo.stage("train", f"training RLEdit on {plan.num_workers} Ray Train workers (a Ray job; cached)"):
            stack.wait_mlflow()
            stack.run_job(sys.executable, "jobs/train.py", *arguments, f"mlflow={stack.mlflow_url}")
    with demo.stage("serve", "starting the Serve application: gateway, edit worker, vLLM"):
        stack.wait_mlflow()
        settings = {"model": plan.model_dir, "ledger": demo.directory / "ledger", "artifact": plan.artifact_dir}
        stack.start_serve(**settings, editor="RLEdit", mlflow=stack.mlflow_url)
        stack.wait_serve()


def play(demo: Demo, edits: list[Edit]) -> Registry:
    probes = [probe.prompt for edit in edits for probe in edit.locality]
    asked = (
        list(dict.fromkeys(p for e in edits for p in (e.prompt, *e.rephrasings, *(q.prompt for q in e.portability)))) + probes
    )
    before = demo.answers(list(dict.fromkeys(asked)))
    model = load(demo.plan.model_dir)
    ledger = Ledger.open(demo.directory / "ledger")
    reference = HFGenerator(model, find_matrices(model.module, demo.plan.editor.modules), ledger)
    parity_prompts = [e.prompt for e in edits[:: len(edits) // (NUM_PARITY // 2)]] + probes[:: len(probes) // (NUM_PARITY // 2)]
    demo.check_parity(reference, 0, parity_prompts)
    traffic = Traffic(demo.stack.url, asked)
    answers_at: dict[int, dict[str, str]] = {0: before}
    with (
        demo.stage("edits", f"{len(edits)} edits in {NUM_BATCHES} batches over HTTP, under a steady stream of requests"),
        traffic.flowing(),
    ):
        done: list[Edit] = []
        for batch in batches_of(edits, BATCH_SIZE):
            done += batch
            version = post(demo, batch, traffic)
            demo.check_parity(reference, version, parity_prompts)
            answers_at[version] = demo.answers(list(dict.fromkeys(asked)), at_least=version)
            questions = Questions.of(done, first=edits[:BATCH_SIZE])
            card = score(questions, answers_at[version], before).to_json()
            demo.curve.append({"edits": len(done), **{k: v for k, v in card.items() if isinstance(v, float)}})
            console.print(f"  version {version}: {describe(demo.curve[-1])}")
    newest = max(answers_at)
    with demo.stage("rollback", f"rolling back to version {newest // 2}, to 0, and forward to {newest}"):
        for version in (newest // 2, 0, newest):
            demo.client.rollback(version)
            demo.check_parity(reference, version, parity_prompts)
            again = demo.answers(list(dict.fromkeys(asked)))
            same = sum(again[p] == answers_at[version][p] for p in again)
            demo.report.setdefault("rollback_same_answers", {})[str(version)] = f"{same}/{len(again)}"
            console.print(f"  version {version}: {same} of {len(again)} answers as they were at that version")
    sentences = demo.plan.corpus.plain_sentences(held_out=True)
    for name, version in (("perplexity_base", 0), ("perplexity", newest)):
        reference.swap(version)
        demo.report[name] = perplexity(reference.language_model, sentences)
    show_facts(edits, before, answers_at[newest])
    fill(demo, traffic, newest)
    return Registry(demo.stack.mlflow_url, "errata")


def post(demo: Demo, batch: EditBatch, traffic: Traffic) -> int:
    """Post a batch and wait for its version; prompts, targets and subjects only, as a user would."""
    body = [{"prompt": e.prompt, "target": e.target, "subject": e.subject} for e in batch]
    answer = demo.client.edit(body, wait=True)
    traffic.applied = int(answer["version"])
    return traffic.applied


def describe(point: dict[str, float]) -> str:
    return ", ".join(f"{name} {point[name]:.2f}" for name in ("efficacy", "generalisation", "locality") if name in point)


def show_facts(edits: list[Edit], before: dict[str, str], after: dict[str, str]) -> None:
    table = Table("asked", "before", "corrected to", "the served vLLM says now", title="A handful of facts")
    for edit in edits[:: max(1, len(edits) // 4)][:4]:
        for prompt in (edit.prompt, *edit.rephrasings):
            right = normalise_answer(after[prompt]) == normalise_answer(edit.target)
            table.add_row(prompt, before[prompt], edit.target, f"{after[prompt]} {'✓' if right else '✗'}")
    for probe in [p for e in edits[:40:10] for p in e.locality[:1]]:
        table.add_row(probe.prompt, before[probe.prompt], "(unrelated)", after[probe.prompt])
    console.print(table)


def fill(demo: Demo, traffic: Traffic, versions: int) -> None:
    timings = demo.client.status()["timings"]
    swaps = sorted(timing["swap_ms"] for timing in timings)
    last = demo.curve[-1]
    ledger = Ledger.open(demo.directory / "ledger")
    demo.report |= {
        "seed": demo.plan.seed,
        **{
            name: last.get(name)
            for name in ("efficacy", "generalisation", "locality", "portability", "retention", "locality_gold")
        },
        "edits": int(last["edits"]),
        "versions": versions,
        "swap_ms_p50": swaps[len(swaps) // 2],
        "swap_ms_p99": swaps[min(len(swaps) - 1, int(0.99 * len(swaps)))],
        "edit_ms_p50": sorted(1e3 * timing["edit_s"] for timing in timings)[len(timings) // 2],
        "delta_bytes": [version.num_bytes for version in ledger.versions() if version.number],
        "dense_bytes": [ledger.delta(version.number).dense_bytes for version in ledger.versions() if version.number],
        "requests": traffic.num_requests,
        "failed_requests": len(traffic.failed),
        "failures": dict(Counter(traffic.failed)),
        "unversioned_requests": traffic.num_unversioned,
        "stale_requests": traffic.num_stale,
        "mixed_version_requests": traffic.num_mixed,
        "parity_checked": demo.parity_checked,
        "parity_failed": demo.parity_failed,
        "curve": demo.curve,
    }


def wait_for_mirror(demo: Demo, registry: Registry) -> None:
    with demo.stage("mlflow", "the versions in MLflow"):
        deadline, wanted = time.monotonic() + 60, demo.report["versions"] + 1
        while len(registry.versions()) < wanted and time.monotonic() < deadline:
            time.sleep(0.5)
        table = Table("MLflow version", "Errata version", "aliases", "fingerprint")
        for row in registry.versions():
            aliases = ", ".join(row.get("aliases", ()))
            table.add_row(str(row["mlflow_version"]), str(row["version"]), aliases, str(row["fingerprint"])[:12])
        console.print(table)
        demo.report["mlflow_versions"] = len(registry.versions())


def draw(demo: Demo) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name in ("efficacy", "generalisation", "locality"):
        axes.plot([p["edits"] for p in demo.curve], [p[name] for p in demo.curve], marker="o", label=name)
    axes.set(
        xlabel="edits applied", ylabel="share of free-running answers", ylim=(0, 1.03), title="Served by vLLM, edit by edit"
    )
    axes.legend(loc="lower left")
    axes.grid(alpha=0.3)
    path = demo.directory / "scores.png"
    figure.savefig(path, dpi=150)
    return path


def show_scores(demo: Demo) -> None:
    report, table = demo.report, Table("measured by free generation from the served vLLM", "", title="Scorecard")
    for name in ("efficacy", "generalisation", "locality", "locality_gold", "portability", "retention"):
        if report[name] is not None:
            table.add_row(name, f"{report[name]:.3f}")
    table.add_row("perplexity of other sentences", f"{report['perplexity_base']:.2f} before, {report['perplexity']:.2f} after")
    table.add_row("swap, median / p99", f"{report['swap_ms_p50']:.0f} / {report['swap_ms_p99']:.0f} ms")
    table.add_row(
        "payload of a swap", f"{max(report['delta_bytes']):,} bytes of factors ({max(report['dense_bytes']):,} dense)"
    )
    table.add_row("requests during the edits", f"{report['requests']}, failed {report['failed_requests']}")
    table.add_row("vLLM against transformers", f"{report['parity_checked']} prompts compared, {report['parity_failed']} differ")
    console.print(table)


def run(plan: Plan) -> None:
    began, memory = time.monotonic(), Memory()
    directory = home() / "demo"
    shutil.rmtree(directory, ignore_errors=True)
    edits = plan.corpus.edits("test", NUM_BATCHES * BATCH_SIZE, plan.seed)
    with LocalServices(directory, http_port=free_port()) as stack:
        demo = Demo(plan, stack, directory, Client(stack.url))
        start(demo)
        registry = play(demo, edits)
        wait_for_mirror(demo, registry)
    show_scores(demo)
    demo.seconds["total"] = round(time.monotonic() - began, 1)
    demo.report["seconds"] = demo.seconds
    demo.report["peak_memory_gib"] = memory.peak_gib
    (directory / "report.json").write_text(json.dumps(demo.report, indent=1))
    console.print(
        f"{demo.seconds['total']:.0f} s and {memory.peak_gib} GiB in all; written: {directory / 'report.json'}, {draw(demo)}"
    )
    console.print("`make serve` starts the service and keeps it up")


if __name__ == "__main__":
    main(run)
