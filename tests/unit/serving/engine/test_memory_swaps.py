"""Swaps to versions that change no weights: the engine goes on, keeps its cache, and reads the new memory from then on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from errata.delta.kinds import joint
from errata.delta.parts import LowRank
from errata.delta.weight_delta import WeightDelta
from errata.edit_memory.bank import Kind
from errata.editors.state import EditorState
from errata.ledger import Ledger
from serving.api.version_stamp import OutOfRotation
from serving.engine.edit_memory import served_memory
from serving.engine.generator import ServingOptions
from tests.unit.conftest import MATRICES
from tests.unit.serving.engine.edit_memory.records import Reader, a_change, remembered
from tests.unit.serving.test_metrics import value

engine = pytest.importorskip("tests.fakes.engine")  # vLLM


@pytest.fixture(autouse=True)
def no_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read memories without the sentence encoder."""
    monkeypatch.setattr(served_memory, "MemoryReader", lambda bank, _renderer, _max_tokens: Reader(bank))
    monkeypatch.setattr(served_memory.SentenceEncoder, "load", lambda: None)


@contextmanager
def switching(replica: Any) -> Iterator[list[tuple[int, int]]]:
    """Record the version and the records of the memory after each step of the event loop in the block."""
    seen: list[tuple[int, int]] = []

    async def look() -> None:
        while True:
            seen.append((replica.version, replica._memory.now.num_records))
            await asyncio.sleep(0)

    looking = asyncio.create_task(look())
    try:
        yield seen
    finally:
        looking.cancel()


def names(replica: Any) -> list[str]:
    return [name for name, _, _ in replica.engine.seen if name != "errata_reading"]


def test_a_version_of_a_memory_needs_no_pause_and_keeps_the_salt(ledger: Ledger) -> None:
    remembered(ledger, '"a"')

    async def swapped() -> None:
        async with engine.started(ledger, is_known=True, memory="answer") as replica:
            salt = await replica.admit(0)
            with switching(replica) as seen:
                answer = await replica.swap()
            assert (answer["version"], answer["dense_bytes"], answer["reset"]) == (1, 0, False) and answer["bytes"] > 0
            assert set(seen) == {(0, 0), (1, 1)}, "version and memory change in one step"
            assert names(replica) == ["errata_prepare", "errata_follow"]
            assert replica.running_epoch == 0, "answers that have begun stay as they are"
            assert await replica.admit(1) == salt, "the cached keys and values are those of the same weights"
            ledger.move_head(0)
            assert (await replica.swap())["reset"] and names(replica)[2:] == ["errata_prepare", "errata_follow"]
            assert await replica.admit(0) == salt and replica._memory.now.reader is None
            assert replica.engine.worker.weight_transfer_engine.reloaded == []

    asyncio.run(swapped())


def learnt(ledger: Ledger) -> int:
    """Append a version whose weights have learnt one record of two, which its memory drops."""
    remembered(ledger, '"a"', '"b"')
    weights = WeightDelta({MATRICES[0]: LowRank(torch.ones(64, 1), torch.ones(96, 1))})
    both = joint(weights, a_change(dropped=('"a"',)))
    return ledger.append(ledger.head, both, EditorState(), (), {}, ("RLEdit+answer", "p")).number


def test_weights_and_memory_of_one_version_change_in_one_step(ledger: Ledger) -> None:
    newest = learnt(ledger)
    ledger.move_head(1)

    async def swapped() -> None:
        async with engine.started(ledger, is_known=True, memory="answer") as replica:
            await replica.swap()
            ledger.move_head(newest)
            reloaded = replica.engine.worker.weight_transfer_engine.reloaded
            with switching(replica) as seen:
                answer = await replica.swap()
            assert answer["version"] == newest and answer["dense_bytes"] > 0 and not answer["reset"]
            assert set(seen) == {(1, 2), (newest, 1)}, "no request meets the new weights with the old memory"
            assert reloaded == [{MATRICES[0]}] and replica.fingerprint == ledger.version(newest).fingerprint
            ledger.move_head(1)
            with switching(replica) as seen:
                assert (await replica.swap())["reset"]
            assert set(seen) == {(newest, 1), (1, 2)} and len(reloaded) == 2, "and back"

    asyncio.run(swapped())


def test_a_late_replica_reads_a_snapshot_of_both(ledger: Ledger) -> None:
    newest = learnt(ledger)
    for number in range(6):
        newest = remembered(ledger, f'"{number}"')
    ledger.snapshot()

    async def started() -> None:
        async with engine.started(ledger, memory="answer") as replica:
            await replica.admit(0)
            assert (replica.version, replica.fingerprint) == (newest, ledger.version(newest).fingerprint)
            assert replica._memory.now.num_records == 7
            assert replica.engine.worker.weight_transfer_engine.reloaded == [{MATRICES[0]}]

    asyncio.run(started())


def test_a_request_waits_for_no_swap_of_a_memory(ledger: Ledger) -> None:
    remembered(ledger, '"a"')

    async def swapped() -> None:
        async with engine.started(ledger, is_known=True, memory="answer") as replica:
            rpc, go_on = replica.engine.collective_rpc, asyncio.Event()

            async def slowly(method: str, args: tuple[Any, ...] = ()) -> list[Any]:
                if method == "errata_follow":
                    await go_on.wait()
                found: list[Any] = await rpc(method, args)
                return found

            replica.engine.collective_rpc = slowly
            swap = asyncio.create_task(replica.swap())
            await asyncio.sleep(0.2)
            async with asyncio.timeout(1):
                assert await replica.admit(0)
            assert replica.version == 0 and not swap.done()
            go_on.set()
            assert (await swap)["version"] == 1

    asyncio.run(swapped())


def test_a_new_replica_reads_the_head_s_memory_before_its_first_request(ledger: Ledger) -> None:
    """The worker may have acknowledged a version that this replica does not serve, until a broadcast has reached it."""
    remembered(ledger, '"a"')

    async def asked() -> None:
        async with engine.started(ledger, memory="answer") as replica:
            salt = replica._salt
            assert await replica.admit(0) == salt, "the weights are the same"
            assert replica.version == 1 and replica._memory.now.num_records == 1

    asyncio.run(asked())


def test_a_new_replica_that_cannot_follow_the_head_refuses_requests(ledger: Ledger) -> None:
    remembered(ledger, '"a"')

    async def asked() -> None:
        async with engine.started(ledger) as replica:  # For changes of weights.
            with pytest.raises(OutOfRotation):
                await replica.admit(0)

    asyncio.run(asked())


def test_a_state_has_the_version_and_the_memory_of_one_moment(ledger: Ledger) -> None:
    remembered(ledger, '"a"')

    async def swapped() -> None:
        async with engine.started(ledger, memory="answer") as replica:
            rpc = replica.engine.collective_rpc

            async def after_a_swap(method: str, args: tuple[Any, ...] = ()) -> list[Any]:
                replica.engine.collective_rpc = rpc
                await replica.swap()
                found: list[Any] = await rpc(method, args)
                return found

            replica.engine.collective_rpc = after_a_swap
            status = await replica.status()
            assert replica.version == 1 and (status["version"], status["memory"]["records"]) in ((0, 0), (1, 1))

    asyncio.run(swapped())


def test_the_state_has_the_kind_and_the_number_of_records(ledger: Ledger) -> None:
    remembered(ledger, '"a"', '"b"')

    async def swapped() -> None:
        async with engine.started(ledger, 0, memory="answer") as replica:
            assert (await replica.status())["memory"] == {"kind": None, "records": 0}
            await replica.swap()
            status = await replica.status()
            assert status["memory"] == {"kind": "answer", "records": 2} and status["engine_version"] == 1
            assert value((await replica.exposition())[2], "errata_memory_records") == 2

    asyncio.run(swapped())


def test_a_memory_is_refused_by_a_service_that_changes_weights(ledger: Ledger) -> None:
    remembered(ledger, '"a"')

    async def swapped() -> None:
        async with engine.started(ledger) as replica:
            answer = await replica.swap()
            assert answer["refused"] and "memory of kind answer" in answer["error"] and replica.version == 0

    asyncio.run(swapped())


def test_weights_are_reloaded_with_a_pause_and_another_salt(ledger: Ledger, random_delta: Callable[..., WeightDelta]) -> None:
    ledger.append(0, random_delta(0), EditorState(), (), {}, ("E", "p"))

    async def swapped() -> None:
        async with engine.started(ledger, is_known=True) as replica:
            salt = await replica.admit(0)
            await replica.swap()
            assert names(replica) == ["errata_prepare", "pause", "update", "errata_state", "resume"]
            assert await replica.admit(1) != salt and replica.running_epoch == 1

    asyncio.run(swapped())


def test_a_worker_that_does_not_follow_ends_the_replica(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    remembered(ledger, '"a"')

    class Ended(BaseException):
        """The process would have ended."""

    def end(code: int) -> None:
        raise Ended(code)

    async def swapped() -> None:
        async with engine.started(ledger, 0, memory="answer") as replica:
            rpc = replica.engine.collective_rpc

            async def two_ranks(method: str, args: tuple[Any, ...] = ()) -> list[Any]:
                found = await rpc(method, args)
                return [*found, {**found[0], "version": 0}] if method == "errata_follow" else found

            replica.engine.collective_rpc = two_ranks
            monkeypatch.setattr(engine.generator.os, "_exit", end)
            with pytest.raises(Ended):
                await replica._swap_alone(0)
            assert replica.version == 0 and replica._memory.now.bank is None

    asyncio.run(swapped())


@pytest.mark.parametrize(("kind", "reads"), [("rows", True), ("prefix", True), ("datastore", False), ("answer", False)])
def test_the_engine_reads_embeddings_of_requests_for_a_memory_that_has_some(ledger: Ledger, kind: Kind, reads: bool) -> None:
    remembered(ledger, '"a"', kind=kind)

    async def started() -> None:
        async with engine.started(ledger, is_known=True, memory=kind) as replica:
            assert ("errata_read_embeddings" in names(replica)) == reads
            assert ("errata_note_fired" in names(replica)) == (kind == "datastore")
            replica.engine.seen.clear()
            answer = await replica.swap()
            assert answer["version"] == 1 and "pause" not in names(replica), answer
            assert replica._memory.now.kind == kind and replica.running_epoch == (kind == "datastore")

    asyncio.run(started())


def test_the_engine_is_started_for_the_memory_that_the_editor_writes() -> None:
    from serving.engine.edit_memory.said_answer import PROCESSOR

    def arguments(**options: Any) -> list[str]:
        return ServingOptions("m", "l", "errata", **options).vllm_arguments()

    assert PROCESSOR in arguments(memory="answer")
    assert not any("logits-processors" in one for kind in (None, "text", "state") for one in arguments(memory=kind))
