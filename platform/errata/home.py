"""Where models, artifacts, ledgers and reports are kept."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """$ERRATA_HOME, else ~/.cache/errata."""
    return Path(os.environ.get("ERRATA_HOME") or Path.home() / ".cache" / "errata").absolute()
