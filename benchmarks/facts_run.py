"""One row of the comparison on the default model: edits made batch by batch, then everything asked, and what it costs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from statistics import fmean, harmonic_mean, median
from typing import Any

from benchmarks.facts_oracle import with_corrections
from benchmarks.facts_progress import in_parts, say
from benchmarks.facts_rows import ORACLE, UNEDITED, EditorRow
from benchmarks.facts_stream import CorrectionStream
from errata.benchmark.costs import added_ms, added_tokens, saved_bytes
from errata.benchmark.stream import as_shown
from errata.delta.accumulator import EditedModel
from errata.edit import EditBatch, EditRejected, batches_of
from errata.editors.editor import Editor
from errata.editors.state import EditorState
from errata.evaluate.half_life import Survival, half_life
from errata.evaluate.perplexity import Perplexities, perplexities
from errata.evaluate.transformations import TransformedQuestion
from errata.hardware import PeakMemory
from errata.model.generation import greedy
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from errata.testbed.known_facts import MAX_TOKENS
from errata.testbed.world_facts import WorldFacts
from errata.text.dialogue import Prompt
from errata.timing import stage_seconds
from jobs.demo_run import BATCH_SIZE
from jobs.workers import time_left

Tokens = dict[Prompt, list[int]]
NUM_TIMED = 20  # answers to corrected questions, and as many others, each with and without the edits
PROMPTS_AT_ONCE = 256  # a multiple of the prompts that `greedy` answers together
REPORTED_BATCHES = 10  # between two lines of progress


@dataclass(frozen=True)
class BeforeEdits:
    """The unedited model's answers to every prompt of a stream, as tokens and texts, and its perplexities."""

    tokens: Tokens
    texts: Mapping[Prompt, str]
    perplexities: Perplexities

    @classmethod
    def of(cls, model: LanguageModel, tokens: Tokens) -> BeforeEdits:
        return cls(tokens, texts_of_tokens(model, tokens), perplexities(model, sentences()))


def sentences() -> list[str]:
    return WorldFacts().plain_sentences(held_out=True)


def generated(model: LanguageModel, prompts: Sequence[Prompt]) -> Tokens:
    """Generate the answer to each prompt; parts are whole batches, so that each is answered beside the same others."""
    tokens: Tokens = {}
    for part in in_parts(prompts, PROMPTS_AT_ONCE, "answers"):
        tokens |= dict(zip(part, greedy(model, part, MAX_TOKENS), strict=True))
    return tokens


def texts_of_tokens(model: LanguageModel, tokens: Tokens) -> dict[Prompt, str]:
    return {prompt: model.tokenizer.decode(ids, skip_special_tokens=True) for prompt, ids in tokens.items()}


@dataclass
class EditsMade:
    """The edits as they were made: the bytes of their changes, seconds an edit in each batch, and refused edits.

    `right_at_first` has the edits that were right immediately after their batch, with the number of edits until then.
    """

    num_bytes: int = 0
    seconds_each: list[float] = field(default_factory=list)
    refused: int = 0
    right_at_first: dict[str, int] = field(default_factory=dict)
    num_asked: int = 0
    peak_bytes: int | None = None


@dataclass(frozen=True)
class RowRun:
    """Run of one row on one stream. `model` is edited in place, and `unedited`, a second copy, answers beside it."""

    row: EditorRow
    model: LanguageModel
    unedited: LanguageModel
    stream: CorrectionStream
    before: BeforeEdits

    def figures(self, editor: Editor | None) -> dict[str, Any]:
        """Make the edits, ask, measure, and take the edits out of the model again."""
        made = EditsMade()
        with self._edited(editor, made), self._oracle():
            tokens = self.before.tokens if self.row.name == UNEDITED else generated(self.model, self.stream.prompts)
            found = self._scores(tokens) | self._lifetimes(made, tokens)
            found["ppl_ratio"] = perplexities(self.model, sentences()).ratios_to(self.before.perplexities)["ppl_ratio"]
            return found | self._costs(made)

    def validation(self, editor: Editor) -> float:
        """Return the harmonic mean of all scores after the edits: how a setting is chosen."""
        with self._edited(editor, EditsMade()):
            return harmonic_mean([score or 0.0 for score in self._scores(generated(self.model, self.stream.prompts)).values()])

    def _oracle(self) -> AbstractContextManager[None]:
        return with_corrections(self.model, self.stream.owners) if self.row.name == ORACLE else nullcontext()

    @contextmanager
    def _edited(self, editor: Editor | None, made: EditsMade) -> Iterator[None]:
        """Make all edits, each batch on the model so far."""
        if editor is None:
            yield
            return
        spec = find_matrices(self.model.module, editor.modules)
        edited = EditedModel(self.model.module, spec)
        try:
            with PeakMemory(self.model.device) as memory:
                self._make(editor, editor.start(self.model, spec), edited, made)
            made.peak_bytes = memory.num_bytes
            yield
        finally:
            edited.set([])

    def _make(self, editor: Editor, state: EditorState, edited: EditedModel, made: EditsMade) -> None:
        batches = list(batches_of(self.row.changed(self.stream.edits), BATCH_SIZE))
        began = time.monotonic()
        for done, batch in enumerate(batches, 1):
            state = self._make_batch(editor, batch, state, edited, made)
            self._ask_at_first(batch, made)
            if not done % REPORTED_BATCHES or done == len(batches):
                left = time_left(began, done, len(batches))
                say(f"{self.row.name}: {done}/{len(batches)} batches, {left}, and then the questions")

    def _make_batch(
        self, editor: Editor, batch: EditBatch, state: EditorState, edited: EditedModel, made: EditsMade
    ) -> EditorState:
        """Make a batch and return the state after it. One that is refused is made edit by edit, as a service does."""
        try:
            with stage_seconds() as seconds:
                delta, after = editor.edit(self.model, EditBatch(tuple(map(as_shown, batch.edits))), state)
        except EditRejected:
            if len(batch) == 1:
                made.refused += 1
                return state
            for edit in batch:
                state = self._make_batch(editor, EditBatch((edit,)), state, edited, made)
            return state
        if len(batch) > 1:
            made.seconds_each.append(seconds["total"] / len(batch))
        made.num_bytes += saved_bytes(delta)
        edited.add(delta)
        return after

    def _ask_at_first(self, batch: EditBatch, made: EditsMade) -> None:
        """Ask the questions of a batch that was just made."""
        made.num_asked += len(batch)
        texts = texts_of_tokens(self.model, generated(self.model, [edit.prompts[-1] for edit in batch]))
        for edit in batch:
            made.right_at_first.pop(edit.prompt, None)
            if edit.question(edit.prompts[-1]).is_answered_by(texts[edit.prompts[-1]]):
                made.right_at_first[edit.prompt] = made.num_asked

    def _scores(self, tokens: Tokens) -> dict[str, float | None]:
        """Score the answers by measure, and count the unrelated answers whose tokens are those of the unedited model."""
        ratios = self.stream.asked.ratios(texts_of_tokens(self.model, tokens), self.before.texts)
        found = {name: fmean(one.numerator for one in own) if own else None for name, own in ratios.items()}
        same = [list(tokens[prompt]) == list(self.before.tokens[prompt]) for prompt in self.stream.unrelated]
        return found | ({"agreement": fmean(same)} if same else {})

    def _lifetimes(self, made: EditsMade, tokens: Tokens) -> dict[str, float | None]:
        """Say how many edits were answered right immediately after their batch, and how many later edits these last."""
        if not made.num_asked:
            return {"immediate": None, "half_life": None}
        texts = texts_of_tokens(self.model, tokens)
        now = {one.owner: one.question.is_answered_by(texts[one.question.prompt]) for one in self._corrected}
        at_first = {owner: at for owner, at in made.right_at_first.items() if owner in now}
        seen = [Survival(made.num_asked - at, now[owner]) for owner, at in at_first.items()]
        return {"immediate": len(at_first) / len(now) if now else None, "half_life": half_life(seen)}

    @property
    def _corrected(self) -> Sequence[TransformedQuestion]:
        return self.stream.asked.asked["question"]

    def _costs(self, made: EditsMade) -> dict[str, Any]:
        edited = [one.question.prompt for one in self._corrected]
        own, other = (
            added_ms(self.unedited, self.model, each[:NUM_TIMED], MAX_TOKENS) for each in (edited, self.stream.unrelated)
        )
        return {
            "edit_s": median(made.seconds_each) if made.seconds_each else None,
            "added_first_ms": own.first_ms,
            "added_ms": own.all_ms,
            "unrelated_first_ms": other.first_ms,
            "unrelated_ms": other.all_ms,
            "added_tokens": added_tokens(self.model, edited, MAX_TOKENS),
            "bytes": made.num_bytes,
            "peak_bytes": made.peak_bytes,
            "refused": made.refused,
        }
