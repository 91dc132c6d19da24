"""What the guard measures of an update before it is published, on the model that the update would make.

Three kinds of text: the batch's own edits with a sample of earlier ones, and the probes. All are scored as free greedy
generation would answer, at the price of one forward pass each: an answer is generated exactly if each of its tokens, and the
end-of-text token after it, is ranked first after those before it. For the probes the wanted answer is the one that the
unedited model generates. Of the probes only what lies behind the first edited matrix is run, since the rest cannot change.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from statistics import median

import torch
from torch import Tensor

from errata.capture import Trunk
from errata.delta import LowRank, Part, WeightDelta, applied
from errata.edit import Edit, EditBatch
from errata.encode import IGNORED, Encoded, answer_log_probs, answer_nll, encode
from errata.generate import greedy
from errata.guard import Guard, Measured, check_norms, matrix_norms
from errata.model import LanguageModel, ModelSpec
from errata.probes import Probes

MAX_ANSWER_TOKENS = 8
MAX_SENTENCE_TOKENS = 64
FEW = 16  # what is lost of a smaller sample is counted as of so many: one edit of two is no half of all


class Inspector:
    """Measures updates of one model that stands at a version. `model` must hold the base weights when this is made.

    `stand_at` says which edits the version holds; after an update was published, `published` does.
    """

    def __init__(self, model: LanguageModel, spec: ModelSpec, guard: Guard, probes: Probes, seed: int = 0) -> None:
        self.model, self.spec, self.guard, self.seed = model, spec, guard, seed
        self.base_norms = matrix_norms(model, spec)
        self.trunk = Trunk(model.module, spec.names)
        chosen = probes.sample(guard.num_questions, guard.num_sentences)
        self.texts = _Texts.of(model, chosen)
        self.base_perplexities = self._probed(WeightDelta({}))[1] if self.texts is not None else []
        self.stand_at(())

    def stand_at(self, edits: Iterable[Edit]) -> None:
        """The version that the model is at holds these edits, in this order."""
        self.earlier = Sample(self.guard.num_retained, self.seed)
        self.earlier.add(edits)
        self._forget()

    def _forget(self) -> None:
        """Nothing is known of the version that the model is at: it is asked when it has to be compared with."""
        self.retained: dict[str, bool] = {}  # by prompt: the edits that it answers
        self.same: list[bool] | None = None  # the questions that it answers as the unedited model does
        self.measured: tuple[EditBatch, dict[str, bool], list[bool] | None] | None = None  # the last: batch, retained, same

    @torch.no_grad()
    def measure(self, batch: EditBatch, delta: WeightDelta) -> Measured:
        """What the model would be with `delta`. Nothing is changed but what is known of the version that it is at."""
        found = check_norms(delta, self.base_norms)
        if not found.is_finite or not self.guard.check(found).publish:
            return found
        found = replace(found, norm_growth=self._growth(delta))
        own, earlier = batch.edits, [edit for edit in self.earlier if edit.prompt not in set(batch.prompts)]
        self._learn_retained(earlier)
        right = self._answered([*own, *earlier], delta)
        if right is None:
            return replace(found, is_finite=False)
        self.measured = batch, {e.prompt: held for e, held in zip((*own, *earlier), right, strict=True)}, None
        held = right[len(own) :]
        failed = [edit for edit, answered in zip(own, right, strict=False) if not answered]
        lost = [self.retained[edit.prompt] and not kept for edit, kept in zip(earlier, held, strict=True)]
        found = replace(found, efficacy=1 - len(failed) / len(own), failed=self._instead(failed, delta))
        found = replace(found, retention=_share(held), lost_retention=_lost(lost))
        return self._with_probes(found, batch, delta)

    def published(self, batch: EditBatch) -> None:
        """The model is now at a version that holds `batch`, too; call it when its weights have been changed."""
        self.earlier.add(batch)
        known = self.measured
        self._forget()
        if known and known[0] == batch:  # what was measured of the update is true of the version that it has become
            _, self.retained, self.same = known

    def _with_probes(self, found: Measured, batch: EditBatch, delta: WeightDelta) -> Measured:
        """With what the probes show, but for questions that the batch edits."""
        if self.texts is None:
            return found
        if self.same is None:
            self.same, _ = self._probed(WeightDelta({}))
        same, perplexities = self._probed(delta)
        if self.measured:
            self.measured = *self.measured[:2], same
        asked = [question not in set(batch.prompts) for question in self.texts.questions]
        lost = [before and not now for before, now, counts in zip(self.same, same, asked, strict=True) if counts]
        found = replace(found, locality=_share(list(compress(same, asked))), lost_locality=_lost(lost))
        ratios = [now / before for now, before in zip(perplexities, self.base_perplexities, strict=True)]
        if not ratios:
            return found
        return replace(found, ppl_ratio=median(ratios), is_finite=math.isfinite(median(ratios)))

    def _probed(self, delta: WeightDelta) -> tuple[list[bool], list[float]]:
        """Of each question whether its answer is the unedited model's, and of each sentence the perplexity."""
        texts = self.texts
        assert texts is not None
        with self.trunk.once(texts.encoded), applied(self.model.module, delta):
            log_probs_TV = answer_log_probs(self.model.module, texts.encoded)
        parts = _by_row(texts.encoded, log_probs_TV.argmax(-1) == texts.encoded.targets_T)
        nll = _by_row(texts.encoded, answer_nll(log_probs_TV, texts.encoded))
        num_questions = len(texts.questions)
        same = [bool(part.all()) for part in parts[:num_questions]]
        return same, [float(part.mean().exp().nan_to_num(math.inf, math.inf)) for part in nll[num_questions:]]

    def _answered(self, edits: Sequence[Edit], delta: WeightDelta) -> list[bool] | None:
        """Of each edit whether its target, and nothing more, would be generated; None if there are no numbers."""
        encoded = encode(self.model.tokenizer, [e.prompt for e in edits], [e.target for e in edits], self.model.device)
        with applied(self.model.module, delta):
            log_probs_TV = answer_log_probs(self.model.module, encoded)
        if not torch.isfinite(log_probs_TV).all():
            return None
        return [bool(part.all()) for part in _by_row(encoded, log_probs_TV.argmax(-1) == encoded.targets_T)]

    def _instead(self, edits: Sequence[Edit], delta: WeightDelta) -> tuple[dict[str, str], ...]:
        """What is said where the target is not."""
        if not edits:
            return ()
        room = min(self.model.max_tokens - len(self.model.tokenizer(e.prompt)["input_ids"]) for e in edits)
        with applied(self.model.module, delta):
            rows = greedy(self.model, [e.prompt for e in edits], min(MAX_ANSWER_TOKENS, room))
        texts = [self.model.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in rows]
        return tuple({"prompt": e.prompt, "target": e.target, "answer": t} for e, t in zip(edits, texts, strict=True))

    def _learn_retained(self, earlier: Sequence[Edit]) -> None:
        """Which of the earlier edits the version that the model is at answers: asked once for each version."""
        unknown = [edit for edit in earlier if edit.prompt not in self.retained]
        if unknown:
            right = self._answered(unknown, WeightDelta({})) or [False] * len(unknown)
            self.retained |= {edit.prompt: held for edit, held in zip(unknown, right, strict=True)}

    def _growth(self, delta: WeightDelta) -> dict[str, float]:
        """|W + delta| / |W0| of each matrix, from the inner product of W and delta instead of their sum."""
        found = {}
        for name, part in delta:
            weight_OI = self.spec[name].oriented(self.model.module.get_submodule(name).weight.detach())
            now = float(torch.linalg.vector_norm(weight_OI, dtype=torch.float32))
            square = now**2 + 2 * _inner(part, weight_OI) + part.norm() ** 2
            found[name] = math.sqrt(max(0.0, square)) / self.base_norms[name]
        return found


@dataclass(frozen=True)
class _Texts:
    """The probes as one batch: questions with the unedited model's answers, then sentences."""

    encoded: Encoded
    questions: tuple[str, ...]

    @classmethod
    def of(cls, model: LanguageModel, probes: Probes) -> _Texts | None:
        if not probes.questions and not probes.sentences:
            return None
        tokenizer = model.tokenizer
        answers = greedy(model, probes.questions, MAX_ANSWER_TOKENS) if probes.questions else []
        rows = []
        for prompt, ids in zip(probes.questions, answers, strict=True):
            start = list(tokenizer(prompt)["input_ids"])
            ends = len(ids) < MAX_ANSWER_TOKENS and tokenizer.eos_token_id is not None
            rows.append((start, [*ids, tokenizer.eos_token_id] if ends else ids))
        for sentence in probes.sentences:
            ids = tokenizer(sentence, truncation=True, max_length=min(MAX_SENTENCE_TOKENS, model.max_tokens))["input_ids"]
            rows.append((ids[:1], ids[1:]))
        return cls(_padded(rows, tokenizer.pad_token_id or 0, model.device), probes.questions)


def _padded(rows: Sequence[tuple[list[int], list[int]]], pad: int, device: torch.device) -> Encoded:
    """Rows of (ids that are given, ids that are predicted)."""
    shape = len(rows), max(len(given) + len(wanted) for given, wanted in rows)
    input_ids_BS, labels_BS = torch.full(shape, pad), torch.full(shape, IGNORED)
    mask_BS = torch.zeros(shape, dtype=torch.long)
    for i, (given, wanted) in enumerate(rows):
        begin, end = len(given), len(given) + len(wanted)
        input_ids_BS[i, :end] = torch.tensor(given + wanted)
        labels_BS[i, begin:end] = torch.tensor(wanted)
        mask_BS[i, :end] = 1
    return Encoded(input_ids_BS.to(device), mask_BS.to(device), labels_BS.to(device))


class Sample:
    """At most `size` of the edits that were ever added, each as likely as any other, of one prompt only the latest.

    By the smallest hashes of the prompts, so that the same edits give the same sample however they were divided.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self.held: dict[str, Edit] = {}

    def add(self, edits: Iterable[Edit]) -> None:
        self.held |= {edit.prompt: edit for edit in edits}
        if len(self.held) > self.size:
            self.held = {prompt: self.held[prompt] for prompt in heapq.nsmallest(self.size, self.held, self._rank)}

    def _rank(self, prompt: str) -> bytes:
        return hashlib.sha256(f"{self.seed} {prompt}".encode()).digest()

    def __iter__(self) -> Iterator[Edit]:
        return iter(self.held.values())


def _inner(part: Part, weight_OI: Tensor) -> float:
    """<W, delta>, the sum of the products of their entries."""
    if isinstance(part, LowRank):
        return float((part.U_OR.double() * (weight_OI.float() @ part.V_IR).double()).sum())
    return float((weight_OI.double() * part.dense().double()).sum())


def _by_row(encoded: Encoded, values_T: Tensor) -> tuple[Tensor, ...]:
    return values_T.split(encoded.predicts_BS.sum(1).tolist())


def _share(right: Sequence[bool]) -> float | None:
    return sum(right) / len(right) if right else None


def _lost(lost: Sequence[bool]) -> float | None:
    return sum(lost) / max(FEW, len(lost)) if lost else None
