"""The event bus: every listener gets every event, and none can block it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from errata.edit import Code
from errata.local.service_limits import ServiceLimits
from serving.worker.events import EventBus, TooManyListeners, Waiters
from serving.worker.journal import Journal


def test_listeners_get_the_events_of_their_block() -> None:
    async def heard() -> list[list[str]]:
        bus = EventBus()
        bus.publish("edit", {"id": "before"})
        with bus.listener() as first:
            bus.publish("edit", {"id": "a"})
            with bus.listener() as second:
                bus.publish("head", {"head": 1})
                return [[(await anext(aiter(one))).kind for _ in range(n)] for one, n in ((first, 2), (second, 1))]

    assert asyncio.run(heard()) == [["edit", "head"], ["head"]]


def test_no_listener_is_left_after_the_block() -> None:
    bus = EventBus()
    with bus.listener():
        assert bus.has_listeners
    assert not bus.has_listeners


def test_a_listener_that_does_not_read_is_dropped() -> None:
    async def heard() -> list[str]:
        bus = EventBus(ServiceLimits(max_waiting_events=3))
        with bus.listener() as listener:
            for number in range(10):
                bus.publish("edit", {"id": str(number)})
            assert not bus.has_listeners
            return [event.kind async for event in listener]

    assert asyncio.run(heard()) == ["edit", "edit", "edit", "lagged"]


def test_a_listener_may_want_some_edits_only() -> None:
    """Unwanted events are not queued, so the posts of others do not make a listener lag."""

    async def heard() -> list[tuple[str, object]]:
        bus = EventBus(ServiceLimits(max_waiting_events=3))
        with bus.listener(["a", "b"]) as listener:
            for number in range(10):
                bus.publish("edit", {"id": str(number)})
                bus.publish("version", {"version": number})
            for id in ("a", "c", "b"):
                bus.publish("edit", {"id": id, "state": "applied"})
            stream = aiter(listener)
            return [(event.kind, event.data["id"]) for event in (await anext(stream), await anext(stream))]

    assert asyncio.run(heard()) == [("edit", "a"), ("edit", "b")]


def test_a_listener_that_wants_no_edit_gets_none() -> None:
    bus = EventBus()
    with bus.listener([]) as listener:
        bus.publish("edit", {"id": "a"})
        assert listener._waiting.empty()


def test_an_event_has_the_state_of_an_edit_and_not_its_texts(tmp_path: Path) -> None:
    """A body may have a MiB, and there may be many listeners: each event is small."""
    journal = Journal(tmp_path / "journal")
    waiters = Waiters(journal)
    (id,) = journal.submit([{"prompt": "p" * 100_000, "target": "t", "rephrasings": ["r" * 100_000]}], poster="ann")
    journal.reject(id, "no " * 1_000, "target", Code.INEFFECTIVE, says="s" * 16_000)

    async def heard() -> dict[str, object]:
        with waiters.event_bus.listener() as listener:
            waiters.publish([id])
            return (await anext(aiter(listener))).data

    found = asyncio.run(heard())
    assert found | {"created": 0} == {
        "id": id,
        "state": "rejected",
        "created": 0,
        "reason": ("no " * 1_000)[:1_000],
        "code": "ineffective",
        "field": "target",
        "poster": "ann",
    }


def test_the_number_of_listeners_is_limited() -> None:
    bus = EventBus(ServiceLimits(max_listeners=2))
    with bus.listener(), bus.listener(["a"]):
        with pytest.raises(TooManyListeners, match=r"2 event streams .* \(max_listeners=2\)"), bus.listener():
            raise AssertionError("it listens")
        assert len(bus._listeners) == 2
    with bus.listener():
        assert bus.has_listeners
