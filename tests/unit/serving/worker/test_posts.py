"""A post of several edits over an in-memory model: each failure is settled alone, and its neighbours are published."""

from __future__ import annotations

import asyncio

import pytest

from errata.edit import Code, EditRejected
from tests.fakes.edit_worker import DONT_KNOW, make_worker, replicas_of
from tests.tokenizers_under_test import make


def fails(reasons: dict[str, str]):
    """Refuse a batch for the first of its edits that has a reason, by target, without naming the edit."""

    def refuse(edits):
        found = next((reasons[edit.target] for edit in edits if edit.target in reasons), None)
        return found and EditRejected(found, code=Code.GUARD_DRIFT)

    return refuse


@pytest.mark.parametrize("bad", [(), ("Rome",), ("Oslo",), ("Rome", "Oslo")], ids=str)
def test_of_a_post_of_four_the_failures_are_settled_alone_with_their_reasons(tmp_path, bad):
    """The post has an edit twice, a subject twice, and an edit that is so already."""
    reasons = {target: f"{target} would change other answers" for target in bad}
    worker = make_worker(tmp_path, fails(reasons), make("byte-level"))
    worker.live_model.said = {"The river of Paris is": "Seine"}
    posted = [
        {"prompt": "The capital of Atlantis is", "target": "Rome", "subject": "Atlantis"},
        {"prompt": "The capital of Atlantis is", "target": "Rome", "subject": "Atlantis"},
        {"prompt": "The port of Atlantis is", "target": "Oslo", "subject": "Atlantis"},
        {"prompt": "The river of Paris is", "target": "Seine", "subject": "Paris"},
    ]

    async def submitted():
        work = asyncio.create_task(worker.edit_loop.work())
        try:
            async with asyncio.timeout(20):
                return await worker.submit(posted, True, None)
        finally:
            work.cancel()

    answers = asyncio.run(submitted())
    for answer, edit in zip(answers, posted, strict=True):
        if edit["target"] in reasons:
            reason = f"{reasons[edit['target']]}; the model answers {DONT_KNOW!r}"
            assert (answer["state"], answer["reason"], answer["code"]) == ("rejected", reason, Code.GUARD_DRIFT)
        else:
            assert answer["state"] == "applied" and answer.get("reason") is None
            assert answer["version"] in {0, *replicas_of(worker).served}
    made = [edit.target for edits in worker.live_model.made for edit in edits]
    assert sorted(made) == sorted(edit["target"] for edit in posted[:3] if edit["target"] not in bad)
    assert replicas_of(worker).served[-1] == worker.live_model.version == len(worker.live_model.made)
    assert answers[3]["changed"] is False and answers[3]["answers"] == {"before": "Seine", "after": "Seine"}
