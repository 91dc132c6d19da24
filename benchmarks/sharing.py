"""Shared solves of gate and up projections, which read the same input and therefore have the same keys.

n rows, I in-features, O out-features, m past rows of a key preconditioner.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Phases
from errata.editors.solve import KeyGram, KeyPreconditioner

NUM_PAST = 200


Pair = tuple[Tensor, Tensor]


def alone(keys_nI: Tensor, metric: KeyPreconditioner | None, wanted: Pair, log_ridges: Pair) -> Pair:
    gate, up = (KeyGram.of(keys_nI, metric).solve(D_nO, r) for D_nO, r in zip(wanted, log_ridges, strict=True))
    return gate, up


def gram_shared(keys_nI: Tensor, metric: KeyPreconditioner | None, wanted: Pair, log_ridges: Pair) -> Pair:
    rows = KeyGram.of(keys_nI, metric)
    return rows.solve(wanted[0], log_ridges[0]), rows.solve(wanted[1], log_ridges[1])


def all_shared(keys_nI: Tensor, metric: KeyPreconditioner | None, wanted: Pair, log_ridges: Pair) -> Pair:
    gate, up = KeyGram.of(keys_nI, metric).solve(torch.cat(wanted, 1), log_ridges[0]).chunk(2, 1)
    return gate, up


def automatic(keys_nI: Tensor, metric: KeyPreconditioner | None, wanted: Pair, log_ridges: Pair) -> Pair:
    """Compute `gram_shared` by Cholesky solves with automatic differentiation."""
    gram_nn = KeyGram.of(keys_nI, metric).gram_nn
    eye_nn = torch.eye(len(gram_nn), dtype=torch.float64)
    gate, up = (
        torch.cholesky_solve(D_nO.double(), torch.linalg.cholesky(gram_nn + r.double().exp() * eye_nn)).float()
        for D_nO, r in zip(wanted, log_ridges, strict=True)
    )
    return gate, up


WAYS: dict[str, Callable[[Tensor, KeyPreconditioner | None, Pair, Pair], Pair]] = {
    "alone": alone,
    "gram_shared": gram_shared,
    "all_shared": all_shared,
    "automatic": automatic,
}


def measure_pair(key_size: int, out_size: int, num_rows: int, repeats: int, seed: int) -> list[dict[str, Any]]:
    """Median seconds of a pair's solves, by ridge and with a key preconditioner, for each way of sharing."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    keys_nI = randn(num_rows, key_size)
    wanted, upstream = ((randn(num_rows, out_size), randn(num_rows, out_size)) for _ in range(2))
    base_II = torch.eye(key_size, dtype=torch.float64) / 2  # its values do not affect the time
    metric = KeyPreconditioner.resume(base_II, randn(min(NUM_PAST, key_size // 2), key_size).double())
    return [
        {"key_size": key_size, "num_rows": num_rows, "solve": name}
        | {f"seconds_{way}": _seconds(way, keys_nI, m, wanted, upstream, repeats) for way in WAYS}
        for name, m in (("ridge", None), ("metric", metric))
    ]


def _seconds(way: str, keys_nI: Tensor, metric: KeyPreconditioner | None, wanted: Any, upstream: Any, repeats: int) -> float:
    phase = Phases()
    for repeat in range(repeats + 1):
        leaves = tuple(D_nO.detach().requires_grad_() for D_nO in wanted)
        log_ridges = torch.zeros(2, requires_grad=True)
        with phase("warm" if repeat == 0 else "pair"):
            Z = WAYS[way](keys_nI, metric, leaves, (log_ridges[0], log_ridges[1]))  # type: ignore[arg-type]
            torch.autograd.backward(Z, upstream)
    return phase.medians()["pair"]
