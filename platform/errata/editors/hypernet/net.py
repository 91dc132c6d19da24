"""The hypernetwork: it maps the keys and output gradients of an edit to a change of each matrix.

Papers: MEND (2110.11309), MALMEN (2311.04661), RLEdit (2502.05759). For each row of keys k and gradients g:
    [k̃ | g̃] = blocks([k | g] normalised)
    outer (MEND):             ΔW = -η Σ g̃ k̃ᵀ
    solve (MALMEN, RLEdit):   D = -η <k, k̃> g̃, the change of the output that MEND would make there, then a dual solve.
Deviations: η and λ are trained as logarithms (as plain numbers they dominate the clipped gradient 1e5-fold), and are
initialised from a few batches, so that one setting fits models of any scale; random projections are scaled by 1/sqrt(width);
all three methods use MALMEN's block, whose scale and shift follow the rectifier.
With `network` other than "full":
    identity:   k̃ = k, g̃ = g, both normalised: only η and λ are trained
    residual:   k̃ = k, g̃ = exp(h) (g + f), f the part of the blocks' output beyond their input, h a number of each row in
                ± log 8 (its own step size) from a linear head; the reward penalises |f|² and h²
All three begin at the identity.
Remembers nothing: the normaliser is trained with the network and frozen afterwards.
m matrices of one shape in one call, M all of that shape, n rows (edited tokens), I in-features, O out-features, F = I + O,
R rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from errata.editors.normalise import Normaliser
from errata.editors.solve import KeyGram, KeyPreconditioner, solve_together
from errata.model.capture import Captured
from errata.model.matrices import MatrixSpec, ModelSpec, input_sources
from errata.timing import timed

Rule = Literal["outer", "solve"]
Network = Literal["full", "residual", "identity"]
NETWORKS: tuple[Network, ...] = get_args(Network)
LOG_FACTOR = math.log(8.0)  # bound of h
# The published step sizes; the sign of MEND's is in the rule.
FIRST_STEP: dict[Rule, float] = {"outer": 1e-4, "solve": 1e-6}
# Beyond this many rows the network's products keep any device busy, and more matrices in one call only need more memory.
ROWS_AT_ONCE = 2048


@dataclass(frozen=True)
class Proposal:
    """The change of one matrix, `ΔW = Z_nOᵀ V_nI`, written at `keys_nI`; the factors carry gradients to the network.

    `departure` is the mean of |f|² / O + h² over the rows of a residual network, None for another.
    """

    V_nI: Tensor
    Z_nO: Tensor
    keys_nI: Tensor
    departure: Tensor | None = None

    def squared_norm(self) -> Tensor:
        return ((self.V_nI @ self.V_nI.T) * (self.Z_nO @ self.Z_nO.T)).sum()


class Block(nn.Module):
    """Residual block `x + s ⊙ max(0, x A B + b) + t`, with s and t per matrix; B starts at zero, as the identity.

    Rows are [m, n, F]: n for each of m matrices, whose numbers are `index_m`.
    """

    def __init__(self, width: int, rank: int, num_matrices: int) -> None:
        super().__init__()
        self.A_FR = nn.Parameter(torch.randn(width, rank) / math.sqrt(width))
        self.B_RF = nn.Parameter(torch.zeros(rank, width))
        self.bias_F = nn.Parameter(torch.zeros(width))
        self.scale_MF = nn.Parameter(torch.ones(num_matrices, width))
        self.shift_MF = nn.Parameter(torch.zeros(num_matrices, width))

    def forward(self, x_mnF: Tensor, index_m: Tensor) -> Tensor:
        # Training starts at exactly zero, where clamp has a gradient and relu has none.
        inner_mnF = (x_mnF @ self.A_FR @ self.B_RF + self.bias_F).clamp(min=0)
        return x_mnF + self.scale_MF[index_m, None] * inner_mnF + self.shift_MF[index_m, None]


class Directions(NamedTuple):
    """Rows as a network leaves them: k, k̃ [m, n, I], g̃ [m, n, O], and the departure of each row, [m, n], if it is residual."""

    k_mnI: Tensor
    pseudo_mnI: Tensor
    g_mnO: Tensor
    departure_mn: Tensor | None = None

    def departure(self, m: int, rows: slice) -> Tensor | None:
        """Return the mean departure of these rows of a matrix."""
        return None if self.departure_mn is None else self.departure_mn[m, rows].mean()


class ShapeNet(nn.Module):
    """The hypernetwork of all matrices of one shape."""

    def __init__(
        self, matrices: list[MatrixSpec], rank: int, num_blocks: int, centred: bool, rule: Rule, network: Network = "full"
    ) -> None:
        super().__init__()
        width = matrices[0].num_in + matrices[0].num_out
        self.index = {matrix.name: i for i, matrix in enumerate(matrices)}
        self.num_in = matrices[0].num_in
        self.normaliser = Normaliser(width, centred)
        num_blocks = 0 if network == "identity" else num_blocks
        self.blocks = nn.ModuleList(Block(width, rank, len(matrices)) for _ in range(num_blocks))
        self.is_residual = network == "residual"
        if self.is_residual:
            self.head_F = nn.Parameter(torch.zeros(width))
            self.head_bias = nn.Parameter(torch.zeros(()))
        self.log_step_M = nn.Parameter(torch.full((len(matrices),), math.log(FIRST_STEP[rule])))
        self.log_ridge_M = nn.Parameter(torch.zeros(len(matrices)))

    def forward(self, captured: Mapping[str, Captured], index_m: Tensor) -> Directions:
        """Return the directions of m matrices, whose numbers are `index_m`.

        If the matrices have different numbers of rows, the shorter ones are padded; the padding has no meaning.
        """
        k_mnI = pad_sequence([rows.keys_TI for rows in captured.values()], batch_first=True)
        g_mnO = pad_sequence([rows.grads_TO for rows in captured.values()], batch_first=True)
        first_mnF = x_mnF = self.normaliser(torch.cat([k_mnI, g_mnO], 2))
        for block in self.blocks:
            x_mnF = block(x_mnF, index_m)
        if self.is_residual:
            return self._beside_identity(k_mnI, first_mnF, x_mnF)
        return Directions(k_mnI, x_mnF[..., : self.num_in], x_mnF[..., self.num_in :])

    def _beside_identity(self, k_mnI: Tensor, first_mnF: Tensor, last_mnF: Tensor) -> Directions:
        """Return the directions of a residual network from the input and the output of its blocks."""
        f_mnO = (last_mnF - first_mnF)[..., self.num_in :]
        h_mn = LOG_FACTOR * torch.tanh(last_mnF @ self.head_F + self.head_bias)
        g_mnO = h_mn.exp()[..., None] * (first_mnF[..., self.num_in :] + f_mnO)
        return Directions(k_mnI, first_mnF[..., : self.num_in], g_mnO, f_mnO.square().mean(-1) + h_mn.square())

    def groups(self, captured: Mapping[str, Captured]) -> Iterator[tuple[dict[str, Captured], Tensor]]:
        """Yield the captured matrices of this shape with their numbers, in groups that share one call."""
        own = [name for name in self.index if name in captured]
        num_rows = max((len(captured[name].keys_TI) for name in own), default=0)
        size = max(1, ROWS_AT_ONCE // max(1, num_rows))
        for names in (own[start : start + size] for start in range(0, len(own), size)):
            index_m = torch.tensor([self.index[name] for name in names], device=self.log_step_M.device)
            yield {name: captured[name] for name in names}, index_m


def _directions(k_mnI: Tensor, pseudo_mnI: Tensor, g_mnO: Tensor) -> Tensor:
    """Return `<k, k̃> g̃`, row by row."""
    return (k_mnI * pseudo_mnI).sum(-1, keepdim=True) * g_mnO


class Hypernetwork(nn.Module):
    """The policy network: one `ShapeNet` for each shape of matrix, initialised from a seed."""

    def __init__(
        self,
        spec: ModelSpec,
        rank: int,
        num_blocks: int,
        centred: bool,
        seed: int,
        rule: Rule = "solve",
        network: Network = "full",
    ) -> None:
        super().__init__()
        self.spec, self.rule = spec, rule
        shapes: dict[str, list[MatrixSpec]] = {}
        for matrix in spec.matrices:
            shapes.setdefault(f"{matrix.num_out}x{matrix.num_in}", []).append(matrix)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.nets = nn.ModuleDict({key: ShapeNet(m, rank, num_blocks, centred, rule, network) for key, m in shapes.items()})
        self._source_of = input_sources(spec.names)

    def _net(self, name: str) -> ShapeNet:
        return next(net for net in self._each_net() if name in net.index)

    def _each_net(self) -> Iterator[ShapeNet]:
        for net in self.nets.values():
            assert isinstance(net, ShapeNet)
            yield net

    def log_ridge(self, name: str) -> Tensor:
        """Return log λ of a matrix."""
        net = self._net(name)
        return net.log_ridge_M[net.index[name]]

    def observe(self, captured: Mapping[str, Captured]) -> None:
        """Update the normalisers with captured rows."""
        for name, rows in captured.items():
            self._net(name).normaliser.update(torch.cat([rows.keys_TI, rows.grads_TO], 1))

    def propose(
        self,
        captured: Mapping[str, Captured],
        preconditioners: Mapping[str, KeyPreconditioner],
        shared: dict[str, KeyGram] | None = None,
    ) -> dict[str, Proposal]:
        """Return the change of every captured matrix.

        `preconditioners` are by input: the name of the first matrix that reads it. `shared` holds the Gram matrices of the
        keys, also by input, and is reused while keys and preconditioners are the same.
        """
        shared = {} if shared is None else shared
        proposals: dict[str, Proposal] = {}
        for net in self._each_net():
            for group, index_m in net.groups(captured):
                proposals |= self._propose(net, group, index_m, preconditioners, shared)
        return {name: proposals[name] for name in captured}

    def _propose(
        self,
        net: ShapeNet,
        group: Mapping[str, Captured],
        index_m: Tensor,
        preconditioners: Mapping[str, KeyPreconditioner],
        shared: dict[str, KeyGram],
    ) -> dict[str, Proposal]:
        with timed("network"):
            made: Directions = net(group, index_m)
            directions_mnO = made.g_mnO if self.rule == "outer" else _directions(*made[:3])
            wanted_mnO = -net.log_step_M[index_m].exp()[:, None, None] * directions_mnO
        if self.rule == "outer":
            cut = {name: slice(len(rows.keys_TI)) for name, rows in group.items()}
            return {
                name: Proposal(
                    made.pseudo_mnI[m, cut[name]], wanted_mnO[m, cut[name]], rows.keys_TI, made.departure(m, cut[name])
                )
                for m, (name, rows) in enumerate(group.items())
            }
        for name, rows in group.items():
            source = self._source_of[name]
            if source not in shared or not torch.equal(shared[source].keys_nI, rows.keys_TI):
                shared[source] = KeyGram.of(rows.keys_TI, preconditioners.get(source))
        solved = [shared[self._source_of[name]] for name in group]
        Z_mnO = solve_together(solved, wanted_mnO, net.log_ridge_M[index_m])
        return {
            name: Proposal(of.V_nI, Z_nO, rows.keys_TI, made.departure(m, slice(None)))
            for m, ((name, rows), of, Z_nO) in enumerate(zip(group.items(), solved, Z_mnO, strict=True))
        }

    @torch.no_grad()
    def set_scale(
        self, captured: Mapping[str, Captured], preconditioners: Mapping[str, KeyPreconditioner], step: float, ridge: float
    ) -> None:
        """Initialise step sizes and ridges from one batch.

        Outputs at the answer tokens move by `step` in root mean square, and the ridge is the share `ridge` of the Gram
        matrix's mean diagonal.
        """
        for name, rows in captured.items():
            net = self._net(name)
            i = net.index[name]
            k_1nI, pseudo_1nI, g_1nO, _ = net({name: rows}, torch.tensor([i], device=rows.keys_TI.device))
            moved_1nO = (k_1nI @ pseudo_1nI.mT) @ g_1nO if self.rule == "outer" else _directions(k_1nI, pseudo_1nI, g_1nO)
            net.log_step_M[i] = math.log(step / float(moved_1nO.square().mean().sqrt()))
            gram_nn = KeyGram.of(rows.keys_TI, preconditioners.get(self._source_of[name])).gram_nn
            net.log_ridge_M[i] = math.log(ridge * float(gram_nn.diagonal().mean()))
