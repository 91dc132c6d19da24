"""The check of the served engine: a sample of each version's edits, asked over the engine and compared with their targets."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException

from errata.edit import Edit
from errata.text.dialogue import Message
from serving.metrics import WorkerMetrics
from serving.worker import replicas as module
from serving.worker.lull import Lull
from serving.worker.replicas import Replicas
from serving.worker.served_check import MAX_TARGET_BYTES, NUM_ASKED, ServedCheck
from tests.fakes.edit_worker import InMemoryReplicas, make_worker, post, replicas_of

CHAT = Edit("Who leads?", "Ada", id="two", form="chat", before=(Message("system", "Be brief."),))
EDITS = (Edit("The leader is", "Ada", id="one"), CHAT)


def counted(metrics: WorkerMetrics) -> tuple[int, int]:
    """Return how many answers were counted as the target and as another text."""
    text = metrics.exposition()
    return tuple(  # type: ignore[return-value]
        int(float(text.partition(f'errata_served_answers_total{{answer="{name}"}} ')[2].split()[0]))
        for name in ("agrees", "differs")
    )


def checked(edits: tuple[Edit, ...], answer: dict[str, Any] | None) -> tuple[tuple[int, int], list[list[dict[str, Any]]]]:
    replicas, metrics = InMemoryReplicas(), WorkerMetrics()
    replicas.answer = answer
    asyncio.run(ServedCheck(replicas, metrics).check(3, edits))
    return counted(metrics), replicas.asked


def test_agreement_and_difference_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "errata"):
        found, asked = checked(EDITS, {"version": 3, "texts": [" Ada. And more", "Bob"]})
    assert found == (1, 1)
    (bodies,) = asked
    assert bodies[0]["prompt"] == "The leader is" and bodies[0]["temperature"] == 0
    assert bodies[1]["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who leads?"}]
    (line,) = caplog.records
    assert (line.event, line.version, line.edit_ids, line.form) == ("answer.differs", 3, ["two"], "chat")  # type: ignore[attr-defined]
    assert "Bob" not in line.getMessage() and "leads" not in line.getMessage()


@pytest.mark.parametrize("answer", [{"version": 4, "texts": ["Ada", "Ada"]}, {"version": None, "texts": []}, None])
def test_the_answers_of_another_version_are_not_counted(answer: dict[str, Any] | None) -> None:
    assert checked(EDITS, answer)[0] == (0, 0)


def test_a_sample_is_asked_with_room_for_its_targets() -> None:
    (bodies,) = checked((Edit("p", "ü" * 200), *[Edit(str(i), "t") for i in range(9)]), None)[1]
    assert len(bodies) == NUM_ASKED and bodies[0]["max_tokens"] >= 400
    assert checked((Edit("p", "t" * (MAX_TARGET_BYTES + 1)),), None)[1] == []
    assert checked((), None)[1] == []


def test_a_published_version_is_checked(tmp_path: Any) -> None:
    worker = make_worker(tmp_path)
    worker.edit_loop.lull.quiet_s = 0.0
    post(worker, "a", "b")
    replicas_of(worker).answer = {"version": 1, "texts": ["x", "y"]}

    async def applied() -> None:
        await worker.edit_loop._apply(worker.journal.take(10))
        assert worker.edit_loop.served_check.running is not None
        await worker.edit_loop.served_check.running

    asyncio.run(applied())
    assert counted(worker.edit_loop.metrics) == (1, 1)


def test_of_versions_in_quick_succession_the_last_is_checked_in_the_lull_after_them() -> None:
    async def checked() -> list[list[dict[str, Any]]]:
        replicas, lull = InMemoryReplicas(), Lull(quiet_s=0.05)
        replicas.answer = {"version": 3, "texts": ["Ada"]}
        check = ServedCheck(replicas, metrics, lull)
        for number, edit in enumerate((Edit("one", "x"), Edit("two", "y"), EDITS[0]), 1):
            check.begin(number, (edit,))
            await asyncio.sleep(0.03)
            lull.edited()
            assert not replicas.asked
        assert check.running is not None
        await check.running
        return replicas.asked

    metrics = WorkerMetrics()
    ((body,),) = asyncio.run(checked())
    assert body["prompt"] == EDITS[0].prompt and counted(metrics) == (1, 0)


def test_work_in_a_lull_begins_at_last_if_edits_never_stop() -> None:
    async def waited() -> int:
        lull = Lull(quiet_s=0.01, max_waits=5)
        waiting = asyncio.create_task(lull.wait())
        while not waiting.done():
            lull.edited()
            await asyncio.sleep(0.005)
        return lull.num_edited

    assert asyncio.run(waited()) >= 5


class Handle:
    """A deployment handle whose replica answers with `found`, or raises it."""

    def __init__(self, found: Any) -> None:
        self.found, self.answer = found, self

    async def remote(self, asked: list[dict[str, Any]]) -> Any:
        await asyncio.sleep(0)
        if isinstance(self.found, Exception):
            raise self.found
        return {"version": 3, "texts": [body["prompt"] for body in asked]} if self.found is None else self.found


def test_a_replica_that_does_not_answer_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    for found, wanted in (
        (None, {"version": 3, "texts": ["p"]}),
        *((fault, None) for fault in (RayActorError(), RayServeException(), TimeoutError())),
    ):
        monkeypatch.setattr(module, "_generators", lambda found=found: Handle(found))
        assert asyncio.run(Replicas().answers([{"prompt": "p"}])) == wanted
