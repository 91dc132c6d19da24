"""One run of the demo: its stages, questions to the served vLLM, rollbacks, and the versions in MLflow."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from errata.client.client import Client
from errata.editors.build import DEFAULT_EDITOR
from errata.editors.table import EDITORS
from errata.generate import HFGenerator
from errata.ledger import Ledger
from errata.local.services import LocalServices
from errata.local.terminal import console, log_only
from errata.model.language_model import load
from errata.model.matrices import find_matrices
from errata.registry import Registry
from errata.text.dialogue import Prompt
from jobs.demo_report import Point, versions_table
from jobs.demo_traffic import MemoryPeak
from jobs.plan import Plan

NUM_EDITS, BATCH_SIZE, NUM_PARITY = 100, 10, 20
TRAINED_EDITOR = "RLEdit"  # whose policy is trained here, or shipped
PROMPTS_AT_ONCE = 128
MIRROR_S = 60  # how long the versions may take to reach MLflow


def check_editor(name: str) -> None:
    """Raise `ValueError` unless the editor is RLEdit, whose policy is at hand, or a memory, which needs no settings."""
    known = [TRAINED_EDITOR, *(name for name, kind in EDITORS.items() if kind.writes == "memory" and not kind.is_trained)]
    if name not in known:
        raise ValueError(f"editor is one of {', '.join(known)}, not {name!r}; others need settings: python jobs/bench.py")


@dataclass
class Demo:
    """One run of the demo; `report` and `curve` grow as it proceeds. Answers have `max_tokens` tokens at most."""

    plan: Plan
    services: LocalServices
    client: Client
    memory: MemoryPeak
    max_tokens: int = 0
    num_edits: int = NUM_EDITS
    editor: str = DEFAULT_EDITOR
    seconds: dict[str, float] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    curve: list[Point] = field(default_factory=list)
    parity_checked: int = 0
    parity_failed: int = 0

    @property
    def directory(self) -> Path:
        return self.services.directory

    @property
    def ledger_dir(self) -> Path:
        return self.directory / "ledger"

    @contextmanager
    def stage(self, name: str, title: str) -> Iterator[None]:
        """Show what the block does and how long it took."""
        console().print(f"[bold]▸ {title}[/bold]")
        log_only(title)
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 1)
        console().print(f"  {self.seconds[name]:.1f} s")

    def start_services(self) -> None:
        with self.stage("start", "starting MLflow and Ray on 127.0.0.1"):
            self.services.start_mlflow()
            self.services.start_ray()

    def serve(self, artifact: Path | None) -> None:
        """Start the Serve application with the editor, and its trained policy if it has one; wait until it answers."""
        with self.stage("serve", "starting the Serve application: gateway, edit worker, vLLM"):
            self.services.wait_mlflow()
            settings: dict[str, Any] = {"model": self.plan.model_dir, "ledger": self.ledger_dir, "editor": self.editor}
            settings |= {} if artifact is None else {"artifact": artifact}
            self.services.start_serve(**settings, mlflow=self.services.mlflow_url)
            self.services.wait_serve()

    def reference(self) -> HFGenerator:
        """Load the model into this process, to compare with what is served."""
        model, ledger = load(self.plan.model_dir), Ledger.open(self.ledger_dir)
        return HFGenerator(model, find_matrices(model.module, ledger.base["matrices"]), ledger)

    def answers(self, prompts: Sequence[Prompt], at_least: int | None = None) -> dict[Prompt, str]:
        """Greedy answers of the served model by prompt."""
        found: dict[Prompt, str] = {}
        for i in range(0, len(prompts), PROMPTS_AT_ONCE):
            part = prompts[i : i + PROMPTS_AT_ONCE]
            found |= dict(zip(part, self.client.ask(part, self.max_tokens, at_least)["answers"], strict=True))
        return found

    def check_parity(self, reference: HFGenerator, version: int, prompts: Sequence[Prompt]) -> None:
        """Compare greedy tokens of the served vLLM with those of transformers with the same version merged."""
        served = self.client.token_ids(prompts, self.max_tokens, at_least=version)
        reference.swap(version)
        ends, expected = reference.language_model.end_ids, reference.token_ids(prompts, self.max_tokens)
        self.parity_checked += len(prompts)
        for ids, ours in zip(served, expected, strict=True):
            self.parity_failed += [token for token in ids if token not in ends] != ours


def roll_back(
    demo: Demo,
    asked: Sequence[Prompt],
    parity: Sequence[Prompt],
    reference: HFGenerator,
    answers_at: Mapping[int, Mapping[Prompt, str]],
) -> None:
    """Serve earlier versions and the newest one again, and count the answers that are as they were."""
    versions = sorted(answers_at)
    middle, newest = versions[len(versions) // 2], versions[-1]
    with demo.stage("rollback", f"rolling back to version {middle}, to 0, and forward to {newest}"):
        for version in (middle, 0, newest):
            demo.client.rollback(version)
            demo.check_parity(reference, version, parity)
            again = demo.answers(asked)
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
