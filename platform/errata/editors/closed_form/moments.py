"""What the unedited model uses: second moments of keys, `C = E[k kᵀ]`, which the closed-form editors protect, and, for O-Edit,
the directions of output that a loss on plain text would move, most first.

An artifact: a folder with both and how they were measured, read by an editor's `load`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """`by_input[name]` is C of the matrix `name`, [I, I] in fp32; `directions[name]` the left singular vectors of its gradient
    on text, [O, O] in fp32, if they were measured; `record` says of which model, text and how many tokens."""

    by_input: Mapping[str, Tensor]
    record: Mapping[str, Any] = field(default_factory=dict)
    directions: Mapping[str, Tensor] = field(default_factory=dict)

    def save(self, directory: str | Path) -> None:
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for name, tensors in (("moments", self.by_input), ("directions", self.directions)):
            if tensors:
                save_file({n: t.contiguous().cpu() for n, t in tensors.items()}, str(directory / f"{name}.safetensors"))
        (directory / "moments.json").write_text(json.dumps(dict(self.record), indent=1))

    @classmethod
    def load(cls, directory: str | Path, device: Any = "cpu") -> Moments:
        """Raises `ValueError` if the folder holds none."""
        path = Path(directory)
        if not (path / "moments.json").exists():
            raise ValueError(f"{directory} holds no key moments (no moments.json); jobs/moments.py measures them")
        tensors = load_file(str(path / "moments.safetensors"), device=str(device))
        more = path / "directions.safetensors"
        directions = load_file(str(more), device=str(device)) if more.exists() else {}
        return cls(tensors, json.loads((path / "moments.json").read_text()), directions)


def inverse(moment_II: Tensor, strength: float, floor: float = 0.0) -> Tensor:
    """`(strength C + floor I)⁻¹` in fp64. Raises `ValueError` if C has no inverse: too few tokens were seen."""
    ridged_II = strength * moment_II.double()
    ridged_II.diagonal().add_(floor)
    factor_II, info = torch.linalg.cholesky_ex(ridged_II)
    if int(info):
        raise ValueError(f"the moment of {len(moment_II)} features has no inverse: measure it on more text, or set a floor")
    return torch.cholesky_inverse(factor_II)


def null_space(moment_II: Tensor, threshold: float, relative: bool = False) -> Tensor:
    """The projector on the directions whose eigenvalue of C is below `threshold` (times the largest, if `relative`), fp64."""
    values_I, vectors_II = torch.linalg.eigh(moment_II.double())
    limit = threshold * float(values_I[-1]) if relative else threshold
    kept_IR = vectors_II[:, values_I < limit]
    return kept_IR @ kept_IR.T


def leading_outputs(grad_OI: Tensor) -> Tensor:
    """The left singular vectors of a gradient, [O, O] in fp32, the largest singular value first."""
    _, vectors_OO = torch.linalg.eigh(grad_OI.double() @ grad_OI.double().T)
    return vectors_OO.flip(1).float()
