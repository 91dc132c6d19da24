"""The event bus: every listener gets every event, and none can block it."""

from __future__ import annotations

import asyncio

import pytest

from serving.worker import events
from serving.worker.events import EventBus, TooManyListeners


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


def test_a_listener_that_does_not_read_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_WAITING", 3)

    async def heard() -> list[str]:
        bus = EventBus()
        with bus.listener() as listener:
            for number in range(10):
                bus.publish("edit", {"id": str(number)})
            assert not bus.has_listeners
            return [event.kind async for event in listener]

    assert asyncio.run(heard()) == ["edit", "edit", "edit", "lagged"]


def test_a_listener_may_want_some_edits_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unwanted events are not queued, so the posts of others do not make a listener lag."""
    monkeypatch.setattr(events, "MAX_WAITING", 3)

    async def heard() -> list[tuple[str, object]]:
        bus = EventBus()
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


def test_the_number_of_listeners_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_LISTENERS", 2)
    bus = EventBus()
    with bus.listener(), bus.listener(["a"]):
        with pytest.raises(TooManyListeners, match="2 event streams"), bus.listener():
            raise AssertionError("it listens")
        assert len(bus._listeners) == 2
    with bus.listener():
        assert bus.has_listeners
