"""Whether a change may be published: limits on what was measured of it.

What is measured, and how, is in `inspection.py`; here it is judged, and in `docket.py` it is found who is to blame.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from errata.delta.weight_delta import WeightDelta
from errata.edit import EditRejected
from errata.model.language_model import LanguageModel
from errata.model.matrices import ModelSpec

SLACK = 1e-3  # by which a figure may differ from the version before and count as the same
MAX_SLACK_AT = 2.0  # limits: beyond so many times what is refused no difference counts as none, or small ones would add up
SCORES = ("efficacy", "retention", "locality", "ppl_ratio", "broken_sentences", "lost_retention", "lost_locality")


class VersionRefused(EditRejected):
    """An update that the guard does not let through: why, and what was measured of it."""

    def __init__(self, reasons: Sequence[str], scores: Mapping[str, Any]) -> None:
        super().__init__(f"the guard refuses it: {'; '.join(reasons)}")
        self.reasons, self.scores = tuple(reasons), dict(scores)

    def __reduce__(self) -> tuple[Any, ...]:
        return VersionRefused, (self.reasons, self.scores)


@dataclass(frozen=True)
class Limit:
    """A version above `warn` is published with a warning, one above `refuse` not at all."""

    warn: float
    refuse: float

    def __post_init__(self) -> None:
        if not self.warn <= self.refuse:
            raise ValueError(f"a limit warns no later than it refuses, not at {self.warn:g} and {self.refuse:g}")


@dataclass(frozen=True)
class Verdict:
    """Whether to publish; if not, every reason, and if so, every warning."""

    publish: bool
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measurements:
    """What was found of one version. None is what was not measured, and is not held against it.

    `relative_norm`: |delta| / |W0| of each matrix (Frobenius), and `norm_growth`: |W| / |W0| after it. `ppl_ratio`: median
    over held-out sentences of the perplexity by that of the unedited model. Shares, 0 to 1: `efficacy` of the batch's edits
    that the new version answers by their targets, `failed` naming the others; `retention` of a sample of earlier edits;
    `locality` of the questions that are answered as by the unedited model. `lost_retention` and `lost_locality` are shares of
    the same samples, taken as no smaller than `inspection.FEW`, that held at the version before and no longer do.
    `broken_sentences`: the share of sentences whose own perplexity has passed the limit. `before` has what `ppl_ratio`,
    `locality` and `broken_sentences` were at the version before.
    """

    relative_norm: Mapping[str, float] = field(default_factory=dict)
    norm_growth: Mapping[str, float] = field(default_factory=dict)
    is_finite: bool = True
    efficacy: float | None = None
    retention: float | None = None
    locality: float | None = None
    ppl_ratio: float | None = None
    lost_retention: float | None = None
    lost_locality: float | None = None
    broken_sentences: float | None = None
    before: Mapping[str, float | None] = field(default_factory=dict)
    failed: tuple[Mapping[str, str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """What was measured, flat but for the matrices; JSON has no infinity: there it is None."""
        found: dict[str, Any] = {name: getattr(self, name) for name in SCORES if getattr(self, name) is not None}
        for name in ("relative_norm", "norm_growth"):
            found[name] = {matrix: v if math.isfinite(v) else None for matrix, v in getattr(self, name).items()}
        if self.ppl_ratio is not None and not math.isfinite(self.ppl_ratio):
            found["ppl_ratio"] = None
        return {**found, "failed": [dict(one) for one in self.failed]}


@dataclass(frozen=True)
class Guard:
    """Limits on one version; every one can be set. What is sampled for them is set here, too.

    `perplexity` is of `ppl_ratio`, whose rise tells a model that breaks (2402.09656, The Butterfly Effect of Model Editing);
    `broken` is of the share of sentences beyond it, which a median does not see. `change` and `growth`, of `relative_norm` and
    `norm_growth`, are backstops: an update along directions that the model hardly uses may be larger than the matrix and harm
    nothing. `forgotten` and `disturbed` are the shares of earlier edits and of unrelated questions that one version may lose,
    `drift` the share of questions that all versions together may; `unanswered` is the share of its own edits that a version
    does not answer, which by default is told and not refused.

    What all versions have done together (`perplexity`, `broken`, `drift`) is refused only if this one makes it worse: a model
    that is past a limit can still be given what does not harm it.
    """

    perplexity: Limit = Limit(1.05, 1.5)
    broken: Limit = Limit(0.1, 0.3)
    change: Limit = Limit(10.0, 10.0)
    growth: Limit = Limit(20.0, 100.0)
    forgotten: Limit = Limit(0.15, 0.35)
    disturbed: Limit = Limit(0.05, 0.15)
    drift: Limit = Limit(0.2, 0.5)
    unanswered: Limit = Limit(0.0, 1.0)
    num_retained: int = 16
    num_questions: int = 40
    num_sentences: int = 12

    @property
    def limits(self) -> dict[str, list[float | None]]:
        """[warn, refuse] by name, as a scorecard has them; JSON has no infinity: there it is None."""
        found = {f.name: limit for f in fields(self) if isinstance(limit := getattr(self, f.name), Limit)}
        return {name: [v if math.isfinite(v) else None for v in (one.warn, one.refuse)] for name, one in found.items()}

    def check(self, found: Measurements) -> Verdict:
        if not found.is_finite:
            return Verdict(False, ("the change, or what the model says with it, is not finite",))
        reasons, warnings = [], []
        for text, value, limit, before in self._all(found):
            if value is None or value <= limit.warn:
                continue
            slack = SLACK if value <= MAX_SLACK_AT * limit.refuse else 0
            worse = before is None or not value <= before * (1 + slack)
            if not value <= limit.refuse and worse:
                reasons.append(f"{text.format(value)}, more than {limit.refuse:g}")
            else:
                warnings.append(f"{text.format(value)}, more than {limit.warn:g}")
        return Verdict(not reasons, tuple(reasons), tuple(warnings))

    def _all(self, found: Measurements) -> Iterator[tuple[str, float | None, Limit, float | None]]:
        """(what it is, its value, the limit, its value at the version before where that is an excuse)."""
        for name, value in found.relative_norm.items():
            yield f"{name} would change by {{:.3g}} of its norm", value, self.change, None
        for name, value in found.norm_growth.items():
            yield f"the norm of {name} would grow to {{:.3g}} of the unedited one", value, self.growth, None
        text = "the perplexity of other sentences would be {:.3g} times the unedited model's"
        yield text, found.ppl_ratio, self.perplexity, found.before.get("ppl_ratio")
        text = f"{{:.2f}} of other sentences would have more than {self.perplexity.refuse:g} times their perplexity"
        yield text, found.broken_sentences, self.broken, found.before.get("broken_sentences")
        yield "{:.2f} of a sample of earlier edits would be lost", found.lost_retention, self.forgotten, None
        yield "{:.2f} of the answers to unrelated questions would change", found.lost_locality, self.disturbed, None
        text = "{:.2f} of the answers to unrelated questions would have changed by all versions together"
        yield text, _lack(found.locality), self.drift, _lack(found.before.get("locality"))
        yield "{:.2f} of the edits would not be answered by their targets", _lack(found.efficacy), self.unanswered, None


def _lack(share: float | None) -> float | None:
    return None if share is None else 1 - share


def check_norms(delta: WeightDelta, base_norms: Mapping[str, float]) -> Measurements:
    """What can be seen of a change without running the model. Raises `EditRejected` for a matrix that is not editable."""
    if unknown := [name for name, _ in delta if name not in base_norms]:
        raise EditRejected(f"not an editable matrix: {', '.join(unknown)}")
    if not delta.is_finite:
        return Measurements(is_finite=False)
    norms = {name: norm / base_norms[name] if base_norms[name] else math.inf for name, norm in delta.norms().items()}
    return Measurements(relative_norm=norms)


def matrix_norms(model: LanguageModel, spec: ModelSpec) -> dict[str, float]:
    """Frobenius norm of each editable matrix as the model holds it now; take them before anything is edited."""
    return {name: float(model.module.get_submodule(name).weight.double().norm()) for name in spec.names}
