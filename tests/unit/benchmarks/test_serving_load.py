"""Settings of the load run, what it asks and edits, and its report's rows."""

from __future__ import annotations

import re
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import serving_load
from benchmarks.load_figures import Phase, PostedBatch, Request
from benchmarks.serving_load import SHOWN, WORLD, LoadSettings, Material, Run, figures, material, parsed, plan_of
from errata.testbed import smollm2


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FULL", raising=False)
    monkeypatch.setattr(smollm2, "check", lambda: None)


def test_the_default_is_the_real_model_at_three_numbers_of_streams() -> None:
    assert parsed([]) == LoadSettings() and LoadSettings().model == smollm2.NAME and LoadSettings().streams == (1, 4, 8)
    assert plan_of(LoadSettings()).name == "smollm2"


def test_the_invented_world_keeps_its_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    found = parsed(["model=world", "--replicas", "2", "seed=3"])
    assert (found.streams, found.phase_s, found.num_tokens, found.batch_size) == ((4,), 15.0, 16, 5)
    assert (found.replicas, found.seed) == (2, 3) and plan_of(found).name == "demo"
    monkeypatch.setenv("FULL", "1")
    assert parsed(["model=world"]).streams == (8,) and parsed(["model=world"]).num_pairs == 10
    assert parsed(["streams=2"]).streams == (2,) and parsed(["--phase-s", "9"]).phase_s == 9


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("model=gpt2", "model is smollm2-135m-instruct or world, not 'gpt2'"),
        ("streams=0", "at least 1: streams 0"),
        ("streams=x", "streams: 'x'"),
        ("pairs=2", "LoadSettings has no field 'pairs'"),
        ("num_pairs=0", "at least 1: num_pairs"),
        ("pause=stop", "pause is keep or wait"),
        ("phase_s=1", "phase_s is at least two periods of period_s=1, not 1"),
        ("fast", "field=value, unlike 'fast'"),
    ],
)
def test_a_wrong_argument_is_named(argument: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        parsed([argument])


class Answering:
    """A client whose service answers each question by a fixed text."""

    says = "I do not know."

    def __init__(self, url: str) -> None: ...

    def __enter__(self) -> Answering:
        return self

    def __exit__(self, *error: object) -> None: ...

    def ask(self, prompts: list[Any], max_tokens: int) -> dict[str, Any]:
        return {"answers": [self.says for _ in prompts]}


def test_edits_are_of_facts_that_the_model_gets_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_load, "Client", Answering)
    found = material(LoadSettings(), "", plan_of(LoadSettings()))
    assert len(found.edits) == serving_load.NUM_EDITS and len(set(found.prompts)) > serving_load.NUM_EDITS
    assert all({"question", "target", "subject"} <= edit.keys() for edit in found.edits)
    world = material(LoadSettings(WORLD), "", plan_of(LoadSettings(WORLD)))
    assert all(edit.keys() == {"prompt", "target", "subject"} for edit in world.edits)


def test_rows_have_all_figures_that_are_shown() -> None:
    run = Run(LoadSettings(), 4, SimpleNamespace(), Material([], []))  # type: ignore[arg-type]
    run.requests = [Request(i, i + 0.9, (i + 0.1, i + 0.5, i + 0.9), 0, 0) for i in range(4)]
    run.phases = [Phase(0, 2, False), Phase(2, 4, True)]
    run.swaps, run.batches = {2.2: (2.2, 2.3)}, [PostedBatch(2.0, 2.4, 1), PostedBatch(3.95, 3.96, 0)]
    run.outcomes = Counter(applied=1)
    row = figures([run])
    assert {name for names in SHOWN.values() for name in names} <= row.keys()
    assert row["edit_batches"] == 1 and row["edits_applied"] == 1 and row["num_gaps_at_swap"] == 1
    assert row["edit_s_p50"] == pytest.approx(0.4) and row["throughput_ratio"] == pytest.approx(1.0)
