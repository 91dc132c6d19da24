"""A random Llama so small that a test takes milliseconds, its tokenizer that of a world of 20 people."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from errata.delta import LowRank, WeightDelta
from errata.ledger import Ledger
from errata.model import LanguageModel, load
from errata.testbed.language_model import Shape, make_model, make_tokenizer, save
from errata.testbed.world import World

MATRICES = ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]
SHAPE = Shape(hidden=64, layers=2, intermediate=96, heads=2, max_tokens=48)


@pytest.fixture(scope="session")
def world() -> World:
    return World(20)


@pytest.fixture(scope="session")
def model_dir(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    tokenizer = make_tokenizer(world, SHAPE.max_tokens)
    save(make_model(SHAPE, len(tokenizer), seed=0), tokenizer, directory)
    return directory


@pytest.fixture
def tiny_model(model_dir: Path) -> LanguageModel:
    """Loaded anew for each test, because generators edit it in place."""
    return load(model_dir)


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
