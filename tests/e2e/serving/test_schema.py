"""Valid and invalid requests that are generated from the OpenAPI document; FULL=1 makes more than 5,000."""

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
# A schema cannot express every rule (a subject is part of its prompt), and Starlette's 405 names one route's methods.
UNFIT = "positive_data_acceptance,allow_header_conformance"
# Schemathesis does not expect that a body is refused for its size before it is parsed.
SETTINGS = """
[checks]
negative_data_rejection.expected-statuses = [400, 404, 405, 413, 415, 422]
"""


def generated(app: App, folder: Path, *options: str) -> tuple[int, str]:
    """Run Schemathesis and return the number of requests and its output; a finding fails the test."""
    (folder / "schemathesis.toml").write_text(SETTINGS)
    command = [str(Path(sys.executable).parent / "schemathesis"), "run", f"{app.http.base_url}/openapi.json", "--seed", "1"]
    command += ["--no-color", "--generation-database", "none", "--exclude-path-regex", "events$", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    found = re.search(r"([\d,]+) generated", said)
    assert done.returncode == 0 and found is not None, said[-6000:]
    return int(found[1].replace(",", "")), said


def test_our_routes_conform_to_their_document(app: App, tmp_path: Path) -> None:
    """Codes, content types and bodies are as documented, and no answer is a server error."""
    ours = ["--include-tag", "errata", "--exclude-checks", UNFIT, "-n", "600" if IS_FULL else "15"]
    count, _ = generated(app, tmp_path, *ours)
    print(f"\n{count} requests to our routes")
    assert count >= (5000 if IS_FULL else 300)
    eventually(lambda: app.http.get("/ready").is_success, 30)


def test_no_request_is_a_server_error_of_the_engines_routes(app: App, tmp_path: Path) -> None:
    theirs = ["--exclude-tag", "errata", "--checks", "not_a_server_error", "-n", "100" if IS_FULL else "5"]
    count, _ = generated(app, tmp_path, *theirs, "--max-time", "300" if IS_FULL else "15", "--request-timeout", "60")
    print(f"\n{count} requests to the engine's routes")
    assert count >= 50
    eventually(lambda: app.http.get("/ready").is_success, 30)
