"""A short version of `make chaos`: four faults on a running service, and nothing that was acknowledged is lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.faults import FAULTS
from tests.chaos.run import report_of, schedule, suffer
from tests.chaos.service import Service

PARTS = ("disk_full", "corrupted_entry", "duplicate_posts", "node")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("chaos"), with_mlflow=False)
    try:
        service.start()
        service.until_whole()
        yield service
    finally:
        service.stop()


@pytest.mark.e2e
def test_nothing_that_was_acknowledged_is_lost_to_a_fault(service: Service) -> None:
    report = report_of(*suffer(service, PARTS, seed=0))
    print(f"\n{report}")
    counts = {name: report[name] for name in ("faults", "lost", "doubled", "unsettled", "diverged")}
    assert counts == {"faults": len(PARTS), "lost": 0, "doubled": 0, "unsettled": 0, "diverged": 0}
    assert report["acknowledged"] > len(PARTS)


def test_every_part_has_its_turn_and_a_seed_its_order() -> None:
    order = schedule(1, 50, tuple(FAULTS))
    assert sorted(order) == sorted([*FAULTS] * 5) and order == schedule(1, 50, tuple(FAULTS)) != schedule(2, 50, tuple(FAULTS))
