"""Shared parts of the memories that are read before the model: the records of questions, and when one fits.

A record's key is the vector of its question without its subject, or of the whole question where no subject is known. M probes,
E dimensions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import KW_ONLY, dataclass, replace
from itertools import chain, islice

import torch

from errata.delta.memory_delta import MemoryDelta
from errata.edit import Edit, EditBatch, Row
from errata.edit_memory import encoder
from errata.edit_memory.bank import Record, question_of_fact
from errata.edit_memory.encoder import SentenceEncoder
from errata.edit_memory.hooks import bank_of
from errata.edit_memory.past import with_past
from errata.edit_memory.subjects import name_in, relation_of
from errata.editors.editor import check_batch, check_modules
from errata.editors.memory_based.memory_editor import MAX_THRESHOLD, NUM_QUESTIONS, NUM_SENTENCES, MemoryEditor
from errata.editors.state import EditorState
from errata.guard.probes import Probes
from errata.model.language_model import LanguageModel
from errata.model.matrices import ModelSpec
from errata.model.prefix_cache import BatchCache
from errata.text.joining import separator
from errata.text.rules import fact_of, same_text

NEARER = 0.25  # A rephrasing is found by cosines this part nearer to 1: each further key has its own false firing.
MAX_EXPECTED = 32  # Texts of edits that may still be refused.
THRESHOLDS = "thresholds"  # in the state: of questions without their subject, and of whole questions


@dataclass(frozen=True)
class QuestionMemory(MemoryEditor, ABC):
    """Base class of the memories that compare questions. `modules` says what a ledger could edit; none of them is read.

    `threshold` is the least cosine of questions without their subject, where the record's subject is in both;
    `whole_threshold` that of whole questions, for records without a subject, and is calibrated if it is 0.
    """

    modules: tuple[str, ...] = ("layers.3.mlp.down_proj",)
    _: KW_ONLY
    max_false: float = 0.01
    threshold: float = 0.55
    whole_threshold: float = 0.0
    max_batch: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("threshold", self.threshold), ("whole_threshold", self.whole_threshold)):
            if not 0 <= least <= 1:
                raise ValueError(f"{name} is the least cosine of two questions, from 0 to 1, not {least:g}")

    def expect(self, edits: Iterable[Edit]) -> None:
        """Begin to encode the first of these edits, which will be made soon."""
        compared = (compared_of(edit, same_text(edit.prompt))[1].values() for edit in edits)
        SentenceEncoder.load().begin(islice(chain.from_iterable(compared), MAX_EXPECTED))

    def start(self, model: LanguageModel, spec: ModelSpec) -> EditorState:
        check_modules(self.modules, model, spec)
        SentenceEncoder.load()
        whole = self.whole_threshold or calibrated_questions(model, self.max_false)
        return EditorState(0, {THRESHOLDS: torch.tensor([self.threshold, whole])})

    def edit(
        self, model: LanguageModel, batch: EditBatch, state: EditorState, cache: BatchCache | None = None
    ) -> tuple[MemoryDelta, EditorState]:
        check_batch(batch, self.max_batch)
        assert self.kind is not None
        written = (self.written(row, record) for row, record in question_records(batch, state))
        records = with_past(written, bank_of(model.module))
        return MemoryDelta(self.kind, encoder.NAME, records), replace(state, num_edits=state.num_edits + len(batch))

    @abstractmethod
    def written(self, row: Row, record: Record) -> Record:
        """Return a record of `question_records` with what a reader needs beside it: what is put in or what is said."""


def question_records(batch: EditBatch, state: EditorState) -> Iterator[tuple[Row, Record]]:
    """Yield a record of each row of a batch, with the correction as its text and without an answer."""
    sentences, (threshold, whole) = SentenceEncoder.load(), state.tensors[THRESHOLDS].split(1)
    for row in batch.rows:
        edit, fact = batch.edits[row.edit], fact_of(row.prompt)
        question = question_of_fact(fact)
        subject, compared = compared_of(edit, question)
        rows = {"key": sentences.encode(list(compared.values()))}
        rows["threshold"] = (threshold if subject else whole).repeat(len(compared))
        if subject:
            rows["threshold"][1:] += NEARER * (1 - threshold)
        record = Record(fact, statement(row), rows, subject, edit.id or "", rephrasings=tuple(compared)[1:])
        yield row, replace(record, valid_from=edit.valid_from or "", valid_to=edit.valid_to or "")


def compared_of(edit: Edit, question: str) -> tuple[str, dict[str, str]]:
    """Return the subject of an edit's question, "" if it has none, and what is compared of each wording: it without subject.

    The subject is the edit's own or, if it names none, the longest name in the question. The question is the first wording;
    rephrasings without the subject are left out, because they would not be found by it.
    """
    subject = name_in(question) if edit.subject is None else edit.subject
    relation = relation_of(question, subject) if subject else None
    texts = dict.fromkeys((question, *map(same_text, edit.rephrasings)))
    if not relation:
        return "", {text: text for text in texts}
    return subject, {text: found for text in texts if (found := relation_of(text, subject))}


def statement(row: Row) -> str:
    """Return the text that tells a correction: the completed prompt, or the question with its answer."""
    if isinstance(row.prompt, str):
        return f"{row.prompt.strip()}{separator(row.prompt.strip(), row.answer)}{row.answer}."
    return f"{row.prompt.question.strip()} {row.answer}"


def calibrated_questions(model: LanguageModel, max_false: float) -> float:
    """Return the cosine that all but `max_false` of the model's probe questions keep away from every other probe.

    A question's nearest other text is the record that would answer it wrongly. Probes lie beside the model (docs/guard.md);
    without questions among them, the sentences stand for questions.
    """
    probes = Probes.beside(model.path).sample(NUM_QUESTIONS, NUM_SENTENCES)
    questions = probes.questions or probes.sentences
    if len(questions) < 2:
        return MAX_THRESHOLD
    vector_ME = SentenceEncoder.load().encode(questions)
    cosine_MM = (vector_ME @ vector_ME.T).fill_diagonal_(-1.0)
    return min(float(cosine_MM.amax(1).quantile(1 - max_false)), MAX_THRESHOLD)
