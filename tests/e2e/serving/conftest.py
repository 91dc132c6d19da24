"""One application for all tests of this folder: an engine takes most of a minute to start."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from errata.ledger import Ledger
from tests.e2e.serving.application import App
from tests.e2e.toy import make_checkpoint

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="package")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    import ray
    from ray import serve

    from serving.app import build

    directory = tmp_path_factory.mktemp("serving")
    os.environ["PYTHONPATH"] = str(ROOT)  # for the editor that stands beside this file
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="errata-", ignore_cleanup_errors=True) as temp:  # sockets: short names
        ray.init(address="local", num_cpus=4, include_dashboard=False, _temp_dir=temp, log_to_driver=False)
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        model, ledger = make_checkpoint(directory / "model"), directory / "ledger"
        arguments = {"model": str(model), "ledger": str(ledger), "editor": "tests.e2e.toy:Toy", "max_batch": 4}
        serve.run(build(arguments), name="errata", route_prefix="/")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            yield App(client, Ledger.open(ledger))
        serve.shutdown()
        ray.shutdown()
