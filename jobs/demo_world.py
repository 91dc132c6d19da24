"""The demo on an invented world, `plan=world`: a small Llama that knows its facts, trained here, as is the policy.

The model completes sentences. Each version is scored on all edits so far.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from errata.edit import Edit, EditBatch, batches_of
from errata.evaluate.perplexity import perplexity
from errata.evaluate.questions import Questions
from errata.evaluate.scorecard import score
from errata.generate import HFGenerator
from errata.ledger import Ledger
from errata.local.terminal import console
from errata.text.dialogue import Prompt
from jobs.demo_report import SCORES, described, facts_table, scores_table, service_figures
from jobs.demo_run import BATCH_SIZE, NUM_PARITY, TRAINED_EDITOR, Demo, roll_back, wait_for_mirror
from jobs.demo_traffic import Traffic

MAX_TOKENS = 5


@dataclass(frozen=True)
class AskedPrompts:
    """Prompts that are asked at every version: all of them, and those whose tokens are compared with transformers."""

    every: list[Prompt]
    parity: list[Prompt]

    @classmethod
    def about(cls, edits: Sequence[Edit]) -> AskedPrompts:
        probes = [probe.prompt for edit in edits for probe in edit.locality]
        asked = [p for e in edits for p in (e.prompt, *e.rephrasings, *(q.prompt for q in e.portability))]
        half = NUM_PARITY // 2
        parity = [e.prompt for e in edits[:: len(edits) // half]] + probes[:: len(probes) // half]
        return cls(list(dict.fromkeys(asked + probes)), list(parity))


def play(demo: Demo) -> None:
    """Make what is not cached, serve it, edit and roll back, and show the scores."""
    demo.max_tokens = MAX_TOKENS
    edits = demo.plan.corpus.edits("test", demo.num_edits, demo.plan.seed)
    start(demo)
    edit_and_roll_back(demo, edits)
    wait_for_mirror(demo)
    console().print(scores_table(demo.report))
    demo.report["peak_memory_gib"] = demo.memory.gib


def start(demo: Demo) -> None:
    """Start the services, and make the model and the policy where they are not cached."""
    services, plan = demo.services, demo.plan
    demo.start_services()
    arguments = [a for a in sys.argv[1:] if not a.startswith("mlflow=")]
    if not plan.model_dir.exists():
        with demo.stage("pretrain", "making the testbed's model (a Ray job; cached for the next time)"):
            services.run_job(sys.executable, "jobs/pretrain.py", *arguments)
    if demo.editor != TRAINED_EDITOR:
        return demo.serve(None)
    if not plan.artifact_dir.exists():
        with demo.stage("train", f"training RLEdit on {plan.num_workers} Ray Train workers (a Ray job; cached)"):
            services.wait_mlflow()
            services.run_job(sys.executable, "jobs/train.py", *arguments, f"mlflow={services.mlflow_url}")
    demo.serve(plan.artifact_dir)


def edit_and_roll_back(demo: Demo, edits: Sequence[Edit]) -> None:
    """Post all edits under traffic, roll back and forward, and fill the report."""
    asked, reference = AskedPrompts.about(edits), demo.reference()
    traffic = Traffic(demo.services.url, asked.every, demo.max_tokens)
    answers_at = apply_edits(demo, edits, asked, reference, traffic)
    newest = max(answers_at)
    roll_back(demo, asked.every, asked.parity, reference, answers_at)
    sentences = demo.plan.corpus.plain_sentences(held_out=True)
    for name, version in (("perplexity_base", 0), ("perplexity", newest)):
        reference.swap(version)
        demo.report[name] = perplexity(reference.language_model, sentences)
    console().print(facts_table(edits, answers_at[0], answers_at[newest]))
    last = demo.curve[-1]
    demo.report |= {
        "seed": demo.plan.seed,
        **{name: last.get(name) for name in SCORES},
        "edits": int(last["edits"] or 0),
        "versions": newest,
        **service_figures(demo.client.status()["timings"], Ledger.open(demo.ledger_dir), traffic),
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
    title = f"{len(edits)} edits in batches of {BATCH_SIZE} over HTTP, under a steady stream of requests"
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
