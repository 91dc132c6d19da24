"""The mirror against a real MLflow server; one server for the module."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from errata.delta import LowRank, WeightDelta
from errata.edit import Edit
from errata.editors.editor import EditorState
from errata.ledger import Ledger
from errata.registry import Registry, RegistryUnavailable, start_server, stop_server

pytestmark = pytest.mark.e2e

# In a process of its own: MLflow resolves `models:/` with a tracking address that is global to the process.
FETCH = "import sys, mlflow; mlflow.artifacts.download_artifacts('models:/' + sys.argv[1], dst_path=sys.argv[2])"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    server = start_server(tmp_path_factory.mktemp("mlflow"), port)
    yield f"http://127.0.0.1:{port}"
    stop_server(server)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.create(tmp_path / "ledger", {"model": "m", "fingerprint": "base", "matrices": ["x"]})


def append(ledger: Ledger, efficacy: float = 0.5) -> None:
    number = ledger.newest + 1
    delta = WeightDelta({"x": LowRank(torch.full((3, 1), float(number)), torch.ones(2, 1))})
    card = {"efficacy": efficacy, "locality": None, "num_edits": 1, "method": "free"}
    ledger.append(ledger.head, delta, EditorState(number), [Edit("p", "t", id=str(number))], card, "RLEdit", "plan")


def test_every_version_is_mirrored_once_and_the_alias_follows_the_head(uri, ledger, tmp_path):
    registry = Registry(uri, "facts")
    assert registry.versions() == []
    append(ledger)
    append(ledger, efficacy=0.75)
    assert registry.mirror(ledger) == 3
    assert Registry(uri, "facts").mirror(ledger) == 0
    found = registry.versions()
    assert [(row["version"], row["aliases"]) for row in found] == [(0, []), (1, []), (2, ["serving"])]
    assert [row["fingerprint"] for row in found] == [version.fingerprint for version in ledger.versions()]
    assert found[2]["tags"]["errata.parent"] == "1"
    assert found[2]["tags"]["errata.editor"] == "RLEdit"
    ledger.move_head(1)
    assert registry.mirror(ledger) == 0
    assert [row["aliases"] for row in registry.versions()] == [[], ["serving"], []]
    append(ledger)
    assert registry.mirror(ledger) == 1
    assert registry.versions()[3]["aliases"] == ["serving"]


def test_a_version_can_be_had_from_mlflow_alone(uri, ledger, tmp_path):
    from mlflow import MlflowClient

    append(ledger, efficacy=0.75)
    registry = Registry(uri, "download")
    registry.mirror(ledger)
    row = registry.versions()[1]
    model = MlflowClient(uri).get_logged_model(row["model_id"])
    assert (model.status.value, model.tags["errata.version"]) == ("READY", "1")
    assert {metric.key: metric.value for metric in model.metrics} == {"efficacy": 0.75, "num_edits": 1.0}
    folder = tmp_path / "fetched"
    subprocess.run(
        [sys.executable, "-c", FETCH, row["model_id"], str(folder)], check=True, env={**os.environ, "MLFLOW_TRACKING_URI": uri}
    )
    assert WeightDelta.load(folder / "delta.safetensors").digest() == ledger.delta(1).digest()
    assert json.loads((folder / "entry.json").read_text())["number"] == 1
    assert (folder / "edits.jsonl").exists()
    assert not (folder / "state.safetensors").exists()


def test_an_interrupted_mirror_is_finished_without_doubles(uri, ledger, monkeypatch):
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    append(ledger)
    registry = Registry(uri, "interrupted")

    def fail(*_args, **_kwargs):
        raise MlflowException("gone")

    monkeypatch.setattr(MlflowClient, "create_model_version", fail)
    with pytest.raises(RegistryUnavailable, match="gone"):
        registry.mirror(ledger)
    monkeypatch.undo()
    assert registry.mirror(ledger) == 2
    assert [row["version"] for row in registry.versions()] == [0, 1]
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("errata").experiment_id
    models = client.search_logged_models([experiment])
    assert sorted(m.name for m in models if m.name.startswith("interrupted")) == ["interrupted-0", "interrupted-1"]


def test_a_server_that_is_down_is_found_out_soon_and_caught_up_with_later(ledger, tmp_path):
    port = free_port()
    registry = Registry(f"http://127.0.0.1:{port}", "later")
    append(ledger)
    start = time.monotonic()
    with pytest.raises(RegistryUnavailable):
        registry.mirror(ledger)
    with pytest.raises(RegistryUnavailable):
        registry.versions()
    assert time.monotonic() - start < 10
    server = start_server(tmp_path / "mlflow", port)
    try:
        assert registry.mirror(ledger) == 2
    finally:
        stop_server(server)


def test_a_training_run_is_recorded(uri, tmp_path):
    from mlflow import MlflowClient

    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "net.txt").write_text("weights")
    registry = Registry(uri, "facts", experiment="training")
    with registry.training_run("train", {"lr": 0.1}, {"plan": "small"}) as run:
        run.log({"loss": 2.0}, step=0)
        run.log({"loss": 1.0}, step=1)
        run.artifact(tmp_path / "artifact", "editor")
    with pytest.raises(KeyError), registry.training_run("broken", {}) as broken:
        raise KeyError
    client = MlflowClient(uri)
    found = client.get_run(run.run_id)
    assert (found.info.status, found.data.params, found.data.tags["plan"]) == ("FINISHED", {"lr": "0.1"}, "small")
    assert [metric.value for metric in client.get_metric_history(run.run_id, "loss")] == [2.0, 1.0]
    assert [file.path for file in client.list_artifacts(run.run_id, "editor")] == ["editor/net.txt"]
    assert client.get_run(broken.run_id).info.status == "FAILED"
