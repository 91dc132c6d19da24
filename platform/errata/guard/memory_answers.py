"""Answers of a memory that is read before the model, found from its records, without the model.

Such a memory changes no answer but those at which one of its records decides, bit for bit. So the guard need not ask the
probes and the earlier edits again: it finds at which of them an update changes the record that decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import TypeGuard

from errata.delta.kinds import Delta, memory_of
from errata.delta.memory_delta import MemoryDelta
from errata.edit import Edit, EditBatch
from errata.edit_memory.bank import READ_BEFORE, SAID, Bank, Record
from errata.edit_memory.hooks import bank_of
from errata.edit_memory.reader import Change, MemoryReader
from errata.edit_memory.subjects import plain_words
from errata.guard.earlier_edits import Said
from errata.guard.held_edits import HeldEdit, Tokens
from errata.guard.probe_answers import MAX_ANSWER_TOKENS
from errata.guard.word_index import WordIndex
from errata.model.language_model import LanguageModel
from errata.text.dialogue import Dialogue, Prompt


def is_read_before(delta: Delta) -> TypeGuard[MemoryDelta]:
    """Say if a change is of a memory that is read before the model."""
    return isinstance(delta, MemoryDelta) and delta.kind in READ_BEFORE


class MemoryAnswers:
    """Answers of the memories of one model. For a record without a subject, at most `size` earlier edits are looked at."""

    def __init__(self, model: LanguageModel, questions: Iterable[str], sentences: Iterable[str], size: int) -> None:
        self.model, self.size, self.texts_of_probes = model, size, (tuple(questions), tuple(sentences))
        questions, sentences = self.texts_of_probes
        in_chat = model.renderer.form == "chat"
        self.probes: list[Prompt] = [Dialogue.of(text) if in_chat else text for text in questions]
        self.probes += sentences
        self.words_of_probes = {prompt: frozenset(plain_words(_question(prompt))) for prompt in self.probes}
        self.words = WordIndex()
        self._reader = lru_cache(4)(lambda bank: MemoryReader(bank, model.renderer, model.max_tokens))
        self._bank_after = lru_cache(2)(lambda delta, bank: delta.after(bank))

    def of_copy(self, model: LanguageModel) -> MemoryAnswers:
        """Return the answers of a copy of the model, whose tokenizer is its own."""
        return MemoryAnswers(model, *self.texts_of_probes, self.size)

    def bank_with(self, delta: Delta) -> Bank | None:
        """Return the bank of the model with an update."""
        bank, memory = bank_of(self.model.module), memory_of(delta)
        return bank if memory is None else self._bank_after(memory, bank)

    def decider(self, bank: Bank | None, prompt: Prompt) -> Change | None:
        """Return what a bank does to a prompt."""
        return None if bank is None else self._reader(bank).change(self.model.renderer.ids(prompt), MAX_ANSWER_TOKENS)

    def said(self, edits: Sequence[Edit], bank: Bank | None) -> list[Said | None]:
        """Return what a bank says to each edit; None where the model must be asked, since it says nothing itself."""
        return [self._said(edit, self._written(edit, bank)) for edit in edits]

    def texts(self, edit: Edit, bank: Bank | None) -> list[str] | None:
        """Return the texts that a bank says to an edit's prompts; None where it does not say any."""
        written = self._written(edit, bank)
        return None if written is None else [self._text(ids) for ids in written]

    def _said(self, edit: Edit, written: tuple[Tokens, ...] | None) -> Said | None:
        if written is None:
            return None
        wrong = edit.first_wrong([self._text(ids) for ids in written])
        return Said(written if wrong is None else None, wrong)

    def _written(self, edit: Edit, bank: Bank | None) -> tuple[Tokens, ...] | None:
        if bank is None or bank.kind not in SAID:
            return None
        changes = [self.decider(bank, prompt) for prompt in edit.prompts]
        written = tuple(tuple(change.answer) for change in changes if change is not None and change.answer is not None)
        return written if len(written) == len(changes) else None

    def _text(self, ids: Sequence[int]) -> str:
        decoded: str = self.model.tokenizer.decode(ids, skip_special_tokens=True)
        return decoded.strip()

    def decided(self) -> frozenset[Prompt]:
        """Return the probes at which a record of the version decides."""
        bank = bank_of(self.model.module)
        return frozenset(prompt for prompt in self.probes if self.decider(bank, prompt) is not None)

    def decided_with(self, delta: MemoryDelta, before: frozenset[Prompt]) -> frozenset[Prompt]:
        """Return the same with an update; `before` are those of the version. Only what the update may change is looked at."""
        near, after = self._probes_near(_changed(delta, bank_of(self.model.module))), self.bank_with(delta)
        found = frozenset(prompt for prompt in near if self.decider(after, prompt) is not None)
        return found | before.difference(near)

    def fired(self, delta: MemoryDelta) -> list[Prompt]:
        """Return the probes at which a record of an update decides."""
        after, new = self.bank_with(delta), {id(record) for record in delta.records}
        changes = ((prompt, self.decider(after, prompt)) for prompt in self._probes_near(delta.records))
        return [prompt for prompt, change in changes if change is not None and id(change.record) in new]

    def _probes_near(self, records: Iterable[Record]) -> list[Prompt]:
        """Return the probes that have the subject of a record in them; all of them if a record has no subject."""
        subjects = {frozenset(plain_words(record.subject)) for record in records}
        return [prompt for prompt, words in self.words_of_probes.items() if any(words >= subject for subject in subjects)]

    def touched(self, held: Iterable[HeldEdit], batch: EditBatch, delta: MemoryDelta) -> list[HeldEdit]:
        """Return the earlier edits at which another record decides after an update than before it, or none any more.

        A record with a subject decides only at prompts that have it; for one without a subject, the `size` edits are looked at
        whose words are nearest. Edits that the batch replaces are left out.
        """
        before, after = bank_of(self.model.module), self.bank_with(delta)
        self.words.update(held)
        own = frozenset(key for edit in batch for key in edit.keys)
        near = dict.fromkeys(one for record in _changed(delta, before) for one in self._near(record))
        candidates = [one for one in near if own.isdisjoint(one.edit.keys)]
        return [one for one in candidates if any(self._differs(prompt, before, after) for prompt in one.edit.prompts)]

    def _near(self, record: Record) -> list[HeldEdit]:
        subject = plain_words(record.subject)
        if subject:
            return self.words.with_all(subject)
        return [one for wording in record.wordings for one in self.words.nearest(wording, self.size)]

    def _differs(self, prompt: Prompt, before: Bank | None, after: Bank | None) -> bool:
        one, other = self.decider(before, prompt), self.decider(after, prompt)
        return (None if one is None else one.record) is not (None if other is None else other.record)


def _question(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else prompt.question


def _changed(delta: MemoryDelta, before: Bank | None) -> Iterator[Record]:
    """Yield the records that an update adds, and those that it replaces or drops."""
    yield from delta.records
    held = {} if before is None else before.records
    yield from (held[fact] for fact in (*delta.dropped, *(record.fact for record in delta.records)) if fact in held)
