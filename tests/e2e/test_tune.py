"""A sweep that is killed and started again; test_jobs.py has one that is not."""

from pathlib import Path

import pytest

from errata.local.services import LocalServices
from errata.registry import Registry
from jobs import train
from jobs.arguments import from_arguments
from tests.e2e.job import lines_of, output_until_killed
from tests.e2e.test_jobs import SWEEP, check_runs


@pytest.mark.long
def test_a_killed_sweep_continues_and_ends_with_a_plan(home: Path, tmp_path: Path) -> None:
    """The tests of training kill a worker; `jobs/tune.py` then adds only what Ray Tune restores."""
    with LocalServices(tmp_path) as services:
        services.start_mlflow()
        services.wait_mlflow()
        command = [*SWEEP, f"mlflow={services.mlflow_url}", "editor.rank=17"]
        assert " score " in output_until_killed(home, "at train_step", *command)
        output = "".join(lines_of(home, *command))
        assert "tune: continuing" in output and "the best plan" in output
        (found,) = {path.parent for path in (home / "tune").glob("*/found/best.json") if str(path) in output}
        check_runs(Registry(services.mlflow_url, "errata"))
        train.check(from_arguments([f"plan={found / 'best.json'}"]))
