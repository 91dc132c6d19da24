"""The services of one machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from errata.local.services import MLFLOW_NICE, LocalServices, ServiceFailed


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:1"), ("0.0.0.0", "http://127.0.0.1:1"), ("::", "http://[::1]:1"), ("h", "http://h:1")],
)
def test_clients_of_this_machine_get_an_address_that_connects(tmp_path: Path, host: str, url: str) -> None:
    assert LocalServices(tmp_path, http_port=1, http_host=host).url == url


@pytest.mark.parametrize(
    ("printed", "reason"),
    [
        ("Traceback\nValueError: no such model\nbye", "ValueError: no such model"),
        ("(ServeReplica:errata:Generator pid=7) OSError: disk full\nbye", "OSError: disk full"),
        ("Address already in use\n", "Address already in use"),
        ("", "it printed nothing"),
    ],
)
def test_a_failure_has_the_reason_and_the_path_of_the_log(tmp_path: Path, printed: str, reason: str) -> None:
    with LocalServices(tmp_path) as services:
        services.start("serve", "printf", "%s", printed)
        with pytest.raises(ServiceFailed) as failed:
            services.wait("serve", "http://127.0.0.1:9")
    assert str(failed.value) == f"serve ended with exit code 0: {reason}; its log: {tmp_path / 'serve.log'}"


def test_a_service_that_ends_under_another_is_the_reason(tmp_path: Path) -> None:
    with LocalServices(tmp_path) as services:
        services.start("serve", "sleep", "100")
        services.start("ray", "sh", "-c", "echo 'ValueError: no port'; exit 3")
        with pytest.raises(ServiceFailed, match=r"^ray ended with exit code 3: ValueError: no port; its log: .*ray\.log$"):
            services.wait_serve()


def test_mlflow_yields_to_the_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalServices(tmp_path) as services:
        monkeypatch.setattr(LocalServices, "start", lambda self, name, *command: started(self, name))
        services.start_mlflow()
        pid = services.processes["mlflow"].pid
        assert os.getpriority(os.PRIO_PROCESS, pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + MLFLOW_NICE)


def started(services: LocalServices, name: str) -> None:
    services.processes[name] = subprocess.Popen(["sleep", "100"], start_new_session=True)
