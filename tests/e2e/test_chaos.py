"""A short version of `make chaos`: some faults on a running service, after which the history of all operations holds."""

from __future__ import annotations

import pytest

from tests.chaos.faults import FAULTS
from tests.chaos.logs import leaks
from tests.chaos.run import report_of, schedule, suffer
from tests.chaos.texts import send_texts
from tests.chaos.workload import KEY, TARGETS, TEXTS
from tests.e2e.scalable import ScalableService

PARTS = ("disk_full", "duplicate_posts", "node", "worker")


@pytest.mark.e2e
def test_no_acknowledged_edit_is_lost_to_a_fault_and_no_log_has_a_text(service: ScalableService) -> None:
    service.is_from_file = True  # The power failure is followed by a deployment from a file.
    service.secrets = TEXTS
    statuses = set(send_texts(service.http))
    assert statuses >= {200, 400, 404, 409, 422} and max(statuses) < 500, statuses
    report = report_of(*suffer(service, PARTS, seed=0))
    print(f"\n{report}")
    counts = {name: report[name] for name in ("faults", "kinds", "lost", "doubled", "unsettled", "diverged")}
    assert counts == {"faults": len(PARTS), "kinds": len(PARTS), "lost": 0, "doubled": 0, "unsettled": 0, "diverged": 0}
    assert not any(report["violations"].values()), report["violating"]
    assert report["acknowledged"] > len(PARTS)
    now = [service.stack.directory, service.stack.ray_dir]
    assert service.leaked + leaks([folder for folder in now if folder], TEXTS) == []
    service.secrets = ()


def test_a_log_that_has_a_text_is_found(tmp_path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "worker.err").write_text(f"fine\nthe target was {TARGETS[0]}\n")
    (tmp_path / "other.json").write_text(KEY)
    (found,) = leaks([tmp_path], TEXTS)
    assert found.startswith("worker.err") and TARGETS[0] in found


def test_a_schedule_has_every_part_equally_often_and_follows_its_seed() -> None:
    num_faults = 4 * len(FAULTS)
    order = schedule(1, num_faults, tuple(FAULTS))
    assert sorted(order) == sorted([*FAULTS] * 4) and order == schedule(1, num_faults, tuple(FAULTS))
    assert order != schedule(2, num_faults, tuple(FAULTS))
