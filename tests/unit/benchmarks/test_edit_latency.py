"""Settings of the latency run, what it posts, and the rows of its report over a service that answers immediately."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

import pytest

from benchmarks.edit_latency import LatencySettings, Post, bodies, measured, parsed, row_of
from errata.client.client import Client
from errata.testbed import smollm2


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "check", lambda: None)


def test_settings_are_read_by_name() -> None:
    assert parsed([]) == LatencySettings()
    found = parsed(["held=0,50", "--num-single", "3", "with_mlflow=false"])
    assert (found.held, found.num_single, found.with_mlflow) == ((0, 50), 3, False)


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("editor=RLEdits", "editor is one of RLEdit"),
        ("num_single=0", "at least 1: num_single"),
        ("batch_size=2000", "a post has at most 1000 edits"),
        ("held=-1", "held and pause_s are not negative"),
        ("pause=1", "LatencySettings has no field 'pause'"),
    ],
)
def test_a_wrong_argument_is_named(argument: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        parsed([argument])


def test_every_edit_has_a_subject_of_its_own() -> None:
    edits = list(bodies(300, seed=0))
    assert len({edit["subject"] for edit in edits}) == 300
    assert all(edit["subject"] in edit["question"] and edit["target"] not in edit["question"] for edit in edits)
    assert edits == list(bodies(300, seed=0)) != list(bodies(300, seed=1))


class Service:
    """A service that applies every post as a version of its own; it rolls back, and numbers go on."""

    def __init__(self) -> None:
        self.newest, self.head, self.posts, self.timings = 0, 0, list[int](), list[dict[str, float]]()

    def edit(self, edits: Sequence[dict[str, Any]]) -> dict[str, Any]:
        self.newest = self.head = self.newest + 1
        self.posts.append(len(edits))
        self.timings.append({"version": self.newest, "edit_s": 0.003, "append_s": 0.002, "swap_ms": 1.0})
        return {"edits": [{"version": self.newest} for _ in edits]}

    def status(self) -> dict[str, Any]:
        return {"head": self.head, "timings": self.timings}

    def rollback(self, version: int) -> None:
        self.head = version


def test_rows_are_by_held_records_size_and_pause() -> None:
    service = Service()
    settings = LatencySettings(held=(0, 1500), num_single=3, num_batches=2, batch_size=4, pause_s=0.0)
    rows = list(measured(cast(Client, service), settings, bodies(settings.num_edits, 0)))
    assert [(row["held"], row["edits"], row["posts"], row["num_posts"]) for row in rows] == [
        (held, edits, posts, 3 if edits == 1 else 2)
        for held in (0, 1500)
        for posts in ("alone", "in a row")
        for edits in (1, 4)
    ]
    assert service.posts == [1, 1, 1, 4, 4] * 2 + [1000, 500] + [1, 1, 1, 4, 4] * 2 and service.head == 0
    assert all(row["edit_ms_p50"] == 3.0 and row["append_ms_p50"] == 2.0 and row["swap_ms_p50"] == 1.0 for row in rows)


def test_what_no_stage_names_is_the_rest() -> None:
    posts = [Post.of(ms, {"edit_s": 0.003, "append_s": 0.002, "swap_ms": 1.0}) for ms in (10.0, 8.0, 20.0)]
    row = row_of(posts)
    assert (row["ms_p50"], row["ms_p99"], row["rest_ms_p50"]) == (10.0, 20.0, 4.0)
