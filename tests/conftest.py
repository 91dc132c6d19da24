"""The environment of every test, and a random Llama that is so small that a test takes milliseconds.

Tests use no network, send no usage reports, need no token for Ray, listen on the loopback interface only, and have a small KV
cache. The tokenizer is that of a world of 20 people.
"""

import os
import signal
import ssl
from copy import deepcopy
from dataclasses import replace
from functools import cache
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
    "COLUMNS": "200",  # Wide, so that commands do not wrap the long paths of tests.
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("long") and os.environ.get("FULL", "0") in ("", "0"):
        pytest.skip("takes long: FULL=1 runs it")


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # In the background of a shell; what a test starts would ignore it, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # For models of a few thousand weights, threads only wait for each other.
ssl.create_default_context = cache(ssl.create_default_context)  # Each client of httpx would read all certificates for 50 ms.


@pytest.fixture(scope="session")
def world() -> World:
    return World(20)


@pytest.fixture(scope="session")
def model_dir(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    tokenizer = make_tokenizer(world, SHAPE)
    save(make_model(SHAPE, len(tokenizer), seed=0), tokenizer, directory)
    return directory


@pytest.fixture(scope="session")
def loaded(model_dir: Path) -> LanguageModel:
    return load(model_dir)


@pytest.fixture
def tiny_model(loaded: LanguageModel) -> LanguageModel:
    """Copy the model for each test, because generators edit it in place. A copy takes a tenth of the time of `load`."""
    return replace(loaded, module=deepcopy(loaded.module), tokenizer=deepcopy(loaded.tokenizer))
