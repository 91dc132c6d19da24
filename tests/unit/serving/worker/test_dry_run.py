"""A dry run on a live model: what it says, and that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from errata.edit import Code, Edit, EditRejected
from errata.history.budget import WalkBudget, WalkStopped, WalkTooLong
from errata.history.revert_selection import RevertRefused
from errata.ledger import HeadMoved
from errata.text.answers import same_answer
from serving.api.schemas import DryRunOut
from serving.worker.dry_run import Chosen, tried, tried_revert
from serving.worker.journal import UnknownEdit
from serving.worker.live_model import LiveModel, LiveModelOptions
from serving.worker.refusals import Busy
from tests.e2e.toy import WORLD
from tests.fakes.edit_worker import make_worker, post

EDITS = [replace(edit, rephrasings=(), locality=(), portability=()) for edit in WORLD.edits("test", 36)[::4]]


@pytest.fixture
def live_model(checkpoint: Path, tmp_path: Path) -> LiveModel:
    """Make a live model with one version of two edits; the guard takes edits that are not answered."""
    options = LiveModelOptions(str(checkpoint), str(tmp_path / "ledger"), "tests.e2e.toy:Toy", guard={"strict": "false"})
    live_model = LiveModel(options)
    live_model.append(live_model.make([replace(edit, id=f"id-{i}") for i, edit in enumerate(EDITS[:2])]))
    return live_model


def traces(live_model: LiveModel) -> tuple[object, ...]:
    """Return everything that a dry run may not change: files, head, weights, state, and which edits are held."""
    root = live_model.ledger.folders.root
    files = sorted((str(path), path.stat().st_mtime_ns) for path in root.rglob("*") if path.is_file())
    weight_OI = live_model.model.module.get_submodule(live_model.spec.names[0]).weight.detach()
    held = [(held.edit.id, held.asked_at, held.num_repairs) for held in live_model.inspector.earlier.held]
    return files, live_model.version, weight_OI.numpy().tobytes(), live_model.state, held


def test_a_dry_run_tells_what_the_edits_would_do_and_leaves_no_trace(live_model: LiveModel) -> None:
    live_model.look(10)
    before = traces(live_model)
    posted = [EDITS[2], EDITS[3], replace(EDITS[2], target=EDITS[4].target)]
    found = tried(live_model, posted, WalkBudget())
    assert traces(live_model) == before
    assert DryRunOut.model_validate_json(json.dumps(found, allow_nan=False)).head == 1
    assert [one["state"] for one in found["edits"]] == ["superseded", "applied", "applied"]
    ((attempt),) = found["guard"]
    assert attempt["edits"] == [1, 2] and attempt["publish"] and "relative_norm" in attempt["scores"]
    assert found["neighbours"]["num_edits"] == found["neighbours"]["num_edits_asked"] == 2

    base = LiveModel(replace(live_model.options, ledger=f"{live_model.options.ledger}-base"))
    assert [one["unedited"] for one in found["edits"]] == [texts[0] for texts in base.answers(posted)]
    assert live_model.unedited(EDITS[:2]) == base.answers(EDITS[:2]) != live_model.answers(EDITS[:2])

    made = live_model.make([EDITS[3]], [found["edits"][1]["before"]])
    live_model.append(made)
    assert live_model.answers([EDITS[3]])[0][0] != found["edits"][1]["before"]


def test_a_dry_run_logs_no_text(live_model: LiveModel, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "errata")
    refused = [replace(EDITS[2], prompt=f"the {word} of x is") for word in ("violin", "piano")]
    found = tried(live_model, [EDITS[3], *refused], WalkBudget())
    assert [one["state"] for one in found["edits"]] == ["applied", "rejected", "rejected"]
    texts = {text for edit in (EDITS[3], *refused) for text in (edit.prompt, edit.target)}
    assert not [record for record in caplog.records for text in texts if text in str(vars(record))]


def test_answers_that_would_change_are_those_that_change(live_model: LiveModel) -> None:
    held = [live_model.inspector.earlier.held.by_id[f"id-{i}"].edit for i in (0, 1)]
    before = [texts[0] for texts in live_model.answers(held)]
    found = tried(live_model, [EDITS[5]], WalkBudget())
    live_model.append(live_model.make([EDITS[5]]))
    after = [texts[0] for texts in live_model.answers(held)]
    changed = {edit.id for edit, one, other in zip(held, before, after, strict=True) if not same_answer(one, other)}
    assert {one["id"] for one in found["neighbours"]["edits"]} >= changed


def test_a_refused_edit_is_shown_with_what_the_model_says(live_model: LiveModel) -> None:
    strict = LiveModel(replace(live_model.options, guard={}))
    before = traces(strict)
    found = tried(strict, [EDITS[6], EDITS[7]], WalkBudget())
    assert [one["state"] for one in found["edits"]] == ["rejected", "rejected"]
    assert all(one["code"] == "ineffective" and one["before"] and one["after"] for one in found["edits"])
    assert traces(strict) == before


def test_the_limit_that_would_be_passed_is_shown(live_model: LiveModel) -> None:
    limited = LiveModel(replace(live_model.options, guard={"strict": "false", "change.warn": "0", "change.refuse": "0"}))
    found = tried(limited, [EDITS[3]], WalkBudget())
    assert found["edits"][0]["code"] == "guard.change"
    ((attempt),) = found["guard"]
    assert not attempt["publish"] and attempt["breaches"][0]["limit"] == "change" and attempt["breaches"][0]["value"] > 0


def test_a_dry_run_ends_with_its_time_and_its_caller(live_model: LiveModel) -> None:
    with pytest.raises(WalkTooLong, match=r"^the time was used up"):
        tried(live_model, [EDITS[3]], WalkBudget(max_s=-1.0))
    budget = WalkBudget()
    budget.stop()
    with pytest.raises(WalkStopped):
        tried(live_model, [EDITS[3]], budget)


def test_a_worker_tries_one_post_at_a_time_of_at_most_a_batch(tmp_path: Path) -> None:
    worker = make_worker(tmp_path, max_batch=2)

    async def both() -> None:
        with pytest.raises(EditRejected) as refused:
            await worker.dry_runs.of([Edit("p", "t")] * 3, asyncio.Lock())
        assert (refused.value.code, refused.value.field) == (Code.BATCH_SIZE, "edits")
        async with worker._walking:
            with pytest.raises(Busy, match="ask again when that is done"):
                await worker.dry_runs.of([Edit("p", "t")], worker._walking)
        assert not worker._walking.locked() and worker.journal.depth == 0

    asyncio.run(both())


def test_a_dry_run_of_a_revert_tells_what_is_answered_after_it_and_leaves_no_trace(live_model: LiveModel) -> None:
    live_model.append(live_model.make([replace(EDITS[2], id="id-2")]))
    weights, files = traces(live_model)[2], traces(live_model)[0]
    found = tried_revert(live_model, Chosen(["id-0"], [], "replay"), 2, WalkBudget())
    assert (traces(live_model)[0], traces(live_model)[2], live_model.version) == (files, weights, 2)
    json.dumps(found, allow_nan=False)
    assert (found["dry_run"], found["head"], found["publish"], found["mode"], found["reverted"]) == (
        True,
        2,
        True,
        "replay",
        ["id-0"],
    )
    assert found["neighbours"]["num_edits"] == found["neighbours"]["num_edits_asked"] == 2
    (row,) = found["scorecard"]["reverted_answers"]
    kept = [held.edit for held in live_model.inspector.earlier.held if held.edit.id != "id-0"]
    before = [texts[0] for texts in live_model.answers(kept)]
    version = live_model.append(live_model.revert(["id-0"], [], "replay"))
    assert version.scorecard["reverted_answers"] == [row]
    after = [texts[0] for texts in live_model.answers(kept)]
    changed = {edit.id for edit, one, other in zip(kept, before, after, strict=True) if not same_answer(one, other)}
    assert {one["id"] for one in found["neighbours"]["edits"]} >= changed


def test_a_revert_that_the_guard_would_refuse_is_shown(live_model: LiveModel) -> None:
    limited = LiveModel(replace(live_model.options, guard={"strict": "false", "change.warn": "0", "change.refuse": "0"}))
    found = tried_revert(limited, Chosen([], [1], "subtract"), None, WalkBudget())
    assert not found["publish"] and found["breaches"][0]["limit"] == "change" and "scorecard" not in found


def test_a_dry_run_of_a_revert_refuses_as_the_revert(live_model: LiveModel) -> None:
    with pytest.raises(HeadMoved):
        tried_revert(live_model, Chosen(["id-0"], [], "auto"), 7, WalkBudget())
    with pytest.raises(RevertRefused) as refused:
        tried_revert(live_model, Chosen(["other"], [], "auto"), None, WalkBudget())
    assert refused.value.code == Code.UNKNOWN_EDIT
    with pytest.raises(WalkTooLong):
        tried_revert(live_model, Chosen(["id-0"], [], "auto"), None, WalkBudget(max_s=-1.0))


def test_a_dry_run_of_a_revert_asks_again_for_the_edits_that_no_version_holds(live_model: LiveModel) -> None:
    num_loads = live_model.num_loads
    tried_revert(live_model, Chosen(["id-0"], [], "replay"), None, WalkBudget())
    assert live_model.num_loads > num_loads


def test_a_worker_tries_a_revert_of_edits_that_it_accepted(tmp_path: Path) -> None:
    worker = make_worker(tmp_path)
    (queued,) = post(worker, "p")

    async def asked() -> None:
        with pytest.raises(UnknownEdit):
            await worker.dry_run_revert(["other"], [], "auto")
        async with worker._walking:
            with pytest.raises(Busy):
                await worker.dry_run_revert([queued], [], "auto")

    asyncio.run(asked())


def test_an_accepted_edit_that_is_in_no_version_is_not_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = make_worker(tmp_path)
    (queued,) = post(worker, "p")

    def refused(*_: object) -> None:
        raise RevertRefused("no version holds it", code=Code.UNKNOWN_EDIT, edit=queued, field="edits")

    monkeypatch.setattr("serving.worker.dry_run.tried_revert", refused)
    with pytest.raises(RevertRefused) as found:
        asyncio.run(worker.dry_run_revert([queued], [], "auto"))
    assert found.value.code == Code.NOT_LIVE
