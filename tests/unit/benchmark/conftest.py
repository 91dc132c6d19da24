"""The stream of the benchmark's tests."""

import pytest

from errata.benchmark.stream import BenchmarkStream
from errata.testbed.world import World


@pytest.fixture
def stream(world: World) -> BenchmarkStream:
    return BenchmarkStream(
        tuple(world.edits("test", 12)), tuple(world.plain_sentences(held_out=True)[:20]), 5, checkpoints=(1, 5, 99)
    )
