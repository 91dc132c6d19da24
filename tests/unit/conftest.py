"""A ledger over the tiny model, random changes to it, and the checkpoint of the toy model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from errata.delta.parts import LowRank
from errata.delta.weight_delta import WeightDelta
from errata.ledger import Ledger
from errata.local.terminal import RAY_JOB

MATRICES = ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]


@pytest.fixture
def ledger(model_dir: Path, tmp_path: Path) -> Ledger:
    base = {"model": str(model_dir), "fingerprint": "base", "matrices": MATRICES}
    return Ledger.create(tmp_path / "ledger", base, snapshot_every=4)


@pytest.fixture(scope="session")
def random_delta() -> Callable[..., WeightDelta]:
    def make(seed: int, scale: float = 1.0, rank: int = 2) -> WeightDelta:
        generator = torch.Generator().manual_seed(seed)

        def factor(rows: int) -> torch.Tensor:
            return scale * torch.randn(rows, rank, generator=generator)

        return WeightDelta({name: LowRank(factor(64), factor(96)) for name in MATRICES})

    return make


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the toy model's checkpoint, which no test changes."""
    from tests.e2e.toy import make_checkpoint

    return make_checkpoint(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def output_is_not_redirected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the output in this process, as under `ray job submit`."""
    monkeypatch.setenv(RAY_JOB, "{}")
