"""What the guard measures of an update before it is published, on the model that the update would make.

Three kinds of text: the batch's own edits with a sample of earlier ones, and the probes. All are scored as free greedy
generation would answer, at the price of one forward pass each: an answer is generated exactly if each of its tokens, and an
end token after it, is ranked first after those before it. For the probes the wanted answer is the one that the unedited model
generates, as far as its first sentence. Only what lies behind the first edited matrix is run, since the rest cannot change,
and behind the last attention only where an answer token is predicted.

In bf16 what is measured is the sum that the weights will be rounded from; the next update is compared with the weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from statistics import median

import torch
from torch import Tensor

from errata.delta.parts import LowRank, Part
from errata.delta.side_branch import applied
from errata.delta.weight_delta import WeightDelta
from errata.edit import Edit, EditBatch
from errata.guard.edit_sample import Sample
from errata.guard.limits import Guard, Measurements, check_norms, matrix_norms
from errata.guard.probe_answers import MAX_ANSWER_TOKENS, _by_row, _Probed, _Texts
from errata.guard.probes import Probes
from errata.model.encoding import Encoded, answer_log_probs, answer_nll, encode
from errata.model.generation import end_tokens, greedy_texts
from errata.model.language_model import LanguageModel
from errata.model.matrices import ModelSpec
from errata.model.prefix_cache import BatchCache, PrefixCache

REDRAWN_EVERY = 8  # batches for which a sample of earlier edits is kept
FEW = 16  # what is lost of a smaller sample is counted as of so many: one edit of two is no half of all
MAX_EXCUSED = 0.25  # of a sample, by the rephrasings that edits name: more would be a way around the guard


@dataclass(frozen=True)
class Observed:
    """Answers of the model with an update: whether it answers each sampled earlier edit, by prompt, and its probe answers."""

    answered: Mapping[str, bool]
    probed: _Probed | None


class Inspector:
    """Measures updates of a model that is at one version. `model` must hold the base weights at construction.

    `at_version` sets which edits the version holds, `committed` adds those of an update that was applied.
    """

    def __init__(self, model: LanguageModel, spec: ModelSpec, guard: Guard, probes: Probes, seed: int = 0) -> None:
        self.model, self.spec, self.guard, self.seed = model, spec, guard, seed
        self.base_norms = matrix_norms(model, spec)
        self.trunk = PrefixCache(model.module, spec.names)
        self.is_pointwise: bool | None = None  # until there is a text to find it by
        self.ends = torch.tensor(sorted(end_tokens(model)), device=model.device)
        self.is_exact = all(model.module.get_submodule(name).weight.dtype == torch.float32 for name in spec.names)
        self.texts = _Texts.of(model, probes.sample(guard.num_questions, guard.num_sentences))
        self.base = self._probed(WeightDelta({})) if self.texts is not None else None
        self.block: Encoded | None = None
        self.since_drawn = 0
        self.at_version(())

    def at_version(self, edits: Iterable[Edit]) -> None:
        """The version that the model is at holds these edits, in this order."""
        self.earlier = Sample(self.guard.num_retained, self.seed)
        self.earlier.add(edits)
        self._forget()
        self._draw()

    def _forget(self) -> None:
        """Drop the answers of the version that the model is at; they are computed again when an update is compared with them."""
        self.answered: Mapping[str, bool] = {}
        self.probed: _Probed | None = None

    @torch.no_grad()
    def measure(self, batch: EditBatch, delta: WeightDelta, cache: BatchCache | None = None) -> tuple[Measurements, Observed]:
        """Measure the model with `delta`, and return what `committed` takes if the update is applied.

        The batch is empty for an update that only removes edits. Answers of the version itself are computed once and kept.
        """
        observed = Observed({}, None)
        found = check_norms(delta, self.base_norms)
        if not found.is_finite or not self.guard.check(found).publish:
            return found, observed
        delta = delta.beside(self.model.module)  # a revert's comes from the ledger
        found = replace(found, norm_growth=self._growth(delta))
        right, held = self._own(batch, delta, cache), self._held(delta)
        if right is None or held is None:
            return replace(found, is_finite=False), observed
        failed = [edit for edit, answered in zip(batch, right, strict=True) if not answered]
        efficacy = 1 - len(failed) / len(batch) if len(batch) else None
        found = replace(found, efficacy=efficacy, failed=self._instead(failed, delta))
        self.answered = self.answered or self._held(WeightDelta({})) or {}
        excused = _excused(list(held), batch.prompts, [p for edit in batch for p in edit.rephrasings])
        counted = [prompt for prompt in held if prompt not in excused]
        lost = [self.answered.get(prompt, False) and not held[prompt] for prompt in counted]
        found = replace(found, retention=_share([held[prompt] for prompt in counted]), lost_retention=_lost(lost))
        if self.texts is None or self.base is None:
            return found, Observed(held, None)
        self.probed = self.probed or self._probed(WeightDelta({}))
        probed = self._probed(delta)
        return self._with_probes(found, batch, self.probed, probed), Observed(held, probed)

    def committed(self, batch: EditBatch, observed: Observed | None = None) -> None:
        """Record that the weights now hold the update of `batch`, with the answers that `measure` observed of it.

        In fp32 these answers are the new version's. In a shorter format the weights were rounded, so they are dropped.
        """
        self.since_drawn += 1
        self.earlier.add(batch)
        self._forget()
        is_stale = self._is_stale(batch)
        if is_stale:
            self._draw()
        if observed is not None and self.is_exact:
            self.answered = {} if is_stale else observed.answered
            self.probed = observed.probed

    def _is_stale(self, batch: EditBatch) -> bool:
        """A sample stays for some batches, because a text that was looked at before costs less."""
        drawn = {edit.prompt for edit in self.drawn}
        return self.since_drawn >= REDRAWN_EVERY or len(drawn) < self.guard.num_retained or not drawn.isdisjoint(batch.prompts)

    def _draw(self) -> None:
        if self.block is not None:
            self.trunk.forget(self.block)
        self.drawn, self.since_drawn, self.block = tuple(self.earlier), 0, None
        if self.drawn:
            prompts, targets = zip(*((edit.prompt, edit.target) for edit in self.drawn), strict=True)
            self.block = encode(self.model.tokenizer, prompts, targets, self.model.device)

    def _own(self, batch: EditBatch, delta: WeightDelta, cache: BatchCache | None) -> list[bool] | None:
        """Of each of the batch's edits whether it is answered; None if there are no numbers."""
        if not len(batch):
            return []
        cache = cache or BatchCache.of(self.model, self.spec.names, batch)
        return self._answered(cache.prefix, cache.tokens, delta)

    def _held(self, delta: WeightDelta) -> dict[str, bool] | None:
        """Of each of the earlier edits that are asked whether it is answered; None if there are no numbers."""
        right = [] if self.block is None else self._answered(self.trunk, self.block, delta)
        return None if right is None else dict(zip((edit.prompt for edit in self.drawn), right, strict=True))

    def _with_probes(self, found: Measurements, batch: EditBatch, now: _Probed, then: _Probed) -> Measurements:
        """Add the scores of the probes, questions that the batch is about excepted: `now` of the version, `then` with it."""
        assert self.texts is not None and self.base is not None
        if not then.is_finite:
            return replace(found, is_finite=False)
        named = [p for e in batch for p in (*e.rephrasings, *(probe.prompt for probe in e.portability))]
        excused = _excused(self.texts.questions, batch.prompts, named)
        counts = [question not in excused for question in self.texts.questions]
        same_now, same_then = (list(compress(probed.same_as(self.base), counts)) for probed in (now, then))
        lost = [before and not after for before, after in zip(same_now, same_then, strict=True)]
        ratios_now, ratios_then = now.ratios_to(self.base), then.ratios_to(self.base)
        return replace(
            found,
            locality=_share(same_then),
            lost_locality=_lost(lost),
            ppl_ratio=median(ratios_then) if ratios_then else None,
            broken_sentences=self._broken(ratios_then),
            before={
                "locality": _share(same_now),
                "ppl_ratio": median(ratios_now) if ratios_now else None,
                "broken_sentences": self._broken(ratios_now),
            },
        )

    def _broken(self, ratios: Sequence[float]) -> float | None:
        return _share([not ratio <= self.guard.perplexity.refuse for ratio in ratios])

    def _probed(self, delta: WeightDelta) -> _Probed:
        texts = self.texts
        assert texts is not None
        log_probs_TV = self._log_probs(self.trunk, texts.encoded, delta)
        num_questions = len(texts.questions)
        said = _by_row(texts.encoded, log_probs_TV.argmax(-1))[:num_questions]
        nll = _by_row(texts.encoded, answer_nll(log_probs_TV, texts.encoded))[num_questions:]
        is_finite = bool(torch.isfinite(log_probs_TV).all())
        return _Probed([part.tolist() for part in said], [float(part.mean().exp()) for part in nll], is_finite)

    def _log_probs(self, trunk: PrefixCache, text: Encoded, delta: WeightDelta) -> Tensor:
        """log p where an answer token is predicted, [T, V]; from the second pass on, no more is run than it depends on."""
        if self.is_pointwise is None:
            self.is_pointwise = trunk.anew().is_pointwise(text)
        if self.is_pointwise and trunk.has(text):
            text = trunk.narrowed(text)
        with trunk.once(text), applied(self.model.module, delta):
            return answer_log_probs(self.model.module, text)

    def _answered(self, trunk: PrefixCache, encoded: Encoded, delta: WeightDelta) -> list[bool] | None:
        """Of each row whether its target, and nothing more, would be generated; None if there are no numbers."""
        log_probs_TV = self._log_probs(trunk, encoded, delta)
        if not torch.isfinite(log_probs_TV).all():
            return None
        said_T, wanted_T = log_probs_TV.argmax(-1).to(self.ends.device), encoded.targets_T
        right_T = (said_T == wanted_T) | (torch.isin(said_T, self.ends) & torch.isin(wanted_T, self.ends))
        return [bool(part.all()) for part in _by_row(encoded, right_T)]

    def _instead(self, edits: Sequence[Edit], delta: WeightDelta) -> tuple[dict[str, str], ...]:
        """What is said where the target is not, as far as the context has room for it."""
        rows: list[str] = []
        with applied(self.model.module, delta):
            for edit in edits:
                rows += greedy_texts(self.model, [edit.prompt], MAX_ANSWER_TOKENS, fit_context=True)
        return tuple({"prompt": e.prompt, "target": e.target, "answer": t.strip()} for e, t in zip(edits, rows, strict=True))

    def _growth(self, delta: WeightDelta) -> dict[str, float]:
        """|W + delta| / |W0| of each matrix, from the inner product of W and delta instead of their sum."""
        found = {}
        for name, part in delta:
            weight_OI = self.spec[name].oriented(self.model.module.get_submodule(name).weight.detach())
            now = float(torch.linalg.vector_norm(weight_OI, dtype=torch.float32))
            square = now**2 + 2 * _inner(part, weight_OI) + part.norm() ** 2
            found[name] = math.sqrt(max(0.0, square)) / self.base_norms[name]
        return found


def _inner(part: Part, weight_OI: Tensor) -> float:
    """<W, delta>, the sum of the products of their entries."""
    if isinstance(part, LowRank):
        return float((part.U_OR.double() * (weight_OI.float() @ part.V_IR).double()).sum())
    return float((weight_OI.double() * part.dense().double()).sum())


def _share(right: Sequence[bool]) -> float | None:
    return sum(right) / len(right) if right else None


def _excused(sample: Sequence[str], edited: Iterable[str], named: Iterable[str]) -> set[str]:
    """Those of a sample that a batch is about: what it edits, and what it names as another wording or a consequence.

    Nobody checks that these are what the poster says they are, so they count where little would be left to judge by.
    """
    excused = set(sample).intersection(named)
    limit = MAX_EXCUSED * max(FEW, len(sample))
    return set(edited) | (excused if len(excused) <= limit else set())


def _lost(lost: Sequence[bool]) -> float | None:
    return sum(lost) / max(FEW, len(lost)) if lost else None
