"""A few simulated schedules (`make simulate` plays thousands), and what the checks find in a worker with a fault."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from serving.engine.fence import HeadFence
from serving.engine.served_lineage import ServedLineage
from serving.worker import reconcile
from tests.simulate.run import played
from tests.simulate.schedule import Schedule


def found(schedules: Iterable[Schedule]) -> list[str]:
    return [f"{schedule}: {violation}" for schedule in schedules for violation in played(schedule).violations]


def test_schedules_without_a_crash_keep_the_promises() -> None:
    assert found(Schedule(seed) for seed in range(20)) == []


@pytest.mark.parametrize("seed", [1, 2])
def test_a_crash_at_any_point_keeps_the_promises(seed: int) -> None:
    points = range(1, played(Schedule(seed)).num_points, 7)
    assert found(Schedule(seed, (point,)) for point in points) == []


def test_a_transaction_that_fails_keeps_the_promises() -> None:
    assert found(Schedule(2, (), (number,)) for number in range(1, played(Schedule(2)).num_transactions + 1)) == []


@pytest.mark.parametrize("start", range(20, 140, 20))
def test_five_ends_of_the_machine_keep_the_promises(start: int) -> None:
    crashes = (start, start + 35, start + 70, start + 105, start + 140)
    assert found([Schedule(4, crashes, whole_machine=True)]) == []


def test_a_schedule_is_the_same_each_time() -> None:
    assert len({played(Schedule(3, (90,))) for _ in range(2)}) == 1


def test_the_checks_find_an_older_post_that_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile, "superseded_by", lambda version: {})
    points = range(1, played(Schedule(1)).num_points, 16)
    assert any("ordered" in one for one in found(Schedule(1, (point,)) for point in points))


def test_the_checks_find_a_replica_that_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def as_sent(self: HeadFence, asked: int = 0) -> int:
        heads = self.ledger.disk.heads  # type: ignore[attr-defined]
        return int(heads[min(asked, len(heads) - 1)] if asked else heads[-1])

    monkeypatch.setattr(HeadFence, "target", as_sent)
    assert any("forward" in one for one in found(Schedule(seed) for seed in range(5)))


def test_the_checks_find_a_number_that_is_taken_for_a_lineage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ServedLineage, "has", lambda self, wanted: wanted <= self.ancestry.version)
    assert any("at_least" in one for one in found(Schedule(seed) for seed in (22, 23, 95, 106)))
