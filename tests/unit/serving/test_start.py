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
        start.main(["127.0.0.1", "1", "model"])


@pytest.mark.parametrize(
    ("model", "says"), [("/none/a.gguf", "model: /none/a.gguf cannot be read"), ("/none", "model: /none is no folder")]
)
def test_a_model_that_cannot_be_served_is_named_before_ray_is_needed(model: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        start.main(["127.0.0.1", "1", f"model={model}", f"ledger={tmp_path}", "editor=FT-L"])


def test_the_application_is_built_without_vllm() -> None:
    """The process that deploys it would wait seconds for the import."""
    code = "import sys, serving.start; sys.exit(bool({'vllm', 'transformers', 'mlflow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0
