"""Whether a change may be published: finite, not too large, and doing what was asked."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from errata.delta import WeightDelta
from errata.evaluate import Scorecard
from errata.model import LanguageModel, ModelSpec


@dataclass(frozen=True)
class Verdict:
    """Whether to publish; if not, every reason."""

    publish: bool
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Guard:
    """Bounds on one version: `|delta| / |W0|` of each matrix (Frobenius), and shares that its scorecard must reach.

    A share that was not measured (None) is not held against the version. The bound on the norm is a backstop against overflow:
    an update along directions that the model hardly uses may be larger than the matrix and harm nothing.
    """

    max_relative_norm: float = 10.0
    min_batch_efficacy: float = 0.0
    min_locality: float = 0.0

    def check(self, delta: WeightDelta, base_norms: Mapping[str, float], scorecard: Scorecard | None = None) -> Verdict:
        """`base_norms` as `matrix_norms` gives them; `scorecard` of the version's own edits, if they were scored."""
        reasons = tuple(self._faults(delta, base_norms, scorecard))
        return Verdict(not reasons, reasons)

    def _faults(self, delta: WeightDelta, base_norms: Mapping[str, float], scorecard: Scorecard | None) -> Iterator[str]:
        if not delta.is_finite:
            yield "the change is not finite"
            return
        for name, norm in delta.norms().items():
            if name not in base_norms:
                yield f"{name} is not an editable matrix"
            elif not norm <= self.max_relative_norm * base_norms[name]:
                relative = norm / base_norms[name] if base_norms[name] else math.inf
                yield f"{name} would change by {relative:.3g} of its norm, more than {self.max_relative_norm:g}"
        if scorecard is None:
            return
        for name, share, least in (
            ("efficacy", scorecard.efficacy, self.min_batch_efficacy),
            ("locality", scorecard.locality, self.min_locality),
        ):
            if share is not None and share < least:
                yield f"{name} is {share:.2f}, less than {least:g}"


def matrix_norms(model: LanguageModel, spec: ModelSpec) -> dict[str, float]:
    """Frobenius norm of each editable matrix as the model holds it now; take them before anything is edited."""
    return {name: float(model.module.get_submodule(name).weight.double().norm()) for name in spec.names}
