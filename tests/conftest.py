"""The environment of every test: no network, no usage reports, no token for Ray nor an ear for others, and a small KV cache.

And a random Llama so small that a test takes milliseconds, its tokenizer that of a world of 20 people.
"""

import os
from pathlib import Path

import pytest
import torch

from errata.local.services import LOOPBACK
from errata.model.language_model import LanguageModel, load
from errata.testbed.language_model import Shape, make_model, make_tokenizer, save
from errata.testbed.world import World

SHAPE = Shape(hidden=64, layers=2, intermediate=96, heads=2, max_tokens=48)

os.environ |= LOOPBACK | {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "TOKENIZERS_PARALLELISM": "false",
    "COLUMNS": "200",  # what commands print is not broken within a path, however long the folders of a test are
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("long") and os.environ.get("FULL", "0") in ("", "0"):
        pytest.skip("a long one: FULL=1 runs it")


torch.set_num_threads(1)  # models of a few thousand weights: more threads only wait for each other


@pytest.fixture(scope="session")
def world() -> World:
    return World(20)


@pytest.fixture(scope="session")
def model_dir(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    tokenizer = make_tokenizer(world, SHAPE)
    save(make_model(SHAPE, len(tokenizer), seed=0), tokenizer, directory)
    return directory


@pytest.fixture
def tiny_model(model_dir: Path) -> LanguageModel:
    """Loaded anew for each test, because generators edit it in place."""
    return load(model_dir)
