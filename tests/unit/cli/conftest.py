"""A service on a real port for the commands, and short waits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from errata.cli import console, import_file
from errata.client import retries
from tests.fakes.backend import version
from tests.fakes.served import Service, serving


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "PAUSE_S", 0.05)
    for module in (console, import_file):
        monkeypatch.setattr(module, "RETRY_S", 0.5)
    for name in ("ERRATA_KEY", "ERRATA_KEYS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    with serving(tmp_path) as running:
        monkeypatch.setenv("ERRATA_URL", running.url)
        yield running


@pytest.fixture
def one_version(service: Service) -> str:
    """Address of a service whose live version is 1."""
    service.backend.chain.append(version(1))
    service.backend.head = 1
    return service.url
