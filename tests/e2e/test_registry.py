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
from collections.abc import Callable, Iterator
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
from errata.registry import Registry, RegistryUnavailable

pytestmark = pytest.mark.e2e

# In a fresh process, because MLflow resolves `models:/` with a tracking address that is global to the process.
FETCH = "import sys, mlflow; mlflow.artifacts.download_artifacts('models:/' + sys.argv[1], dst_path=sys.argv[2])"


def start_mlflow(directory: Path, port: int) -> LocalServices:
    services = LocalServices(directory, mlflow_port=port)
    services.start_mlflow()
    services.wait_mlflow()
    return services


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    with start_mlflow(tmp_path_factory.mktemp("mlflow"), port) as services:
        yield services.mlflow_url


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
    assert registry.mirror(ledger).added == 3
    assert Registry(uri, "facts").mirror(ledger).added == 0
    found = registry.versions()
    assert [(row["version"], row["aliases"]) for row in found] == [(0, []), (1, []), (2, ["serving"])]
    assert [row["fingerprint"] for row in found] == [version.fingerprint for version in ledger.versions()]
    assert found[2]["tags"]["errata.parent"] == "1"
    assert found[2]["tags"]["errata.editor"] == "RLEdit"
    ledger.move_head(1)
    assert registry.mirror(ledger).added == 0
    assert [row["aliases"] for row in registry.versions()] == [[], ["serving"], []]
    append(ledger)
    assert registry.mirror(ledger).added == 1
    assert registry.versions()[3]["aliases"] == ["serving"]


def test_a_version_can_be_downloaded_from_mlflow(uri, ledger, tmp_path):
    from mlflow import MlflowClient

    append(ledger, efficacy=0.75)
    registry = Registry(uri, "download")
    registry.mirror(ledger)
    row = registry.versions()[1]
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
    assert (model.tags, model.aliases) == ({"errata.live_version": "1", "errata.behind": "0"}, {"serving": "2"})
    version = client.get_model_version("shown", "3")
    assert version.status == "READY"
    assert "follows version 1: 1 edit, " in version.description
    assert "| p2 | t |" in version.description
    logged = client.get_logged_model(registry.versions()[2]["model_id"])
    assert logged.params == {"editor": "RLEdit", "plan": "plan", "parent": "1", "num_edits": "1"}
    files = {file.path: file.file_size for file in client.list_logged_model_artifacts(logged.model_id)}
    assert sorted(files) == ["delta.safetensors", "edits.csv", "edits.jsonl", "entry.json"]
    assert min(files.values()) > 0
    [run] = [row["id"] for row in registry.runs() if row["tags"].get("errata.mirror") == "shown"]
    assert [(m.step, m.value) for m in client.get_metric_history(run, "efficacy")] == [(1, 0.5), (2, 0.75)]
    assert [(m.step, m.value) for m in client.get_metric_history(run, "live_version")] == [(0, 0), (1, 1), (2, 2), (2, 1)]
    table = Path(client.download_artifacts(run, "refusals/refusals-000000.csv", str(tmp_path))).read_text()
    assert table.splitlines()[1].startswith("bad prompt,t,too large")


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
    assert [row["fingerprint"] for row in found] == [version.fingerprint for version in ledger.versions()]
    assert sorted(range(len(found)), key=lambda i: found[i]["mlflow_version"]) == list(range(len(found)))
    assert [row["version"] for row in found if row["aliases"]] == [ledger.head]


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
        assert killed.mirror(ledger).added == 3
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


@pytest.mark.parametrize("status", [200, 404, 500, 503])
def test_another_server_is_refused_and_nothing_counts_as_mirrored(ledger, status):
    answering = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Answering", (Broken,), {"status": status}))
    threading.Thread(target=answering.serve_forever, daemon=True).start()
    uri = f"http://127.0.0.1:{answering.server_address[1]}"
    try:
        with pytest.raises(RegistryUnavailable, match=uri):
            Registry(uri, "facts").mirror(ledger)
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
