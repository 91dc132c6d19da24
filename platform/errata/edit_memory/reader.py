"""Reader of a bank whose kind is read before the model: what the bank does to one request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from errata.edit import EditRejected
from errata.edit_memory.bank import READ_BEFORE, Bank, Record
from errata.edit_memory.encoder import SentenceEncoder
from errata.edit_memory.lookup import Candidate, best_fit, fitting
from errata.edit_memory.prompt_form import AskedQuestion, form_of
from errata.model.renderer import Renderer
from errata.text.dates import asked_time

MAX_QUESTION = 2000  # characters; a longer text is no question that a record could have


@dataclass(frozen=True)
class Change:
    """The change that a memory makes to one request; decided once, before the model reads it, and kept to the request's end.

    `fired` are the records that make it, at least one. `prompt` is read instead of the one that was given, by the kinds
    `text`, `rows` and `prefix`. `answer` are the tokens that are said, with their end token, by the kind `answer`. None leaves
    the prompt, or the answer, to the request and to the model.
    """

    fired: tuple[Candidate, ...]
    prompt: list[int] | None
    answer: list[int] | None

    @property
    def record(self) -> Record:
        """The record that makes the change, for the kinds of which one does."""
        (found,) = self.fired
        return found.record


class MemoryReader:
    """Reads a bank. It has no state but the bank, so that any thread may ask it. `max_tokens` is the model's context.

    The encoder is loaded and the bank's index made before the first request. Raises `ValueError` without the encoder's package.
    """

    def __init__(self, bank: Bank, renderer: Renderer, max_tokens: int) -> None:
        assert bank.kind in READ_BEFORE, bank.kind
        self.bank, self.max_tokens = bank, max_tokens
        self.form = form_of(renderer)
        SentenceEncoder.load()
        bank.index  # noqa: B018

    def change(self, ids: Sequence[int], room: int) -> Change | None:
        """Return what the bank does to a prompt; None if no record fits it.

        `room` is the number of tokens that follow the prompt. None also for a text that would leave less, and for an answer
        that the tokenizer cannot write here.
        """
        if not len(self.bank):
            return None
        asked = self.form.asked(ids)
        found = best_record(self.bank, asked)
        if found is None:
            return None
        if self.bank.kind == "text":
            prompt = self.form.with_text(ids, found.record.text)
            return Change((found,), prompt, None) if len(prompt) + room <= self.max_tokens else None
        try:
            said = self.form.renderer.answer_after(ids, found.record.answer, asked.in_chat)
        except EditRejected:
            return None
        return Change((found,), None, said)


def best_record(bank: Bank, asked: AskedQuestion) -> Candidate | None:
    """Return the record that fits a question best, with its cosine; None if none fits.

    A question that names a time is also compared without it, and a record that held then is preferred. If none held then, or
    none is known to have, it is answered as a question without a time, by no past record.
    """
    if len(asked.question) > MAX_QUESTION:
        return None
    time = asked_time(asked.question)
    period = None if time is None else time.period
    found = fitting(_candidates(bank, asked.question), asked, period)
    if time is not None and period is not None:
        rest = asked._replace(question=time.question)
        every = [*found, *fitting(_candidates(bank, rest.question), rest, period)]
        then = best_fit([one for one in every if one.record.period.num_shared_days(period)], asked, period)
        if then is not None:
            return then
    return best_fit([one for one in found if not one.record.is_past], asked)


def _candidates(bank: Bank, question: str) -> Iterator[Candidate]:
    """Yield the wordings of records whose subject is in the question, and of those without a subject, with their cosines.

    Only where there are some is anything encoded: other questions cost a look-up of their words.
    """
    index, records, encoder = bank.index, bank.records, SentenceEncoder.load()
    for relation, facts in index.about(question).items():
        (vector_E,) = encoder.encode([relation])
        about = [records[fact] for fact in facts]
        keys, least = (torch.cat([record.rows[name] for record in about]) for name in ("key", "threshold"))
        wordings = ((record, text) for record in about for text in record.wordings)
        for (record, text), score, bound in zip(wordings, (keys @ vector_E).tolist(), least.tolist(), strict=True):
            yield Candidate(record, score, text, bound)
    if index.blocks:
        (vector_E,) = encoder.encode([question])
        for (fact, text), score, bound in index.near(vector_E):
            plain = records.get(fact)
            if plain is not None and not plain.subject and text in plain.wordings:
                yield Candidate(plain, score, text, bound)
