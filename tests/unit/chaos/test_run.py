"""A chaos run over faults that do nothing: it ends when it is asked to, and a service that answers no edit is a fault."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from tests.chaos import run
from tests.chaos.history import Chain
from tests.chaos.workload import Recorder


class IdleService(SimpleNamespace):
    """A service that is whole, and whose clients do nothing."""

    def __init__(self) -> None:
        super().__init__(http=httpx.Client(base_url="http://127.0.0.1:9"), headers={})

    def ledger(self) -> SimpleNamespace:
        return SimpleNamespace(head_log=lambda: [])

    def until_whole(self) -> float:
        return 0.25


@pytest.fixture
def caused(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Replace the faults, the clients and the records of a run; returns the faults that are caused."""
    found: list[Any] = []
    monkeypatch.setattr(run, "FAULTS", {"one": lambda service, draw: found.append("one")})
    monkeypatch.setattr(run, "Workload", lambda *_: SimpleNamespace(start=lambda: None, stop=lambda: ()))
    monkeypatch.setattr(run, "settled_rows", lambda _: ())
    monkeypatch.setattr(run, "chain_of", lambda *_: Chain(()))
    monkeypatch.setattr(run, "_until_acknowledged", lambda _: None)
    monkeypatch.setattr(run.time, "sleep", lambda _: None)
    return found


def test_a_run_ends_after_the_fault_that_it_is_at(caused: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    ending = threading.Event()
    service: Any = IdleService()
    outcomes, _ = run.suffer(service, ["one"] * 3, 0, ending)
    assert [outcome.recovery_s for outcome in outcomes] == [0.25] * 3
    ending.set()
    outcomes, history = run.suffer(service, ["one"] * 3, 0, ending)
    assert len(outcomes) == 1 and len(caused) == 4 and not history.operations


def test_a_service_that_acknowledges_nothing_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 50))
    monkeypatch.setattr(run.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(run.time, "sleep", lambda _: None)
    monkeypatch.setattr(run, "FAULTS", {"one": lambda service, draw: None})
    suffered: Callable[..., run.Outcome] = run._suffered
    outcome = suffered(IdleService(), "one", random.Random(0), Recorder("http://x"))
    assert outcome.fault == "the service was whole, and acknowledged no edit within 120 s"
