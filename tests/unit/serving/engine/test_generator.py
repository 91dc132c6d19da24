"""Swaps of a replica: their preparation beside requests, their faults, and a repair; without vLLM's engine."""

from __future__ import annotations

import asyncio
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayError

from errata.ledger import Ledger
from serving.api.version_stamp import NotQueued
from serving.engine.readiness import max_prepare_s
from tests.tiny_models import save_tiny

weight_engine = pytest.importorskip("serving.engine.weight_engine")  # vLLM
engine = pytest.importorskip("tests.fakes.engine")


def calls(replica: Any, name: str) -> list[tuple[str, float | None, bool]]:
    return [call for call in replica.engine.seen if call[0] == name]


def test_a_replica_starts_at_the_head(grown: Ledger) -> None:
    async def begun(at: int) -> None:
        async with engine.started(grown, at) as replica:
            assert (replica.version, replica.fingerprint) == (at, grown.version(at).fingerprint)
            status = await replica.status()
            assert (status["replica"], status["engine_version"], status["intact"]) == ("r", at, True)

    for at in (0, 9):
        asyncio.run(begun(at))


def test_a_swap_is_timed_from_the_pause_and_its_preparation_by_the_size_of_the_files(grown: Ledger) -> None:
    whole, only = (
        max_prepare_s(sum(len(v.ranks) for v in versions), sum(v.num_bytes for v in versions))
        for versions in (grown.versions()[1:], grown.versions()[5:6])
    )

    async def swapped() -> None:
        async with engine.started(grown) as replica:
            assert (await replica.swap(9))["version"] == 9
            seen = [call for call in replica.engine.seen if call[0] != "errata_reading"]  # A busy machine reads longer.
            paused = [("pause", None, True), ("update", None, True), ("resume", None, True), ("errata_state", None, True)]
            assert seen == [("errata_prepare", whole, False), *paused] and 60 < only < whole
            assert not replica._readiness.is_under_way
            assert (await replica.swap(4))["version"] == 4 and (await replica.swap(5))["version"] == 5
            assert calls(replica, "errata_prepare")[2:] == [("errata_prepare", only, False)]

    asyncio.run(swapped())


def test_requests_are_answered_by_the_present_version_while_a_long_update_is_read(
    grown: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, read = threading.Event(), weight_engine.read_segments

    def slowly(path: Path) -> Any:
        assert go_on.wait(10)
        return read(path)

    async def asked() -> None:
        async with engine.started(grown) as replica:
            replica._readiness.look(9, 0, 0)
            swap = asyncio.create_task(replica.swap(9))
            await asyncio.sleep(0.3)
            assert not swap.done() and replica._readiness.is_under_way
            async with asyncio.timeout(1):
                assert await replica.admit(0) == f"{replica.boot}-0"
            later = asyncio.create_task(replica.admit(9))
            go_on.set()
            assert (await swap)["version"] == 9 and await later == f"{replica.boot}-1"
            assert len(calls(replica, "errata_reading")) >= 2

    monkeypatch.setattr(weight_engine, "read_segments", slowly)
    asyncio.run(asked())


def test_the_fault_of_a_long_update_is_reported_when_it_is_read(grown: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    read = weight_engine.read_segments

    def slowly(path: Path) -> Any:
        time.sleep(weight_engine.FIRST_WAIT_S)
        if path.parent.name != "snapshots":
            raise OSError(f"{path} cannot be read")
        return read(path)

    async def failed() -> None:
        async with engine.started(grown) as replica:
            monkeypatch.setattr(weight_engine, "read_segments", slowly)
            answer = await replica.swap(9)
            assert "cannot be read" in answer["error"] and not answer["refused"] and answer["version"] == 0
            assert not replica._readiness.is_under_way and (await replica.status())["intact"]
            monkeypatch.setattr(weight_engine, "read_segments", read)
            assert (await replica.swap(9))["version"] == 9

    asyncio.run(failed())


def test_a_repair_swaps_to_the_head_at_the_time_of_its_turn(grown: Ledger) -> None:
    async def moved_meanwhile() -> None:
        async with engine.started(grown) as replica:
            async with replica._swapping:
                repair = asyncio.create_task(replica._repair())
                await asyncio.sleep(0.01)
                grown.move_head(3)
            await repair
            assert replica.version == 3 and len(calls(replica, "update")) == 1

    asyncio.run(moved_meanwhile())


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="with torchvision vLLM runs the model")
def test_a_model_that_reads_images_is_refused_before_vllm_sees_it(grown: Ledger, tmp_path: Path) -> None:
    """vLLM's own error is only that the model `failed to be inspected`."""

    async def refused() -> None:
        with pytest.raises(ValueError, match=r"Gemma3ForConditionalGeneration, which reads images too.*torchvision"):
            async with engine.started(grown, model=str(save_tiny("gemma3-wrapped", tmp_path / "wrapped"))):
                """Not reached."""

    asyncio.run(refused())


class HighestVersions:
    """The edit worker's handle, which answers the highest version there can be, or fails."""

    def __init__(self, answer: int | Exception) -> None:
        self.answer, self.num_asked, self.highest_version = answer, 0, self

    async def remote(self) -> int:
        self.num_asked += 1
        await asyncio.sleep(0.01)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


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


def test_without_the_worker_a_version_is_waited_for(grown: Ledger) -> None:
    async def asked() -> None:
        async with engine.started(grown, at=9) as replica:
            replica._highest_version.worker = HighestVersions(RayError("it is being replaced"))
            waiting = asyncio.create_task(replica.admit(10**9))
            await asyncio.sleep(0.05)
            assert not waiting.done()
            waiting.cancel()

    asyncio.run(asked())


class Worker:
    """The edit worker's handle on its first start; its `ready` is answered when `started` is set."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.started, self.fault = asyncio.Event(), fault
        self.ready = self

    async def remote(self) -> None:
        await self.started.wait()
        if self.fault is not None:
            raise self.fault


def test_a_replica_waits_for_the_ledger_and_not_for_the_worker_that_makes_it(tmp_path: Path) -> None:
    async def opened() -> None:
        replica, worker = engine.Generator.__new__(engine.Generator), Worker()
        replica.worker, replica.options = worker, engine.ServingOptions("m", str(tmp_path / "ledger"), "errata")
        opening = asyncio.create_task(replica._open_ledger())
        await asyncio.sleep(0.3)
        assert not opening.done()
        Ledger.create(tmp_path / "ledger", {"model": "m", "fingerprint": "f", "matrices": ["a"]})
        async with asyncio.timeout(5):
            assert (await opening).base["fingerprint"] == "f" and not worker.started.is_set()

    asyncio.run(opened())


@pytest.mark.parametrize(
    ("fault", "says"), [(None, "no ledger in"), (RuntimeError("the editor has no artifact"), "the editor has no artifact")]
)
def test_a_worker_that_starts_without_a_ledger_ends_the_wait(fault: Exception | None, says: str, tmp_path: Path) -> None:
    async def opened() -> None:
        replica, worker = engine.Generator.__new__(engine.Generator), Worker(fault)
        replica.worker, replica.options = worker, engine.ServingOptions("m", str(tmp_path), "errata")
        worker.started.set()
        async with asyncio.timeout(5):
            with pytest.raises(type(fault or FileNotFoundError()), match=says):
                await replica._open_ledger()

    asyncio.run(opened())
