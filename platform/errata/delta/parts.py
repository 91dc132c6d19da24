"""Parts of a weight delta: the change of one matrix, which is low-rank, sparse, dense, or a series of such changes.

O out-features, I in-features, R rank, N non-zero entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """A low-rank update, `change_OI = U_OR V_IRᵀ`."""

    U_OR: Tensor
    V_IR: Tensor
    kind = "low_rank"

    @property
    def shape(self) -> tuple[int, int]:
        return self.U_OR.shape[0], self.V_IR.shape[0]

    @property
    def rank(self) -> int:
        return self.U_OR.shape[1]

    def dense(self) -> Tensor:
        return self.U_OR @ self.V_IR.T

    def norm(self) -> float:
        """Compute the Frobenius norm from the R-by-R Gram matrices."""
        return float(((self.U_OR.T @ self.U_OR).double() * (self.V_IR.T @ self.V_IR).double()).sum().clamp(min=0).sqrt())

    def side_branch(self, x: Tensor) -> Tensor:
        return (x @ self.V_IR.to(x.dtype)) @ self.U_OR.to(x.dtype).T

    def scaled(self, factor: float) -> LowRank:
        return LowRank(factor * self.U_OR, self.V_IR)

    def tensors(self) -> dict[str, Tensor]:
        return {"U": self.U_OR, "V": self.V_IR}


@dataclass(frozen=True)
class Sparse:
    """A sparse change with the values `value_N` at the flat positions `index_N`."""

    index_N: Tensor
    value_N: Tensor
    shape: tuple[int, int]
    kind = "sparse"

    @property
    def rank(self) -> int:
        return min(*self.shape, len(self.index_N))

    def dense(self) -> Tensor:
        flat = torch.zeros(self.shape[0] * self.shape[1], dtype=torch.float32, device=self.value_N.device)
        return flat.index_put((self.index_N,), self.value_N.float()).view(self.shape)

    def norm(self) -> float:
        return float(self.value_N.double().norm())

    def side_branch(self, x: Tensor) -> Tensor:
        return x @ self.dense().to(x.dtype).T

    def scaled(self, factor: float) -> Sparse:
        return Sparse(self.index_N, factor * self.value_N, self.shape)

    def tensors(self) -> dict[str, Tensor]:
        return {"index": self.index_N, "value": self.value_N, "shape": torch.tensor(self.shape)}


@dataclass(frozen=True)
class Dense:
    """A dense change, stored as the matrix itself."""

    matrix_OI: Tensor
    kind = "dense"

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix_OI.shape[0], self.matrix_OI.shape[1]

    @property
    def rank(self) -> int:
        return min(self.shape)

    def dense(self) -> Tensor:
        return self.matrix_OI.float()

    def norm(self) -> float:
        return float(self.matrix_OI.double().norm())

    def side_branch(self, x: Tensor) -> Tensor:
        return x @ self.matrix_OI.to(x.dtype).T

    def scaled(self, factor: float) -> Dense:
        return Dense(factor * self.matrix_OI)

    def tensors(self) -> dict[str, Tensor]:
        return {"matrix": self.matrix_OI}


@dataclass(frozen=True)
class Series:
    """Changes to add one after another in fp32, so that the sum has the same bits as when each is a version of its own."""

    parts: tuple[LowRank | Sparse | Dense, ...]
    kind = "series"

    @property
    def shape(self) -> tuple[int, int]:
        return self.parts[0].shape

    @property
    def rank(self) -> int:
        return sum(part.rank for part in self.parts)

    def merged(self) -> LowRank | Dense:
        """Return the sum as one part, equal up to rounding."""
        return sum_of(self.parts)

    def dense(self) -> Tensor:
        return reduce(torch.add, (part.dense().float() for part in self.parts))

    def norm(self) -> float:
        return self.merged().norm()

    def side_branch(self, x: Tensor) -> Tensor:
        return self.merged().side_branch(x)

    def scaled(self, factor: float) -> Series:
        return Series(tuple(part.scaled(factor) for part in self.parts))

    def tensors(self) -> dict[str, Tensor]:
        return {f"{index}.{key}": tensor for index, part in enumerate(self.parts) for key, tensor in part.tensors().items()}


Piece = LowRank | Sparse | Dense
Part = Piece | Series


def pieces(part: Part) -> tuple[Piece, ...]:
    """Return the elements of a series, or the part itself."""
    return part.parts if isinstance(part, Series) else (part,)


def is_sound(piece: Piece) -> bool:
    """Return True if the tensors fit each other. Those of a damaged file may not."""
    if isinstance(piece, LowRank):
        return piece.U_OR.shape[1:] == piece.V_IR.shape[1:]
    if isinstance(piece, Sparse) and len(piece.index_N):
        low, high = (int(each) for each in piece.index_N.aminmax())
        return piece.index_N.shape == piece.value_N.shape and low >= 0 and high < piece.shape[0] * piece.shape[1]
    return True


def where(part: Part) -> torch.device:
    return next(tensor.device for tensor in part.tensors().values() if tensor.is_floating_point())


def on_device(part: Part, device: torch.device) -> Part:
    """Return the part with its tensors on the device, or the part itself if they are there."""
    return part if where(part) == device else part_of({key: tensor.to(device) for key, tensor in part.tensors().items()})


def part_of(tensors: dict[str, Tensor]) -> Part:
    """Build a part from its tensors. Raises `ValueError` if their names fit no kind of part."""
    try:
        return _series(tensors) if any("." in key for key in tensors) else _piece(tensors)
    except (KeyError, TypeError, ValueError) as wrong:
        raise ValueError(f"no kind of delta has tensors named {', '.join(sorted(tensors))}") from wrong


def _series(tensors: dict[str, Tensor]) -> Series:
    grouped: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, own = key.partition(".")
        grouped.setdefault(int(index), {})[own] = tensor
    return Series(tuple(_piece(grouped[index]) for index in sorted(grouped)))


def _piece(tensors: dict[str, Tensor]) -> LowRank | Sparse | Dense:
    if "U" in tensors:
        return LowRank(tensors["U"], tensors["V"])
    if "index" in tensors:
        rows, columns = tensors["shape"].tolist()
        return Sparse(tensors["index"], tensors["value"], (rows, columns))
    return Dense(tensors["matrix"])


def compacted(part: LowRank, tolerance: float) -> LowRank:
    """Return the change with the fewest factors whose error stays below `tolerance` of its norm."""
    left_OR, values_R, right_IR = svd(part)
    tail_R = values_R.square().flip(0).cumsum(0).flip(0).sqrt()  # Norm of the rest if it is cut before r.
    rank = max(1, int((tail_R > tolerance * values_R.norm()).sum()))
    root_R = values_R[:rank].sqrt()
    return LowRank((left_OR[:, :rank] * root_R).float(), (right_IR[:, :rank] * root_R).float())


def svd(part: Part) -> tuple[Tensor, Tensor, Tensor]:
    """Compute left [O, R], values [R] and right [I, R] of the change in fp64; for factors, by QR and an SVD of the core."""
    if not isinstance(part, LowRank):
        left_OR, values_R, right_RI = torch.linalg.svd(part.dense().double(), full_matrices=False)
        return left_OR, values_R, right_RI.T
    Q_U, R_U = torch.linalg.qr(part.U_OR.double())
    Q_V, R_V = torch.linalg.qr(part.V_IR.double())
    left, values_R, right = torch.linalg.svd(R_U @ R_V.T, full_matrices=False)
    return Q_U @ left, values_R, Q_V @ right.T


def _same_memory(a: Tensor, b: Tensor) -> bool:
    one, other = ((t.untyped_storage()._cdata, t.storage_offset(), t.shape, t.stride()) for t in (a, b))
    return one == other


def sum_of(parts: Sequence[LowRank | Sparse | Dense]) -> LowRank | Dense:
    """Add changes of one matrix; factors stay factors, and V is kept once if all share it."""
    low_rank = [part for part in parts if isinstance(part, LowRank)]
    if len(low_rank) == len(parts):
        if all(_same_memory(part.V_IR, low_rank[0].V_IR) for part in low_rank):
            return LowRank(torch.stack([part.U_OR for part in low_rank]).sum(0), low_rank[0].V_IR)
        return LowRank(torch.cat([p.U_OR for p in low_rank], 1), torch.cat([p.V_IR for p in low_rank], 1))
    return Dense(torch.stack([part.dense() for part in parts]).sum(0))
