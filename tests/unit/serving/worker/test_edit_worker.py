"""The methods that the replicas call: submission, checks, lists, events and blame."""

from __future__ import annotations

import asyncio
import copy
import threading
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from errata.edit import Code, Edit, EditRejected
from serving.worker import edit_worker
from serving.worker.journal import JournalFailed
from serving.worker.queue_limit import QueueFull
from serving.worker.refusals import Busy
from tests.fakes.edit_worker import DONT_KNOW, TOKENIZER, apply, logged, make_worker, post, replicas_of


def test_a_full_queue_refuses_and_names_the_time_to_retry(tmp_path, monkeypatch):
    monkeypatch.setattr(edit_worker, "check_edits", lambda *_: None)
    worker = make_worker(tmp_path, max_queue=3)
    worker.edit_loop.publisher.timings.append({"edit_s": 1.0, "append_s": 0.5, "swap_ms": 500.0, "num_edits": 1})
    body = {"prompt": "p", "target": "t"}
    asyncio.run(worker.submit([body, body], False, None))
    with pytest.raises(QueueFull, match=r"2 edits wait and the limit is 3 \(max_queue=3\); .* Try again in 4 s"):
        asyncio.run(worker.submit([body, body], False, "k"))
    with pytest.raises(QueueFull, match="the post has 4 edits, more than may wait"):
        asyncio.run(worker.submit([body] * 4, False, None))
    assert worker.journal.depth == 2
    asyncio.run(worker.submit([body], False, "k"))
    assert worker.journal.depth == 3


def test_each_open_edit_may_become_a_version(tmp_path):
    worker = make_worker(tmp_path)
    worker.live_model.contents[7] = ()
    assert asyncio.run(worker.highest_version()) == 8
    post(worker, "a", "b", "c")
    worker.journal.take(2)
    assert asyncio.run(worker.highest_version()) == 11


def test_checking_edits_blocks_no_other_call_and_keeps_their_order(tmp_path, monkeypatch):
    worker = make_worker(tmp_path)
    body, others_ran, ran_on = {"prompt": "p", "target": "t"}, threading.Event(), []
    monkeypatch.setattr(edit_worker, "check_edits", lambda edits, *_: len(edits) > 1 and ran_on.append(others_ran.wait(30)))

    async def posted_together():
        posts = [asyncio.create_task(worker.submit(edits, False, None)) for edits in ([body, body], [body])]
        await asyncio.sleep(0.05)
        others_ran.set()
        return [[edit["id"] for edit in answer] for answer in await asyncio.gather(*posts)]

    many, few = asyncio.run(posted_together())
    assert [entry.id for entry in worker.journal.pending()] == [*many, *few] and ran_on == [True]


def test_edits_are_checked_with_a_copy_of_the_tokenizer(tmp_path, tiny_model):
    worker = make_worker(tmp_path, tokenizer=tiny_model.tokenizer)
    assert worker._renderer.tokenizer is not tiny_model.tokenizer
    worker.live_model.max_tokens = 8
    with pytest.raises(EditRejected, match="has 9 tokens; the model's context holds 8") as refusal:
        asyncio.run(worker.submit([{"prompt": "question " * 9, "target": "answer"}], False, None))
    assert refusal.value.field == "prompt" and worker.journal.depth == 0


def test_edits_are_listed_in_pages(tmp_path):
    worker = make_worker(tmp_path)
    ids = post(worker, *"abcde")
    worker.journal.reject(ids[0], "no")
    first = asyncio.run(worker.edits(None, 2, None))
    assert [edit["id"] for edit in first["edits"]] == ids[:2:-1]
    second = asyncio.run(worker.edits(None, 10, first["next"]))
    assert [edit["id"] for edit in second["edits"]] == ids[2::-1] and second["next"] is None
    assert [edit["id"] for edit in asyncio.run(worker.edits("rejected", 5, None))["edits"]] == [ids[0]]


def test_the_events_of_an_edit_end_when_it_is_settled(tmp_path):
    worker = make_worker(tmp_path)
    (id,) = post(worker, "a")

    async def heard():
        events = aiter(worker.edit_events(id))
        first = await anext(events)
        await worker.edit_loop._apply(worker.journal.take(5))
        return [first, *[event async for event in events]]

    assert [state for state, _ in asyncio.run(heard())] == ["queued", "applying", "applied"]
    assert not worker.edit_loop.waiters.event_bus.has_listeners

    async def late():
        return [state async for state, _ in worker.edit_events(id)]

    assert asyncio.run(late()) == ["applied"]


def test_edits_versions_and_moves_of_the_head_are_published(tmp_path):
    worker = make_worker(tmp_path)
    (id,) = post(worker, "a")

    async def heard():
        events = worker.events()
        first = await anext(events)
        await worker.edit_loop._apply(worker.journal.take(5))
        await worker.rollback(0)
        return [first, *[await anext(events) for _ in range(5)]]

    found = asyncio.run(heard())
    assert [kind for kind, _ in found] == ["listening", "edit", "version", "head", "edit", "head"]
    assert (found[0][1], found[-1][1], found[4][1]["id"]) == ({"head": 0}, {"head": 0, "before": 1}, id)


def test_one_blame_runs_at_a_time(tmp_path):
    worker = make_worker(tmp_path)
    traced = SimpleNamespace(to_json=lambda: {"version": 0})
    worker.live_model.walk = lambda: SimpleNamespace(blame=lambda prompt, max_tokens, budget: traced)

    async def both():
        async with worker.edit_loop.writing:
            first = asyncio.create_task(worker.blame("p", 1))
            await asyncio.sleep(0)
            with pytest.raises(Busy):
                await worker.blame("p", 1)
        return await first, await worker.blame("p", 1)

    assert asyncio.run(both()) == ({"version": 0}, {"version": 0})


def test_edits_and_rollbacks_go_on_while_a_blame_walks_and_it_stops_without_its_caller(tmp_path):
    worker = make_worker(tmp_path, max_walk_versions=7)
    walking, budgets = threading.Event(), []

    def blame(prompt, max_tokens, budget):
        budgets.append(budget)
        walking.set()
        while True:
            time.sleep(0.001)
            budget.step()

    worker.live_model.walk = lambda: SimpleNamespace(blame=blame)

    async def beside():
        blamed = asyncio.create_task(worker.blame("p", 1))
        assert await asyncio.to_thread(walking.wait, 10)
        (id,) = post(worker, "a")
        async with asyncio.timeout(5):
            await worker.edit_loop._apply(worker.journal.take(5))
            assert worker.journal.get(id).state == "applied" and (await worker.rollback(0))["version"] == 0
        assert not blamed.done() and budgets[0].max_versions == 7
        blamed.cancel()
        async with asyncio.timeout(5):
            with pytest.raises(asyncio.CancelledError):
                await blamed
        assert not worker._walking.locked()

    asyncio.run(beside())


MARKED = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
USER = {"role": "user", "content": "Who?"}


def in_form(tmp_path, tiny_model, template, **posted):
    """Post one edit to a worker whose model has this chat template, and return it as it is queued."""
    tokenizer = copy.deepcopy(tiny_model.tokenizer)
    tokenizer.chat_template = template
    worker = make_worker(tmp_path, tokenizer=tokenizer)
    try:
        asyncio.run(worker.submit([{"target": "answer", **posted}], False, None))
        (entry,) = worker.journal.newest(2)
        return Edit.from_json(entry.edit)
    finally:
        assert worker._renderer.form == ("completion" if template is None else "chat")
        worker.journal.close()


def test_a_prompt_is_asked_in_the_models_own_form(tmp_path, tiny_model):
    asked = in_form(tmp_path / "chat", tiny_model, MARKED, prompt="Who?")
    assert (asked.form, asked.prompt) == ("chat", "Who?")
    assert in_form(tmp_path / "completion", tiny_model, None, prompt="Who?").form == "completion"


@pytest.mark.parametrize(
    ("posted", "form", "num_before"),
    [
        ({"prompt": "Who?", "form": "completion"}, "completion", 0),
        ({"prompt": "Who?", "form": "both"}, "both", 0),
        ({"question": "Who?"}, "chat", 0),
        ({"question": "Who?", "form": "both"}, "both", 0),
        ({"messages": [USER]}, "chat", 0),
        ({"messages": [{"role": "system", "content": "Be brief."}, USER]}, "chat", 1),
    ],
)
def test_a_named_form_is_kept(tmp_path, tiny_model, posted, form, num_before):
    asked = in_form(tmp_path, tiny_model, MARKED, **posted)
    assert (asked.form, asked.prompt, len(asked.before)) == (form, "Who?", num_before)


@pytest.mark.parametrize("posted", [{"prompt": "Who?", "form": "chat"}, {"question": "Who?"}, {"messages": [USER]}])
def test_a_chat_with_a_model_without_a_template_is_refused(tmp_path, tiny_model, posted):
    tokenizer = copy.deepcopy(tiny_model.tokenizer)
    tokenizer.chat_template = None
    worker = make_worker(tmp_path, tokenizer=tokenizer)
    with pytest.raises(EditRejected, match="no chat template") as refusal:
        asyncio.run(worker.submit([{"prompt": "Who?", "target": "answer"}, {"target": "answer", **posted}], False, None))
    assert (refusal.value.code, refusal.value.field, refusal.value.edit) == (Code.NO_CHAT, "form", 1)
    assert worker.journal.depth == 0


def test_messages_that_the_template_refuses_are_not_queued(tmp_path, tiny_model):
    tokenizer = copy.deepcopy(tiny_model.tokenizer)
    tokenizer.chat_template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + MARKED
    worker = make_worker(tmp_path, tokenizer=tokenizer)
    messages = [{"role": "system", "content": "Be brief."}, USER]
    with pytest.raises(EditRejected, match="no system") as refusal:
        asyncio.run(worker.submit([{"messages": messages, "target": "answer"}], False, None))
    assert (refusal.value.code, refusal.value.field) == (Code.TEMPLATE_REFUSES, "messages") and worker.journal.depth == 0


def test_all_edits_that_cannot_be_read_are_named(tmp_path):
    worker = make_worker(tmp_path)
    two_users = {"messages": [USER, USER], "target": "t"}
    contrary = {"question": "Who?", "form": "completion", "target": "t"}
    with pytest.raises(EditRejected) as refusal:
        asyncio.run(worker.submit([{"prompt": "p", "target": "t"}, two_users, contrary], False, None))
    found = [(fault.edit, fault.field, fault.code) for fault in refusal.value.faults]
    assert found == [(1, "messages", Code.INVALID_VALUE), (2, "form", Code.INVALID_VALUE)] and worker.journal.depth == 0


def test_the_status_of_an_edit_has_the_answers_before_and_after_it(tmp_path):
    worker = make_worker(tmp_path)
    worker.live_model.said = {"a": "Bob"}
    ids = post(worker, "a", "b", target="Ada")
    assert "answers" not in asyncio.run(worker.edit_status(ids[0]))
    apply(worker)
    found = [asyncio.run(worker.edit_status(id)) for id in ids]
    assert [one["answers"] for one in found] == [{"before": "Bob", "after": "Ada"}, {"before": DONT_KNOW, "after": "Ada"}]
    assert [(one["state"], one["changed"]) for one in found] == [("applied", True)] * 2
    worker.live_model.said = {"c": "Ada"}
    (so,) = post(worker, "c", target="Ada")
    apply(worker)
    found = asyncio.run(worker.edit_status(so))
    assert (found["changed"], found["answers"]) == (False, {"before": "Ada", "after": "Ada"})


def test_a_version_without_answers_gives_none(tmp_path):
    worker = make_worker(tmp_path)
    (id,) = post(worker, "a")
    apply(worker)
    worker.live_model.cards[1] = {}
    assert "answers" not in asyncio.run(worker.edit_status(id))


def test_the_status_names_the_models_form_open_proposals_and_links(tmp_path, monkeypatch):
    worker = make_worker(tmp_path, tokenizer=TOKENIZER)
    worker.live_model.ledger.newest, worker.live_model.ledger.directory, worker.mirror.state = 0, tmp_path, {}
    worker.mirror.links = {"mlflow": "http://127.0.0.1:5000/#/models/errata"}
    worker.options = replace(worker.options, live_model=SimpleNamespace(editor="Toy"))
    monkeypatch.setattr(replicas_of(worker), "ask", no_answers)
    found = asyncio.run(worker.status())
    assert found["worker"]["form"] == "completion" and found["links"] == worker.mirror.links
    assert found["proposals"] == {"open": 0, "limit": worker.limits.max_proposals}


async def no_answers(method: str) -> list[Any]:
    return []


@pytest.mark.parametrize("wait", [False, True])
def test_edits_that_are_queued_are_answered_as_queued_even_if_the_journal_cannot_be_read(tmp_path, monkeypatch, caplog, wait):
    monkeypatch.setattr(edit_worker, "check_edits", lambda *_: None)
    worker = make_worker(tmp_path)
    submit, read = worker.journal.submit, worker.journal.rows

    def written_and_then_lost(*given):
        ids = submit(*given)
        monkeypatch.setattr(worker.journal, "rows", broken)
        return ids

    def broken(*_):
        raise JournalFailed("the journal of edits cannot be read: disk I/O error")

    monkeypatch.setattr(worker.journal, "submit", written_and_then_lost)
    (entry,) = asyncio.run(worker.submit([{"prompt": "p", "target": "t"}], wait, "k", "ada"))
    assert (entry["state"], entry["edit"]["prompt"], entry["edit"]["id"]) == ("queued", "p", entry["id"])
    [line] = logged(caplog, "edits.stalled")
    assert "disk I/O error" in line.error and line.num_edits == 1
    monkeypatch.setattr(worker.journal, "rows", read)
    assert worker.journal.get(entry["id"]).state == "queued"


def test_an_edit_says_if_it_is_live(tmp_path):
    worker = make_worker(tmp_path)
    ids = post(worker, "a", "b")

    def live():
        pages = asyncio.run(worker.edits(None, 5, None))["edits"]
        assert [one.get("live") for one in pages[::-1]] == [asyncio.run(worker.edit_status(id)).get("live") for id in ids]
        return [one.get("live") for one in pages[::-1]]

    apply(worker, 1)
    assert live() == [True, None]
    apply(worker, 1)
    assert live() == [True, True]
    asyncio.run(worker.rollback(1))
    assert live() == [True, False]
    asyncio.run(worker.rollback(2))
    asyncio.run(worker.revert(ids[:1], [], "auto"))
    assert live() == [False, True]


def test_an_edit_that_was_so_already_is_live_with_its_version(tmp_path):
    worker = make_worker(tmp_path)
    post(worker, "a")
    apply(worker)
    worker.live_model.said = {"b": "x"}
    (id,) = post(worker, "b")
    apply(worker)
    assert asyncio.run(worker.edit_status(id))["live"]
    asyncio.run(worker.rollback(0))
    assert asyncio.run(worker.edit_status(id))["live"] is False


def test_a_repeated_post_names_edits_that_are_not_live(tmp_path, monkeypatch):
    monkeypatch.setattr(edit_worker, "check_edits", lambda *_: None)
    worker = make_worker(tmp_path)
    body = [{"prompt": "p", "target": "t"}]
    asyncio.run(worker.submit(body, False, "k"))
    apply(worker)
    asyncio.run(worker.rollback(0))
    (again,) = asyncio.run(worker.submit(body, True, "k"))
    assert (again["state"], again["version"], again["live"]) == ("applied", 1, False)
