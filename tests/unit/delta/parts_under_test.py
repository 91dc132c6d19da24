"""A small part of each kind, and random factors."""

from __future__ import annotations

import torch

from errata.delta.parts import Dense, LowRank, Part, Series, Sparse

ROWS, COLUMNS = 6, 5


def a_sparse() -> Sparse:
    return Sparse(torch.tensor([0, 7, 29]), torch.tensor([1.0, -2.0, 0.5]), (ROWS, COLUMNS))


def a_low_rank(rank: int = 2, seed: int = 0) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(ROWS, rank, generator=generator), torch.randn(COLUMNS, rank, generator=generator))


PARTS: dict[str, Part] = {"low_rank": a_low_rank(), "sparse": a_sparse(), "dense": Dense(torch.randn(ROWS, COLUMNS))}
PARTS["series"] = Series((a_low_rank(seed=1), *PARTS.values(), a_low_rank(3, seed=2)))
