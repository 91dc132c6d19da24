"""MLflow runs of jobs: one finished run per result, with what is needed to repeat it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from errata.model.language_model import checkpoint_fingerprint
from errata.provenance import data_digest
from errata.registry import Registry, RegistryUnavailable, TrainingRun
from errata.testbed import language_model as testbed
from jobs import bench, moments, pretrain, training_data
from jobs.arguments import from_arguments
from jobs.bench import metric_name
from jobs.mlflow_run import RESULT_TAG, log_run, made_from, params_of
from jobs.plan_json import read_plan
from jobs.plans import tiny
from jobs.suites import from_arguments as suite_from


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """MLflow store in a file. Artifacts go to the working directory of the process that creates the experiment."""
    folder, before = tmp_path_factory.mktemp("mlflow"), Path.cwd()
    os.chdir(folder)
    yield f"sqlite:///{folder}/mlflow.db"
    os.chdir(before)


def runs_of(uri: str, result: str) -> list[Any]:
    client = MlflowClient(uri)
    (experiment,) = [found for found in client.search_experiments() if found.name == "errata"]
    return list(client.search_runs([experiment.experiment_id], f"tags.`{RESULT_TAG}` = '{result}'"))


def artifact(uri: str, run: Any, path: str) -> Path:
    return Path(MlflowClient(uri).download_artifacts(run.info.run_id, path))


def test_a_run_can_be_repeated_from_its_artifacts(uri: str, home: Path, model_dir: Path, tmp_path: Path) -> None:
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


def test_a_job_that_is_started_again_logs_one_run(uri: str, home: Path) -> None:
    plan = replace(tiny(), mlflow=uri)
    assert log_run("train", "two", plan, {}) and not log_run("train", "two", plan, {})
    assert len(runs_of(uri, "two")) == 1


def test_an_interrupted_run_is_replaced(uri: str, home: Path) -> None:
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


def test_a_result_of_other_code_has_its_own_run(uri: str, home: Path) -> None:
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


def test_nothing_is_logged_without_mlflow_and_an_unreachable_server_is_named(home: Path) -> None:
    assert not log_run("train", "four", tiny(), {})
    with pytest.raises(RegistryUnavailable, match=r"127\.0\.0\.1:1"):
        log_run("train", "four", replace(tiny(), mlflow="http://127.0.0.1:1"), {})


def test_pretraining_logs_the_models_provenance(uri: str, home: Path) -> None:
    plan = replace(tiny(), mlflow=uri)
    tokenizer = testbed.make_tokenizer(plan.corpus, plan.shape)
    pretrain.finish(plan, testbed.make_model(plan.shape, len(tokenizer), 0), tokenizer, plan.corpus, made_from(plan))
    for _ in range(2):  # as if the job was started twice
        pretrain.run(plan)
    (run,) = runs_of(uri, f"model-{plan.model_dir.name}")
    record = json.loads((plan.model_dir / pretrain.RECORD).read_text())
    assert run.data.metrics == {"recall": record["recall"]} and run.data.tags["errata.data.text"] == "world-20"
    (plan.model_dir / pretrain.RECORD).unlink()
    pretrain.run(plan)  # a model of an earlier version has no record


def test_moments_log_their_provenance(uri: str, home: Path, tmp_path: Path) -> None:
    record = {"num_tokens": 7, "seconds": 0.5, "provenance": made_from(tiny())}
    (tmp_path / "m-7t").mkdir()
    (tmp_path / "m-7t" / "moments.json").write_text(json.dumps(record))
    measured = moments.Measurement(replace(tiny(), mlflow=uri), ("layers.1.mlp.down_proj",))
    moments.log_to_mlflow(measured, tmp_path / "m-7t")
    (run,) = runs_of(uri, "m-7t")
    assert run.data.metrics == {"num_tokens": 7, "seconds": 0.5} and run.data.params["texts"] == "100000"


def test_params_have_the_names_of_the_command_line() -> None:
    params = params_of(tiny())
    own = {name: str(value) for name, value in params.items() if name in ("schedule.train_steps", "editor.rank", "seed")}
    assert from_arguments(["plan=tiny", *(f"{name}={value}" for name, value in own.items())]) == tiny()
    assert "editor.policy" not in params


def test_editor_names_become_names_of_metrics(uri: str) -> None:
    with Registry(uri, "errata").training_run("names", {}) as run:
        run.log({f"harmonic_mean.{metric_name('O-Edit+ [1/2], train half')}": 0.5}, 1)
    assert metric_name("RLEdit, train half") == "RLEdit_ train half"


def test_a_benchmark_logs_its_suite_and_report(uri: str, home: Path, tmp_path: Path) -> None:
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
