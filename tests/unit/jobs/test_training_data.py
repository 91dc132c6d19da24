"""Edits of a plan's corpus: of facts of the world, such as the plan's model gets wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from errata.testbed import known_facts
from errata.testbed.world_facts import WorldFacts
from errata.text.dialogue import Dialogue
from jobs import training_data
from jobs.plan import Plan
from jobs.plans import smollm2, tiny
from jobs.training_data import edits_file, edits_of
from tests.unit.testbed.test_world_facts import missing_packages

NUM = 20


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, home: Path) -> list[str]:
    """Let the default model know the capitals and nothing else; the list grows by what it is asked."""
    if missing := missing_packages():
        pytest.skip(f"needs the tables: pip install --no-deps {' '.join(missing)}")
    found: list[str] = []
    capitals = {fact.question(): fact.sentence for fact in WorldFacts().facts() if fact.relation == "capital"}

    def texts(model: Any, prompts: Sequence[Dialogue], max_tokens: int, batch_size: int) -> list[str]:
        questions = [prompt.messages[-1].content for prompt in prompts]
        found.extend(questions)
        return [capitals.get(question, "I do not know.") for question in questions]

    monkeypatch.setattr(known_facts, "greedy_texts", texts)
    monkeypatch.setattr(training_data, "load", lambda path, dtype: SimpleNamespace(path=str(path)))
    monkeypatch.setattr(training_data, "NUM_CORRECTIONS", NUM)
    smollm2().model_dir.mkdir(parents=True)
    return found


def test_edits_are_of_facts_that_the_model_gets_wrong(asked: list[str]) -> None:
    edits = list(edits_of(smollm2(), "train"))
    assert len({edit.prompt for edit in edits}) == len(edits) == NUM and {edit.prompt for edit in edits} <= set(asked)
    assert not any(edit.prompt.startswith("What is the capital of") for edit in edits)
    assert len(asked) < 100, "only as many facts are asked as are needed"
    subjects = {fact.subject for fact in WorldFacts().facts("train")}
    assert all(edit.form == "chat" and edit.subject in subjects and len(edit.locality) == 2 for edit in edits)
    edited = {edit.prompt for edit in edits}
    assert not any(probe.prompt in edited for edit in edits for probe in edit.locality)


def test_edits_depend_on_the_seed_and_are_asked_once(asked: list[str]) -> None:
    first = list(edits_of(smollm2(), "train"))
    num_asked = len(asked)
    assert list(edits_of(smollm2(), "train")) == first and len(asked) == num_asked
    assert list(edits_of(replace(smollm2(), seed=1), "train")) != first


def test_fewer_are_drawn_if_the_model_gets_fewer_wrong(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_data, "NUM_CORRECTIONS", 10_000)
    edits = list(edits_of(smollm2(), "train-a"))
    facts = [fact for fact in WorldFacts().facts("train-a") if fact.relation != "capital"]
    assert len(asked) == len(WorldFacts().facts("train-a")) and len(edits) == len(facts)


def test_other_corpora_are_streamed_as_they_are(home: Path) -> None:
    plan = tiny()
    assert list(edits_of(plan, "train")) == list(plan.corpus.stream("train"))


def test_the_file_of_what_a_model_gets_wrong_is_named_after_it(asked: list[str], home: Path) -> None:
    def name(plan: Plan) -> str:
        return Path(edits_file(plan, "train")).name

    plan = smollm2()
    names = [name(one) for one in (plan, replace(plan, model="/models/other"), replace(plan, seed=1))]
    assert len(set(names)) == 3 and names[0] == f"{plan.corpus.name}-smollm2-135m-instruct-0-train.parquet"
    assert name(tiny()) == "world-20-train.parquet" and name(replace(tiny(), edits="mine.jsonl")) == "mine.jsonl"
