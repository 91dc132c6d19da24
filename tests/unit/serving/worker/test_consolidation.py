"""Consolidation by the worker: beside the posts, by its policy, and never at the cost of an answer."""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from errata.delta.memory_delta import MemoryDelta
from errata.editors.tiers import Tiers
from errata.local.consolidation_policy import ConsolidationPolicy, policy_from
from errata.local.service_limits import ServiceLimits
from serving.worker import consolidation
from serving.worker.consolidation import MAX_TRIES, Consolidator
from serving.worker.edit_worker import EditWorker, WorkerOptions
from serving.worker.journal import Journal
from serving.worker.live_model import LiveModel
from serving.worker.replicas import Unloadable
from tests.fakes.edit_worker import InMemoryReplicas, apply, logged
from tests.unit.history.test_consolidation import carried, check_answers, tiers_at
from tests.unit.history.test_revert import EDITS

A, B, C, D, *_ = EDITS


def worker_over(live_model: LiveModel, path: Path, policy: str) -> EditWorker:
    journal, mirror = Journal(path / "journal"), SimpleNamespace(wake=lambda: None, behind=0)
    options = WorkerOptions(live_model=None, journal="", batch_window_s=0.0, limits=ServiceLimits(), consolidate=policy)  # type: ignore[arg-type]
    return EditWorker(live_model, journal, mirror, options, InMemoryReplicas())  # type: ignore[arg-type]


def posted(worker: EditWorker, *edits: object) -> list[str]:
    """Post edits and have them applied; returns their ids."""
    ids = worker.journal.submit([{**edit.to_json(), "id": None} for edit in edits])  # type: ignore[attr-defined]
    apply(worker)
    assert [worker.journal.get(id).state for id in ids] == ["applied"] * len(ids)
    return ids


def consolidator(worker: EditWorker) -> Consolidator:
    found = worker.edit_loop.consolidator
    assert found is not None
    return found


def stepped(worker: EditWorker) -> bool:
    return asyncio.run(consolidator(worker).step())


def test_policies_are_read_and_say_what_is_due() -> None:
    both = policy_from("size=16, age=60")
    assert both == ConsolidationPolicy(16, 60.0) and policy_from("never") == ConsolidationPolicy()
    assert both.is_due(16, 0.0) and both.is_due(1, 60.0) and not both.is_due(15, 59.0) and not both.is_due(0, 100.0)
    assert policy_from("size=2").batch == 2 and policy_from("age=5").batch == 16 and not policy_from("never").is_due(99, 1e9)
    for wrong in ("", "16", "size=0", "size=x", "age=-1", "age=inf", "size=1,size=2", "often", "size=1001"):
        with pytest.raises(ValueError, match="no policy of consolidation"):
            policy_from(wrong)


def test_edits_are_applied_from_memory_and_learnt_when_enough_wait(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="errata")
    live_model = tiers_at(checkpoint, tmp_path / "ledger")
    worker = worker_over(live_model, tmp_path, "size=2")
    (first,) = posted(worker, A)
    assert not stepped(worker) and live_model.version == 1, "one edit is not enough"
    (second,) = posted(worker, B)
    status = [asyncio.run(worker.edit_status(id)) for id in (first, second)]
    assert [one["carried_by"] for one in status] == ["memory", "memory"] and all(one["version"] for one in status)
    assert stepped(worker) and live_model.version == 3 and not isinstance(live_model.ledger.delta(3), MemoryDelta)
    after = [asyncio.run(worker.edit_status(id)) for id in (first, second)]
    assert [one["carried_by"] for one in after] == ["weights", "weights"]
    assert [one["version"] for one in after] == [1, 2], "an edit stays one of its own version"
    check_answers(live_model, A, B)
    assert set(logged(caplog, "edit.consolidated")[0].edit_ids) == {first, second}
    text = asyncio.run(worker.expositions())[""]
    assert 'errata_edits_carried{by="weights"} 2.0' in text and 'errata_edits_carried{by="memory"} 0.0' in text
    assert 'errata_consolidations_total{result="published"} 1.0' in text
    assert not stepped(worker), "nothing waits"


def test_a_post_is_applied_while_a_step_is_made(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live_model = tiers_at(checkpoint, tmp_path / "ledger")
    worker = worker_over(live_model, tmp_path, "size=1")
    posted(worker, A)
    begun, go_on, make = threading.Event(), threading.Event(), consolidation.consolidate

    def slow(*arguments: object) -> object:
        begun.set()
        assert go_on.wait(60)
        return make(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(consolidation, "consolidate", slow)

    async def play() -> bool:
        step = asyncio.create_task(consolidator(worker).step())
        await asyncio.to_thread(begun.wait, 60)
        ids = worker.journal.submit([{**C.to_json(), "id": None}])
        await worker.edit_loop._apply(worker.journal.take(10))
        assert worker.journal.get(ids[0]).state == "applied" and live_model.version == 2
        go_on.set()
        return await step

    assert asyncio.run(asyncio.wait_for(play(), 120)) and live_model.version == 3
    assert sorted(carried(live_model).values()) == ["memory", "weights"]
    check_answers(live_model, A, C)


def test_what_is_refused_stays_in_memory_and_is_tried_a_few_times(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="errata")
    live_model = tiers_at(checkpoint, tmp_path / "ledger")
    worker = worker_over(live_model, tmp_path, "size=2,age=0")
    posted(worker, A, B)
    guard = live_model.inspector.guard
    live_model.inspector.guard = replace(guard, change=type(guard.change)(0.0, 0.0))
    assert not stepped(worker) and consolidator(worker).most_together == 1, "fewer are tried together"
    for _ in range(2 * MAX_TRIES):
        stepped(worker)
    assert live_model.version == 1 and consolidator(worker).waiting() == [] and consolidator(worker).num_tries.total() == 6
    assert {line.code for line in logged(caplog, "consolidation.refused")} == {"guard.change"}
    assert set(carried(live_model).values()) == {"memory"}
    check_answers(live_model, A, B)


def test_only_an_age_or_a_full_memory_moves_few_edits(checkpoint: Path, tmp_path: Path) -> None:
    live_model = tiers_at(checkpoint, tmp_path / "ledger")
    worker = worker_over(live_model, tmp_path, "size=9,age=3600")
    posted(worker, A)
    assert not stepped(worker)
    assert isinstance(live_model.editor, Tiers)
    live_model.editor = replace(live_model.editor, max_records=1)
    refused = worker.journal.submit([{**B.to_json(), "id": None}])
    apply(worker)
    assert worker.journal.get(refused[0]).code == "memory_full"
    assert stepped(worker) and set(carried(live_model).values()) == {"weights"}
    posted(worker, B)
    live_model.editor = replace(live_model.editor, max_records=9)
    consolidator(worker).policy = ConsolidationPolicy(age_s=0.0)
    assert stepped(worker) and set(carried(live_model).values()) == {"weights"}


def test_edits_with_dates_and_those_of_an_earlier_head_stay(checkpoint: Path, tmp_path: Path) -> None:
    live_model = tiers_at(checkpoint, tmp_path / "ledger")
    worker = worker_over(live_model, tmp_path, "size=1")
    posted(worker, replace(A, valid_from="2020-01-01"))
    posted(worker, B)
    assert [edit.prompt for edit in consolidator(worker).waiting()] == [B.prompt]
    live_model.move_to(1)
    assert consolidator(worker).waiting() == []


def test_a_version_that_no_replica_loads_is_taken_back(checkpoint: Path, tmp_path: Path) -> None:
    live_model = tiers_at(checkpoint, tmp_path / "ledger")
    worker = worker_over(live_model, tmp_path, "size=1")
    (id,) = posted(worker, A)
    replicas = worker.edit_loop.publisher.replicas
    assert isinstance(replicas, InMemoryReplicas)
    replicas.faults = [Unloadable(2, ["all"], "its files are not taken")]
    assert not stepped(worker) and live_model.version == live_model.ledger.head == 1
    assert worker.journal.get(id).state == "applied" and asyncio.run(worker.edit_status(id))["carried_by"] == "memory"
    check_answers(live_model, A)


def test_a_copy_that_does_not_fit_into_memory_is_tried_later(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    live_model = tiers_at(checkpoint, tmp_path / "ledger")
    worker = worker_over(live_model, tmp_path, "size=1")
    posted(worker, A)
    with monkeypatch.context() as patch:
        patch.setattr(live_model, "copied", lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("no room")))
        assert not stepped(worker) and live_model.version == 1
    assert stepped(worker)


def test_a_restart_between_the_tiers_goes_on_from_the_memory(checkpoint: Path, tmp_path: Path) -> None:
    """A process that ends before the version is appended leaves nothing behind; after it, everything."""
    live_model = tiers_at(checkpoint, tmp_path / "ledger")
    worker = worker_over(live_model, tmp_path, "size=1")
    posted(worker, A)
    job = consolidator(worker)._begun()
    assert job is not None
    made = job.make()
    again = tiers_at(checkpoint, tmp_path / "ledger")
    assert carried(again) == carried(live_model) and set(carried(again).values()) == {"memory"}
    worker = worker_over(again, tmp_path / "other", "size=1") if (tmp_path / "other").mkdir() is None else worker
    assert asyncio.run(consolidator(worker)._published(made, 0.0)), "the step fits the same weights"
    last = tiers_at(checkpoint, tmp_path / "ledger")
    assert set(carried(last).values()) == {"weights"}
    check_answers(last, A)


def test_weights_alone_and_never_consolidate_nothing(checkpoint: Path, tmp_path: Path) -> None:
    live_model = tiers_at(checkpoint, tmp_path / "ledger")
    worker = worker_over(live_model, tmp_path, "never")
    assert worker.edit_loop.consolidator is None
    tasks = worker.edit_loop.tasks()
    assert len(tasks) == 3
    for task in tasks:
        task.close()
    with pytest.raises(ValueError, match="no policy"):
        worker_over(live_model, tmp_path / "x", "sometimes") if (tmp_path / "x").mkdir() is None else None


def test_the_weights_learn_in_a_loop_of_their_own(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    live_model = tiers_at(checkpoint, tmp_path / "ledger")
    worker = worker_over(live_model, tmp_path, "size=1")
    posted(worker, A)
    monkeypatch.setattr(consolidation, "PERIOD_S", 0.01)
    faults = [OSError("the disk is full")]
    publish = worker.edit_loop.publisher.publish

    async def failing(*arguments: object) -> object:
        if faults:
            raise faults.pop()
        return await publish(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(worker.edit_loop.publisher, "publish", failing)

    async def play() -> None:
        task = asyncio.create_task(consolidator(worker).work())
        while live_model.version < 2:
            await asyncio.sleep(0.01)
            assert not task.done()
        task.cancel()

    asyncio.run(asyncio.wait_for(play(), 120))
    assert [line.levelno for line in logged(caplog, "edits.stalled")] == [logging.ERROR]
    assert set(carried(live_model).values()) == {"weights"}
