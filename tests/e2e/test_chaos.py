"""A short version of `make chaos`: three faults on a running service, after which no acknowledged edit is lost."""

from __future__ import annotations

import pytest

from tests.chaos.faults import FAULTS
from tests.chaos.run import report_of, schedule, suffer
from tests.e2e.scalable import ScalableService

PARTS = ("disk_full", "duplicate_posts", "node")


@pytest.mark.e2e
def test_no_acknowledged_edit_is_lost_to_a_fault(service: ScalableService) -> None:
    service.is_from_file = True  # The power failure is followed by a deployment from a file.
    report = report_of(*suffer(service, PARTS, seed=0))
    print(f"\n{report}")
    counts = {name: report[name] for name in ("faults", "lost", "doubled", "unsettled", "diverged")}
    assert counts == {"faults": len(PARTS), "lost": 0, "doubled": 0, "unsettled": 0, "diverged": 0}
    assert report["acknowledged"] > len(PARTS)


def test_a_schedule_has_every_part_equally_often_and_follows_its_seed() -> None:
    order = schedule(1, 50, tuple(FAULTS))
    assert sorted(order) == sorted([*FAULTS] * 5) and order == schedule(1, 50, tuple(FAULTS)) != schedule(2, 50, tuple(FAULTS))
