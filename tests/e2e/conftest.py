"""One home for all jobs of a session, one MLflow server and one running service: an engine takes most of a minute to start.

The service's tests run last and in an order of their own, so that no engine runs beside tests that need the cores: requests
to one replica, then faults with a power failure, then two replicas.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from errata.local.services import LocalServices
from tests.e2e.scalable import ScalableService

ORDER = ("tests/e2e/serving/", "tests/e2e/test_chaos.py", "tests/e2e/test_replicas.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: next((at for at, path in enumerate(ORDER, 1) if item.nodeid.startswith(path)), 0))


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the home of all jobs of a session: the first of them trains the smallest plan's model, the others find it."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start the MLflow server of a session; those that are killed and stopped are the tests' own."""
    with LocalServices(tmp_path_factory.mktemp("mlflow")) as services:
        services.start_mlflow()
        services.wait_mlflow()
        yield services.mlflow_url


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScalableService]:
    service = ScalableService(tmp_path_factory.mktemp("service"), with_mlflow=False)
    try:
        service.start()
        service.until_whole()
        yield service
    finally:
        service.kill_node()
        service.http.close()
