"""The edits that the model's version holds, and what is known about the version's answers to them."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass

from errata.edit import Edit
from errata.text.rules import prompt_key, same_text

Tokens = tuple[int, ...]
MAX_REPAIRS = 3  # A lost edit is made again so often; then it stays lost.


@dataclass(eq=False)
class HeldEdit:
    """An edit of the version. `is_answered` is None until the version is asked; `says` is a wrong answer.

    `written` has the tokens that answer each prompt, the model's own wording once it is known. `asked_at` counts the versions.
    """

    edit: Edit
    rank: bytes
    written: tuple[Tokens, ...] | None = None
    is_answered: bool | None = None
    says: str | None = None
    asked_at: int = -1
    num_repairs: int = 0
    is_named: bool = False  # A later edit names its prompt as another wording of its own.


class HeldEdits:
    """The edits of a version by their prompts; of two edits that share a prompt, the later one."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.version = 0  # counts the changes of the version
        self.by_edit: dict[Edit, HeldEdit] = {}
        self.by_key: dict[Hashable, HeldEdit] = {}
        self.by_id: dict[str, HeldEdit] = {}

    def __iter__(self) -> Iterator[HeldEdit]:
        return iter(self.by_edit.values())

    def __len__(self) -> int:
        return len(self.by_edit)

    def set(self, edits: Iterable[Edit]) -> None:
        """Hold these edits, in order. The wording of an answer stays known; whether it is still given does not."""
        known = self.by_edit
        self.by_edit, self.by_key, self.by_id = {}, {}, {}
        self.add(edits)
        for edit, held in self.by_edit.items():
            if edit in known:
                held.written, held.num_repairs = known[edit].written, known[edit].num_repairs

    def add(self, edits: Iterable[Edit], keeps_others: bool = False) -> None:
        """Hold these edits, too, in the place of earlier ones with the same prompt.

        The version is then another one, unless what it says to all other edits is known to be the same (`keeps_others`).
        """
        self.version += not keeps_others
        for edit in edits:
            self._add(edit)

    def add_answered(self, edits: Iterable[Edit]) -> None:
        """Hold edits that the version answers already, where no other edit of the same prompt is held. It stays the version."""
        for edit in edits:
            held = next((self.by_key[key] for key in edit.keys if key in self.by_key), None)
            if held is None:
                self._add(edit)
            elif edit.id is not None and same_text(held.edit.target) == same_text(edit.target):
                self.by_id[edit.id] = held

    def _add(self, edit: Edit) -> None:
        for other in {self.by_key[key] for key in edit.keys if key in self.by_key}:
            self._drop(other)
        for prompt in (prompt for text in edit.rephrasings for prompt in edit.ask(text)):
            if (named := self.by_key.get(prompt_key(prompt))) is not None:
                named.is_named = True
        held = HeldEdit(edit, hashlib.sha256(f"{self.seed} {edit.prompts[0]}".encode()).digest())
        self.by_edit[edit] = held
        self.by_key |= dict.fromkeys(edit.keys, held)
        if edit.id is not None:
            self.by_id[edit.id] = held

    def _drop(self, held: HeldEdit) -> None:
        self.by_edit.pop(held.edit, None)
        for key in held.edit.keys:
            self.by_key.pop(key, None)
        if held.edit.id is not None:
            self.by_id.pop(held.edit.id, None)

    def without(self, keys: Iterable[Hashable]) -> list[HeldEdit]:
        """Return all edits but those that have one of these keys."""
        gone = {held for key in keys if (held := self.by_key.get(key)) is not None}
        return [held for held in self if held not in gone]

    def next(self, size: int, without: frozenset[Hashable] = frozenset()) -> list[HeldEdit]:
        """Return at most `size` edits, those first that were asked least recently; none that has a key of `without`.

        The order depends on the edits alone, not on how they were batched.
        """
        asked = self.without(without)
        return heapq.nsmallest(size, asked, key=lambda held: (held.asked_at, held.rank))

    def is_current(self, held: HeldEdit) -> bool:
        """Say if the version itself was asked this edit."""
        return held.is_answered is not None and held.asked_at == self.version

    def release(self, id: str) -> None:
        """Hold an edit no more that was refused after all."""
        if (held := self.by_id.get(id)) is not None and held.edit.id == id:
            self._drop(held)

    def still_answers(self, edit: Edit) -> bool:
        """Say if the version itself was asked an edit of this id, and answers it."""
        held = self.by_id.get(edit.id or "")
        return held is not None and held.is_answered is True and self.is_current(held)

    def tried(self, edits: Iterable[Edit]) -> None:
        """Count a try to make edits again."""
        for edit in edits:
            if (held := self.by_edit.get(edit)) is not None:
                held.num_repairs += 1

    @property
    def open(self) -> list[HeldEdit]:
        """The edits that this version was not asked."""
        return [held for held in self if not self.is_current(held)]

    @property
    def lost(self) -> list[HeldEdit]:
        """The edits that are not answered, as far as is known."""
        return [held for held in self if held.is_answered is False]

    @property
    def repairable(self) -> list[HeldEdit]:
        """The lost edits that are to be made again."""
        return [held for held in self.lost if held.num_repairs < MAX_REPAIRS and not held.is_named]
