"""Limits on the measurements of a version, and the verdict whether it may be published.

`inspector.py` measures, and `bisection.py` finds the edit that caused a refusal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from errata.delta.kinds import Delta, memory_of, weights_of
from errata.delta.parts import LowRank, Part
from errata.delta.weight_delta import WeightDelta
from errata.edit import Code, EditRejected
from errata.edit_memory.bank import AT_MATRIX
from errata.model.language_model import LanguageModel
from errata.model.matrices import ModelSpec

SLACK = 1e-3  # Relative difference from the parent version that counts as none.
MAX_SLACK_AT = 2.0  # Beyond this multiple of a limit every difference counts, because small ones would add up.
# Of several breaches, the first of these names the refusal.
SEVERITY = (
    "not_finite",
    "perplexity",
    "broken",
    "change",
    "growth",
    "forgotten",
    "drift",
    "disturbed",
    "fires",
    "unanswered",
)
SCORES = tuple("efficacy retention locality ppl_ratio broken_sentences lost_retention lost_locality fires decided".split())


@dataclass(frozen=True)
class Breach:
    """One limit that a version passes: its name in `Guard`, the value measured, the bound, and a sentence that says so."""

    limit: str
    value: float
    bound: float
    sentence: str

    def __str__(self) -> str:
        return self.sentence

    @property
    def code(self) -> Code:
        return Code(f"guard.{self.limit}")


class VersionRefused(EditRejected):
    """An update that the guard refuses: the limits that it passes, and the scores measured.

    `code` is that of the most severe breach, in the order of `SEVERITY`.
    """

    def __init__(self, breaches: Sequence[Breach], scores: Mapping[str, Any]) -> None:
        worst = min(breaches, key=lambda breach: SEVERITY.index(breach.limit))
        super().__init__(f"the guard refuses it: {'; '.join(map(str, breaches))}", code=worst.code)
        self.breaches, self.scores = tuple(breaches), dict(scores)

    def __reduce__(self) -> tuple[Any, ...]:
        return VersionRefused, (self.breaches, self.scores)


@dataclass(frozen=True)
class Limit:
    """A version above `warn` is published with a warning, one above `refuse` not at all."""

    warn: float
    refuse: float

    def __post_init__(self) -> None:
        if not self.warn <= self.refuse:
            raise ValueError(f"the warning level {self.warn:g} of a limit must not exceed its refusal level {self.refuse:g}")


@dataclass(frozen=True)
class Verdict:
    """The guard's decision: publish, with warnings, or refuse, with every breach."""

    publish: bool
    breaches: tuple[Breach, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measurements:
    """The scores of one version. A score that was not measured is None and passes every limit.

    `relative_norm`: |delta| / |W0| of each matrix (Frobenius); `norm_growth`: |W| / |W0| with the delta. `ppl_ratio`: the
    median over held-out sentences of the perplexity relative to the unedited model's. Shares from 0 to 1: `efficacy`, the
    batch's edits that the version answers with their targets (`failed` lists the others, `unanswered` their positions);
    `retention`, the same of the earlier edits that were asked; `locality`, the questions that it answers as the unedited model
    does. `lost_retention` and `lost_locality` are the shares of these, counted as at least `inspector.FEW`, that held at the
    parent version and no longer do.
    `broken_sentences`: the share of sentences whose perplexity passes the limit. `fires`: of a memory that is read before the
    model, the share of probes, counted as at least `inspector.FEW`, at which a new record decides, and `decided` of those at
    which any does. `before` holds `ppl_ratio`, `locality`, `broken_sentences` and `decided` of the parent version.
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
    fires: float | None = None
    decided: float | None = None
    before: Mapping[str, float | None] = field(default_factory=dict)
    failed: tuple[Mapping[str, str], ...] = ()
    unanswered: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the scores as JSON, flat except for the matrices. Infinity becomes None, because JSON has no infinity."""
        found: dict[str, Any] = {name: getattr(self, name) for name in SCORES if getattr(self, name) is not None}
        for name in ("relative_norm", "norm_growth"):
            found[name] = {matrix: v if math.isfinite(v) else None for matrix, v in getattr(self, name).items()}
        if self.ppl_ratio is not None and not math.isfinite(self.ppl_ratio):
            found["ppl_ratio"] = None
        return {**found, "failed": [dict(one) for one in self.failed]}


@dataclass(frozen=True)
class Guard:
    """The limits on one version, and the sizes of the samples that they are measured on.

    `perplexity` limits `ppl_ratio`, whose rise indicates a breaking model (2402.09656, The Butterfly Effect of Model Editing);
    `broken` the share of sentences beyond that limit, which a median does not show. `change` limits `relative_norm` and
    `growth` limits `norm_growth`. Both are backstops: an update along directions that the model hardly uses may exceed the
    matrix in norm without harm. `forgotten` limits the retention and `disturbed` the locality lost by one version, `drift` the
    cumulative locality lost. `fires` is for a memory what `disturbed` is for weights, and there `drift` limits `decided`. With
    `strict`, every edit of a version is answered by its target, or it is refused; without it, `unanswered` limits the share of
    the version's own edits that are not answered.

    The cumulative scores (`perplexity`, `broken`, `drift`) are refused only if this version makes them worse, so that a model
    past a limit still takes an update that does no harm.
    """

    perplexity: Limit = Limit(1.05, 1.5)
    broken: Limit = Limit(0.1, 0.3)
    change: Limit = Limit(10.0, 10.0)
    growth: Limit = Limit(20.0, 100.0)
    forgotten: Limit = Limit(0.15, 0.35)
    disturbed: Limit = Limit(0.05, 0.15)
    drift: Limit = Limit(0.2, 0.5)
    fires: Limit = Limit(0.05, 0.15)
    unanswered: Limit = Limit(0.0, 1.0)
    strict: bool = True
    num_retained: int = 64
    num_questions: int = 40
    num_sentences: int = 12

    @property
    def limits(self) -> dict[str, list[float | None]]:
        """The limits for a scorecard: [warn, refuse] by name. Infinity becomes None, because JSON has no infinity."""
        found = {f.name: limit for f in fields(self) if isinstance(limit := getattr(self, f.name), Limit)}
        return {name: [v if math.isfinite(v) else None for v in (one.warn, one.refuse)] for name, one in found.items()}

    def check(self, found: Measurements) -> Verdict:
        """Compare the scores with all limits."""
        if not found.is_finite:
            sentence = "the change, or what the model says with it, is not finite"
            return Verdict(False, (Breach("not_finite", math.nan, math.inf, sentence),))
        breaches, warnings = [], []
        for name, text, value, before in self._values(found):
            limit: Limit = getattr(self, name)
            if value is None or value <= limit.warn:
                continue
            slack = SLACK if value <= MAX_SLACK_AT * limit.refuse else 0
            worse = before is None or not value <= before * (1 + slack)
            if not value <= limit.refuse and worse:
                breaches.append(Breach(name, value, limit.refuse, f"{text.format(value)}, more than {limit.refuse:g}"))
            else:
                warnings.append(f"{text.format(value)}, more than {limit.warn:g}")
        return Verdict(not breaches, tuple(breaches), tuple(warnings))

    def _values(self, found: Measurements) -> Iterator[tuple[str, str, float | None, float | None]]:
        """Yield (limit, sentence, value, value at the parent version where the limit is cumulative)."""
        for name, value in found.relative_norm.items():
            yield "change", f"{name} would change by {{:.3g}} of its norm", value, None
        for name, value in found.norm_growth.items():
            yield "growth", f"the norm of {name} would grow to {{:.3g}} of the unedited one", value, None
        text = "the perplexity of other sentences would be {:.3g} times the unedited model's"
        yield "perplexity", text, found.ppl_ratio, found.before.get("ppl_ratio")
        text = f"{{:.2f}} of other sentences would have more than {self.perplexity.refuse:g} times their perplexity"
        yield "broken", text, found.broken_sentences, found.before.get("broken_sentences")
        yield "forgotten", "{:.2f} of the earlier edits would be lost", found.lost_retention, None
        yield "disturbed", "{:.2f} of the answers to unrelated questions would change", found.lost_locality, None
        text = "{:.2f} of the answers to unrelated questions would have changed by all versions together"
        yield "drift", text, _complement(found.locality), _complement(found.before.get("locality"))
        text = "records of all versions together would decide at {:.2f} of the unrelated questions and sentences"
        yield "drift", text, found.decided, found.before.get("decided")
        yield "fires", "a new record would decide at {:.2f} of the unrelated questions and sentences", found.fires, None
        yield "unanswered", "{:.2f} of the edits would not be answered with their targets", _complement(found.efficacy), None


def _complement(share: float | None) -> float | None:
    return None if share is None else 1 - share


def check_norms(delta: Delta, base_norms: Mapping[str, float]) -> Measurements:
    """Measure an update without running the model. Raises `EditRejected` for a matrix that is not editable."""
    memory, changed = memory_of(delta), [name for name, _ in weights_of(delta)]
    if memory is not None and memory.kind in AT_MATRIX:
        changed.append(memory.site)
    if unknown := [name for name in changed if name not in base_norms]:
        raise EditRejected(f"the update changes matrices that are not editable: {', '.join(unknown)}", code=Code.UNKNOWN_MATRIX)
    if not delta.is_finite:
        return Measurements(is_finite=False)
    norms = {name: norm / base_norms[name] if base_norms[name] else math.inf for name, norm in delta.norms().items()}
    return Measurements(relative_norm=norms)


def matrix_norms(model: LanguageModel, spec: ModelSpec) -> dict[str, float]:
    """Return the Frobenius norm of each editable matrix as the model holds it now. Call it on the unedited model."""
    return {name: float(model.module.get_submodule(name).weight.double().norm()) for name in spec.names}


def norm_growth(delta: WeightDelta, model: LanguageModel, spec: ModelSpec, base_norms: Mapping[str, float]) -> dict[str, float]:
    """Return |W + delta| / |W0| of each matrix, from the inner product of W and delta instead of their sum."""
    found = dict[str, float]()
    for name, part in delta:
        weight_OI = spec[name].oriented(model.module.get_submodule(name).weight.detach())
        now = float(torch.linalg.vector_norm(weight_OI, dtype=torch.float32))
        square = now**2 + 2 * _inner(part, weight_OI) + part.norm() ** 2
        found[name] = math.sqrt(max(0.0, square)) / base_norms[name]
    return found


def _inner(part: Part, weight_OI: Tensor) -> float:
    """Return <W, delta>, the sum of the products of their entries."""
    if isinstance(part, LowRank):
        return float((part.U_OR.double() * (weight_OI.float() @ part.V_IR).double()).sum())
    return float((weight_OI.double() * part.dense().double()).sum())
