"""All replicas or none: what the worker makes of their answers, with Ray's broadcast replaced by lists of answers."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from errata.generate import SwapFailed
from errata.ledger import Version
from serving.worker.replicas import Replicas, Unloadable

WANTED = Version(3, 2, "e", "p", "f3", "now", (), {}, 0, {}, {}, None)  # type: ignore[arg-type]


def said(replica: str, version: int = 3, **more: Any) -> dict[str, Any]:
    return {"replica": replica, "version": version, "fingerprint": f"f{version}", **more}


class Broadcasts:
    """Each call of `swap` is answered by the next of `rounds`; an exception is raised."""

    def __init__(self, *rounds: Any) -> None:
        self.rounds, self.asked = list(rounds), list[tuple[Any, ...]]()

    def broadcast(self, method: str, *arguments: Any) -> Broadcasts:
        self.asked.append((method, *arguments))
        return self

    async def results_async(self, timeout_s: float, return_exceptions: bool = False) -> Any:
        answers = self.rounds.pop(0) if len(self.rounds) > 1 else self.rounds[0]
        if isinstance(answers, Exception):
            raise answers
        return answers


def swapped(monkeypatch: pytest.MonkeyPatch, *rounds: Any) -> tuple[Replicas, Broadcasts]:
    replicas, one = Broadcasts(*rounds), Replicas()
    monkeypatch.setattr(replicas, "_generators", lambda: replicas)
    monkeypatch.setattr(replicas.asyncio, "sleep", _at_once)
    try:
        asyncio.run(one.swap(WANTED))
    finally:
        assert set(replicas.asked) == {("swap", 3)}
    return one, replicas


async def _at_once(_seconds: float) -> None:
    return None


def test_all_that_report_the_version_and_its_fingerprint_have_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    one, replicas = swapped(monkeypatch, [said("a"), said("b")])
    assert not one.is_behind and len(replicas.asked) == 1


@pytest.mark.parametrize(
    "first",
    [TimeoutError(), [], [said("a"), RuntimeError("it died")], [said("a"), said("b", 2)], [said("a", fingerprint="other")]],
)
def test_who_is_late_is_asked_again(monkeypatch: pytest.MonkeyPatch, first: Any) -> None:
    one, replicas = swapped(monkeypatch, first, [said("a"), said("b")])
    assert not one.is_behind and len(replicas.asked) == 2


def test_who_stays_behind_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SwapFailed, match="not served by b: it has version 2") as late:
        swapped(monkeypatch, [said("a"), said("b", 2)])
    assert not isinstance(late.value, Unloadable)


def test_no_replica_at_all_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SwapFailed, match="none is up"):
        swapped(monkeypatch, [])


def test_what_all_replicas_refuse_is_unloadable_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = [said("a", 2, error="bad file", refused=True), said("b", 2, error="bad file", refused=True)]
    with pytest.raises(Unloadable, match="by a, b: bad file; bad file"):
        swapped(monkeypatch, refusing)


def test_one_that_refuses_what_another_serves_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SwapFailed, match="by b: bad file") as late:
        swapped(monkeypatch, [said("a"), said("b", 2, error="bad file", refused=True)])
    assert not isinstance(late.value, Unloadable)


class Hanging(Broadcasts):
    async def results_async(self, timeout_s: float, return_exceptions: bool = False) -> Any:
        time.sleep(timeout_s)
        raise TimeoutError


def test_replicas_that_hang_are_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    replicas = Hanging()
    monkeypatch.setattr(replicas, "_generators", lambda: replicas)
    monkeypatch.setattr(replicas, "SWAP_TIMEOUT_S", 0.05)
    with pytest.raises(SwapFailed, match=r"did not answer within 0\.05 s"):
        asyncio.run(Replicas().swap(WANTED))
    assert len(replicas.asked) == 1


def test_what_is_refused_beside_one_that_has_died_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = said("a", 2, error="bad file", refused=True)
    with pytest.raises(SwapFailed, match="by a, one that has ended: bad file; RuntimeError") as late:
        swapped(monkeypatch, [refusing, RuntimeError("it died")])
    assert not isinstance(late.value, Unloadable)


def test_what_one_has_served_is_not_given_up_when_that_one_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = said("b", 2, error="bad file", refused=True)
    with pytest.raises(SwapFailed, match="by b: bad file") as late:
        swapped(monkeypatch, [said("a"), refusing], [refusing])
    assert not isinstance(late.value, Unloadable)


def test_an_engine_that_has_died_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    dead = said("b", 2, error="EngineDeadError", refused=False)
    one, _ = swapped(monkeypatch, [dead], [said("c")])
    assert not one.is_behind


def test_what_replicas_say_is_told_without_those_that_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    replicas = Broadcasts([{"replica": "a"}, RuntimeError("it is ill")])
    monkeypatch.setattr(replicas, "_generators", lambda: replicas)
    assert asyncio.run(Replicas().ask("status")) == [{"replica": "a"}]
    replicas.rounds = [TimeoutError()]
    assert asyncio.run(Replicas().ask("status")) == []
