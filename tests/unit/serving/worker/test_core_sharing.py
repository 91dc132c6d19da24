"""Messages to the replicas about the cores that they share with the editor."""

from __future__ import annotations

import asyncio
from typing import Any

from serving.worker.core_sharing import CoreSharing
from serving.worker.replicas import Replicas


class _Notified(Replicas):
    """Replicas that note what they are sent; none is up while `is_up` is False."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bool] = []
        self.is_up = True

    async def ask(self, method: str, *arguments: Any) -> list[Any]:
        assert method == "share_cores"
        await asyncio.sleep(0)
        self.sent += arguments if self.is_up else ()
        return [1] if self.is_up else []


async def _settled() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


def test_replicas_are_notified_when_edits_begin_and_end() -> None:
    async def sent() -> list[bool]:
        sharing = CoreSharing(replicas := _Notified(), is_on=True)
        with sharing.editing(), sharing.editing():
            await _settled()
            assert replicas.sent == [True]
        await _settled()
        return replicas.sent

    assert asyncio.run(sent()) == [True, False]


def test_edits_that_end_while_the_replicas_are_notified_leave_them_all_cores() -> None:
    async def sent() -> list[bool]:
        sharing = CoreSharing(replicas := _Notified(), is_on=True)
        with sharing.editing():
            await asyncio.sleep(0)
        await _settled()
        return replicas.sent

    assert asyncio.run(sent())[-1] is False


def test_replicas_that_are_not_up_are_notified_at_the_next_change() -> None:
    async def sent() -> list[bool]:
        sharing = CoreSharing(replicas := _Notified(), is_on=True)
        replicas.is_up = False
        sharing.notify()
        await _settled()
        replicas.is_up = True
        with sharing.editing():
            await _settled()
        await _settled()
        return replicas.sent

    assert asyncio.run(sent()) == [True, False]


def test_nothing_is_sent_where_no_core_is_shared() -> None:
    async def sent() -> list[bool]:
        sharing = CoreSharing(replicas := _Notified())
        with sharing.editing():
            await _settled()
        return replicas.sent

    assert asyncio.run(sent()) == []
