"""The policy: from what an edit does to a matrix (its keys and output gradients) to how that matrix shall change.

Papers: MEND (2110.11309), MALMEN (2311.04661), RLEdit (2502.05759). For each row of keys k and gradients g:
    [k̃ | g̃] = blocks([k | g] normalised)
    outer (MEND):             ΔW = -η Σ g̃ k̃ᵀ
    solve (MALMEN, RLEdit):   D = -η <k, k̃> g̃, the change of the output that MEND would make there, then a dual solve.
Deviations: η and λ are trained as logarithms (as plain numbers they dominate the clipped gradient 1e5-fold), and are first
set by a few batches, so that one setting fits models of any scale; random projections are scaled by 1/sqrt(width); all three
share MALMEN's block, whose scale and shift stand after the rectifier.
Remembers nothing: the normaliser is trained with the network and frozen afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from errata.capture import Captured
from errata.editors.normalise import Normaliser
from errata.editors.solve import Metric, Rows
from errata.model import MatrixSpec, ModelSpec, input_sources

Rule = Literal["outer", "solve"]
# Published; the sign of MEND's is in the rule.
FIRST_STEP: dict[Rule, float] = {"outer": 1e-4, "solve": 1e-6}


@dataclass(frozen=True)
class Proposal:
    """One matrix's change, `ΔW = Z_nOᵀ V_nI`, its factors carrying gradients to the network; written at `keys_nI`."""

    V_nI: Tensor
    Z_nO: Tensor
    keys_nI: Tensor

    def squared_norm(self) -> Tensor:
        return ((self.V_nI @ self.V_nI.T) * (self.Z_nO @ self.Z_nO.T)).sum()


class Block(nn.Module):
    """`x + s ⊙ max(0, x A B + b) + t`, with s and t per matrix; B starts at zero, so the network starts as the identity."""

    def __init__(self, width: int, rank: int, num_matrices: int) -> None:
        super().__init__()
        self.A_FR = nn.Parameter(torch.randn(width, rank) / math.sqrt(width))
        self.B_RF = nn.Parameter(torch.zeros(rank, width))
        self.bias_F = nn.Parameter(torch.zeros(width))
        self.scale_MF = nn.Parameter(torch.ones(num_matrices, width))
        self.shift_MF = nn.Parameter(torch.zeros(num_matrices, width))

    def forward(self, x_nF: Tensor, matrix: int) -> Tensor:
        # clamp, not relu: at exactly zero, where training starts, relu has no gradient.
        inner_nF = (x_nF @ self.A_FR @ self.B_RF + self.bias_F).clamp(min=0)
        return x_nF + self.scale_MF[matrix] * inner_nF + self.shift_MF[matrix]


class ShapeNet(nn.Module):
    """The network of all matrices of one shape."""

    def __init__(self, matrices: list[MatrixSpec], rank: int, num_blocks: int, centred: bool, rule: Rule) -> None:
        super().__init__()
        width = matrices[0].num_in + matrices[0].num_out
        self.index = {matrix.name: i for i, matrix in enumerate(matrices)}
        self.num_in = matrices[0].num_in
        self.normaliser = Normaliser(width, centred)
        self.blocks = nn.ModuleList(Block(width, rank, len(matrices)) for _ in range(num_blocks))
        self.log_step_M = nn.Parameter(torch.full((len(matrices),), math.log(FIRST_STEP[rule])))
        self.log_ridge_M = nn.Parameter(torch.zeros(len(matrices)))

    def forward(self, name: str, captured: Captured) -> tuple[Tensor, Tensor]:
        """k̃ [n, I] and g̃ [n, O] of a matrix's rows."""
        x_nF = self.normaliser(torch.cat([captured.keys_TI, captured.grads_TO], 1))
        for block in self.blocks:
            x_nF = block(x_nF, self.index[name])
        return x_nF[:, : self.num_in], x_nF[:, self.num_in :]


class Hypernetwork(nn.Module):
    """One `ShapeNet` per shape of matrix; seeded."""

    def __init__(self, spec: ModelSpec, rank: int, num_blocks: int, centred: bool, seed: int, rule: Rule = "solve") -> None:
        super().__init__()
        self.spec, self.rule = spec, rule
        shapes: dict[str, list[MatrixSpec]] = {}
        for matrix in spec.matrices:
            shapes.setdefault(f"{matrix.num_out}x{matrix.num_in}", []).append(matrix)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.nets = nn.ModuleDict({key: ShapeNet(m, rank, num_blocks, centred, rule) for key, m in shapes.items()})
        self._shape_of = {matrix.name: key for key, found in shapes.items() for matrix in found}
        self._source_of = input_sources(spec.names)

    def _net(self, name: str) -> ShapeNet:
        net = self.nets[self._shape_of[name]]
        assert isinstance(net, ShapeNet)
        return net

    def observe(self, captured: Mapping[str, Captured]) -> None:
        """Show rows to the normalisers."""
        for name, rows in captured.items():
            self._net(name).normaliser.update(torch.cat([rows.keys_TI, rows.grads_TO], 1))

    def propose(
        self, captured: Mapping[str, Captured], metrics: Mapping[str, Metric], shared: dict[str, Rows] | None = None
    ) -> dict[str, Proposal]:
        """The change of every captured matrix. `metrics` are by input: of matrices that read the same, the first's name.

        `shared` keeps, by input too, what a solve makes of the keys, for as long as they and the metrics stay the same.
        """
        shared = {} if shared is None else shared
        proposals = {}
        for name, rows in captured.items():
            net = self._net(name)
            i = net.index[name]
            k_nI, g_nO = net(name, rows)
            step = net.log_step_M[i].exp()
            if self.rule == "outer":
                proposals[name] = Proposal(k_nI, -step * g_nO, rows.keys_TI)
                continue
            source = self._source_of[name]
            if source not in shared or not torch.equal(shared[source].keys_nI, rows.keys_TI):
                shared[source] = Rows.of(rows.keys_TI, metrics.get(source))
            Z_nO = shared[source].solve(-step * (rows.keys_TI * k_nI).sum(1, keepdim=True) * g_nO, net.log_ridge_M[i])
            proposals[name] = Proposal(shared[source].V_nI, Z_nO, rows.keys_TI)
        return proposals

    @torch.no_grad()
    def set_scale(self, captured: Mapping[str, Captured], metrics: Mapping[str, Metric], step: float, ridge: float) -> None:
        """First step sizes and ridges: outputs move by `step` in root mean square where an answer is predicted, and the
        ridge is `ridge` of the mean diagonal of the Gram matrix that it is added to."""
        for name, rows in captured.items():
            net = self._net(name)
            i = net.index[name]
            k_nI, g_nO = net(name, rows)
            if self.rule == "outer":
                moved_nO = (rows.keys_TI @ k_nI.T) @ g_nO
            else:
                moved_nO = (rows.keys_TI * k_nI).sum(1, keepdim=True) * g_nO
            net.log_step_M[i] = math.log(step / float(moved_nO.square().mean().sqrt()))
            gram_nn = Rows.of(rows.keys_TI, metrics.get(self._source_of[name])).gram_nn
            net.log_ridge_M[i] = math.log(ridge * float(gram_nn.diagonal().mean()))
