"""A ledger of versions with one small matrix."""

from __future__ import annotations

from pathlib import Path

import pytest

from errata.ledger import Ledger
from tests.unit.registry.mirroring import MATRIX


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.create(tmp_path / "ledger", {"model": "m", "fingerprint": "base", "matrices": [MATRIX]})
