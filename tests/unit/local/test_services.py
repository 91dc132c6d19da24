"""The services of one machine."""

from __future__ import annotations

import io
import os
import subprocess
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from ray._private.worker import print_worker_logs
from ray.serve._private import client
from ray.serve._private.application_state import ApplicationStatusInfo, StatusOverview
from ray.serve._private.client import ServeControllerClient
from ray.serve.schema import ApplicationStatus

from errata.local.services import ENVIRONMENT, MLFLOW_NICE, LocalServices, ServiceFailed, _reason_in, free_port


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


def failure_in_ray(message: str) -> str:
    """Return the log of a process in which the installed Ray Serve fails to deploy for the reason `message`."""
    info = ApplicationStatusInfo(ApplicationStatus.DEPLOY_FAILED, message)
    status = StatusOverview(name="errata", app_status=info).to_proto().SerializeToString()
    serve_client = object.__new__(ServeControllerClient)
    serve_client._controller = SimpleNamespace(get_serve_status=SimpleNamespace(remote=lambda name: status))
    with pytest.MonkeyPatch.context() as patched, pytest.raises(RuntimeError) as failed:
        patched.setattr(client.ray, "get", lambda found: found)
        serve_client._wait_for_application_running("errata")
    return "".join(traceback.format_exception(failed.value))


def test_the_wrapper_of_ray_serve_is_not_the_reason() -> None:
    message = "ray::ServeReplica:errata:Generator.initialize()\nValueError: no such model"
    assert _reason_in(failure_in_ray(message)) == "ValueError: no such model"
    wrapped = failure_in_ray("The deployment failed to start 3 times in a row.")
    assert _reason_in(f"(ServeReplica pid=7) ValueError: no such model\n{wrapped}") == "ValueError: no such model"
    assert _reason_in(wrapped) == wrapped.splitlines()[-1], "without an error of the replica, the last line"


@pytest.mark.parametrize("color", ["0", "1"])
def test_the_name_that_ray_puts_before_a_line_is_not_part_of_the_reason(monkeypatch: pytest.MonkeyPatch, color: str) -> None:
    monkeypatch.setenv("RAY_COLOR_PREFIX", color)
    printed = io.StringIO()
    lines = ["Traceback (most recent call last):", "ValueError: no such model"]
    data = {"ip": "10.0.0.1", "pid": 7, "actor_name": "ServeReplica:errata:Generator", "lines": lines}
    print_worker_logs({**data, "localhost": "10.0.0.1"}, printed)
    print_worker_logs({**data, "localhost": "10.0.0.2", "lines": ["bye"]}, printed)
    assert "pid=" in printed.getvalue() and _reason_in(printed.getvalue()) == "ValueError: no such model"


def test_a_service_that_ends_under_another_is_the_reason(tmp_path: Path) -> None:
    with LocalServices(tmp_path) as services:
        services.start("serve", "sleep", "100")
        services.start("ray", "sh", "-c", "echo 'ValueError: no port'; exit 3")
        with pytest.raises(ServiceFailed, match=r"^ray ended with exit code 3: ValueError: no port; its log: .*ray\.log$"):
            services.wait_serve()


def test_a_service_is_waited_for_with_one_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client reads the certificates when it is made, which takes 50 ms of a core that the service needs."""
    made: list[httpx.Client] = []

    class Counted(httpx.Client):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            made.append(self)

    monkeypatch.setattr(httpx, "Client", Counted)
    with LocalServices(tmp_path) as services:
        started(services, "late")
        services.log("late").write_text("")
        with pytest.raises(ServiceFailed, match="did not answer"):
            services.wait("late", f"http://127.0.0.1:{free_port()}/", timeout_s=0.5)
    assert len(made) == 1


def test_mlflow_yields_to_the_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalServices(tmp_path) as services:
        monkeypatch.setattr(LocalServices, "start", lambda self, name, *command: started(self, name))
        services.start_mlflow()
        pid = services.processes["mlflow"].pid
        assert os.getpriority(os.PRIO_PROCESS, pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + MLFLOW_NICE)


def started(services: LocalServices, name: str) -> None:
    services.processes[name] = subprocess.Popen(["sleep", "100"], start_new_session=True)


def test_beyond_this_machine_ray_asks_for_a_token(tmp_path: Path) -> None:
    here, there, other = (LocalServices(tmp_path, http_host=host) for host in ("127.0.0.1", "0.0.0.0", "h"))
    assert here.environment["RAY_AUTH_MODE"] == "disabled" and "RAY_AUTH_TOKEN" not in ENVIRONMENT
    for services in (there, other):
        assert services.environment["RAY_AUTH_MODE"] == "token" and len(services.environment["RAY_AUTH_TOKEN"]) == 64
        assert services.ray_token not in repr(services)
    assert there.ray_token != other.ray_token
