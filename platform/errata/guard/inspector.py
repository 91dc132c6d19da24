"""Measurement of an update before it is published, on the model that the update would make.

Three texts are scored: the batch's edits, a sample of earlier edits, and the probes. Each takes one teacher-forced pass with
the result of free greedy generation: an answer is generated exactly if each of its tokens, and an end token after it, is the
argmax after the tokens before it. The wanted answer of a probe is the unedited model's, up to its first sentence. Activations
before the first edited matrix come from a prefix cache, and after the last attention only answer positions are computed.

In bf16 the update is measured on the fp32 sum that the weights are rounded from; the next one is compared with the weights.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
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
from errata.guard.probe_answers import MAX_ANSWER_TOKENS, AnswerPasses, ProbeAnswers, ProbeTexts, by_row
from errata.guard.probes import Probes
from errata.model.encoding import IGNORED, Encoded, answer_nll, encode_rows
from errata.model.generation import continuations, greedy_texts
from errata.model.language_model import LanguageModel
from errata.model.matrices import ModelSpec
from errata.model.prefix_cache import BatchCache, PrefixCache
from errata.text.dialogue import Prompt

REDRAWN_EVERY = 8  # Batches after which the sample of earlier edits is drawn again.
FEW = 16  # Losses in a smaller sample are divided by this: one edit of two is not half of all edits.
MAX_CHAT_TOKENS = 32  # A chat model's first sentence, which may say the target late.
EXTRA_TOKENS = 4  # After an answer of the target's length, to see whether it ends.
MAX_EXCLUDED = 0.25  # Share of a sample that edits may exclude by naming it; more would be a way around the guard.


@dataclass(frozen=True)
class Observed:
    """Answers of the model with an update: success on each sampled earlier edit, by its prompt, and the probe answers.

    `lost` are the sampled edits that the version before answers and the model with the update does not.
    """

    answered: Mapping[Prompt, bool]
    probed: ProbeAnswers | None
    lost: tuple[Edit, ...] = ()


class Inspector:
    """The guard's measuring side, for a model that is at one version. `model` must hold the base weights at construction.

    `at_version` sets which edits the version holds, `committed` adds those of an update that was applied.
    """

    def __init__(self, model: LanguageModel, spec: ModelSpec, guard: Guard, probes: Probes, seed: int = 0) -> None:
        self.model, self.spec, self.guard, self.seed = model, spec, guard, seed
        self.base_norms = matrix_norms(model, spec)
        self.prefix_cache = PrefixCache(model.module, spec.names)
        self.passes = AnswerPasses(model.module)
        self.end_ids = torch.tensor(sorted(model.end_ids), device=model.device)
        self.is_fp32 = all(model.module.get_submodule(name).weight.dtype == torch.float32 for name in spec.names)
        self.probe_texts = ProbeTexts.of(model, probes.sample(guard.num_questions, guard.num_sentences))
        self.base_answers = self._probe_answers(WeightDelta({})) if self.probe_texts is not None else None
        self.sample_text: Encoded | None = None
        self.since_drawn = 0
        self.at_version(())

    def at_version(self, edits: Iterable[Edit]) -> None:
        """Set the edits, in order, that the model's version holds."""
        self.earlier = Sample(self.guard.num_retained, self.seed)
        self.earlier.add(edits)
        self._forget()
        self._draw()

    def _forget(self) -> None:
        """Drop the answers of the current version; they are computed again when the next update is compared with them."""
        self.answered: Mapping[Prompt, bool] = {}
        self.probed: ProbeAnswers | None = None

    @torch.no_grad()
    def measure(self, batch: EditBatch, delta: WeightDelta, cache: BatchCache | None = None) -> tuple[Measurements, Observed]:
        """Measure the model with `delta`, and return what `committed` takes if the update is applied.

        The batch is empty for an update that only removes edits. Answers of the version itself are computed once and kept.
        """
        observed = Observed({}, None)
        found = check_norms(delta, self.base_norms)
        if not found.is_finite or not self.guard.check(found).publish:
            return found, observed
        delta = delta.on_devices_of(self.model.module)  # The delta of a revert was read from the ledger, onto the CPU.
        found = replace(found, norm_growth=self._growth(delta))
        right, held = self._batch_answered(batch, delta, cache), self._sample_answered(delta)
        if right is None or held is None:
            return replace(found, is_finite=False), observed
        found = self._with_failed(found, batch, right, delta)
        self.answered = self.answered or self._sample_answered(WeightDelta({})) or {}
        named = [p for edit in batch for text in edit.rephrasings for p in edit.ask(text)]
        excluded = _excluded(list(held), batch.prompts, named)
        held, lost_edits = self._without_other_wordings(held, excluded, delta)
        counted = [prompt for prompt in held if prompt not in excluded]
        lost = [self.answered.get(prompt, False) and not held[prompt] for prompt in counted]
        found = replace(found, retention=_share([held[prompt] for prompt in counted]), lost_retention=_lost(lost))
        if self.probe_texts is None or self.base_answers is None:
            return found, Observed(held, None, lost_edits)
        self.probed = self.probed or self._probe_answers(WeightDelta({}))
        probed = self._probe_answers(delta)
        return self._with_probes(found, batch, self.probed, probed), Observed(held, probed, lost_edits)

    def _without_other_wordings(
        self, held: Mapping[Prompt, bool], excluded: Collection[Prompt], delta: WeightDelta
    ) -> tuple[dict[Prompt, bool], tuple[Edit, ...]]:
        """Ask the sampled edits whose exact answer the update loses: one that is right in other words is not lost.

        Returns the success on each prompt, and the edits that are lost.
        """
        asked = [
            edit
            for edit in self.drawn
            if any(self.answered.get(p, False) and not held.get(p, True) and p not in excluded for p in edit.prompts)
        ]
        texts = self.answers(EditBatch(tuple(asked)), delta) if asked else []
        lost = {edit.prompts for edit, said in zip(asked, texts, strict=True) if edit.first_wrong(said) is not None}
        right = {p: True for edit in asked if edit.prompts not in lost for p in edit.prompts}
        return {**held, **right}, tuple(edit for edit in asked if edit.prompts in lost)

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
        if observed is not None and self.is_fp32:
            self.answered = {} if is_stale else observed.answered
            self.probed = observed.probed

    def _is_stale(self, batch: EditBatch) -> bool:
        """Return True if the sample must be drawn again. It is kept for some batches, because a cached text costs less."""
        drawn = set(EditBatch(self.drawn).prompts)
        is_small = len(self.drawn) < self.guard.num_retained
        return self.since_drawn >= REDRAWN_EVERY or is_small or not drawn.isdisjoint(batch.prompts)

    def _draw(self) -> None:
        if self.sample_text is not None:
            self.prefix_cache.forget(self.sample_text)
        self.drawn, self.since_drawn, self.sample_text = tuple(self.earlier), 0, None
        if self.drawn:
            self.sample_text = encode_rows(self.model.renderer, EditBatch(self.drawn).rows, self.model.device)

    @torch.no_grad()
    def answers(self, batch: EditBatch, delta: WeightDelta | None = None) -> list[list[str]]:
        """Generate the answers to each edit's prompts, as the served model does, as far as the context has room."""
        rows = batch.rows
        texts: list[str] = []
        with applied(self.model.module, delta or WeightDelta({})):
            # One length for all: the longest answer, and room to see that a shorter one does not end.
            lengths = [len(answer) for _, answer in self.model.renderer.rows([(row.prompt, row.answer) for row in rows])]
            shortest = MAX_ANSWER_TOKENS if all(isinstance(row.prompt, str) for row in rows) else MAX_CHAT_TOKENS
            max_tokens = max([shortest, *(length + EXTRA_TOKENS for length in lengths)])
            texts = greedy_texts(self.model, [row.prompt for row in rows], max_tokens, fit_context=True)
        found: list[list[str]] = [[] for _ in batch]
        for row, text in zip(rows, texts, strict=True):
            found[row.edit].append(text.strip())
        return found

    def _with_failed(self, found: Measurements, batch: EditBatch, right: Sequence[bool], delta: WeightDelta) -> Measurements:
        """Add the edits that the model answers otherwise than by their targets; the first wrong answer of each is kept."""
        unsure = [i for i, answered in enumerate(right) if not answered]
        asked = EditBatch(tuple(batch.edits[i] for i in unsure))
        failed = []
        for i, edit, texts in zip(unsure, asked, self.answers(asked, delta) if unsure else [], strict=True):
            wrong = edit.first_wrong(texts)
            if wrong is not None:  # Another wording, or more after the first sentence, may be an answer, too.
                failed.append((i, {"prompt": edit.prompt, "target": edit.target, "answer": wrong}))
        efficacy = 1 - len(failed) / len(batch) if len(batch) else None
        return replace(found, efficacy=efficacy, failed=tuple(row for _, row in failed), unanswered=tuple(i for i, _ in failed))

    def _batch_answered(self, batch: EditBatch, delta: WeightDelta, cache: BatchCache | None) -> list[bool] | None:
        """Return whether each edit's prompts are answered by its target exactly; None if a log probability is not finite."""
        if not len(batch):
            return []
        cache = cache or BatchCache.of(self.model, self.spec.names, batch)
        right = self._answered(cache.prefix, cache.tokens, delta)
        if right is None:
            return None
        wrong = {row.edit for row, answered in zip(batch.rows, right, strict=True) if not answered}
        return [i not in wrong for i in range(len(batch))]

    def _sample_answered(self, delta: WeightDelta) -> dict[Prompt, bool] | None:
        """Return the success on each sampled earlier edit, by prompt; None if a log probability is not finite."""
        right = [] if self.sample_text is None else self._answered(self.prefix_cache, self.sample_text, delta)
        return None if right is None else dict(zip(EditBatch(self.drawn).prompts, right, strict=True))

    def _with_probes(self, found: Measurements, batch: EditBatch, now: ProbeAnswers, then: ProbeAnswers) -> Measurements:
        """Add the scores of the probes without questions that the batch is about; `then` are the answers with the update."""
        assert self.probe_texts is not None and self.base_answers is not None
        if not then.is_finite:
            return replace(found, is_finite=False)
        named = [p for e in batch for t in (*e.rephrasings, *(probe.prompt for probe in e.portability)) for p in e.ask(t)]
        excluded = _excluded(self.probe_texts.questions, batch.prompts, named)
        counts = [question not in excluded for question in self.probe_texts.questions]
        same_now, same_then = (list(compress(probed.same_as(self.base_answers), counts)) for probed in (now, then))
        lost = [before and not after for before, after in zip(same_now, same_then, strict=True)]
        ratios_now, ratios_then = now.ratios_to(self.base_answers), then.ratios_to(self.base_answers)
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

    def _probe_answers(self, delta: WeightDelta) -> ProbeAnswers:
        texts = self.probe_texts
        assert texts is not None
        log_probs_TV = self.passes.log_probs(self.prefix_cache, texts.encoded, delta)
        num_questions = len(texts.questions)
        said = by_row(texts.encoded, self._said(texts.encoded, log_probs_TV, delta, num_questions))[:num_questions]
        nll = by_row(texts.encoded, answer_nll(log_probs_TV, texts.encoded))[num_questions:]
        is_finite = bool(torch.isfinite(log_probs_TV).all())
        return ProbeAnswers([part.tolist() for part in said], [float(part.mean().exp()) for part in nll], is_finite)

    def _answered(self, cache: PrefixCache, encoded: Encoded, delta: WeightDelta) -> list[bool] | None:
        """Return for each row if exactly its target would be generated; None if a log probability is not finite."""
        log_probs_TV = self.passes.log_probs(cache, encoded, delta)
        if not torch.isfinite(log_probs_TV).all():
            return None
        said_T, wanted_T = self._said(encoded, log_probs_TV, delta), encoded.targets_T
        right_T = (said_T == wanted_T) | (torch.isin(said_T, self.end_ids) & torch.isin(wanted_T, self.end_ids))
        return [bool(part.all()) for part in by_row(encoded, right_T)]

    def _said(self, encoded: Encoded, log_probs_TV: Tensor, delta: WeightDelta, num_rows: int | None = None) -> Tensor:
        """Return the token that the served model writes at each answer position, given the right ones before it, [T].

        With `num_rows`, it does so in these first rows only, and the others are plain text.

        That is the argmax, unless the model has a repetition penalty, which depends on all tokens before. The answer is then
        generated; a wrong token changes the later ones, so the rows that are right are the same.
        """
        if self.model.repetition_penalty == 1.0:
            return log_probs_TV.argmax(-1).to(self.end_ids.device)
        rows = [
            (ids[mask & (labels == IGNORED)].tolist(), int((labels != IGNORED).sum()))
            for ids, mask, labels in zip(encoded.input_ids_BS, encoded.attention_mask_BS.bool(), encoded.labels_BS, strict=True)
        ]
        end = int(self.end_ids[0])
        num_rows = len(rows) if num_rows is None else num_rows
        with applied(self.model.module, delta):
            said = [*continuations(self.model, rows[:num_rows]), *([] for _ in rows[num_rows:])]
        return torch.tensor(
            [id for ids, (_, length) in zip(said, rows, strict=True) for id in [*ids, *[end] * (length - len(ids))]],
            device=self.end_ids.device,
        )

    def _growth(self, delta: WeightDelta) -> dict[str, float]:
        """Return |W + delta| / |W0| of each matrix, from the inner product of W and delta instead of their sum."""
        found = {}
        for name, part in delta:
            weight_OI = self.spec[name].oriented(self.model.module.get_submodule(name).weight.detach())
            now = float(torch.linalg.vector_norm(weight_OI, dtype=torch.float32))
            square = now**2 + 2 * _inner(part, weight_OI) + part.norm() ** 2
            found[name] = math.sqrt(max(0.0, square)) / self.base_norms[name]
        return found


def _inner(part: Part, weight_OI: Tensor) -> float:
    """Return <W, delta>, the sum of the products of their entries."""
    if isinstance(part, LowRank):
        return float((part.U_OR.double() * (weight_OI.float() @ part.V_IR).double()).sum())
    return float((weight_OI.double() * part.dense().double()).sum())


def _share(right: Sequence[bool]) -> float | None:
    return sum(right) / len(right) if right else None


def _excluded(sample: Sequence[Prompt], edited: Iterable[Prompt], named: Iterable[Prompt]) -> set[Prompt]:
    """Return the sampled prompts that a batch is about: those that it edits, or names as rephrasings or consequences.

    The author's naming is not verified, so named prompts are excluded only if most of the sample remains.
    """
    excluded = set(sample).intersection(named)
    limit = MAX_EXCLUDED * max(FEW, len(sample))
    return set(edited) | (excluded if len(excluded) <= limit else set())


def _lost(lost: Sequence[bool]) -> float | None:
    return sum(lost) / max(FEW, len(lost)) if lost else None
