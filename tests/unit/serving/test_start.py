"""The start of the application: its arguments, and the wait for Ray."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from errata.local.services import free_port

start = pytest.importorskip("serving.start")  # Ray


def test_it_waits_until_something_listens() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        threading.Timer(0.3, server.listen).start()
        begin = time.monotonic()
        start.wait_for(f"127.0.0.1:{server.getsockname()[1]}", 10)
        assert time.monotonic() - begin > 0.2


def test_it_says_where_ray_does_not_answer() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(OSError, match=f"Ray does not answer at 127.0.0.1:{closed.getsockname()[1]} after 0 s"):
            start.wait_for(f"127.0.0.1:{closed.getsockname()[1]}", 0.2)


def test_an_argument_of_another_form_is_named() -> None:
    with pytest.raises(ValueError, match="name=value, unlike 'model'"):
        start.prepared(["127.0.0.1", "1", "model"])
    with pytest.raises(SystemExit, match=r"^serving\.start: arguments have the form name=value"):
        start.main(["127.0.0.1", "1", "model"])


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize(
    ("host", "port", "says"),
    [
        ("127.0.0.1", "http", "port: 'http' is no port: give a number"),
        ("127.0.0.1", "70000", "port: '70000' is no port"),
        ("192.0.2.1", "8000", "keys: without keys .*; host: '192.0.2.1' is no address of this machine"),
        ("127.0.0.1", "TAKEN", r"port: another process listens on port \d+ of 127.0.0.1: end it, or give another"),
    ],
)
def test_an_address_that_cannot_be_used_is_named_before_ray_is_needed(host: str, port: str, says: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        given = str(taken.getsockname()[1]) if port == "TAKEN" else port
        with pytest.raises(ValueError, match=says):
            start.prepared([host, given, "model=/none"])


def test_the_port_of_an_earlier_application_on_this_ray_may_be_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as ray:
        ray.bind(("127.0.0.1", 0))
        ray.listen()
        port = str(ray.getsockname()[1])
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        with pytest.raises(ValueError, match="model: /none is no folder") as refused:
            start.prepared(["127.0.0.1", port, "model=/none", f"ledger={tmp_path}", "editor=FT-L"])
    assert "another process" not in str(refused.value)


def test_without_an_address_of_ray_it_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ValueError, match="RAY_ADDRESS is '': set it to the HOST:PORT of `ray start`"):
        start.prepared(["127.0.0.1", "8000", "model=/none"])
    with pytest.raises(ValueError, match="give the address first: HOST PORT"):
        start.prepared(["127.0.0.1"])


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize(
    ("model", "says"), [("/none/a.gguf", "model: /none/a.gguf cannot be read"), ("/none", "model: /none is no folder")]
)
def test_a_model_that_cannot_be_served_is_named_before_ray_is_needed(model: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        start.prepared(["127.0.0.1", "1", f"model={model}", f"ledger={tmp_path}", "editor=FT-L"])


def test_the_application_is_built_without_vllm() -> None:
    """The process that deploys it would wait seconds for the import."""
    code = "import sys, serving.start; sys.exit(bool({'vllm', 'transformers', 'mlflow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0
