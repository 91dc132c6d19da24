"""Edits that the version answers already: they are applied without a version of their own."""

from __future__ import annotations

from errata.edit import Edit
from serving.worker.edit_worker import EditWorker
from tests.fakes.edit_worker import DONT_KNOW, apply, make_worker, post, states


def counted(worker: EditWorker, state: str) -> float:
    text = worker.edit_loop.metrics.exposition()
    return float(text.partition(f'errata_edits_total{{state="{state}"}} ')[2].split()[0])


def test_an_edit_that_is_so_already_is_applied_without_a_version(tmp_path):
    worker = make_worker(tmp_path)
    worker.live_model.said = {"a": "x", "b": "X. And more"}
    ids = post(worker, "a", "b")
    apply(worker)
    assert states(worker, ids) == [("applied", 0)] * 2 and not worker.live_model.made and counted(worker, "applied") == 2
    first, second = (worker.journal.get(id).to_json() for id in ids)
    assert first["changed"] is False and first["answers"] == {"before": "x", "after": "x"}
    assert second["answers"] == {"before": "X. And more", "after": "X. And more"}


def test_an_edit_that_is_so_already_is_looked_at_after_the_others(tmp_path):
    worker = make_worker(tmp_path)
    worker.live_model.said = {"a": "x", "c": "x"}
    ids = post(worker, "a", "b", "c", "d")
    apply(worker)
    assert [[edit.prompt for edit in edits] for edits in worker.live_model.made] == [["b", "d"]]
    assert worker.live_model.asked == [["a", "b", "c", "d"], ["a", "c"]], "nothing is asked twice of one version"
    assert states(worker, ids) == [("applied", 1)] * 4
    assert [worker.journal.get(id).to_json()["changed"] for id in ids] == [False, True, False, True]


def test_an_edit_is_made_after_all_if_a_neighbour_changed_its_answer(tmp_path):
    worker = make_worker(tmp_path)
    worker.live_model.said = {"a": "x", "c": "x"}

    def disturbing(edits):
        if "b" in [edit.prompt for edit in edits]:
            worker.live_model.said["a"] = "y"

    worker.live_model.refuse_batch = disturbing
    ids = post(worker, "a", "b", "c")
    apply(worker)
    assert [[edit.prompt for edit in edits] for edits in worker.live_model.made] == [["b"], ["a"]]
    assert states(worker, ids) == [("applied", 2), ("applied", 1), ("applied", 2)]
    assert [worker.journal.get(id).to_json()["changed"] for id in ids] == [True, True, False]


def test_an_edit_that_is_so_already_supersedes_earlier_ones_of_its_batch(tmp_path):
    worker = make_worker(tmp_path)
    worker.live_model.said = {"p": "new"}
    ids = [id for target in ("old", "new") for id in post(worker, "p", target=target)]
    apply(worker)
    assert states(worker, ids) == [("superseded", 0), ("applied", 0)] and not worker.live_model.made


def test_an_edit_in_two_forms_is_so_already_only_if_both_answers_are(tmp_path):
    worker = make_worker(tmp_path)
    chat = Edit("a", "x", form="chat").prompts[0]
    worker.live_model.said = {"a": "x"}
    (id,) = worker.journal.submit([{"prompt": "a", "target": "x", "form": "both"}])
    apply(worker)
    assert states(worker, [id]) == [("applied", 1)]
    assert worker.live_model.cards[1]["answers"] == [[DONT_KNOW, "x"]], "the answer that was wrong"
    worker.live_model.said[chat] = "x"
    (again,) = worker.journal.submit([{"prompt": "a", "target": "x", "form": "both"}])
    apply(worker)
    assert worker.journal.get(again).to_json()["changed"] is False and len(worker.live_model.made) == 1
