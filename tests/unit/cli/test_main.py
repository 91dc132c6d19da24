"""The application: its help, and what importing it loads."""

from __future__ import annotations

import subprocess
import sys

from tests.unit.cli.invoke import errata


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    code = "import sys, errata.cli; print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert not {"torch", "transformers", "httpx", "httpx_sse", "ray", "psutil", "pyarrow", "numpy"} & loaded
    shown = errata("--help").output
    assert "convert" in errata("data", "--help").output
    for name in ("serve", "stop", "import", "watch", "diff", "revert", "blame", "report", "score", "bench", "data", "keys"):
        assert f" {name} " in shown
