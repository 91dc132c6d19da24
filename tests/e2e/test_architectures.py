"""Every architecture, served: vLLM says, token for token, what transformers says, before and after swaps and after a rollback.

The engines are one after the other in a process of their own: vLLM changes the classes of transformers that it runs a model by
(Phi), and a model of this process would then no longer work.
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
SERVED = [name for name in ARCHITECTURES if name != "gemma3-wrapped"]  # see `check_architecture` of serving/weight_engine.py


def served_tokens(directory: Path, architecture: str, versions: Sequence[int]) -> list[list[list[int]]]:
    """What an engine over the ledger says at each of `versions`, which it swaps in one after the other; from the base where one
    does not follow the one before."""
    from vllm import ModelRegistry
    from vllm.distributed import cleanup_dist_env_and_memory

    known = ModelRegistry.models[
        architecture
    ]  # known by name: its class would be looked at in a process of its own, for seconds
    ModelRegistry.register_model(architecture, known.load_model_cls())
    served = Served(Ledger.open(directory), max_model_len=MAX_TOKENS, kv_cache_memory_bytes=KV_CACHE_BYTES)
    said = []
    for version in versions:
        if version != served.version:
            served.swap(version, reset=version != served.version + 1)
        said.append(served.tokens())
    del served
    gc.collect()
    cleanup_dist_env_and_memory()
    return said


@pytest.fixture(scope="module")
def engines() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize("name", SERVED)
def test_tokens_equal_before_and_after_swaps_and_after_rollback(
    name: str, tmp_path: Path, engines: ProcessPoolExecutor
) -> None:
    """Every matrix of a block alone, then parts of fused groups in two blocks, then all at once."""
    architecture = ARCHITECTURES[name]
    names = [[architecture.name(matrix)] for matrix in architecture.matrices]
    names.append([architecture.name(matrix, block) for block in (0, 2) for matrix in architecture.matrices[::2]])
    names.append([architecture.name(matrix) for matrix in architecture.matrices])
    reference = Reference(tmp_path, save_tiny(name, tmp_path / "model"), architecture.matrices)
    said = [reference.tokens()]
    for seed, group in enumerate(names):
        reference.merge(reference.append(*group, seed=seed))
        said.append(reference.tokens())
    versions = [*range(len(said)), 1, 0, len(said) - 1]
    (class_name,) = reference.model.module.config.architectures
    found = engines.submit(served_tokens, reference.ledger.directory, class_name, versions).result()
    assert [tokens == said[version] for tokens, version in zip(found, versions, strict=True)] == [True] * len(versions)
    assert min(num_changed(after, before) for before, after in pairwise(said)) >= 20
