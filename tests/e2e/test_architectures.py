"""Parity of vLLM with transformers for every architecture: equal greedy tokens before and after swaps and after a rollback.

By default GPT-2 (transposed, biases) and Gemma 2 (soft caps, sliding windows); Llama 3, whose matrices the engine fuses, is the
model of test_parity.py. FULL=1 adds the other eight, such as Phi 3, whose matrices are fused in the checkpoint.

The engines run one after the other in a process of their own: vLLM changes the classes of transformers by which it runs some
models (Phi), and a model of this process would then no longer work.
"""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

from errata.ledger import Ledger
from tests.e2e.pair import Reference, Served, num_changed
from tests.tiny_models import ARCHITECTURES, MAX_TOKENS, save_tiny

pytestmark = pytest.mark.e2e
KV_CACHE_BYTES = 64 << 20
DEFAULT = ("gpt-2", "gemma2")
# vLLM needs torchvision for a model that reads images too; see `check_architecture` of serving/engine/checkpoint.py.
OTHERS = [name for name in ARCHITECTURES if name not in (*DEFAULT, "gemma3-wrapped")]


def served_tokens(directory: Path, architecture: str, versions: Sequence[int]) -> list[list[list[int]]]:
    """Return an engine's tokens at each of `versions` of the ledger, swapped in one after the other.

    A version that does not follow the one before it is reached from the base model.
    """
    from vllm import ModelRegistry
    from vllm.distributed import cleanup_dist_env_and_memory

    # Registered as a loaded class, because vLLM inspects a class that it knows by name in a process of its own, for seconds.
    known = ModelRegistry.models[architecture]
    ModelRegistry.register_model(architecture, known.load_model_cls())
    served = Served(Ledger.open(directory), max_model_len=MAX_TOKENS, kv_cache_memory_bytes=KV_CACHE_BYTES)
    found = []
    for version in versions:
        if version != served.version:
            served.swap(version, reset=version != served.version + 1)
        found.append(served.tokens())
    del served
    gc.collect()
    cleanup_dist_env_and_memory()
    return found


@pytest.fixture(scope="module")
def engines() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize("name", [*DEFAULT, *(pytest.param(name, marks=pytest.mark.long) for name in OTHERS)])
def test_tokens_are_equal_before_and_after_swaps_and_after_rollback(
    name: str, tmp_path: Path, engines: ProcessPoolExecutor
) -> None:
    """Every matrix of a block alone, then parts of fused groups in two blocks, then all matrices of a block."""
    architecture = ARCHITECTURES[name]
    names = [[architecture.name(matrix)] for matrix in architecture.matrices]
    names.append([architecture.name(matrix, block) for block in (0, 2) for matrix in architecture.matrices[::2]])
    names.append([architecture.name(matrix) for matrix in architecture.matrices])
    reference = Reference(tmp_path, save_tiny(name, tmp_path / "model"), architecture.matrices)
    expected = [reference.tokens()]
    for seed, group in enumerate(names):
        reference.merge(reference.append_random(*group, seed=seed))
        expected.append(reference.tokens())
    versions = [*range(len(expected)), 1, 0, len(expected) - 1]
    (class_name,) = reference.model.module.config.architectures
    found = engines.submit(served_tokens, reference.ledger.directory, class_name, versions).result()
    assert [tokens == expected[version] for tokens, version in zip(found, versions, strict=True)] == [True] * len(versions)
    assert min(num_changed(after, before) for before, after in pairwise(expected)) >= 20
