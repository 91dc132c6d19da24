"""What jobs leave beside their results: provenance in a record, one finished run in MLflow; and where checkpoints are kept."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest
from mlflow import MlflowClient
from ray.train import Checkpoint
from ray.train.v2._internal.execution.storage import StorageContext

from errata.datasets.reader import write_parquet
from errata.editors.hypernet.reward import MemoryOptions
from errata.model.language_model import checkpoint_fingerprint, load
from errata.provenance import data_digest
from errata.registry import Registry, RegistryUnavailable, TrainingRun
from errata.testbed import language_model as testbed
from jobs import bench, moments, pretrain, train, training_data
from jobs.arguments import from_arguments
from jobs.bench import metric_name
from jobs.mlflow_run import RESULT_TAG, log_run, made_from, params_of
from jobs.plan import Plan
from jobs.plan_json import read_plan
from jobs.plans import tiny
from jobs.suites import from_arguments as suite_from
from jobs.workers import forget_run, worker_resources


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """MLflow's own store in a file. Artifacts go where the process stood when the experiment was made."""
    folder, before = tmp_path_factory.mktemp("mlflow"), Path.cwd()
    os.chdir(folder)
    yield f"sqlite:///{folder}/mlflow.db"
    os.chdir(before)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    monkeypatch.delenv("ERRATA_STORAGE", raising=False)
    return tmp_path


def runs_of(uri: str, result: str) -> list[Any]:
    client = MlflowClient(uri)
    (experiment,) = [found for found in client.search_experiments() if found.name == "errata"]
    return list(client.search_runs([experiment.experiment_id], f"tags.`{RESULT_TAG}` = '{result}'"))


def artifact(uri: str, run: Any, path: str) -> Path:
    return Path(MlflowClient(uri).download_artifacts(run.info.run_id, path))


def test_a_run_holds_what_it_takes_to_repeat_it(uri: str, home: Path, model_dir: Path, tmp_path: Path) -> None:
    edits = tmp_path / "edits.jsonl"
    edits.write_text('{"prompt": "p", "target": "t"}\n')
    plan = replace(tiny(), model=str(model_dir), edits=str(edits), seed=5, mlflow=uri)
    made = made_from(plan, {"edits.train": training_data.edits_file(plan)})
    assert log_run("train", "one", plan, made, lambda run: run.log({"loss": 1.5}, 3))
    (run,) = runs_of(uri, "one")
    assert (run.info.run_name, run.info.status, run.data.metrics) == ("train-tiny", "FINISHED", {"loss": 1.5})
    assert run.data.params["seed"] == "5" and run.data.params["editor.reward.backtrack_depth"] == "1"
    assert run.data.tags["errata.data.edits.train"] == data_digest(str(edits))
    assert run.data.tags["errata.data.model"] == checkpoint_fingerprint(model_dir)
    assert read_plan(artifact(uri, run, "repeat/plan.json")) == plan
    assert json.loads(artifact(uri, run, "repeat/provenance.json").read_text()) == made


def test_a_job_that_is_started_again_logs_nothing_twice(uri: str, home: Path) -> None:
    plan = replace(tiny(), mlflow=uri)
    assert log_run("train", "two", plan, {}) and not log_run("train", "two", plan, {})
    assert len(runs_of(uri, "two")) == 1


def test_a_run_that_was_cut_off_is_logged_again_and_stands_there_once(uri: str, home: Path) -> None:
    inner: list[str] = []

    def break_off(run: TrainingRun) -> None:
        with Registry(uri, "errata").training_run("trial", {}, {"mlflow.parentRunId": run.run_id}) as trial:
            inner.append(trial.run_id)
        raise OSError("the disk is full")

    plan = replace(tiny(), mlflow=uri)
    with pytest.raises(OSError, match="disk is full"):
        log_run("train", "three", plan, {}, break_off)
    assert [run.info.status for run in runs_of(uri, "three")] == ["FAILED"]
    assert log_run("train", "three", plan, {})
    assert [run.info.status for run in runs_of(uri, "three")] == ["FINISHED"]
    assert MlflowClient(uri).get_run(inner[0]).info.lifecycle_stage == "deleted"


def test_a_result_that_other_code_made_has_a_run_of_its_own(uri: str, home: Path) -> None:
    plan = replace(tiny(), mlflow=uri)
    assert log_run("train", "five", plan, {"code": "a"}) and log_run("train", "five", plan, {"code": "b"})
    assert not log_run("train", "five", plan, {"code": "a"}) and len(runs_of(uri, "five")) == 2


def test_a_run_whose_params_are_refused_has_failed(uri: str) -> None:
    with (
        pytest.raises(RegistryUnavailable),
        Registry(uri, "errata").training_run("long", {"k" * 10_000: 1}, {RESULT_TAG: "six"}),
    ):
        raise AssertionError
    assert [run.info.status for run in runs_of(uri, "six")] == ["FAILED"]


def test_without_mlflow_nothing_is_logged_and_with_none_there_it_is_said(home: Path) -> None:
    assert not log_run("train", "four", tiny(), {})
    with pytest.raises(RegistryUnavailable, match=r"127\.0\.0\.1:1"):
        log_run("train", "four", replace(tiny(), mlflow="http://127.0.0.1:1"), {})


def test_pretraining_records_how_the_model_was_made(uri: str, home: Path) -> None:
    plan = replace(tiny(), mlflow=uri)
    tokenizer = testbed.make_tokenizer(plan.corpus, plan.shape)
    pretrain.finish(plan, testbed.make_model(plan.shape, len(tokenizer), 0), tokenizer, plan.corpus, made_from(plan))
    for _ in range(2):  # the job, started twice: the model is there
        pretrain.run(plan)
    (run,) = runs_of(uri, f"model-{plan.model_dir.name}")
    record = json.loads((plan.model_dir / pretrain.RECORD).read_text())
    assert run.data.metrics == {"recall": record["recall"]} and run.data.tags["errata.data.text"] == "world-20"
    (plan.model_dir / pretrain.RECORD).unlink()
    pretrain.run(plan)  # one that an earlier version made


def test_moments_record_how_they_were_measured(uri: str, home: Path, tmp_path: Path) -> None:
    record = {"num_tokens": 7, "seconds": 0.5, "provenance": made_from(tiny())}
    (tmp_path / "m-7t").mkdir()
    (tmp_path / "m-7t" / "moments.json").write_text(json.dumps(record))
    measured = moments.Measurement(replace(tiny(), mlflow=uri), ("layers.1.mlp.down_proj",))
    moments.log_to_mlflow(measured, tmp_path / "m-7t")
    (run,) = runs_of(uri, "m-7t")
    assert run.data.metrics == {"num_tokens": 7, "seconds": 0.5} and run.data.params["texts"] == "100000"


def test_the_names_of_a_plans_fields_are_those_of_the_command_line() -> None:
    params = params_of(tiny())
    own = {name: str(value) for name, value in params.items() if name in ("schedule.train_steps", "editor.rank", "seed")}
    assert from_arguments(["plan=tiny", *(f"{name}={value}" for name, value in own.items())]) == tiny()
    assert "editor.policy" not in params


def test_a_name_that_mlflow_takes_for_a_metric(uri: str) -> None:
    with Registry(uri, "errata").training_run("names", {}) as run:
        run.log({f"harmonic_mean.{metric_name('O-Edit+ [1/2], train half')}": 0.5}, 1)
    assert metric_name("RLEdit, train half") == "RLEdit_ train half"


def test_where_checkpoints_are_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = tiny()
    assert plan.storage_for("train") == str(home / "train")
    monkeypatch.setenv("ERRATA_STORAGE", "s3://bucket/errata/")
    assert plan.storage_for("tune") == "s3://bucket/errata/tune"
    named = from_arguments(["plan=tiny", "storage=file:///shared", "placement=train"])
    assert named.storage_for("train") == "file:///shared/train" and named.digest() == plan.digest()
    with pytest.raises(ValueError, match="absolute path or a URI"):
        from_arguments(["plan=tiny", "storage=runs"])


def test_checkpoints_go_to_a_uri_and_are_forgotten_there(home: Path, tmp_path: Path) -> None:
    """By Ray's own writer of checkpoints, as its workers use it."""
    plan = replace(tiny(), storage=f"file://{tmp_path / 'elsewhere'}")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "state.pt").write_text("weights")
    storage = StorageContext(plan.storage_for("train"), "a run")
    kept = storage.persist_current_checkpoint(Checkpoint.from_directory(tmp_path / "state"), "checkpoint_0")
    assert (tmp_path / "elsewhere" / "train" / "a run" / "checkpoint_0" / "state.pt").read_text() == "weights"
    with kept.as_directory() as found:
        assert (Path(found) / "state.pt").read_text() == "weights"
    forget_run(plan, "a run")
    forget_run(plan, "a run that never was")
    assert not (tmp_path / "elsewhere" / "train" / "a run").exists()
    assert pyarrow.fs.FileSystem.from_uri(plan.storage_for("train"))[1] == str(tmp_path / "elsewhere" / "train")


@pytest.mark.parametrize(
    ("arguments", "cpus", "asked"),
    [
        ([], 4, {"CPU": 1.0}),
        (["num_workers=4"], 2, {"CPU": 0.4}),
        (["use_gpu=True"], 2, {"CPU": 1.0, "GPU": 1.0}),
        (["use_gpu=True", "gpus_per_worker=4"], 2, {"CPU": 1.0, "GPU": 4.0}),
        (["use_gpu=True", "placement=train"], 2, {"CPU": 1.0, "GPU": 1.0, "train": 0.001}),
    ],
)
def test_what_a_worker_asks_for(arguments: list[str], cpus: float, asked: dict[str, float]) -> None:
    plan: Plan = from_arguments(["plan=tiny", *arguments])
    assert worker_resources(plan, cpus) == pytest.approx(asked)


def test_gpus_that_are_not_on_the_machine_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    plan = replace(tiny(), use_gpu=True, num_workers=3, gpus_per_worker=40)
    with pytest.raises(ValueError, match=r"wants 120 GPUs, and torch finds .* on this machine: submit it to a cluster"):
        plan.check_gpus()
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    plan.check_gpus()


@pytest.mark.parametrize("wrong", [["use_gpu=True", "gpus_per_worker=0"], ["gpus_per_worker=2"]])
def test_gpus_of_a_worker_are_there(wrong: list[str]) -> None:
    with pytest.raises(ValueError, match="gpus_per_worker is at least 1, and above it with use_gpu=True"):
        from_arguments(["plan=tiny", *wrong])


def test_what_spares_memory_changes_no_artifact() -> None:
    plan = from_arguments(["plan=tiny"])
    spared = from_arguments(["plan=tiny", "savings.micro_batch=8", "savings.recompute=True"])
    assert spared.savings == MemoryOptions(8, recompute=True) and spared.digest() == plan.digest()
    assert from_arguments(["plan=llama3_8b"]).savings.recompute
    with pytest.raises(ValueError, match="micro_batch is a number of texts"):
        from_arguments(["plan=tiny", "savings.micro_batch=-1"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["num_workers=0"], "num_workers is at least 1, not 0"),
        (["min_workers=3"], "min_workers is at most num_workers=2"),
        (["min_workers=-1"], "or 0, not -1"),
    ],
)
def test_numbers_of_workers_that_cannot_be(arguments: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        from_arguments(["plan=tiny", *arguments])


def test_more_workers_than_episodes_are_refused_before_anything_is_started(home: Path) -> None:
    with pytest.raises(ValueError, match=r"3 workers cannot share 2 episodes: raise schedule\.episodes"):
        train.run(from_arguments(["plan=tiny", "num_workers=3"]))
    assert not list(home.iterdir())


def test_a_smaller_number_of_workers_makes_the_same_run(home: Path) -> None:
    """So a second submit may name another."""
    plan = from_arguments(["plan=tiny", "min_workers=3", "num_workers=4"])
    assert replace(plan, min_workers=1).artifact_dir == plan.artifact_dir == replace(plan, min_workers=0).artifact_dir


def test_what_was_saved_before_a_worker_was_lost_is_not_saved_again(home: Path) -> None:
    plan = tiny()
    tokenizer = testbed.make_tokenizer(plan.corpus, plan.shape)
    model = testbed.make_model(plan.shape, len(tokenizer), 0)
    for _ in range(2):
        pretrain.finish(plan, model, tokenizer, plan.corpus, {})
    loaded = load(plan.model_dir)
    write_parquet(plan.corpus.stream("train"), training_data.edits_file(plan))
    editor, _ = train.begin(plan, loaded)
    for curve in ([{"train_step": 1}], []):
        train.save_artifact(plan, editor, curve, 1, 0.0, {})
    assert json.loads((plan.artifact_dir / "artifact.json").read_text())["record"]["curve"] == [{"train_step": 1}]


def test_a_benchmark_records_what_was_played(uri: str, home: Path, tmp_path: Path) -> None:
    suite = suite_from(["suite=tiny", f"mlflow={uri}"])
    made = made_from(suite.model_plan)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.json").write_text("{}")
    for _ in range(2):
        bench.log_to_mlflow(suite, [], made, tmp_path / "report")
    experiment = MlflowClient(uri).get_experiment_by_name("errata")
    assert experiment is not None
    (run,) = MlflowClient(uri).search_runs([experiment.experiment_id], "attributes.run_name = 'bench-tiny'")
    assert run.data.params["suite"] == "tiny" and run.data.tags["errata.seed"] == "0" and "errata.commit" in run.data.tags
    assert run.data.tags["errata.data.text"] == "world-20" and "errata.version.torch" in run.data.tags
    assert artifact(uri, run, "bench/report.json").exists()


def test_edits_of_a_plan_may_be_at_a_uri(home: Path) -> None:
    assert (
        training_data.edits_file(from_arguments(["plan=tiny", "edits=s3://bucket/edits.parquet"]))
        == "s3://bucket/edits.parquet"
    )
    assert training_data.edits_file(tiny(), "train-a") == str(home / "streams" / "world-20-train-a.parquet")


def test_a_policy_of_other_edits_is_not_taken_for_that_of_these(home: Path, tmp_path: Path) -> None:
    edits, text = tmp_path / "edits.jsonl", tmp_path / "text.txt"
    edits.write_text('{"prompt": "a", "target": "b"}\n')
    text.write_text("A sentence.\n")
    plan = replace(tiny(), edits=str(edits), text=str(text))
    plan.artifact_dir.mkdir(parents=True)
    record = {"curve": [], "provenance": made_from(plan, {"edits.train": str(edits)})}
    (plan.artifact_dir / "artifact.json").write_text(json.dumps({"record": record}))
    train.run(plan)
    for file in (edits, text):
        before = file.read_bytes()
        file.write_bytes(before * 2)
        with pytest.raises(ValueError, match=rf"was made when {file} had another content: give the changed file another name"):
            train.run(plan)
        file.write_bytes(before)
    train.run(plan)
    (plan.artifact_dir / "artifact.json").write_text(json.dumps({"record": {"curve": []}}))  # an earlier version's
    train.run(plan)
