"""Posted edits beside those that are known: whether the live version holds them, when they held, and what they contradict."""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any

from errata.edit import Edit
from errata.edit_memory.bank import READ_BEFORE, Bank
from errata.edit_memory.prompt_form import AskedQuestion
from errata.edit_memory.reader import best_record
from errata.editors.tiers import is_in_memory
from errata.history.validity import Correction, contradicts, held
from errata.text.rules import same_text
from serving.worker.fact_keys import question_key
from serving.worker.journal import Journal, UnknownEdit
from serving.worker.journal_entry import Entry

if TYPE_CHECKING:
    from serving.worker.live_model import LiveModel

MAX_OF_QUESTION = 1_000  # corrections of one question, the newest, among which the one is found that ended another
MAX_NEWEST = 16  # corrections of one question, the newest, among which the one is found that counts now
MAX_COMPARED = 32  # edits of a post whose questions are compared with those of a memory; it takes some milliseconds each


class KnownEdits:
    """The edits of a journal, and what the live version makes of them. Methods may be called in any thread."""

    def __init__(self, live_model: LiveModel, journal: Journal) -> None:
        self.live_model, self.journal = live_model, journal

    async def shown(self, entries: Sequence[Entry]) -> list[dict[str, Any]]:
        """Return edits as JSON; those that were applied once say if the live version holds them (`live`), and when."""
        return await asyncio.to_thread(self._shown_now, entries)

    def _shown_now(self, entries: Sequence[Entry]) -> list[dict[str, Any]]:
        lives, times = self.lives(entries), self._times(entries)
        carried = [self._carried_by(entry) if live.get("live") else {} for entry, live in zip(entries, lives, strict=True)]
        return [
            entry.to_json() | live | by | time for entry, live, by, time in zip(entries, lives, carried, times, strict=True)
        ]

    def _carried_by(self, entry: Entry) -> dict[str, str]:
        """Say what answers a live edit: a record of the memory, or the weights."""
        bank = self.live_model.bank
        is_remembered = bank is not None and is_in_memory(Edit.from_json(entry.edit), bank)
        return {"carried_by": "memory" if is_remembered else "weights"}

    def lives(self, entries: Sequence[Entry]) -> list[dict[str, bool]]:
        """Say of each edit that was applied once if the live version holds it."""
        return [{"live": self._is_live(entry)} if entry.state in ("applied", "reverted") else {} for entry in entries]

    def _is_live(self, entry: Entry) -> bool:
        ledger = self.live_model.ledger
        version = ledger.find_edit(entry.id) if entry.unchanged is None else entry.version
        return entry.state == "applied" and version in ledger.live()

    def _times(self, entries: Sequence[Entry]) -> list[dict[str, str]]:
        """Return when each live edit held, as far as that is known, and the later one that ended it."""

        @cache
        def corrections(key: str) -> list[tuple[int, Correction]]:
            found = self.journal.of_question(key, MAX_OF_QUESTION)
            read = [(entry.seq, entry.correction) for entry in found if entry.state == "applied" and self._is_live(entry)]
            return [(seq, one) for seq, one in read if one is not None]

        def time_of(entry: Entry) -> dict[str, str]:
            one = entry.correction if entry.state == "applied" and self._is_live(entry) else None
            if one is None:
                return {}
            later = (other for seq, other in corrections(question_key(entry.edit)) if seq > entry.seq)
            (begin, end), ended_by = held(one.edit, later)
            days = {"held_from": begin, "held_to": end}
            known = {name: day.isoformat() for name, day in days.items() if day is not None}
            return known if ended_by is None else known | {"superseded_by": ended_by}

        return [time_of(entry) for entry in entries]

    def contradicted(self, posted: Sequence[Edit]) -> dict[int, list[str]]:
        """Return, by the position of each posted edit that contradicts some, the ids of those."""
        today, bank = datetime.now(UTC).date(), self.live_model.bank
        found = {}
        for i, edit in enumerate(posted):
            new = Correction(edit, today, "")
            ids = self._of_same_question(new)
            if not ids and i < MAX_COMPARED and bank is not None and bank.kind in READ_BEFORE:
                ids = self._of_memory(new, bank)
            if ids:
                found[i] = ids
        return found

    def _of_same_question(self, new: Correction) -> list[str]:
        """Return the correction of the same question that counts now, if the new one contradicts it."""
        known = self.journal.of_question(question_key(new.edit.to_json()), MAX_NEWEST)
        live = next((entry for entry in reversed(known) if entry.state != "applied" or self._is_live(entry)), None)
        one = None if live is None else live.correction
        return [one.id] if one is not None and contradicts(new, one.edit, is_same_question=True) else []

    def _of_memory(self, new: Correction, bank: Bank) -> list[str]:
        """Return the correction whose record fits the question of a new one, if the two contradict each other."""
        texts = (*(message.content for message in new.edit.before), new.edit.prompt)
        question = unicodedata.normalize("NFC", new.edit.prompt)
        best = best_record(bank, AskedQuestion(question, same_text("\n".join(texts)), new.edit.form != "completion"))
        try:
            one = None if best is None or not best.record.edit else self.journal.get(best.record.edit).correction
        except UnknownEdit:
            return []
        if one is None or question_key(one.edit.to_json()) == question_key(new.edit.to_json()):
            return []
        return [one.id] if contradicts(new, one.edit, is_same_question=False) else []
