"""The scrub of the running worker: its time, its metric, its status, and the fault that it survives."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from errata.delta.weight_delta import WeightDelta
from errata.editors.state import EditorState
from errata.ledger import Ledger
from serving.metrics import WorkerMetrics
from serving.worker import scrub
from serving.worker.scrub import Scrubber
from tests.fakes.edit_worker import logged, make_worker


@pytest.fixture
def grown(ledger: Ledger, random_delta: Callable[..., WeightDelta]) -> Ledger:
    for number in range(3):
        ledger.append(number, random_delta(number), EditorState(), (), {}, ("E", "p"))
    return ledger


def test_damage_in_the_middle_of_the_chain_is_found_while_the_service_runs(
    grown: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(scrub, "PAUSE_S", 0.0)
    scrubber = Scrubber(str(grown.directory), hours=24)
    asyncio.run(scrubber.scrub())
    assert (scrubber.state["checked"], scrubber.state["damaged"]) == (4, [])
    (grown.folders.path(2) / "delta.safetensors").unlink()
    asyncio.run(scrubber.scrub())
    (found,) = scrubber.state["damaged"]
    assert found == {"name": "version 2", "faults": ["delta.safetensors is missing"]}
    (line,) = logged(caplog, "version.damaged")
    assert line.error == ["version 2: delta.safetensors is missing"]


def test_the_timer_goes_on_after_a_fault_of_the_disk(
    grown: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(scrub, "PAUSE_S", 0.0)
    scrubber = Scrubber(str(grown.directory), hours=0.01 / 3600)
    aside = grown.directory.with_name("aside")

    async def worked() -> None:
        task = asyncio.create_task(scrubber.work())
        shutil.move(grown.directory, aside)
        while "error" not in scrubber.state:
            await asyncio.sleep(0.01)
        shutil.move(aside, grown.directory)
        while "checked" not in scrubber.state:
            await asyncio.sleep(0.01)
        assert not task.done() and "error" not in scrubber.state
        task.cancel()

    asyncio.run(asyncio.wait_for(worked(), 30))
    assert logged(caplog, "version.unread")


def test_a_scrub_can_be_switched_off_and_its_task_does_not_end(grown: Ledger) -> None:
    scrubber = Scrubber(str(grown.directory), hours=0)

    async def waited() -> None:
        task = asyncio.create_task(scrubber.work())
        await asyncio.sleep(0.1)
        assert not task.done() and scrubber.state == {}
        task.cancel()

    asyncio.run(waited())


def test_the_number_of_damaged_files_is_a_metric_and_the_faults_are_in_the_status(tmp_path: Path) -> None:
    metrics = WorkerMetrics()
    metrics.damaged(2)
    assert "errata_damaged_files 2.0" in metrics.exposition()
    worker = make_worker(tmp_path)
    worker.scrubber.state = {"damaged": [{"name": "version 2", "faults": ["no"]}]}
    assert worker.options.scrub_hours == 24
