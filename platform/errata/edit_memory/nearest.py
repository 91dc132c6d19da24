"""Search for the rows whose cosine with a vector reaches a threshold of their own: what a full search finds, in less time.

A product with all dimensions reads the whole table. Here the rows are rotated so that their first D dimensions hold as much of
their length as any D can (PCA), and the rest is bounded by Cauchy and Schwarz: <k, q> <= <k_D, q_D> + |k_rest| |q_rest|. Only
the rows whose bound reaches the threshold are compared as a whole, in fp64, so that the result does not depend on the bound.
N rows of a table, E dimensions of a vector, D rotated ones, M rows that may reach their threshold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

NUM_ROTATED = 64  # Of 384: at a cosine of 0.8 these leave 4 of 1,000 rows of real questions, and read a sixth of the table.
MIN_ROWS = 2048  # Of fewer rows a whole product takes no longer.
NUM_FITTED = 2048  # Rows on which the rotation is fitted.
MAX_SHARE = 1 / 16  # With more rows left, a whole product is faster than to gather them.
# Rounding. A sum of E products in fp32 is wrong by at most E 2^-24 = 2.3e-5 for vectors of length 1, so a rotated vector by
# sqrt(D) times that, 1.9e-4, its squared length by twice that, and the product of two of them by less than 5e-4.
SQUARE_SLACK, SLACK = 5e-4, 1e-3


@dataclass(frozen=True, eq=False)
class KeyTable:
    """Rows of length 1 with the least cosine of each; `rotation` is None for a table of few rows."""

    key_NE: Tensor
    threshold_N: Tensor
    rotation: RotatedKeys | None

    @classmethod
    def of(cls, key_NE: Tensor, threshold_N: Tensor) -> Self:
        return cls(key_NE, threshold_N, RotatedKeys.of(key_NE) if len(key_NE) >= MIN_ROWS else None)

    def __len__(self) -> int:
        return len(self.key_NE)

    def reached(self, vector_E: Tensor) -> Iterator[tuple[int, float, float]]:
        """Yield the rows whose cosine with a vector of length 1 reaches their threshold, in order, each with both."""
        at_M = self._candidates(vector_E)
        cosine_M = self.key_NE[at_M].double() @ vector_E.double()
        for row, cosine, least in zip(at_M.tolist(), cosine_M.tolist(), self.threshold_N[at_M].tolist(), strict=True):
            if cosine >= least:
                yield row, cosine, least

    def _candidates(self, vector_E: Tensor) -> Tensor:
        """Return the rows that may reach their threshold: all that do, and few others, [M]."""
        if self.rotation is not None:
            at_M = (self.rotation.bound(vector_E) >= self.threshold_N - SLACK).nonzero()[:, 0]
            if len(at_M) <= MAX_SHARE * len(self):
                return at_M
        return (self.key_NE @ vector_E >= self.threshold_N - SLACK).nonzero()[:, 0]


@dataclass(frozen=True, eq=False)
class RotatedKeys:
    """The first dimensions of rotated rows, a column for each row, which is read faster, and the length of the others."""

    basis_ED: Tensor
    key_DN: Tensor
    rest_N: Tensor

    @classmethod
    def of(cls, key_NE: Tensor) -> Self:
        some_nE = key_NE[:: -(-len(key_NE) // NUM_FITTED)].double()
        basis_ED = torch.linalg.eigh(some_nE.T @ some_nE).eigenvectors[:, -NUM_ROTATED:].to(key_NE)
        key_DN = (key_NE @ basis_ED).T.contiguous()
        return cls(basis_ED, key_DN, _rest(key_DN.square().sum(0)))

    def bound(self, vector_E: Tensor) -> Tensor:
        """Return a number for each row that the cosine of a vector with it does not exceed by more than `SLACK`, [N]."""
        vector_D = vector_E @ self.basis_ED
        return torch.add(vector_D @ self.key_DN, self.rest_N, alpha=float(_rest(vector_D.square().sum())))


def _rest(square: Tensor) -> Tensor:
    """Return the length of the dimensions that are left out, at least, from the squared length of the others."""
    return (1 - square).clamp(min=0).add(SQUARE_SLACK).sqrt()
