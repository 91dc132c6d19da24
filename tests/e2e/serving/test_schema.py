"""Requests made from the OpenAPI document, valid and not, against the running application: `FULL=1` makes 5,000 and more."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.serving.application import App, eventually

pytestmark = pytest.mark.e2e

IS_FULL = os.environ.get("FULL", "0") not in ("", "0")
# Not every rule can be written in a schema (a subject stands in its prompt), and Starlette's 405 names one route's methods.
UNFIT = "positive_data_acceptance,allow_header_conformance"
# Schemathesis does not think of a body that is refused for its size before it is looked into.
SETTINGS = """
[checks]
negative_data_rejection.expected-statuses = [400, 404, 405, 413, 415, 422]
"""


def generated(app: App, folder: Path, *options: str) -> tuple[int, str]:
    """How many requests Schemathesis made, and what it said. Fails if it found anything."""
    (folder / "schemathesis.toml").write_text(SETTINGS)
    command = [str(Path(sys.executable).parent / "schemathesis"), "run", f"{app.http.base_url}/openapi.json", "--seed", "1"]
    command += ["--no-color", "--generation-database", "none", "--exclude-path-regex", "events$", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    found = re.search(r"([\d,]+) generated", said)
    assert done.returncode == 0 and found is not None, said[-6000:]
    return int(found[1].replace(",", "")), said


def test_our_routes_keep_to_their_document(app: App, tmp_path: Path) -> None:
    """Codes, content types and bodies are as documented, and nothing is a server's error."""
    ours = ["--include-tag", "errata", "--exclude-checks", UNFIT, "-n", "600" if IS_FULL else "15"]
    count, _ = generated(app, tmp_path, *ours)
    print(f"\n{count} requests to our routes")
    assert count >= (5000 if IS_FULL else 300)
    eventually(lambda: app.http.get("/ready").is_success, 30)


def test_the_engines_routes_fail_for_nothing_that_is_sent(app: App, tmp_path: Path) -> None:
    theirs = ["--exclude-tag", "errata", "--checks", "not_a_server_error", "-n", "100" if IS_FULL else "5"]
    count, _ = generated(app, tmp_path, *theirs, "--max-time", "300" if IS_FULL else "25", "--request-timeout", "60")
    print(f"\n{count} requests to the engine's routes")
    assert count >= 50
    eventually(lambda: app.http.get("/ready").is_success, 30)
