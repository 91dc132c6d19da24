"""Second moments of the unedited model's keys, `C = E[k kᵀ]`, which the closed-form editors protect.

For O-Edit, also the output directions that the loss on plain text depends on most. Both are an artifact, a folder that
`from_artifact` of an editor reads. I in-features, O out-features, R directions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Key moments by matrix name, with the record of their measurement: model, text and number of tokens.

    `by_input[name]` is C, [I, I] in fp32. `directions[name]` holds the left singular vectors of the matrix's gradient on text,
    [O, O] in fp32, if they were measured.
    """

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

    def whitened(self) -> Moments:
        """Return moments of the same trace that know no direction: what remains of a metric if its text is left out."""
        eyes = {name: torch.eye(len(C_II)).to(C_II) * C_II.diagonal().mean() for name, C_II in self.by_input.items()}
        return replace(self, by_input=eyes)

    @classmethod
    def load(cls, directory: str | Path, device: Any = "cpu") -> Moments:
        """Load the moments of a folder. Raises `ValueError` if there are none."""
        path = Path(directory)
        if not (path / "moments.json").exists():
            raise ValueError(f"{directory} holds no key moments (no moments.json): measure them with jobs/moments.py")
        tensors = load_file(str(path / "moments.safetensors"), device=str(device))
        more = path / "directions.safetensors"
        directions = load_file(str(more), device=str(device)) if more.exists() else {}
        return cls(tensors, json.loads((path / "moments.json").read_text()), directions)


def inverse(moment_II: Tensor, strength: float, floor: float = 0.0) -> Tensor:
    """Return `(strength C + floor I)⁻¹` in fp64. Raises `ValueError` if it is singular, as C of too few tokens is."""
    ridged_II = strength * moment_II.double()
    ridged_II.diagonal().add_(floor)
    factor_II, info = torch.linalg.cholesky_ex(ridged_II)
    if int(info):
        raise ValueError(f"the moment of {len(moment_II)} features has no inverse: measure it on more text, or set a floor")
    return torch.cholesky_inverse(factor_II)


def null_space(moment_II: Tensor, threshold: float, relative: bool = False) -> Tensor:
    """Return the projector on the eigenvectors of C with eigenvalues below `threshold`, in fp64.

    With `relative`, the threshold is a share of the largest eigenvalue.
    """
    values_I, vectors_II = torch.linalg.eigh(moment_II.double())
    limit = threshold * float(values_I[-1]) if relative else threshold
    kept_IR = vectors_II[:, values_I < limit]
    return kept_IR @ kept_IR.T


def leading_outputs(grad_OI: Tensor) -> Tensor:
    """Return the left singular vectors of a gradient, [O, O] in fp32, the largest singular value first."""
    _, vectors_OO = torch.linalg.eigh(grad_OI.double() @ grad_OI.double().T)
    return vectors_OO.flip(1).float()
