"""The folder of models, artifacts, ledgers and reports."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """Return $ERRATA_HOME, or ~/.cache/errata if it is not set."""
    return Path(os.environ.get("ERRATA_HOME") or Path.home() / ".cache" / "errata").absolute()
