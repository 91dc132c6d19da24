"""Measurement of an update before it is published, on the model that the update would make.

Three texts are scored: the batch's edits, the earlier edits (`earlier_edits.py`), and the probes. Each takes one teacher-forced
pass with the result of free greedy generation: an answer is generated exactly if each of its tokens, and an end token after it,
is the argmax after the tokens before it. The wanted answer of a probe is the unedited model's, up to its first sentence.
Activations before the first edited matrix come from a prefix cache, and after the last attention only answer positions are
computed.

In bf16 the update is measured on the fp32 sum that the weights are rounded from; the next one is compared with the weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from statistics import median

import torch
from torch import Tensor

from errata.delta.kinds import Delta, weights_of
from errata.delta.memory_delta import MemoryDelta
from errata.delta.side_branch import applied
from errata.delta.weight_delta import WeightDelta
from errata.edit import Edit, EditBatch
from errata.guard.earlier_edits import EarlierEdits, Said
from errata.guard.held_edits import HeldEdit
from errata.guard.limits import Guard, Measurements, check_norms, matrix_norms, norm_growth
from errata.guard.memory_answers import MemoryAnswers, is_read_before
from errata.guard.probe_answers import (
    MAX_ANSWER_TOKENS,
    AnswerPasses,
    ProbeAnswers,
    ProbeTexts,
    by_text,
    deciding_tokens,
    is_decided,
)
from errata.guard.probes import Probes
from errata.model.encoding import IGNORED, Encoded, answer_nll
from errata.model.generation import continuations, greedy_fitting
from errata.model.language_model import LanguageModel
from errata.model.matrices import ModelSpec
from errata.model.prefix_cache import BatchCache, PrefixCache
from errata.text.dialogue import Prompt
from errata.text.rules import prompt_key

FEW = 16  # Losses in a smaller sample are divided by this: one edit of two is not half of all edits.
MAX_CHAT_TOKENS = 32  # A chat model's first sentence, which may say the target late.
EXTRA_TOKENS = 4  # After an answer of the target's length, to see whether it ends.
MAX_EXCLUDED = 0.25  # Share of a sample that edits may exclude by naming it; more would be a way around the guard.


@dataclass(frozen=True)
class Observed:
    """Answers of the model with an update: to the edits of the batch, to earlier ones, and to the probes.

    `lost` are the earlier edits that the version before answers and the model with the update does not. An update of a memory
    that is read before the model decides at the probes `fired`, and all records at those `decided`; all earlier edits but those
    in `said` keep their answers (`keeps_others`).
    """

    said: Mapping[Edit, Said]
    probed: ProbeAnswers | None
    lost: tuple[Edit, ...] = ()
    fired: tuple[Prompt, ...] = ()
    decided: frozenset[Prompt] | None = None
    keeps_others: bool = False


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
        probes = probes.sample(guard.num_questions, guard.num_sentences)
        self.memory = MemoryAnswers(model, probes.questions, probes.sentences, guard.num_retained)
        self.probe_texts = ProbeTexts.of(model, probes)
        self.base_answers = self._probe_answers(WeightDelta({})) if self.probe_texts is not None else None
        self.earlier = EarlierEdits(self, guard.num_retained, seed)
        self.at_version(())

    def at_version(self, edits: Iterable[Edit]) -> None:
        """Set the edits, in order, that the model's version holds."""
        self.earlier.at_version(edits)
        self.probed: ProbeAnswers | None = None  # Computed again when the next update is compared with the version.
        self.decided: frozenset[Prompt] | None = None  # As well.

    @torch.no_grad()
    def measure(
        self,
        batch: EditBatch,
        delta: Delta,
        cache: BatchCache | None = None,
        sample: Sequence[HeldEdit] | None = None,
        if_answered: bool = False,
    ) -> tuple[Measurements, Observed]:
        """Measure the model with `delta`, and return what `committed` takes if the update is applied.

        The batch is empty for an update that only removes edits. Answers of the version itself are computed once and kept.
        `sample` are the earlier edits to ask, by default those whose turn it is; with `if_answered` they are asked only if the
        batch is answered.
        """
        nothing = Observed({}, None)
        found = check_norms(delta, self.base_norms)
        if not found.is_finite or not self.guard.check(found).publish:
            return found, nothing
        if is_read_before(delta):
            return self._measure_memory(found, batch, delta, cache, if_answered)
        delta = delta.on_devices_of(self.model.module)  # The delta of a revert was read from the ledger, onto the CPU.
        found = replace(found, norm_growth=norm_growth(weights_of(delta), self.model, self.spec, self.base_norms))
        own = self._batch_said(batch, delta, cache)
        if own is None:
            return replace(found, is_finite=False), nothing
        found = _with_failed(found, batch, own)
        probed = None
        if self.probe_texts is not None:
            self.probed = self.probed or self._probe_answers(WeightDelta({}))
            probed = self._probe_answers(delta)
            found = self._with_probes(found, batch, self.probed, probed)
        if not found.is_finite or (if_answered and found.unanswered):
            return found, nothing
        then = self._earlier_said(self.earlier.next(batch) if sample is None else sample, delta)
        if then is None:
            return replace(found, is_finite=False), nothing
        found, lost = self._with_earlier(found, batch, then)
        said = {held.edit: one for held, one in then.items()} | dict(zip(batch, own, strict=True))
        return found, Observed(said, probed, lost)

    def _measure_memory(
        self, found: Measurements, batch: EditBatch, delta: MemoryDelta, cache: BatchCache | None, if_answered: bool
    ) -> tuple[Measurements, Observed]:
        """Measure a memory that is read before the model: what it may change is known from its records."""
        own = self._own_said(batch, delta, cache)
        if own is None:
            return replace(found, is_finite=False), Observed({}, None)
        found = _with_failed(found, batch, own)
        asked = self.memory.probes
        counted = set(asked) - _excluded(asked, batch.prompts, _named(batch))
        fired = tuple(prompt for prompt in self.memory.fired(delta) if prompt in counted)
        self.decided = self.memory.decided() if self.decided is None else self.decided
        decided = self.memory.decided_with(delta, self.decided)
        if counted:
            shares = [len(counted.intersection(part)) / max(FEW, len(counted)) for part in (fired, decided, self.decided)]
            found = replace(found, fires=shares[0], decided=shares[1], before={"decided": shares[2]})
        if if_answered and found.unanswered:
            return found, Observed({}, None, fired=fired)
        then = self._earlier_said(self.memory.touched(self.earlier.held, batch, delta), delta)
        if then is None:
            return replace(found, is_finite=False), Observed({}, None)
        found, lost = self._with_earlier(found, batch, then)
        if others := self.earlier.others(batch):
            answered = [then[held].is_answered if held in then else held.is_answered is not False for held in others]
            found = replace(found, retention=_share(answered), lost_retention=len(lost) / max(FEW, len(others)))
        said = {held.edit: one for held, one in then.items()} | dict(zip(batch, own, strict=True))
        return found, Observed(said, None, lost, fired, decided, keeps_others=True)

    def remembered(self, edits: Sequence[Edit], delta: Delta) -> list[Said | None]:
        """Return what the memory with an update says to edits; None where the model must be asked."""
        return self.memory.said(edits, self.memory.bank_with(delta))

    @torch.no_grad()
    def lost(self, batch: EditBatch, delta: Delta, sample: Sequence[HeldEdit]) -> tuple[Edit, ...]:
        """Return the earlier edits of a sample that the version answers and the model with `delta` does not."""
        if is_read_before(delta):
            sample = self.memory.touched(self.earlier.held, batch, delta)
        then = self._earlier_said(sample, delta.on_devices_of(self.model.module))
        return tuple(held.edit for held in sample) if then is None else self._with_earlier(Measurements(), batch, then)[1]

    def _earlier_said(self, sample: Sequence[HeldEdit], delta: Delta) -> dict[HeldEdit, Said] | None:
        """Ask the model with `delta` earlier edits, and the version itself those of them that it was not asked."""
        is_known = self.earlier.know([held for held in sample if held.is_answered is None])
        return self.earlier.ask(sample, delta) if is_known else None

    def _with_earlier(
        self, found: Measurements, batch: EditBatch, then: Mapping[HeldEdit, Said]
    ) -> tuple[Measurements, tuple[Edit, ...]]:
        """Add the share of earlier edits that stay answered; returns also those that are lost.

        An edit whose prompt the batch names as another wording of its own counts in neither.
        """
        prompts = [prompt for held in then for prompt in held.edit.prompts]
        named = _excluded(prompts, batch.prompts, [p for edit in batch for text in edit.rephrasings for p in edit.ask(text)])
        counted = {held: said for held, said in then.items() if named.isdisjoint(held.edit.prompts)}
        lost = [bool(held.is_answered) and not said.is_answered for held, said in counted.items()]
        share = _share([said.is_answered for said in counted.values()])
        return replace(found, retention=share, lost_retention=_lost(lost)), tuple(held.edit for held in compress(counted, lost))

    def committed(self, batch: EditBatch, observed: Observed | None = None) -> None:
        """Record that the weights now hold the update of `batch`, with the answers that `measure` observed of it.

        In fp32 these answers are the new version's. In a shorter format the weights were rounded, so they are asked again.
        """
        observed = observed or Observed({}, None)
        self.earlier.committed(batch, observed.said, self.is_fp32 or observed.keeps_others, observed.keeps_others)
        self.probed = observed.probed if self.is_fp32 else None
        self.decided = observed.decided

    @torch.no_grad()
    def look(self, count: int) -> bool:
        """Ask the version itself at most `count` of the edits that it was not asked; False if there are none."""
        unasked = self.earlier.held.open[:count]
        return bool(unasked) and self.earlier.know(unasked)

    @torch.no_grad()
    def answers(self, batch: EditBatch, delta: Delta | None = None, model: LanguageModel | None = None) -> list[list[str]]:
        """Generate the answers to each edit's prompts, as the served model does, as far as the context has room.

        `model` is asked instead of the inspected one, whose tokenizer it has.
        """
        texts = self._generated(batch, delta or WeightDelta({}), model or self.model)
        return [[self.model.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in own] for own in texts]

    def _generated(self, batch: EditBatch, delta: Delta, model: LanguageModel) -> list[list[list[int]]]:
        """Generate the tokens after each edit's prompts, as far as they may decide whether they are right."""
        rows = batch.rows
        questions = [batch.edits[row.edit].question(row.prompt) for row in rows]
        over = [0] * len(rows)

        def is_enough(row: int, ids: list[int]) -> bool:
            over[row] = over[row] + 1 if is_decided(model, questions[row], ids) else 0
            return over[row] == 2  # One token after the end of the sentence shows that it is one.

        with applied(model.module, delta):
            # One length for all: the longest answer, and room to see that a shorter one does not end.
            lengths = [len(answer) for _, answer in model.renderer.rows([(row.prompt, row.answer) for row in rows])]
            shortest = MAX_ANSWER_TOKENS if all(isinstance(row.prompt, str) for row in rows) else MAX_CHAT_TOKENS
            max_tokens = max([shortest, *(length + EXTRA_TOKENS for length in lengths)])
            made = greedy_fitting(model, [row.prompt for row in rows], max_tokens, is_enough)
        found: list[list[list[int]]] = [[] for _ in batch]
        for row, ids in zip(rows, made, strict=True):
            found[row.edit].append(ids)
        return found

    @torch.no_grad()
    def said(self, batch: EditBatch, delta: Delta) -> list[Said]:
        """Generate the answers to each edit. One that is right is kept as its tokens, as far as they decide that it is."""
        found = []
        for edit, own in zip(batch, self._generated(batch, delta, self.model), strict=True):
            texts = [self.model.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in own]
            wrong = edit.first_wrong(texts)
            written = (
                None
                if wrong is not None
                else tuple(
                    deciding_tokens(self.model, edit.question(prompt), ids)
                    for prompt, ids in zip(edit.prompts, own, strict=True)
                )
            )
            found.append(Said(written, wrong))
        return found

    def _own_said(self, batch: EditBatch, delta: Delta, cache: BatchCache | None) -> list[Said] | None:
        """Return what the memory, or the model with it, says to each edit; None if a log probability is not finite."""
        known = self.remembered(batch.edits, delta)
        unknown = EditBatch(tuple(edit for edit, said in zip(batch, known, strict=True) if said is None))
        asked = self._batch_said(unknown, delta, cache if len(unknown) == len(batch) else None)
        rest = iter(asked or ())
        return None if asked is None else [next(rest) if said is None else said for said in known]

    def _batch_said(self, batch: EditBatch, delta: Delta, cache: BatchCache | None) -> list[Said] | None:
        """Return what the model says to each edit; None if a log probability is not finite.

        An answer in other words than the edit's, or with more after its first sentence, may be right, too.
        """
        if not len(batch):
            return []
        cache = cache or BatchCache.of(self.model, self.spec.names, batch)
        right = self.texts_answered(cache.prefix, cache.tokens, delta)
        if right is None:
            return None
        wrong = {row.edit for row, answered in zip(batch.rows, right, strict=True) if not answered}
        unsure = EditBatch(tuple(edit for i, edit in enumerate(batch) if i in wrong))
        generated = dict(zip(sorted(wrong), self.said(unsure, delta) if wrong else [], strict=True))
        return [generated.get(i, Said(None)) for i in range(len(batch))]

    def _with_probes(self, found: Measurements, batch: EditBatch, now: ProbeAnswers, then: ProbeAnswers) -> Measurements:
        """Add the scores of the probes without questions that the batch is about; `then` are the answers with the update."""
        assert self.probe_texts is not None and self.base_answers is not None
        if not then.is_finite:
            return replace(found, is_finite=False)
        excluded = _excluded(self.probe_texts.questions, batch.prompts, _named(batch))
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

    def _probe_answers(self, delta: Delta) -> ProbeAnswers:
        texts = self.probe_texts
        assert texts is not None
        log_probs_TV = self.passes.log_probs(self.prefix_cache, texts.encoded, delta)
        num_questions = len(texts.questions)
        said = by_text(texts.encoded, self._tokens_said(texts.encoded, log_probs_TV, delta, num_questions))[:num_questions]
        nll = by_text(texts.encoded, answer_nll(log_probs_TV, texts.encoded))[num_questions:]
        is_finite = bool(torch.isfinite(log_probs_TV).all())
        return ProbeAnswers([part.tolist() for part in said], [float(part.mean().exp()) for part in nll], is_finite)

    @torch.no_grad()
    def texts_answered(self, cache: PrefixCache, encoded: Encoded, delta: Delta) -> list[bool] | None:
        """Return for each text if exactly its answer would be generated; None if a log probability is not finite."""
        log_probs_TV = self.passes.log_probs(cache, encoded, delta)
        if not torch.isfinite(log_probs_TV).all():
            return None
        said_T, wanted_T = self._tokens_said(encoded, log_probs_TV, delta), encoded.targets_T
        right_T = (said_T == wanted_T) | (torch.isin(said_T, self.end_ids) & torch.isin(wanted_T, self.end_ids))
        return [bool(part.all()) for part in by_text(encoded, right_T)]

    def _tokens_said(self, encoded: Encoded, log_probs_TV: Tensor, delta: Delta, num_rows: int | None = None) -> Tensor:
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
        end = min(self.model.end_ids, default=-1)
        num_rows = len(rows) if num_rows is None else num_rows
        with applied(self.model.module, delta):
            said = [*continuations(self.model, rows[:num_rows]), *([] for _ in rows[num_rows:])]
        return torch.tensor(
            [id for ids, (_, length) in zip(said, rows, strict=True) for id in [*ids, *[end] * (length - len(ids))]],
            device=self.end_ids.device,
        )


def _with_failed(found: Measurements, batch: EditBatch, said: Sequence[Said]) -> Measurements:
    """Add the edits that the model answers otherwise than by their targets; the first wrong answer of each is kept."""
    wrong = [(i, edit, one.wrong) for i, (edit, one) in enumerate(zip(batch, said, strict=True)) if one.wrong is not None]
    efficacy = 1 - len(wrong) / len(batch) if len(batch) else None
    failed = tuple({"prompt": edit.prompt, "target": edit.target, "answer": text} for _, edit, text in wrong)
    return replace(found, efficacy=efficacy, failed=failed, unanswered=tuple(i for i, *_ in wrong))


def _share(right: Sequence[bool]) -> float | None:
    return sum(right) / len(right) if right else None


def _named(batch: EditBatch) -> list[Prompt]:
    """Return the prompts that the edits name as rephrasings or consequences."""
    return [p for e in batch for t in (*e.rephrasings, *(probe.prompt for probe in e.portability)) for p in e.ask(t)]


def _excluded(sample: Sequence[Prompt], edited: Iterable[Prompt], named: Iterable[Prompt]) -> set[Prompt]:
    """Return the sampled prompts that a batch is about: those that it edits, or names as rephrasings or consequences.

    The author's naming is not verified, so named prompts are excluded only if most of the sample remains.
    """
    own, others, keys = set(map(prompt_key, edited)), set(map(prompt_key, named)), {p: prompt_key(p) for p in sample}
    excluded = {prompt for prompt, key in keys.items() if key in others}
    limit = MAX_EXCLUDED * max(FEW, len(sample))
    return {prompt for prompt, key in keys.items() if key in own} | (excluded if len(excluded) <= limit else set())


def _lost(lost: Sequence[bool]) -> float | None:
    return sum(lost) / max(FEW, len(lost)) if lost else None
