"""No text of an edit and no Idempotency-Key is in a log line, in an exception's message, or in an exception that Serve logs."""

from __future__ import annotations

import asyncio
import inspect
import logging
import pickle
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from errata.candidate import ineffective
from errata.edit import Code, EditBatch, EditRejected
from errata.generate import SwapFailed
from errata.guard.limits import Measurements
from errata.history.budget import WalkTooLong
from errata.ledger import LedgerConflict, LedgerDamaged, UnknownVersion
from serving.logs import without_messages
from serving.worker.edit_worker import EditWorker
from serving.worker.journal import JournalFailed, KeyReused, UnknownEdit
from serving.worker.proposals import AlreadyDecided, OwnProposal, UnknownProposal
from serving.worker.queue_limit import QueueFull
from serving.worker.refusals import REFUSALS, Busy, RefusedCall, answer_of, refusals_as_values
from serving.worker.served_worker import ServedEditWorker
from tests.fakes.edit_worker import apply, make_worker
from tests.unit.serving.api.application import application, call

MARKER = "zebra"  # In every text of every post, and in every key.
Json = dict[str, Any]

BAD: dict[str, Json] = {
    "subject": {"prompt": "a zebra is", "target": "zebra one", "subject": "zebra two"},
    "answer": {"question": "who is zebra?", "target": "zebra", "answer": "it is none"},
    "alias": {"prompt": "zebra", "target": "zebra", "aliases": ["\u202ezebra"]},
    "long prompt": {"prompt": "zebra " * 99, "target": "zebra"},
    "long target": {"prompt": "zebra", "target": "zebra " * 99},
    "long rephrasing": {"prompt": "zebra", "target": "zebra", "rephrasings": ["zebra " * 99]},
    "special token": {"prompt": "zebra", "target": "zebra </s> <unk>"},
    "control": {"prompt": "zebra \x00", "target": "zebra"},
    "probe": {"prompt": "zebra", "target": "zebra", "locality": [{"prompt": "zebra\u202e", "target": "zebra"}]},
    "role": {"messages": [{"role": "zebra", "content": "zebra"}], "target": "zebra"},
    "dialogue": {"messages": [{"role": "assistant", "content": "zebra"}], "target": "zebra"},
    "two prompts": {"prompt": "zebra one", "question": "zebra two", "target": "zebra"},
    "form": {"prompt": "zebra", "target": "zebra", "form": "zebra"},
    "no target": {"prompt": "zebra", "target": ["zebra"]},
    "field": {"prompt": "zebra", "target": "zebra", "locality": ["zebra"]},
}

ERRORS = [
    EditRejected("no", code=Code.TOO_LONG, edit=1, field="prompt"),
    UnknownVersion("no"),
    UnknownEdit("no"),
    KeyReused("no"),
    LedgerConflict(1, 2),
    LedgerDamaged("no"),
    SwapFailed(3, ["r"], "no"),
    QueueFull(3, 2, 4, 5),
    JournalFailed("no"),
    OSError(28, "no space"),
    UnknownProposal("no"),
    AlreadyDecided("3f", "approved", "ann"),
    OwnProposal("no"),
    Busy("no"),
    WalkTooLong("max_walk_versions", 3, 4),
]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    caplog.set_level(logging.DEBUG)
    yield caplog
    assert MARKER not in caplog.text
    assert not any(MARKER in str(vars(record)) for record in caplog.records)


def text_of(error: BaseException) -> str:
    """Return what a log would have of an exception."""
    return f"{error!r} {error} " + "".join(traceback.format_exception_only(error))


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_refused_post_is_refused_without_its_texts(
    bad: Json, tmp_path: Path, tiny_model: Any, lines: pytest.LogCaptureFixture
) -> None:
    worker = make_worker(tmp_path, tokenizer=tiny_model.tokenizer)
    worker.live_model.max_tokens = 40
    with pytest.raises(EditRejected) as refused:
        asyncio.run(worker.submit([bad], False, "zebra-key", "ada"))
    assert MARKER not in text_of(refused.value)


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_the_routes_log_no_text_of_a_refused_post(bad: Json, tmp_path: Path, lines: pytest.LogCaptureFixture) -> None:
    answer = call(application(tmp_path, None), "POST", "/v1/edits", json={"edits": [bad]}, headers={"Idempotency-Key": MARKER})
    assert answer.status_code in (202, 422)


def test_no_text_of_an_edit_is_logged_while_it_is_made_refused_superseded_and_reverted(
    tmp_path: Path, lines: pytest.LogCaptureFixture
) -> None:
    def refuse(edits: Any) -> EditRejected | None:
        weak = [i for i, edit in enumerate(edits) if edit.prompt == "zebra weak"]
        failed = tuple({"prompt": edits[i].prompt, "target": edits[i].target, "answer": "other"} for i in weak)
        return ineffective(EditBatch(edits), Measurements(unanswered=tuple(weak), failed=failed), 2) if weak else None

    worker = make_worker(tmp_path, refuse)
    posts = [("zebra", "zebra 1"), ("zebra", "zebra 2"), ("zebra weak", "zebra"), ("zebra known", "zebra"), ("zebra 3", "t")]
    worker.live_model.said["zebra known"] = "zebra"
    edits = [{"prompt": prompt, "target": target} for prompt, target in posts]
    ids = worker.journal.submit(edits, MARKER, "ada")
    apply(worker)
    states = [worker.journal.get(id).state for id in ids]
    assert states == ["superseded", "applied", "rejected", "applied", "applied"]
    refusals = [str(worker.journal.get(ids[place]).reason) for place in (0, 2)]
    assert not any(MARKER in reason for reason in refusals), refusals
    asyncio.run(worker.revert([ids[4]], [], "auto"))
    asyncio.run(worker.rollback(0, "ada"))
    assert len(lines.records) >= 4


def test_a_reused_key_is_not_named(tmp_path: Path) -> None:
    journal = make_worker(tmp_path).journal
    journal.submit([{"prompt": "zebra", "target": "t"}], "zebra-key", "ada")
    with pytest.raises(KeyReused) as reused:
        journal.submit([{"prompt": "other", "target": "t"}], "zebra-key", "ada")
    assert MARKER not in text_of(reused.value)


def test_every_error_of_the_worker_crosses_as_a_value() -> None:
    assert {type(error) for error in ERRORS} == set(REFUSALS)

    @refusals_as_values
    class Refusing:
        async def submit(self, error: Exception) -> str:
            raise error

        async def fine(self) -> str:
            return "fine"

    for error in ERRORS:
        found = pickle.loads(pickle.dumps(asyncio.run(Refusing().submit(error))))
        assert isinstance(found, RefusedCall) and (type(found.error), str(found.error)) == (type(error), str(error))
        with pytest.raises(type(error)) as raised:
            asyncio.run(answer_of(Refusing().submit(error)))
        assert str(raised.value) == str(error)
    assert asyncio.run(answer_of(Refusing().fine())) == "fine"
    with pytest.raises(KeyError):
        asyncio.run(Refusing().submit(KeyError("a bug is an exception")))


def test_every_public_method_of_the_served_worker_returns_its_refusals() -> None:
    own = inspect.getmembers(EditWorker, inspect.iscoroutinefunction)
    public = [(name, method) for name, method in own if not name.startswith("_")]
    assert len(public) >= 9
    for name, method in public:
        served = getattr(ServedEditWorker, name)
        assert served is not method and served.__wrapped__ is method, name


def test_the_events_of_an_unknown_edit_are_one_error(tmp_path: Path) -> None:
    worker = make_worker(tmp_path)

    async def heard() -> list[tuple[str, Json]]:
        return [one async for one in worker.edit_events("none")]

    ((kind, data),) = asyncio.run(heard())
    assert kind == "error" and "none" in data["message"]


def test_a_traceback_is_logged_without_messages() -> None:
    def fail() -> None:
        try:
            raise KeyError("zebra inner")
        except KeyError as inner:
            raise RuntimeError("zebra outer") from inner

    logger = logging.Logger("any")
    seen: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(logging.Formatter().format(record))  # type: ignore[method-assign]
    logger.addHandler(handler)
    logger.addFilter(without_messages)
    try:
        fail()
    except RuntimeError:
        logger.exception("Request failed.")
    (text,) = seen
    assert MARKER not in text.replace('raise KeyError("zebra inner")', "").replace('raise RuntimeError("zebra outer")', "")
    assert text.startswith("Request failed.\nTraceback") and text.endswith("\nRuntimeError") and "\nKeyError\n" in text
    assert "in fail" in text
