"""Edits taken out by down-dating on a worker with a small model and MEMIT: published, tried, rolled back and read again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from errata.history.lineage import live_edits
from errata.local.service_limits import ServiceLimits
from errata.model.language_model import load
from serving.worker.edit_worker import EditWorker, WorkerOptions
from serving.worker.journal import Journal
from serving.worker.live_model import LiveModel, LiveModelOptions
from tests.e2e.toy import WORLD
from tests.editors_under_test import measured
from tests.fakes.edit_worker import InMemoryReplicas, apply, replicas_of, states

MODULES = ("layers.0.mlp.down_proj",)
SETTINGS = {
    "moment_weight": "1.0",
    "floor": "1e-2",
    "memory": "1.0",
    "context_words": "('the',)",
    "context_lengths": "(3,)",
    "search.num_steps": "3",
}
EDITS = WORLD.edits("test", 36)[::4]


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    folder = tmp_path_factory.mktemp("moments")
    measured(load(checkpoint), MODULES).save(folder)
    return folder


def start(checkpoint: Path, moments: Path, folder: Path, **settings: str) -> EditWorker:
    """Start a worker over the ledger and the journal in a folder."""
    options = LiveModelOptions(
        str(checkpoint), str(folder / "ledger"), "MEMIT", str(moments), None, SETTINGS | settings, {"strict": "false"}
    )
    about = WorkerOptions(live_model=None, journal="", batch_window_s=0.0, limits=ServiceLimits())
    mirror = SimpleNamespace(wake=lambda: None)
    return EditWorker(LiveModel(options), Journal(folder / "journal"), mirror, about, InMemoryReplicas())


def posted(worker: EditWorker, places: range) -> list[str]:
    """Post edits and apply them as one version."""
    fields = ("prompt", "target", "subject")
    ids = worker.journal.submit([{name: getattr(EDITS[i], name) for name in fields} for i in places])
    apply(worker)
    return ids


def bits(worker: EditWorker) -> tuple[torch.Tensor, dict[str, Any]]:
    live_model = worker.live_model
    weight = live_model.model.module.get_submodule(live_model.spec.names[0]).weight.clone()
    return weight, dict(live_model.state.tensors)


def same(one: tuple[torch.Tensor, dict[str, Any]], other: tuple[torch.Tensor, dict[str, Any]]) -> bool:
    rows = one[1].keys() == other[1].keys() and all(torch.equal(one[1][name], other[1][name]) for name in one[1])
    return rows and torch.equal(one[0], other[0])


def test_a_revert_by_down_dating_is_a_version_like_any_other(checkpoint: Path, moments: Path, tmp_path: Path) -> None:
    worker = start(checkpoint, moments, tmp_path)
    ids = [id for begin in (0, 2, 4) for id in posted(worker, range(begin, begin + 2))]
    before = bits(worker)

    tried = asyncio.run(worker.dry_run_revert([ids[1]], [], "auto"))
    assert (tried["publish"], tried["mode"], tried["reverted"]) == (True, "downdate", [ids[1]])
    assert tried["scorecard"]["reverted_answers"][0]["prompt"] == EDITS[1].prompt
    assert same(bits(worker), before) and worker.live_model.ledger.newest == 3

    answer = asyncio.run(worker.revert([ids[1]], [], "auto"))
    assert (answer["version"], answer["mode"], answer["reverted"]) == (4, "downdate", [ids[1]])
    assert answer["scorecard"]["reverted_answers"] == tried["scorecard"]["reverted_answers"]
    assert replicas_of(worker).served == [1, 2, 3, 4]
    found = [("reverted", 4) if i == 1 else ("applied", 1 + i // 2) for i in range(6)]
    assert states(worker, ids) == found
    after = bits(worker)
    assert worker.live_model.state.num_edits == 5 and not torch.equal(after[0], before[0])

    asyncio.run(worker.rollback(3))
    assert same(bits(worker), before) and states(worker, ids)[1] == ("applied", 1)
    asyncio.run(worker.rollback(4))
    assert same(bits(worker), after) and states(worker, ids) == found

    worker.journal.close()
    again = start(checkpoint, moments, tmp_path)
    assert same(bits(again), after) and again.live_model.version == 4
    more = posted(again, range(6, 8))
    assert states(again, more) == [("applied", 5)] * 2
    replayed = asyncio.run(again.revert([ids[2]], [], "replay"))
    assert (replayed["version"], replayed["mode"]) == (6, "replay")
    held = [edit.id for edit in live_edits(again.live_model.ledger, 6)]
    assert held == [ids[0], *ids[3:], *more]


def test_what_the_equations_do_not_hold_is_taken_out_in_another_way_with_the_reason(
    checkpoint: Path, moments: Path, tmp_path: Path
) -> None:
    worker = start(checkpoint, moments, tmp_path)
    ids = [id for begin in (0, 2) for id in posted(worker, range(begin, begin + 2))]
    assert asyncio.run(worker.revert([], [1], "subtract"))["mode"] == "subtract"
    posted(worker, range(4, 6))
    answer = asyncio.run(worker.revert([ids[2]], [], "auto"))
    assert answer["mode"] == "replay"
    assert answer["scorecard"]["warnings"][0].startswith("not taken out of the equations: an earlier revert subtracted")


def test_versions_of_other_settings_are_taken_out_by_replay(checkpoint: Path, moments: Path, tmp_path: Path) -> None:
    worker = start(checkpoint, moments, tmp_path)
    ids = posted(worker, range(3))
    worker.journal.close()
    other = start(checkpoint, moments, tmp_path, moment_weight="20.0")
    answer = asyncio.run(other.revert([ids[0]], [], "auto"))
    assert answer["mode"] == "replay"
    assert "the factors of model.layers.0.mlp.down_proj are not those of the keys" in answer["scorecard"]["warnings"][0]
