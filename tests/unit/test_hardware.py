"""Peak memory of a piece of work."""

import torch

from errata.hardware import PeakMemory


def test_a_peak_of_memory_is_measured_after_it_was_freed() -> None:
    with PeakMemory() as memory:
        torch.ones(4_000_000).sum()
    assert memory.num_bytes is None or 12_000_000 < memory.num_bytes < 40_000_000
