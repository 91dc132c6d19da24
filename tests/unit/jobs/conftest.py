"""The folder of results of a job under test."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    monkeypatch.delenv("ERRATA_STORAGE", raising=False)
    return tmp_path
