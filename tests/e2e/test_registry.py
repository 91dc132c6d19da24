"""The mirror against a real MLflow server: one for the module, and one that is killed, stopped and started again."""

from __future__ import annotations

import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from errata.delta.parts import LowRank
from errata.delta.weight_delta import WeightDelta
from errata.edit import Code, Edit, EditRejected
from errata.editors.state import EditorState
from errata.ledger import Ledger
from errata.local.services import LocalServices, free_port
from errata.registry import Registry, RegistryConflict, RegistryUnavailable

pytestmark = pytest.mark.e2e

# In a fresh process, because MLflow resolves `models:/` with a tracking address that is global to the process.
FETCH = "import sys, mlflow; mlflow.artifacts.download_artifacts('models:/' + sys.argv[1], dst_path=sys.argv[2])"


def start_mlflow(directory: Path, port: int) -> LocalServices:
    services = LocalServices(directory, mlflow_port=port)
    services.start_mlflow()
    services.wait_mlflow()
    return services


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.create(tmp_path / "ledger", {"model": "m", "fingerprint": "base", "matrices": ["x"]})


def append(ledger: Ledger, efficacy: float = 0.5) -> None:
    number = ledger.newest + 1
    delta = WeightDelta({"x": LowRank(torch.full((3, 1), float(number)), torch.ones(2, 1))})
    card = {"efficacy": efficacy, "locality": None, "num_edits": 1, "method": "free"}
    ledger.append(ledger.head, delta, EditorState(number), [Edit(f"p{number}", "t", id=str(number))], card, ("RLEdit", "plan"))


def test_every_version_is_mirrored_once_and_the_alias_follows_the_head(uri, ledger, tmp_path):
    registry = Registry(uri, "facts")
    assert registry.versions() == []
    append(ledger)
    append(ledger, efficacy=0.75)
    assert registry.mirror(ledger).added == 2
    assert Registry(uri, "facts").mirror(ledger).added == 0
    found = registry.versions()
    assert [(row["version"], row["mlflow_version"], row["aliases"]) for row in found] == [(1, 1, []), (2, 2, ["serving"])]
    assert [row["fingerprint"] for row in found] == [version.fingerprint for version in ledger.versions()[1:]]
    assert found[1]["tags"]["errata.parent"] == "1"
    assert found[1]["tags"]["errata.editor"] == "RLEdit"
    ledger.move_head(1)
    assert registry.mirror(ledger).added == 0
    assert [row["aliases"] for row in registry.versions()] == [["serving"], []]
    append(ledger)
    assert registry.mirror(ledger).added == 1
    assert registry.versions()[2]["aliases"] == ["serving"]
    ledger.move_head(0)
    assert registry.mirror(ledger).serving is None
    assert [row["aliases"] for row in registry.versions()] == [[], [], []]


def test_a_version_can_be_downloaded_from_mlflow(uri, ledger, tmp_path):
    from mlflow import MlflowClient

    append(ledger, efficacy=0.75)
    registry = Registry(uri, "download")
    registry.mirror(ledger)
    row = registry.versions()[0]
    model = MlflowClient(uri).get_logged_model(row["model_id"])
    assert (model.status.value, model.tags["errata.version"]) == ("READY", "1")
    scores = {metric.key: metric.value for metric in model.metrics}
    assert scores.items() >= {"efficacy": 0.75, "num_edits": 1.0, "num_bytes": 20.0, "rank/x": 1.0}.items()
    assert "locality" not in scores
    folder = tmp_path / "fetched"
    subprocess.run(
        [sys.executable, "-c", FETCH, row["model_id"], str(folder)], check=True, env={**os.environ, "MLFLOW_TRACKING_URI": uri}
    )
    assert WeightDelta.load(folder / "delta.safetensors").digest() == ledger.delta(1).digest()
    assert json.loads((folder / "entry.json").read_text())["number"] == 1
    assert (folder / "edits.jsonl").exists()
    assert not (folder / "state.safetensors").exists()


def test_the_pages_of_mlflow(uri, ledger, tmp_path):
    from mlflow import MlflowClient

    append(ledger)
    append(ledger, efficacy=0.75)
    ledger.refuse(2, Edit("bad prompt", "t"), EditRejected("too large", code=Code.EDITOR_FAILED))
    ledger.move_head(1)
    registry = Registry(uri, "shown")
    registry.mirror(ledger)
    registry.mirror(ledger)
    client = MlflowClient(uri)
    model = client.get_registered_model("shown")
    assert (model.tags, model.aliases) == ({"errata.live_version": "1", "errata.behind": "0"}, {"serving": "1"})
    version = client.get_model_version("shown", "2")
    assert version.status == "READY"
    assert "follows version 1: 1 edit, " in version.description
    assert "| p2 | t |" in version.description
    logged = client.get_logged_model(registry.versions()[1]["model_id"])
    assert logged.params == {"editor": "RLEdit", "plan": "plan", "parent": "1", "num_edits": "1"}
    files = {file.path: file.file_size for file in client.list_logged_model_artifacts(logged.model_id)}
    assert sorted(files) == ["delta.safetensors", "edits.csv", "edits.jsonl", "entry.json"]
    assert min(files.values()) > 0
    [run] = [row["id"] for row in registry.runs() if row["tags"].get("errata.mirror") == "shown"]
    assert [(m.step, m.value) for m in client.get_metric_history(run, "efficacy")] == [(1, 0.5), (2, 0.75)]
    assert [(m.step, m.value) for m in client.get_metric_history(run, "live_version")] == [(1, 1), (2, 2), (2, 1)]
    table = Path(client.download_artifacts(run, "refusals/refusals-000000.csv", str(tmp_path))).read_text()
    assert table.splitlines()[1].startswith("bad prompt,t,too large,editor_failed,")


class Meddled:
    """An MlflowClient that calls `action` once, just before its method `name`."""

    def __init__(self, uri: str, name: str, action: Callable[[], None]) -> None:
        from mlflow import MlflowClient

        self._client, self._name, self._action = MlflowClient(uri), name, action

    def __getattr__(self, name: str) -> Any:
        if name == self._name:
            self._name = ""
            self._action()
        return getattr(self._client, name)


def assert_once_in_order(registry: Registry, ledger: Ledger) -> None:
    found = registry.versions()
    assert [row["fingerprint"] for row in found] == [version.fingerprint for version in ledger.versions()[1:]]
    assert sorted(range(len(found)), key=lambda i: found[i]["mlflow_version"]) == list(range(len(found)))
    assert [row["version"] for row in found if row["aliases"]] == [ledger.head]


def client_of(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri, registry_uri=uri)


def of_another_team(uri: str, name: str, what: str) -> None:
    client = client_of(uri)
    if what == "a prompt":
        client.register_prompt(name, "Hello {{who}}")
        return
    client.create_registered_model(name, tags={"team": "fraud"} if what == "tags" else {})
    if what != "tags":
        model_id = client.create_logged_model(client.create_experiment(f"of the team of {name}")).model_id
        client.finalize_logged_model(model_id, "READY")
        client.create_model_version(name, f"models:/{model_id}", model_id=model_id)
    if what == "the alias":
        client.set_registered_model_alias(name, "serving", "1")
    if what == "an archived version":
        client.transition_model_version_stage(name, "1", "Archived")


def contents(uri: str, name: str) -> Any:
    client = client_of(uri)
    models = client.search_registered_models(f"name = '{name}'") or client.search_prompts(f"name = '{name}'")
    versions = [dict(found) for found in client.search_model_versions(f"name = '{name}'")]
    logged = client.search_logged_models([found.experiment_id for found in client.search_experiments()], f"name = '{name}-1'")
    for model in models:
        model._tags.pop("_mlflow_experiment_ids", None)  # MLflow itself sets it on prompts, some time later.
    return [vars(model) for model in models], versions, list(logged)


@pytest.mark.parametrize("what", ["a version", "the alias", "an archived version", "tags", "a prompt"])
def test_what_belongs_to_another_team_stays_as_it_is(uri, ledger, what):
    name = f"fraud-{what.replace(' ', '-')}"
    append(ledger)
    of_another_team(uri, name, what)
    before = contents(uri, name)
    registry = Registry(uri, name)
    for _ in range(2):
        with pytest.raises(RegistryConflict, match=r"another's.* edits go on"):
            registry.mirror(ledger)
    assert contents(uri, name) == before
    if what != "a prompt":
        client_of(uri).set_registered_model_tag(name, "errata.live_version", "")
        assert registry.mirror(ledger).serving == 1


def test_an_empty_registered_model_is_taken(uri, ledger):
    append(ledger)
    client_of(uri).create_registered_model("empty", description="for Errata")
    assert Registry(uri, "empty").mirror(ledger).added == 1
    assert client_of(uri).get_registered_model("empty").description == "for Errata"


def test_what_people_do_to_a_mirror_is_mended_or_left_alone(uri, ledger):
    client, registry = client_of(uri), Registry(uri, "mended")
    append(ledger)
    append(ledger)
    registry.mirror(ledger)
    client.transition_model_version_stage("mended", "2", "Archived")
    client.set_registered_model_alias("mended", "serving", "1")
    client.set_registered_model_alias("mended", "champion", "1")
    client.delete_registered_model_tag("mended", "errata.live_version")
    client.copy_model_version("models:/mended/1", "mended")
    append(ledger)
    assert registry.mirror(ledger).added == 1
    assert [(row["version"], row["mlflow_version"]) for row in registry.versions()] == [(1, 1), (2, 2), (3, 4)]
    model = client.get_registered_model("mended")
    assert model.aliases == {"serving": "4", "champion": "1"}
    assert model.tags == {"errata.live_version": "3", "errata.behind": "0"}

    client.delete_model_version("mended", "2")
    ledger.move_head(2)
    found = registry.mirror(ledger)
    assert (found.live, found.serving) == (2, 1)
    client.delete_model_version("mended", "4")
    append(ledger)
    assert registry.mirror(ledger).added == 3
    assert [(row["version"], row["mlflow_version"]) for row in registry.versions()] == [(1, 1), (2, 5), (3, 6), (4, 7)]


def test_a_renamed_and_a_deleted_model_are_mirrored_again_and_the_renamed_one_goes_on(uri, ledger):
    client, registry = client_of(uri), Registry(uri, "before")
    append(ledger)
    registry.mirror(ledger)
    client.rename_registered_model("before", "after")
    append(ledger)
    assert registry.mirror(ledger).added == 2
    assert Registry(uri, "after").mirror(ledger).added == 1
    client.delete_registered_model("before")
    append(ledger)
    assert registry.mirror(ledger).added == 3
    assert_once_in_order(registry, ledger)


def test_a_deleted_experiment_and_a_deleted_run(uri, ledger):
    client, registry = client_of(uri), Registry(uri, "gone", experiment="gone")
    append(ledger)
    registry.mirror(ledger)
    [run] = registry.runs()
    client.delete_run(run["id"])
    append(ledger)
    assert registry.mirror(ledger).added == 1
    experiment = client.get_experiment_by_name("gone").experiment_id
    client.delete_experiment(experiment)
    append(ledger)
    for mirror in (registry.mirror, Registry(uri, "gone", experiment="gone").mirror):
        with pytest.raises(RegistryConflict, match=f"'gone' in MLflow is deleted.* --experiment-id {experiment}"):
            mirror(ledger)
    client.restore_experiment(experiment)
    assert registry.mirror(ledger).added == 1
    assert_once_in_order(registry, ledger)


@pytest.mark.parametrize("name", ["a\\b `c`", "é 数", "a#b?c&d=e+f", "a; b -- c AND (d)", "a" * 240, "-"])
def test_a_name_that_the_mirror_takes_works(uri, ledger, name):
    append(ledger)
    registry = Registry(uri, name)
    assert registry.mirror(ledger).serving == 1
    append(ledger)
    assert registry.mirror(ledger).serving == 2
    assert_once_in_order(registry, ledger)


def test_a_server_that_is_down_then_killed_then_stopped_gets_every_version_once(ledger, tmp_path, monkeypatch):
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    append(ledger)
    start = time.monotonic()
    for call in (Registry(uri, "later").mirror, lambda _ledger: Registry(uri, "later").versions()):
        with pytest.raises(RegistryUnavailable):
            call(ledger)
    assert time.monotonic() - start < 10

    server = start_mlflow(tmp_path / "mlflow", port)
    killed = Registry(uri, "later", client=Meddled(uri, "log_model_artifacts", lambda: kill(server)))
    with pytest.raises(RegistryUnavailable):
        killed.mirror(ledger)
    append(ledger)

    server = start_mlflow(tmp_path / "mlflow", port)
    try:
        assert killed.mirror(ledger).added == 2
        assert_once_in_order(killed, ledger)

        append(ledger)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
        stop = Meddled(uri, "create_model_version", lambda: os.killpg(server.processes["mlflow"].pid, signal.SIGSTOP))
        stopped = Registry(uri, "later", client=stop)
        start = time.monotonic()
        with pytest.raises(RegistryUnavailable):
            stopped.mirror(ledger)
        with pytest.raises(RegistryUnavailable):
            stopped.mirror(ledger)
        assert time.monotonic() - start < 20
        os.killpg(server.processes["mlflow"].pid, signal.SIGCONT)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        append(ledger)
        stopped.mirror(ledger)
        Registry(uri, "later").mirror(ledger)
        assert_once_in_order(stopped, ledger)
    finally:
        os.killpg(server.processes["mlflow"].pid, signal.SIGCONT)
        server.stop()


def kill(server: LocalServices) -> None:
    os.killpg(server.processes["mlflow"].pid, signal.SIGKILL)
    server.processes["mlflow"].wait()


class Broken(http.server.BaseHTTPRequestHandler):
    status = 500

    def answer(self) -> None:
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(b"<html>no MLflow</html>")

    do_GET = do_POST = answer

    def log_message(self, *_arguments: Any) -> None:
        pass


@pytest.mark.parametrize("status", [200, 401, 403, 404, 500, 503])
def test_another_server_is_refused_and_nothing_counts_as_mirrored(ledger, status):
    answering = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Answering", (Broken,), {"status": status}))
    threading.Thread(target=answering.serve_forever, daemon=True).start()
    uri = f"http://127.0.0.1:{answering.server_address[1]}"
    try:
        with pytest.raises(RegistryUnavailable, match=uri) as raised:
            Registry(uri, "facts").mirror(ledger)
        advice = {
            401: "MLFLOW_TRACKING_TOKEN",
            403: "MLFLOW_TRACKING_TOKEN",
            404: "MLflow server of version 3",
            500: "answers with an error of the server: too many 500 error responses",
        }
        assert advice.get(status, "") in str(raised.value)
        assert "\n" not in str(raised.value)
    finally:
        answering.shutdown()
        answering.server_close()
    assert not (ledger.directory.parent / "ledger.mlflow.json").exists()


def test_a_silent_server_times_out(ledger, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        registry = Registry(f"http://127.0.0.1:{silent.getsockname()[1]}", "facts")
        start = time.monotonic()
        with pytest.raises(RegistryUnavailable, match="timed out"):
            registry.mirror(ledger)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("uri", ["http://127.0.0.1:1", "http://", "http://no.such.host.invalid", "nonsense://here"])
def test_a_wrong_address_is_named(ledger, uri):
    with pytest.raises(RegistryUnavailable, match=re.escape(uri)):
        Registry(uri, "facts").mirror(ledger)


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
