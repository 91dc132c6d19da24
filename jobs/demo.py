"""The whole of Errata on one machine: `make demo`, or `python jobs/demo.py seed=1`.

Starts Ray, MLflow and the Serve application on 127.0.0.1, makes the testbed's model and an RLEdit policy as Ray jobs if they
are not cached, then plays a client over HTTP: batches of edits arrive while generation requests never stop. Every scored answer
was generated freely by the served vLLM. Writes report.json and scores.png, and stops what it started.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from errata.client.client import Client
from errata.edit import Edit, EditBatch, batches_of
from errata.evaluate.perplexity import perplexity
from errata.evaluate.questions import Questions
from errata.evaluate.scorecard import score
from errata.generate import HFGenerator
from errata.home import home
from errata.ledger import Ledger
from errata.local.services import LocalServices, free_port
from errata.local.terminal import console, log_only
from errata.model.language_model import load
from errata.model.matrices import find_matrices
from errata.registry import Registry
from errata.text.dialogue import Prompt
from jobs.arguments import main
from jobs.demo_report import SCORES, described, facts_table, plot, scores_table, service_figures, versions_table
from jobs.demo_traffic import MAX_TOKENS, MemoryPeak, Traffic
from jobs.plan import Plan

NUM_BATCHES, BATCH_SIZE, NUM_PARITY = 10, 10, 20
PROMPTS_AT_ONCE = 128
MIRROR_S = 60  # how long the versions may take to reach MLflow


@dataclass
class Demo:
    """One run of the demo; `report` and `curve` grow as it proceeds."""

    plan: Plan
    services: LocalServices
    directory: Path
    client: Client
    seconds: dict[str, float] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)
    parity_checked: int = 0
    parity_failed: int = 0

    @contextmanager
    def stage(self, name: str, title: str) -> Iterator[None]:
        """Show what the block does and how long it took."""
        console().print(f"[bold]▸ {title}[/bold]")
        log_only(title)
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 1)
        console().print(f"  {self.seconds[name]:.1f} s")

    def answers(self, prompts: Sequence[str], at_least: int | None = None) -> dict[Prompt, str]:
        """Greedy answers of the served model by prompt."""
        found: dict[Prompt, str] = {}
        for i in range(0, len(prompts), PROMPTS_AT_ONCE):
            part = list(prompts[i : i + PROMPTS_AT_ONCE])
            choices = self.client.complete(part, MAX_TOKENS, at_least)["choices"]
            found |= {prompt: choice["text"] for prompt, choice in zip(part, choices, strict=True)}
        return found

    def check_parity(self, reference: HFGenerator, version: int, prompts: list[str]) -> None:
        """Compare greedy tokens of the served vLLM with those of transformers with the same version merged."""
        choices = self.client.complete(prompts, MAX_TOKENS, at_least=version)["choices"]
        reference.swap(version)
        end = reference.language_model.tokenizer.eos_token_id
        served = [[token for token in choice["token_ids"] if token != end] for choice in choices]
        self.parity_checked += len(prompts)
        self.parity_failed += sum(a != b for a, b in zip(served, reference.token_ids(prompts, MAX_TOKENS), strict=True))


@dataclass(frozen=True)
class AskedPrompts:
    """Prompts that are asked at every version: all of them, and those whose tokens are compared with transformers."""

    every: list[str]
    parity: list[str]

    @classmethod
    def about(cls, edits: Sequence[Edit]) -> AskedPrompts:
        probes = [probe.prompt for edit in edits for probe in edit.locality]
        asked = [p for e in edits for p in (e.prompt, *e.rephrasings, *(q.prompt for q in e.portability))]
        half = NUM_PARITY // 2
        parity = [e.prompt for e in edits[:: len(edits) // half]] + probes[:: len(probes) // half]
        return cls(list(dict.fromkeys(asked + probes)), parity)


def start(demo: Demo) -> None:
    """Start the services, and make the model and the policy where they are not cached."""
    services, plan = demo.services, demo.plan
    with demo.stage("start", "starting MLflow and Ray on 127.0.0.1"):
        services.start_mlflow()
        services.start_ray()
    arguments = [a for a in sys.argv[1:] if not a.startswith("mlflow=")]
    if not plan.model_dir.exists():
        with demo.stage("pretrain", "making the testbed's model (a Ray job; cached for the next time)"):
            services.run_job(sys.executable, "jobs/pretrain.py", *arguments)
    if not plan.artifact_dir.exists():
        with demo.stage("train", f"training RLEdit on {plan.num_workers} Ray Train workers (a Ray job; cached)"):
            services.wait_mlflow()
            services.run_job(sys.executable, "jobs/train.py", *arguments, f"mlflow={services.mlflow_url}")
    with demo.stage("serve", "starting the Serve application: gateway, edit worker, vLLM"):
        services.wait_mlflow()
        settings = {"model": plan.model_dir, "ledger": demo.directory / "ledger", "artifact": plan.artifact_dir}
        services.start_serve(**settings, editor="RLEdit", mlflow=services.mlflow_url)
        services.wait_serve()


def edit_and_roll_back(demo: Demo, edits: Sequence[Edit]) -> None:
    """Post all edits under traffic, roll back and forward, and fill the report."""
    asked = AskedPrompts.about(edits)
    model = load(demo.plan.model_dir)
    ledger = Ledger.open(demo.directory / "ledger")
    reference = HFGenerator(model, find_matrices(model.module, demo.plan.editor.modules), ledger)
    traffic = Traffic(demo.services.url, asked.every)
    answers_at = apply_edits(demo, edits, asked, reference, traffic)
    newest = max(answers_at)
    roll_back(demo, asked, reference, answers_at)
    sentences = demo.plan.corpus.plain_sentences(held_out=True)
    for name, version in (("perplexity_base", 0), ("perplexity", newest)):
        reference.swap(version)
        demo.report[name] = perplexity(reference.language_model, sentences)
    console().print(facts_table(edits, answers_at[0], answers_at[newest]))
    last = demo.curve[-1]
    demo.report |= {
        "seed": demo.plan.seed,
        **{name: last.get(name) for name in SCORES},
        "edits": int(last["edits"]),
        "versions": newest,
        **service_figures(demo.client.status()["timings"], Ledger.open(demo.directory / "ledger"), traffic),
        "parity_checked": demo.parity_checked,
        "parity_failed": demo.parity_failed,
        "curve": demo.curve,
    }


def apply_edits(
    demo: Demo, edits: Sequence[Edit], asked: AskedPrompts, reference: HFGenerator, traffic: Traffic
) -> dict[int, dict[Prompt, str]]:
    """Post the edits batch by batch and score each version; returns all answers by version."""
    before = demo.answers(asked.every)
    demo.check_parity(reference, 0, asked.parity)
    answers_at: dict[int, dict[Prompt, str]] = {0: before}
    title = f"{len(edits)} edits in {NUM_BATCHES} batches over HTTP, under a steady stream of requests"
    with demo.stage("edits", title), traffic.running():
        done: list[Edit] = []
        for batch in batches_of(edits, BATCH_SIZE):
            done += batch
            version = traffic.applied = post(demo, batch)
            demo.check_parity(reference, version, asked.parity)
            answers_at[version] = demo.answers(asked.every, at_least=version)
            card = score(Questions.of(done, first=edits[:BATCH_SIZE]), answers_at[version], before).to_json()
            demo.curve.append({"edits": len(done), **{k: v for k, v in card.items() if isinstance(v, float)}})
            console().print(f"  version {version}: {described(demo.curve[-1])}")
    return answers_at


def post(demo: Demo, batch: EditBatch) -> int:
    """Post a batch as a user would, with prompts, targets and subjects only; returns its version."""
    body = [{"prompt": e.prompt, "target": e.target, "subject": e.subject} for e in batch]
    return int(demo.client.edit(body, wait=True)["version"])


def roll_back(demo: Demo, asked: AskedPrompts, reference: HFGenerator, answers_at: dict[int, dict[Prompt, str]]) -> None:
    """Serve earlier versions and the newest one again, and count the answers that are as they were."""
    newest = max(answers_at)
    with demo.stage("rollback", f"rolling back to version {newest // 2}, to 0, and forward to {newest}"):
        for version in (newest // 2, 0, newest):
            demo.client.rollback(version)
            demo.check_parity(reference, version, asked.parity)
            again = demo.answers(asked.every)
            same = sum(again[p] == answers_at[version][p] for p in again)
            demo.report.setdefault("rollback_same_answers", {})[str(version)] = f"{same}/{len(again)}"
            console().print(f"  version {version}: {same} of {len(again)} answers as they were at that version")


def wait_for_mirror(demo: Demo) -> None:
    """Wait until every version is registered in MLflow, `MIRROR_S` at most."""
    registry = Registry(demo.services.mlflow_url, "errata")
    with demo.stage("mlflow", "the versions in MLflow"):
        deadline, wanted = time.monotonic() + MIRROR_S, demo.report["versions"]
        while len(registry.versions()) < wanted and time.monotonic() < deadline:
            time.sleep(0.5)
        found = registry.versions()
        console().print(versions_table(found))
        demo.report["mlflow_versions"] = len(found)


def run(plan: Plan) -> None:
    """Run the demo and write its report."""
    began, memory = time.monotonic(), MemoryPeak()
    directory = home() / "demo"
    shutil.rmtree(directory, ignore_errors=True)
    edits = plan.corpus.edits("test", NUM_BATCHES * BATCH_SIZE, plan.seed)
    console().print(f"demo: logs of the services in {directory}", highlight=False, soft_wrap=True)
    with LocalServices(directory, http_port=free_port()) as services:
        demo = Demo(plan, services, directory, Client(services.url))
        start(demo)
        edit_and_roll_back(demo, edits)
        wait_for_mirror(demo)
    console().print(scores_table(demo.report))
    demo.seconds["total"] = round(time.monotonic() - began, 1)
    demo.report["seconds"] = demo.seconds
    demo.report["peak_memory_gib"] = memory.gib
    report = directory / "report.json"
    report.write_text(json.dumps(demo.report, indent=1))
    written = f"{report}, {plot(demo.curve, directory / 'scores.png')}"
    console().print(f"{demo.seconds['total']:.0f} s and {memory.gib} GiB in all; written: {written}", soft_wrap=True)
    console().print("`make serve` starts the service and keeps it up")


if __name__ == "__main__":
    main(run)
