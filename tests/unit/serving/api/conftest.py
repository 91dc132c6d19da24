"""Access keys, and an application that requires them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fastapi import FastAPI

from errata.access_keys import Keys, add_key
from tests.unit.serving.api.application import application


@pytest.fixture(scope="module")
def bearers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Keys by role; `expired` was valid once, `unknown` never, `limited` allows two requests a minute. `file` is their file."""
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    made = {role: add_key(file, role, role) for role in ("read", "propose", "edit", "admin")}
    made["expired"] = add_key(file, "expired", "admin", timedelta(days=1))
    made["limited"] = add_key(file, "limited", "read", rate=2)
    data = json.loads(file.read_text())
    long_ago = (datetime.now(UTC) - timedelta(days=2)).isoformat()
    data["keys"] = [{**key, "expires": long_ago} if key["name"] == "expired" else key for key in data["keys"]]
    file.write_text(json.dumps(data))
    return {**made, "unknown": "x" * 43, "file": str(file)}


@pytest.fixture
def app(bearers: dict[str, str], tmp_path: Path) -> FastAPI:
    return application(tmp_path, Keys.load(bearers["file"]))
