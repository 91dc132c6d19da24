"""A ledger with a history, for the engines that read it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from errata.delta.parts import LowRank
from errata.delta.weight_delta import WeightDelta
from errata.editors.state import EditorState
from errata.ledger import Ledger
from tests.unit.conftest import MATRICES


@pytest.fixture
def grown(ledger: Ledger, random_delta: Callable[..., WeightDelta]) -> Ledger:
    """Make a ledger of nine versions and two snapshots; the last version changes one matrix alone."""
    for number in range(8):
        ledger.append(number, random_delta(number), EditorState(), (), {}, ("E", "p"))
    part = LowRank(torch.ones(64, 1), torch.ones(96, 1))
    ledger.append(8, WeightDelta({MATRICES[0]: part}), EditorState(), (), {}, ("E", "p"))
    return ledger
