"""Admission of a request for at least a version: by its lineage, and never for one that no edit is queued for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from ray.exceptions import RayError

from errata.delta.weight_delta import WeightDelta
from errata.edit import Edit
from errata.editors.state import EditorState
from errata.ledger import Ledger
from serving.api.version_stamp import NotQueued, RolledBack
from serving.worker.journal import JournalFailed
from serving.worker.refusals import RefusedCall

engine = pytest.importorskip("tests.fakes.engine")  # vLLM


class HighestVersions:
    """The edit worker's handle, which answers the highest version there can be, or fails."""

    def __init__(self, answer: int | Exception | RefusedCall) -> None:
        self.answer, self.num_asked, self.highest_version = answer, 0, self

    async def remote(self) -> int | RefusedCall:
        self.num_asked += 1
        await asyncio.sleep(0.01)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def edits(*ids: str) -> tuple[Edit, ...]:
    return tuple(Edit("p", "t", id=id) for id in ids)


def test_at_least_a_version_asks_for_its_lineage(ledger: Ledger, random_delta: Callable[..., WeightDelta]) -> None:
    """A later version that does not follow the wanted one has a higher number, and lacks its edits."""

    def add(parent: int, own: tuple[Edit, ...], card: dict[str, Any] | None = None) -> None:
        number = ledger.newest + 1
        ledger.append(parent, random_delta(number), EditorState(), own, card or {}, ("E", "p"), expected_head=ledger.head)

    async def admitted(replica: Any, *wanted: int) -> None:
        async with asyncio.timeout(5):
            for number in wanted:
                assert await replica.admit(number)

    async def asked() -> None:
        async with engine.started(ledger) as replica:
            for parent in range(4):
                add(parent, edits(f"e{parent + 1}"))
            assert (await replica.swap())["version"] == 4
            await admitted(replica, 0, 1, 4)
            ledger.move_head(2)
            await replica.swap()
            add(2, edits("e5"))
            waiting = asyncio.create_task(replica.admit(5))
            assert (await replica.swap())["version"] == 5
            await admitted(replica, 0, 1, 2, 5)
            assert await waiting
            for gone in (3, 4):
                with pytest.raises(RolledBack, match=f"version {gone} is not live"):
                    await replica.admit(gone)
            add(0, edits("e2", "e5"), {"reverted": {"edits": ["e1"], "versions": [1], "mode": "replay", "head": 5}})
            assert (await replica.swap())["version"] == 6 and ledger.chain(6) == [6]
            await admitted(replica, 1, 2, 5, 6)

    asyncio.run(asked())


def test_a_replica_that_the_worker_does_not_know_yet_follows_the_head_by_itself(grown: Ledger) -> None:
    """A broadcast reaches the replicas that the worker knows, and a new one takes requests a moment earlier."""

    async def asked() -> None:
        async with engine.started(grown, at=8) as replica:
            assert replica.version == 8 and grown.head == 9
            replica.engine.seen.clear()
            await asyncio.gather(*(replica.admit(0) for _ in range(20)))
            assert replica.version == 9 and len([call for call in replica.engine.seen if call[0] == "update"]) == 1
            await replica.swap(grown.head_at()[0])
            grown.move_head(8)
            await replica.admit(0)  # From now on the worker waits for this replica before it acknowledges a version.
            assert replica.version == 9

    asyncio.run(asked())


def test_a_lost_version_is_answered_by_one_that_holds_its_edits(
    ledger: Ledger, random_delta: Callable[..., WeightDelta]
) -> None:
    async def asked() -> None:
        async with engine.started(ledger) as replica:
            for number, own in enumerate((edits("a", "b"), edits("c")), 1):
                ledger.append(0, random_delta(number), EditorState(), own, {}, ("E", "p"))
                ledger.retract(number, 0)
            ledger.append(0, random_delta(3), EditorState(), edits("b", "a"), {}, ("E", "p"))
            await replica.swap()
            assert await replica.admit(1) and replica.version == 3
            with pytest.raises(RolledBack):
                await replica.admit(2)

    asyncio.run(asked())


def test_a_request_that_waits_is_refused_when_its_version_is_gone_back_from(
    ledger: Ledger, random_delta: Callable[..., WeightDelta]
) -> None:
    async def asked() -> None:
        async with engine.started(ledger) as replica:
            replica._highest_version.worker = HighestVersions(1)
            waiting = asyncio.create_task(replica.admit(1))
            await asyncio.sleep(0.01)
            ledger.append(0, random_delta(1), EditorState(), edits("a"), {}, ("E", "p"))
            ledger.move_head(0)
            await replica.swap()
            async with asyncio.timeout(5):
                with pytest.raises(RolledBack):
                    await waiting

    asyncio.run(asked())


def test_a_version_that_no_edit_is_queued_for_is_refused_at_once(grown: Ledger) -> None:
    async def asked() -> None:
        async with engine.started(grown, at=9) as replica:
            worker = HighestVersions(12)
            replica._highest_version.worker = worker
            async with asyncio.timeout(1):
                answers = await asyncio.gather(*(replica.admit(13) for _ in range(50)), return_exceptions=True)
            assert {str(answer) for answer in answers} == {str(NotQueued(13, 12))} and worker.num_asked == 1
            coming = asyncio.create_task(replica.admit(12))
            await asyncio.sleep(0.05)
            assert not coming.done(), "an edit may become this version"
            coming.cancel()

    asyncio.run(asked())


FAULTS = [RayError("it is being replaced"), RefusedCall(JournalFailed("the disk is full"))]


@pytest.mark.parametrize("fault", FAULTS, ids=["no worker", "no journal"])
def test_without_the_worker_s_answer_a_version_is_waited_for(fault: Exception | RefusedCall, grown: Ledger) -> None:
    async def asked() -> None:
        async with engine.started(grown, at=9) as replica:
            replica._highest_version.worker = HighestVersions(fault)
            waiting = asyncio.create_task(replica.admit(10**9))
            await asyncio.sleep(0.05)
            assert not waiting.done()
            waiting.cancel()

    asyncio.run(asked())
