"""Swaps of a replica: their preparation beside requests, their faults, and a repair; without vLLM's engine."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from errata.delta.weight_delta import WeightDelta
from errata.editors.state import EditorState
from errata.ledger import Ledger
from serving.engine import generator
from serving.engine.generator import ServingOptions
from serving.engine.readiness import Readiness, max_prepare_s
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
            assert (await replica.swap())["version"] == 9
            seen = [call for call in replica.engine.seen if call[0] != "errata_reading"]  # A busy machine reads longer.
            paused = [("pause", None, True), ("update", None, True), ("errata_state", None, True), ("resume", None, True)]
            assert seen == [("errata_prepare", whole, False), *paused] and 60 < only < whole
            assert not replica._readiness.is_under_way
            for number in (4, 5):
                grown.move_head(number)
                assert (await replica.swap())["version"] == number
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
            swap = asyncio.create_task(replica.swap(1))
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
            answer = await replica.swap()
            assert "cannot be read" in answer["error"] and not answer["refused"] and answer["version"] == 0
            assert not replica._readiness.is_under_way and (await replica.status())["intact"]
            monkeypatch.setattr(weight_engine, "read_segments", read)
            assert (await replica.swap())["version"] == 9

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


def test_a_swap_that_comes_late_does_not_take_a_replica_back(grown: Ledger, random_delta: Callable[..., WeightDelta]) -> None:
    """The worker has given the swap to version 9 up, which waits for its turn while the replica repairs itself."""

    async def swapped() -> None:
        async with engine.started(grown) as replica:
            sent, _ = grown.head_at()
            async with replica._swapping:
                late = asyncio.create_task(replica.swap(sent))
                await asyncio.sleep(0.01)
                grown.append(9, random_delta(10), EditorState(), (), {}, ("E", "p"))
            assert (await late)["version"] == 10
            grown.move_head(3)
            assert (await replica.swap(grown.head_at()[0]))["version"] == 3
            assert (await replica.swap(sent))["version"] == 3 and len(calls(replica, "update")) == 2

    asyncio.run(swapped())


def test_a_head_older_than_a_known_one_is_refused(grown: Ledger) -> None:
    async def swapped() -> None:
        async with engine.started(grown) as replica:
            epoch, _ = grown.head_at()
            answer = await replica.swap(epoch + 1)
            assert (answer["version"], answer["refused"]) == (0, False) and "StaleHead" in answer["error"]
            assert "error" in await replica.swap(), "what is known is not forgotten"
            grown.move_head(4)
            assert (await replica.swap())["version"] == 4

    asyncio.run(swapped())


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="with torchvision vLLM runs the model")
def test_a_model_that_reads_images_is_refused_before_vllm_sees_it(grown: Ledger, tmp_path: Path) -> None:
    """vLLM's own error is only that the model `failed to be inspected`."""

    async def refused() -> None:
        with pytest.raises(ValueError, match=r"Gemma3ForConditionalGeneration, which reads images too.*torchvision"):
            async with engine.started(grown, model=str(save_tiny("gemma3-wrapped", tmp_path / "wrapped"))):
                """Not reached."""

    asyncio.run(refused())


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


# -- versions by fingerprint, ranks, refusals, media ------------------------------------------------------------------


def test_a_number_that_another_version_has_now_is_served_again(grown: Ledger, random_delta: Any) -> None:
    """A power cut of the file server lost the newest version and its line in the index."""

    async def replaced() -> None:
        async with engine.started(grown, 9) as replica:
            lost = replica.fingerprint
            shutil.rmtree(grown.folders.path(9))
            lines = grown.index.path.read_bytes().splitlines(keepends=True)
            grown.index.path.write_bytes(b"".join(lines[:-1]))
            other = Ledger.open(grown.directory)
            made = other.append(8, random_delta(77), EditorState(), (), {}, ("E", "p"))
            assert (made.number, other.head) == (9, 9) and made.fingerprint != lost
            answer = await replica.swap()
            assert (answer["version"], answer["fingerprint"]) == (9, made.fingerprint)

    asyncio.run(replaced())


def test_a_replica_that_serves_a_lost_version_is_behind_the_head() -> None:
    seconds = iter(range(100))
    readiness = Readiness("keep", clock=lambda: float(next(seconds)))
    for _ in range(5):
        readiness.look((9, "new"), (9, "lost"), 1)
    assert readiness.should_repair
    readiness.look((9, "new"), (9, "new"), 2)
    assert not readiness.should_repair


def state(version: int = 3, intact: bool = True, fingerprint: str = "f") -> dict[str, Any]:
    return {"version": version, "fingerprint": fingerprint, "intact": intact, "dense_bytes": version}


@pytest.mark.parametrize(
    ("states", "intact", "version"),
    [
        ([state()], True, 3),
        ([state(), state()], True, 3),
        ([state(), state(intact=False)], False, 3),
        ([state(), state(2)], True, None),
        ([state(), state(fingerprint="g")], True, None),
    ],
)
def test_an_engine_is_intact_if_all_its_ranks_are(states: list[dict[str, Any]], intact: bool, version: int | None) -> None:
    found = generator.of_all_ranks(states)
    assert (found["intact"], found["version"], found["dense_bytes"]) == (intact, version, 3)


def test_a_swap_after_which_one_rank_is_not_whole_ends_the_replica(grown: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended(BaseException):
        """The process would have ended."""

    def end(code: int) -> None:
        raise Ended(code)

    async def swapped() -> None:
        async with engine.started(grown) as replica:
            one = replica.engine.collective_rpc

            async def two_ranks(method: str, args: tuple[Any, ...] = ()) -> list[Any]:
                answers = await one(method, args)
                return [*answers, {**answers[0], "intact": False}] if method == "errata_state" else answers

            replica.engine.collective_rpc = two_ranks
            assert (await replica.status())["intact"] is False
            monkeypatch.setattr(generator.os, "_exit", end)
            with pytest.raises(Ended):
                await replica._swap_alone(9)
            assert replica.version == 0, "no answer has the version's stamp"
            assert not calls(replica, "resume")

    asyncio.run(swapped())


def test_the_engine_fetches_no_address_and_takes_no_images_unless_asked_to() -> None:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.multimodal.media.connector import MediaConnector
    from vllm.multimodal.media.image import ImageMediaIO
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser, asked = make_arg_parser(FlexibleArgumentParser()), list[str]()
    connection = SimpleNamespace(get_bytes=lambda url, **_: asked.append(url))
    for given, number in (({}, 0), ({"images": 2}, 2)):
        args = parser.parse_args(ServingOptions("m", "l", "errata", **given).vllm_arguments())
        assert args.limit_mm_per_prompt == {"image": number, "video": 0, "audio": 0}
        connector = MediaConnector(connection=connection, allowed_media_domains=args.allowed_media_domains)
        for url in ("http://127.0.0.1:8265/api/jobs/", "http://169.254.169.254/latest", "https://example.org/a.png"):
            with pytest.raises(ValueError, match="allowed domains"):
                connector.load_from_url(url, ImageMediaIO())
        assert asked == []
