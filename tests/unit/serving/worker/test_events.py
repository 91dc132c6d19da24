"""The feed: every listener hears everything, and none can hold it up."""

from __future__ import annotations

import asyncio

import pytest

from serving.worker import events
from serving.worker.events import EventBus, TooManyListeners


def test_listeners_hear_what_is_told_while_they_listen() -> None:
    async def heard() -> list[list[str]]:
        bus = EventBus()
        bus.publish("edit", {"id": "before"})
        with bus.listener() as first:
            bus.publish("edit", {"id": "a"})
            with bus.listener() as second:
                bus.publish("head", {"head": 1})
                return [[(await anext(aiter(one))).kind for _ in range(n)] for one, n in ((first, 2), (second, 1))]

    assert asyncio.run(heard()) == [["edit", "head"], ["head"]]


def test_nobody_has_listeners_after_the_block() -> None:
    bus = EventBus()
    with bus.listener():
        assert bus.has_listeners
    assert not bus.has_listeners


def test_a_listener_that_does_not_read_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_WAITING", 3)

    async def heard() -> list[str]:
        bus = EventBus()
        with bus.listener() as listener:
            for number in range(10):
                bus.publish("edit", {"id": str(number)})
            assert not bus.has_listeners
            return [event.kind async for event in listener]

    assert asyncio.run(heard()) == ["edit", "edit", "edit", "lagged"]


def test_a_listener_may_want_some_edits_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it does not want is not kept for it either: others' posts do not make it lag."""
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


def test_a_listener_that_wants_no_edit_hears_none() -> None:
    bus = EventBus()
    with bus.listener([]) as listener:
        bus.publish("edit", {"id": "a"})
        assert listener._waiting.empty()


def test_only_so_many_may_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_LISTENERS", 2)
    bus = EventBus()
    with bus.listener(), bus.listener(["a"]):
        with pytest.raises(TooManyListeners, match="2 event streams"), bus.listener():
            raise AssertionError("it listens")
        assert len(bus._listeners) == 2
    with bus.listener():
        assert bus.has_listeners
