"""The feed: every listener hears everything, and none can hold it up."""

from __future__ import annotations

import asyncio

import pytest

from serving import feed
from serving.feed import Feed


def test_listeners_hear_what_is_told_while_they_listen() -> None:
    async def heard() -> list[list[str]]:
        told = Feed()
        told.tell("edit", {"id": "before"})
        with told.listener() as first:
            told.tell("edit", {"id": "a"})
            with told.listener() as second:
                told.tell("head", {"head": 1})
                return [[(await anext(aiter(one))).kind for _ in range(n)] for one, n in ((first, 2), (second, 1))]

    assert asyncio.run(heard()) == [["edit", "head"], ["head"]]


def test_nobody_is_heard_after_the_block() -> None:
    told = Feed()
    with told.listener():
        assert told.is_heard
    assert not told.is_heard


def test_a_listener_that_does_not_read_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "MAX_WAITING", 3)

    async def heard() -> list[str]:
        told = Feed()
        with told.listener() as listener:
            for number in range(10):
                told.tell("edit", {"id": str(number)})
            assert not told.is_heard
            return [event.kind async for event in listener]

    assert asyncio.run(heard()) == ["edit", "edit", "edit", "lagged"]
