"""Jobs whose driver is killed with SIGKILL and that are started again; sweeps are in test_tune.py."""

import json
import re
from pathlib import Path

import pytest

from errata.editors.closed_form.moments import Moments
from errata.editors.hypernet.rledit import RLEdit
from tests.e2e.job import lines_of, output_until_killed

pytestmark = [pytest.mark.e2e, pytest.mark.long]
PLAN = ["plan=tiny", "shape.train_steps=240"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def test_pretraining_resumes_from_its_checkpoint(home: Path) -> None:
    steps = re.compile(r"pretrain: step (\d+)/240, loss .*about \d+ s left")
    first = output_until_killed(home, "pretrain: step 140/240", "jobs/pretrain.py", *PLAN)
    assert [int(step) for step in steps.findall(first)] == list(range(20, 141, 20))
    assert not list((home / "testbed").glob("*/config.json"))
    second = "".join(lines_of(home, "jobs/pretrain.py", *PLAN))
    after = [int(step) for step in steps.findall(second)]
    assert 20 < after[0] < 240 and after == list(range(after[0], 241, 20))
    assert "the model is in" in second and len(list((home / "testbed").glob("*/config.json"))) == 1


def test_training_resumes_from_its_checkpoint(home: Path) -> None:
    # So many steps that the workers cannot finish in the moment that they outlive their driver.
    command = ["jobs/train.py", *PLAN, "schedule.train_steps=60", "checkpoint_every=2"]
    steps = re.compile(r"train: (\d+)/60 .*about \d+ s left")
    first = [int(step) for step in steps.findall(output_until_killed(home, "train: 5/60", *command))]
    assert first == [1, 2, 3, 4, 5] and not (home / "hypernets").exists()
    second = [int(step) for step in steps.findall("".join(lines_of(home, *command)))]
    assert 1 < second[0] < 60 and second == list(range(second[0], 61))
    (artifact,) = (home / "hypernets").iterdir()
    record = json.loads((artifact / "artifact.json").read_text())["record"]
    assert [point["train_step"] for point in record["curve"]] == list(range(1, 61))
    assert RLEdit.load(artifact).trained_policy().base_preconditioners


def test_moments_are_complete_or_absent(home: Path) -> None:
    command = ["jobs/moments.py", *PLAN, "modules=layers.0.mlp.down_proj"]
    first = output_until_killed(home, "shards are done", *command)
    assert "moments: 1/" in first and not list((home / "moments").glob("*/moments.json"))
    second = "".join(lines_of(home, *command))
    (found,) = (home / "moments").glob("*/moments.json")
    assert re.search(r"moments: (\d+)/\1 shards are done, about 0 s left", second)
    assert Moments.load(found.parent).record["num_tokens"] > 0


def test_a_benchmark_repeats_only_the_interrupted_stream(home: Path) -> None:
    command = ["jobs/bench.py", "suite=tiny", "editors=LocFT", "seeds=0,1", "shape.train_steps=240"]
    first = output_until_killed(home, "bench: LocFT, seed 0, 8 edits", *command)
    assert "bench: LocFT: 2/2 settings tried, about 0 s left" in first and not (home / "bench-tiny" / "report.json").exists()
    second = "".join(lines_of(home, *command))
    assert "bench: LocFT [" not in second and "bench: unedited, seed 0" not in second
    assert "bench: LocFT, seed 1, 8 edits" in second and "bench: 4/4 test streams, about 0 s left" in second
    assert (home / "bench-tiny" / "report.json").exists()
