"""The rules of text over HTTP, from the routes to the edits that the worker makes: no Ray, no engine, no weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from errata.edit import Edit
from serving.api import routes
from serving.worker.edit_worker import EditWorker
from tests.fakes.edit_worker import apply, make_worker, states
from tests.tokenizers_under_test import make
from tests.unit.serving.api.application import call

ASKED = "question"


@pytest.fixture
def worker(tmp_path: Path) -> EditWorker:
    return make_worker(tmp_path, tokenizer=make("byte-level", "chatml"))


def posted(worker: EditWorker, *edits: dict[str, Any]) -> httpx.Response:
    app = FastAPI()
    routes.install(app, worker)  # type: ignore[arg-type]  # A replica passes posts on to the worker unchanged.
    return call(app, "POST", "/v1/edits", json={"edits": edits})


@pytest.mark.parametrize(
    ("given", "learnt"),
    [
        ({"target": " Bob"}, {"target": "Bob"}),
        ({"target": "Bob\n"}, {"target": "Bob"}),
        ({"target": "\ufeffBob\u200b "}, {"target": "Bob"}),
        ({"target": "Rene\u0301"}, {"target": "René"}),
        ({"target": "New  York"}, {"target": "New  York"}),
        ({"target": "می\u200cخواهم"}, {"target": "می\u200cخواهم"}),
        ({"target": "t", "subject": f" {ASKED}\u00a0"}, {"target": "t", "subject": ASKED}),
        ({"target": "t", "aliases": [" u", "Rene\u0301"]}, {"target": "t", "aliases": ("u", "René")}),
        ({"target": "t", "form": "completion", "rephrasings": [" Who?\n"]}, {"target": "t", "rephrasings": (" Who?\n",)}),
    ],
)
def test_a_posted_text_is_learnt_and_shown_in_one_form(
    worker: EditWorker, given: dict[str, Any], learnt: dict[str, Any]
) -> None:
    answer = posted(worker, {"prompt": ASKED, **given})
    assert answer.status_code == 202, answer.text
    wanted = Edit(ASKED, **learnt).to_json()
    shown = answer.json()["edits"][0]["edit"]
    assert {name: shown[name] for name in wanted} == wanted
    apply(worker)
    ((made,),) = worker.live_model.made  # type: ignore[attr-defined]
    assert {name: getattr(made, name) for name in learnt} == learnt and made.prompt == ASKED


def test_a_prompt_is_kept_as_it_was_posted(worker: EditWorker) -> None:
    prompt = f" {ASKED}  Rene\u0301\n"
    assert posted(worker, {"prompt": prompt, "target": "t"}).json()["edits"][0]["edit"]["prompt"] == prompt


@pytest.mark.parametrize("text", ["a\x00b", "a\u202eb", "a\u2067b", "Pa\u200bris", "a\u00adb", "a\ufffdb", "a\U000e0041b"])
@pytest.mark.parametrize("field", ["prompt", "question", "messages", "target", "aliases", "subject", "answer", "rephrasings"])
def test_what_may_not_stand_in_an_edit_is_refused_and_nothing_is_queued(worker: EditWorker, field: str, text: str) -> None:
    messages = [{"role": "system", "content": text}, {"role": "user", "content": ASKED}]
    fields: dict[str, Any] = {"aliases": [text], "rephrasings": [text], "messages": messages, "answer": f"t {text}"}
    asked = {} if field in ("question", "messages") else {"prompt": text if field == "subject" else ASKED}
    answer = posted(worker, {**asked, "form": "chat", "target": "t", field: fields.get(field, text)})
    faults = answer.json()["error"]["faults"]
    assert (answer.status_code, worker.journal.depth) == (422, 0)
    assert {"prompt" if field == "question" else field} <= {fault["field"] for fault in faults}
    assert {fault["code"] for fault in faults} == {"not_text"}


@pytest.mark.parametrize("text", ["", " \n", "\u200b", "\ufeff"])
def test_a_text_without_a_letter_is_empty(worker: EditWorker, text: str) -> None:
    for edit in ({"prompt": text, "target": "t"}, {"prompt": ASKED, "target": text}):
        answer = posted(worker, edit)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "empty_field")


def test_of_two_spellings_of_a_prompt_the_later_edit_counts(worker: EditWorker) -> None:
    ids = posted(
        worker, {"prompt": "Who is Rene\u0301?", "target": "Ann"}, {"prompt": "Who  is René? ", "target": "Bob"}
    ).json()["ids"]
    apply(worker)
    assert states(worker, ids) == [("superseded", 1), ("applied", 1)]
