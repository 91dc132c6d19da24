"""PRUNE: a wrapper that reduces singular values of the summed changes above the largest one of the unedited weights.

Paper: PRUNE (arXiv 2405.16821). Equation: with S = W_t - W_0 = Σ σ_j a_j b_jᵀ the sum of all changes so far and σ_max the
largest singular value of W_0,
    F(S) = Σ f(σ_j) a_j b_jᵀ,   f(σ) = σ below σ_max, else  log_α σ - log_α σ_max + σ_max;   "linear": (σ + σ_max) / 2
and the weights are W_0 + F(S). (Where σ_max ln α < 1, values just above σ_max grow by it: the formula is as published.)
Deviations: every version of a stream is restrained, not just the last one. The wrapped editor sees the model without
restraint, W_0 + S, and the change of a batch is F(S_t) - F(S_{t-1}); after any number of batches the weights equal those of
restraining the finished sequence. (Public ports add F(S) to weights that already contain S.)
Remembers: the wrapped editor's state, σ_max of each matrix, and S.
O out-features, I in-features, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from errata.delta.kinds import weights_alone
from errata.delta.parts import Dense, LowRank, Part, svd
from errata.delta.side_branch import applied
from errata.delta.weight_delta import WeightDelta, chained
from errata.edit import EditBatch
from errata.editors.accumulated import accumulate, accumulated_delta, with_accumulated
from errata.editors.closed_form.memit import MEMIT
from errata.editors.editor import Editor
from errata.editors.state import EditorState
from errata.editors.wrappers.wrapper import EditorWrapper, inner_state, wrap_state
from errata.model.language_model import LanguageModel
from errata.model.matrices import ModelSpec
from errata.model.prefix_cache import BatchCache

Restraint = Literal["log", "linear"]


@dataclass(frozen=True, kw_only=True)
class PRUNE(EditorWrapper):
    """PRUNE; `base` is α, which the authors' repository sets to e, 1.2, 1.5 or 2."""

    restraint: Restraint = "log"
    base: float = math.e

    must_be_outermost: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.restraint not in ("log", "linear") or self.base <= 1:
            raise ValueError(f"restraint is log or linear, and base above 1, not {self.restraint!r} and {self.base}")

    @classmethod
    def default_inner(cls) -> type[Editor]:
        return MEMIT

    def start(self, model: LanguageModel, spec: ModelSpec) -> EditorState:
        inner = self.host.start(model, spec)  # It comes first, because it checks that the editor fits the model.
        tops = {m.name: largest_singular_value(model.module.get_submodule(m.name).weight) for m in spec.matrices}
        own = {f"top|{name}": torch.tensor(top, dtype=torch.float64) for name, top in tops.items()}
        return wrap_state(inner, own)

    def edit_through(
        self,
        model: LanguageModel,
        batch: EditBatch,
        state: EditorState,
        transform: Callable[[WeightDelta], WeightDelta],
        cache: BatchCache | None = None,
    ) -> tuple[WeightDelta, EditorState]:
        own = {key: state.tensors[key] for key in state.tensors if key.startswith("top|")}
        tops = {key.removeprefix("top|"): float(top) for key, top in own.items()}
        total = accumulated_delta(state).on_devices_of(model.module)
        before = prune(total, tops, self.restraint, self.base)
        held = WeightDelta({n: minus(part, before.parts[n]) for n, part in total if before.parts[n] is not part})
        with applied(model.module, held):
            made, after = self.host.edit(model, batch, inner_state(state), cache)
        delta = weights_alone(made, "a wrapper")
        total = accumulate(state, delta)
        now = prune(total, tops, self.restraint, self.base)
        restrained = {n for n, part in now if n in held.parts or part is not total.parts[n]}
        parts = {n: minus(now.parts[n], before.parts.get(n)) if n in restrained else part for n, part in delta}
        return transform(WeightDelta(parts)), with_accumulated(wrap_state(after, own), total)


def prune(delta: WeightDelta, tops: Mapping[str, float], restraint: Restraint = "log", base: float = math.e) -> WeightDelta:
    """Return F of each part; `tops` are the largest singular values of the base matrices. Smaller parts are unchanged."""
    return WeightDelta({name: _prune(part, tops[name], restraint, base) for name, part in delta})


def _prune(part: Part, top: float, restraint: Restraint, base: float) -> Part:
    left_OR, values_R, right_IR = svd(part)
    if not len(values_R) or float(values_R[0]) < top:
        return part
    restrained_R = (values_R.log() - math.log(top)) / math.log(base) + top
    if restraint == "linear":
        restrained_R = 0.5 * (values_R + top)
    held_R = torch.where(values_R < top, values_R, restrained_R)
    if isinstance(part, LowRank):
        return LowRank((left_OR * held_R).float(), right_IR.float())
    return Dense(((left_OR * held_R) @ right_IR.T).float())


def minus(one: Part, other: Part | None) -> Part:
    """Return `one - other` with as few factors as represent it."""
    if other is None:
        return one
    parts = [WeightDelta({"": one}), WeightDelta({"": other}).scaled(-1.0)]
    return chained(parts).compact().folded().parts[""]


def largest_singular_value(weight: Tensor) -> float:
    """Return the largest singular value of a matrix in either orientation, from its smaller Gram matrix in fp64."""
    matrix = weight.double() if weight.shape[0] <= weight.shape[1] else weight.double().T
    return float(torch.linalg.eigvalsh(matrix @ matrix.T)[-1].clamp(min=0).sqrt())
