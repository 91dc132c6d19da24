"""Records and changes of a memory for the tiny model, made by hand."""

from __future__ import annotations

import torch

from errata.delta.memory_delta import MemoryDelta
from errata.edit_memory.bank import Record
from errata.edit_memory.lookup import ANY, unit

SITE = "model.layers.1.mlp.down_proj"
NUM_IN = 96


def a_record(fact: str, seed: int = 0, num_rows: int = 2, threshold: float = 0.9) -> Record:
    """Make a record of rows with random keys; the first row may follow any token, and each other one the token before it."""
    generator = torch.Generator().manual_seed(seed)
    token = torch.randint(3, 20, (num_rows,), generator=generator)
    rows = {
        "key": unit(torch.randn(num_rows, NUM_IN, generator=generator)),
        "token": token,
        "after": torch.cat([torch.tensor([ANY]), token[:-1]]),
        "threshold": torch.full((num_rows,), threshold),
    }
    return Record(fact, f"{fact} -> {seed}", rows)


def a_change(*facts: str, seed: int = 0, dropped: tuple[str, ...] = ()) -> MemoryDelta:
    return MemoryDelta("state", SITE, tuple(a_record(fact, seed + i) for i, fact in enumerate(facts)), dropped)
