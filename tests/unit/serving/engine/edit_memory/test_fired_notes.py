"""Notes of the edits that fire inside a worker: by request, once, and never more than are kept."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from errata.edit_memory.bank import Bank, Record
from errata.edit_memory.lookup import NONE, Fired

fired_notes = pytest.importorskip("serving.engine.edit_memory.fired_notes")


def a_record(name: str, num_rows: int) -> Record:
    rows = {"key": torch.rand(num_rows, 3), "token": torch.arange(num_rows), "threshold": torch.ones(num_rows)}
    return Record(f'"{name}"', name, rows | {"after": torch.arange(num_rows)}, edit=name)


BANK = Bank("state", "inside").changed([a_record("a", 2), a_record("b", 1), a_record("c", 3)], ())


def runner(names: list[str | None], parts: tuple[int, ...] = ()) -> Any:
    """Make a runner with a request of each name; some places of the step are parts of prompts."""
    requests = {
        f"request-{i}": SimpleNamespace(sampling_params=SimpleNamespace(extra_args=name and {fired_notes.NAME: name, "own": 1}))
        for i, name in enumerate(names)
    }
    is_part = torch.tensor([place in parts for place in range(len(names))]).numpy()
    batch = SimpleNamespace(req_ids=list(requests))
    return SimpleNamespace(requests=requests, input_batch=batch, discard_request_mask=SimpleNamespace(np=is_part))


def found(*rows: int, score: float = 0.9) -> Fired:
    return Fired(torch.tensor(rows), torch.full((len(rows),), score))


def test_edits_are_noted_by_request_and_taken_once() -> None:
    notes = fired_notes.FiredNotes(runner(["x", "y", None, "z"]))
    notes.add(BANK, found(1, NONE, 2, 5))
    notes.add(BANK, found(0, 2, 2, NONE, score=0.95))
    notes.add(BANK, found(2, NONE, NONE, NONE, score=0.5))
    assert notes.take("x") == [("a", pytest.approx(0.95)), ("b", 0.5)]
    assert notes.take("y") == [("b", pytest.approx(0.95))] and notes.take("z") == [("c", pytest.approx(0.9))]
    assert notes.take("x") == [] and notes.of_request == {}


def test_the_first_parts_of_a_prompt_fire_nothing() -> None:
    notes = fired_notes.FiredNotes(runner(["x", "y"], parts=(0,)))
    notes.add(BANK, found(0, 0))
    assert (notes.take("x"), len(notes.take("y"))) == ([], 1)


def test_the_notes_of_requests_that_are_never_taken_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fired_notes, "MAX_KEPT", 2)
    notes = fired_notes.FiredNotes(runner(["x", "y", "z"]))
    notes.add(BANK, found(0, 0, 0))
    assert list(notes.of_request) == ["y", "z"]
