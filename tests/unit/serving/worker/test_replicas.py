"""Swaps on all replicas, with Ray's broadcast replaced by lists of answers."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from errata.generate import SwapFailed
from errata.ledger import Version
from serving.worker import replicas as module
from serving.worker.replicas import Replicas, Unloadable

WANTED = Version(3, 2, "e", "p", "f3", "now", (), {}, 0, {}, {}, None)  # type: ignore[arg-type]


def says(replica: str, version: int = 3, **more: Any) -> dict[str, Any]:
    return {"replica": replica, "version": version, "fingerprint": f"f{version}", **more}


class Broadcasts:
    """A deployment handle: each broadcast gets the next of `rounds` as its answers; an exception is raised."""

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
    broadcasts, replicas = Broadcasts(*rounds), Replicas()
    monkeypatch.setattr(module, "_generators", lambda: broadcasts)
    monkeypatch.setattr(module.asyncio, "sleep", _no_sleep)
    try:
        asyncio.run(replicas.swap(WANTED, 7))
    finally:
        assert set(broadcasts.asked) == {("swap", 7)}, "the epoch of the head"
    return replicas, broadcasts


async def _no_sleep(_seconds: float) -> None:
    return None


def test_replicas_that_report_version_and_fingerprint_have_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    replicas, broadcasts = swapped(monkeypatch, [says("a"), says("b")])
    assert not replicas.is_behind and len(broadcasts.asked) == 1


@pytest.mark.parametrize(
    "first",
    [
        TimeoutError(),
        [],
        [says("a"), RuntimeError("it died")],
        [says("a"), says("b", 2)],
        [says("a", fingerprint="other")],
    ],
)
def test_a_late_replica_is_asked_again(monkeypatch: pytest.MonkeyPatch, first: Any) -> None:
    replicas, broadcasts = swapped(monkeypatch, first, [says("a"), says("b")])
    assert not replicas.is_behind and len(broadcasts.asked) == 2


def test_a_replica_that_stays_behind_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SwapFailed, match="not served by b: it has version 2") as late:
        swapped(monkeypatch, [says("a"), says("b", 2)])
    assert not isinstance(late.value, Unloadable)


def test_a_swap_without_replicas_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SwapFailed, match="none is up"):
        swapped(monkeypatch, [])


def test_a_version_that_all_replicas_refuse_is_unloadable(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = [says("a", 2, error="bad file", refused=True), says("b", 2, error="bad file", refused=True)]
    with pytest.raises(Unloadable, match="by a, b: bad file; bad file"):
        swapped(monkeypatch, refusing)


def test_a_replica_that_refuses_what_another_serves_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SwapFailed, match="by b: bad file") as late:
        swapped(monkeypatch, [says("a"), says("b", 2, error="bad file", refused=True)])
    assert not isinstance(late.value, Unloadable)


class Hanging(Broadcasts):
    async def results_async(self, timeout_s: float, return_exceptions: bool = False) -> Any:
        time.sleep(timeout_s)
        raise TimeoutError


def test_hanging_replicas_are_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    broadcasts = Hanging()
    monkeypatch.setattr(module, "_generators", lambda: broadcasts)
    monkeypatch.setattr(module, "SWAP_TIMEOUT_S", 0.05)
    with pytest.raises(SwapFailed, match=r"did not answer within 0\.05 s"):
        asyncio.run(Replicas().swap(WANTED, 7))
    assert len(broadcasts.asked) == 1


def test_a_refusal_beside_a_dead_replica_is_not_final(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = says("a", 2, error="bad file", refused=True)
    with pytest.raises(SwapFailed, match="by a, one that has ended: bad file; RuntimeError") as late:
        swapped(monkeypatch, [refusing, RuntimeError("it died")])
    assert not isinstance(late.value, Unloadable)


def test_a_version_that_was_served_once_stays_loadable_when_that_replica_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = says("b", 2, error="bad file", refused=True)
    with pytest.raises(SwapFailed, match="by b: bad file") as late:
        swapped(monkeypatch, [says("a"), refusing], [refusing])
    assert not isinstance(late.value, Unloadable)


def test_a_dead_engine_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    dead = says("b", 2, error="EngineDeadError", refused=False)
    replicas, _ = swapped(monkeypatch, [dead], [says("c")])
    assert not replicas.is_behind


def test_a_question_returns_the_answers_of_the_replicas_that_do_not_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    broadcasts = Broadcasts([{"replica": "a"}, RuntimeError("it is ill")])
    monkeypatch.setattr(module, "_generators", lambda: broadcasts)
    assert asyncio.run(Replicas().ask("status")) == [{"replica": "a"}]
    broadcasts.rounds = [TimeoutError()]
    assert asyncio.run(Replicas().ask("status")) == []
