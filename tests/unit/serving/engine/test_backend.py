"""The routes' backend of a replica: what a caller without a key learns, and refusals of the edit worker."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from serving.engine import backend
from serving.engine.backend import ServiceBackend
from serving.worker.journal import JournalFailed, UnknownEdit
from serving.worker.refusals import RefusedCall


class Handle:
    """The edit worker's handle: every method answers what `answer` is, or raises it."""

    def __init__(self, answer: Any) -> None:
        self.answer, self.asked = answer, list[str]()

    def __getattr__(self, method: str) -> Any:
        async def remote(*_: Any) -> Any:
            self.asked.append(method)
            if isinstance(self.answer, BaseException):
                raise self.answer
            return self.answer

        return SimpleNamespace(remote=remote)


class Replica:
    version = 3

    async def status(self) -> dict[str, Any]:
        return {"version": self.version}

    async def exposition(self) -> tuple[str, int, str]:
        return "r", self.version, "errata_replica_version 3.0\n"


def backend_of(answer: Any, head: int = 3) -> ServiceBackend:
    return ServiceBackend(Handle(answer), SimpleNamespace(head=head), Replica())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stalled", "reasons"),
    [
        (None, []),
        ("OSError: [Errno 28] No space left on device: '/mnt/errata/ledger/versions'", ["waits for the disk"]),
        (TimeoutError(), ["does not answer"]),
        (RefusedCall(JournalFailed("the journal /mnt/errata/x cannot be read")), ["does not answer"]),
    ],
)
def test_a_caller_without_a_key_learns_no_path_and_no_error(stalled: Any, reasons: list[str]) -> None:
    found = asyncio.run(backend_of(stalled).unready())
    assert len(found) == len(reasons) and all(part in reason for part, reason in zip(reasons, found, strict=True))
    assert not any(text in " ".join(found) for text in ("/mnt", "Errno", "Error"))


def test_a_replica_behind_the_head_is_not_ready() -> None:
    (reason,) = asyncio.run(backend_of(None, head=4).unready())
    assert reason == "this replica serves version 3, the head is 4"


def test_the_worker_is_asked_once_however_often_a_caller_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = backend_of("OSError: full")

    async def many() -> None:
        found = await asyncio.gather(*(asked.unready() for _ in range(50)))
        assert len(asked.worker.asked) == 1 and all(len(reasons) == 1 for reasons in found)
        monkeypatch.setattr(backend, "READY_PERIOD_S", 0.0)
        await asked.unready()
        assert len(asked.worker.asked) == 2

    asyncio.run(many())


def test_refusals_of_the_worker_are_raised_here() -> None:
    refusing = backend_of(RefusedCall(UnknownEdit("no edit")))
    for call in (
        refusing.edit_status("x"),
        refusing.revert(["x"], [], "auto", None, None),
        refusing.submit([], False, None, None),
    ):
        with pytest.raises(UnknownEdit, match="no edit"):
            asyncio.run(call)  # type: ignore[arg-type]


def test_status_and_metrics_are_the_replicas_own_while_the_worker_refuses() -> None:
    refusing = backend_of(RefusedCall(JournalFailed("the journal cannot be read")))
    assert asyncio.run(refusing.service_status())["worker"] == {"error": "JournalFailed"}
    assert "errata_replica_version" in asyncio.run(refusing.all_metrics())
