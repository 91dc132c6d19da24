"""The sweep between posts: it asks the live edits in steps, and publishes versions that answer lost ones again."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from errata.edit import Code, Edit, EditRejected
from errata.guard.held_edits import MAX_REPAIRS
from errata.history.lineage import batches, live_edits
from serving.worker.edit_worker import EditWorker
from serving.worker.live_model import LiveModel, LiveModelOptions
from serving.worker.sweep import NUM_REPAIRED
from tests.fakes.edit_worker import apply, logged, make_worker, post, replicas_of, states
from tests.unit.history.test_revert import EDITS, Exact


def swept(worker: EditWorker, most: int = 20) -> int:
    """Take steps until nothing is left to do; returns their number."""

    async def steps() -> int:
        number = 0
        while number < most and await worker.edit_loop.sweep.step():
            number += 1
        return number

    return asyncio.run(steps())


def lost_in(worker: EditWorker, ids: list[str]) -> None:
    worker.live_model.lost = [Edit("lost", "x", id=id) for id in ids]


def test_lost_edits_are_made_again_in_a_version_without_edits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="errata")
    worker = make_worker(tmp_path)
    ids = post(worker, "a", "b")
    apply(worker)
    lost_in(worker, ids)
    assert asyncio.run(worker.edit_status(ids[0]))["answered"] is False
    assert swept(worker) == 1 and replicas_of(worker).served == [1, 2]
    assert worker.live_model.contents[2] == () and worker.live_model.cards[2] == {"repaired": ids}
    assert states(worker, ids) == [("applied", 1)] * 2, "they stay edits of their own version"
    assert asyncio.run(worker.edit_status(ids[0]))["answered"] is True
    text = worker.edit_loop.metrics.exposition()
    assert "errata_edits_repaired_total 2.0" in text and 'errata_held_edits{answer="lost"} 0.0' in text
    assert 'errata_edits_total{state="applied"} 2.0' in text and [
        line.edit_ids for line in logged(caplog, "edit.repaired")
    ] == [ids]


def test_a_refused_repair_is_counted_as_lost_and_not_published(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="errata")
    worker = make_worker(tmp_path)
    ids = post(worker, "a")
    apply(worker)
    lost_in(worker, ids)
    worker.live_model.refuse_batch = lambda edits: EditRejected("says 'their words'", code=Code.INEFFECTIVE, edit=0)
    assert swept(worker) == 1 and worker.live_model.version == 1
    assert [(line.reason, line.code) for line in logged(caplog, "edit.lost")] == [("editor", "ineffective")]
    assert "their words" not in caplog.text


def test_a_conflict_loads_the_head_again(tmp_path: Path) -> None:
    from errata.ledger import LedgerConflict

    worker = make_worker(tmp_path)
    ids = post(worker, "a")
    apply(worker)
    lost_in(worker, ids)
    worker.live_model.faults = [LedgerConflict(1, 5)]
    worker.live_model.ledger.head = 5
    assert swept(worker) == 1 and worker.live_model.version == 5


def test_the_loop_sweeps_until_edits_arrive_and_holds_what_changed_nothing(tmp_path: Path) -> None:
    worker = make_worker(tmp_path)
    worker.live_model.said = {"known": "x"}
    ids = post(worker, "known", "new")

    async def play() -> None:
        task = asyncio.create_task(worker.edit_loop.work())
        worker.edit_loop.wake()
        while worker.journal.depth or any(not worker.journal.get(id).is_settled for id in ids):
            await asyncio.sleep(0.01)
        lost_in(worker, ids[1:])
        worker.edit_loop.wake()
        while worker.live_model.lost:
            await asyncio.sleep(0.01)
        task.cancel()

    asyncio.run(asyncio.wait_for(play(), 30))
    assert worker.journal.get(ids[0]).unchanged == "x" and "known" in worker.live_model.held
    assert "repaired" in worker.live_model.cards[worker.live_model.version]


@pytest.fixture
def live_model(checkpoint: Path, tmp_path: Path) -> LiveModel:
    """Make a strict live model with an editor that answers its keys exactly, on a model that ends no answer."""
    editor = "tests.unit.history.test_revert:Exact"
    live_model = LiveModel(LiveModelOptions(str(checkpoint), str(tmp_path / "ledger"), editor, guard={"change.refuse": "1e9"}))
    live_model.model.tokenizer.eos_token = None
    return live_model


def make(live_model: LiveModel, *edits: Edit) -> int:
    return live_model.append(live_model.make(edits)).number


def first_word(live_model: LiveModel, edit: Edit) -> str:
    ((text,),) = live_model.answers([edit])
    return text.split()[0]


def test_a_small_model_repairs_what_was_lost_and_a_replay_repeats_it(live_model: LiveModel) -> None:
    """The second version takes the answer of the first away without being asked it; the repair brings it back."""
    a, b, c, *_ = EDITS
    make(live_model, a)
    make(live_model, b)
    held = live_model.inspector.earlier.held
    held.by_edit[a].is_answered, held.by_edit[a].says = False, "something else"
    assert live_model.to_repair(NUM_REPAIRED) == [a]
    assert live_model.answered("e0") == {"answered": False, "says": "something else"}
    version = live_model.append(live_model.repair([a]))
    assert version.edits == () and version.scorecard["repaired"] == ["e0"] and live_model.to_repair(NUM_REPAIRED) == []
    assert live_model.answered("e0") == {"answered": True, "repaired_in": 3} and first_word(live_model, a) == a.target
    assert [(batch.edits, batch.again) for batch in batches(version)] == [((), ((a,),))]
    make(live_model, c)
    before = live_model.version
    live_model.append(live_model.revert(["e5"], [], "replay"))
    assert [edit.id for edit in live_edits(live_model.ledger, live_model.version)] == [
        "e0",
        "e10",
    ] and live_model.version > before
    again = live_model.ledger.version(live_model.version).scorecard["reverted"]
    assert again["batches"] == [0, 1] and len(again["again"][0]) == 1, "the repair was made again, and then the last version"
    assert first_word(live_model, a) == a.target and first_word(live_model, c) == c.target


def test_a_version_that_a_rollback_chose_is_not_repaired(live_model: LiveModel) -> None:
    """It stays the head until the next edit; that it lost an answer is said."""
    a, b, c, *_ = EDITS
    for edit in (a, b):
        make(live_model, edit)
    for version, repaired in ((1, []), (2, [a])):
        live_model.move_to(version)
        held = live_model.inspector.earlier.held
        held.by_edit[a].is_answered, held.by_edit[a].says = False, "something else"
        assert live_model.to_repair(NUM_REPAIRED) == repaired
        assert live_model.answered("e0") == {"answered": False, "says": "something else"}
    live_model.move_to(1)
    make(live_model, c)
    live_model.inspector.earlier.held.by_edit[a].is_answered = False
    assert live_model.to_repair(NUM_REPAIRED) == [a], "a new edit makes it the newest version"


def test_a_loaded_version_is_asked_in_steps(live_model: LiveModel) -> None:
    for edit in EDITS[:3]:
        make(live_model, edit)
    live_model.move_to(2)
    assert live_model.held_counts == {"open": 2, "lost": 0, "repairable": 0} and live_model.answered("e0") == {}
    assert live_model.look(1) and live_model.held_counts["open"] == 1 and live_model.look(5) and not live_model.look(5)
    assert live_model.answered("e0") == live_model.answered("e5") == {"answered": True} and live_model.answered("e10") == {}
    live_model.hold([replace(EDITS[3], target=first_word(live_model, EDITS[3]))], [first_word(live_model, EDITS[3])])
    assert live_model.held_counts["open"] == 1
    live_model.release(EDITS[3])
    assert live_model.held_counts["open"] == 1 and len(live_model.inspector.earlier.held) == 2


class Refusing(Exact):
    """Refuses every edit."""

    def edit(self, *_, **__):
        raise EditRejected("it is alone", edit=0, field="subject", code=Code.EDITOR_FAILED)


def test_what_cannot_be_repaired_is_tried_a_few_times(live_model: LiveModel) -> None:
    lost = EDITS[0]
    make(live_model, lost, EDITS[1])
    live_model.inspector.earlier.held.by_edit[lost].is_answered = False
    live_model.editor = Refusing()
    for _ in range(MAX_REPAIRS):
        assert live_model.to_repair(NUM_REPAIRED) == [lost]
        with pytest.raises(EditRejected, match="it is alone"):
            live_model.repair([lost])
    assert live_model.to_repair(NUM_REPAIRED) == [] and live_model.held_counts["lost"] == 1
    assert live_model.answered("e0")["answered"] is False
