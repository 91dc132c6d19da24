"""A ledger in memory, and a model whose answers are the targets of the edits that it holds; the rules are the real ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from errata.candidate import CandidateVersion
from errata.delta.weight_delta import WeightDelta
from errata.edit import Code, Edit, EditRejected
from errata.editors.state import EditorState
from errata.history.lineage import live_edits
from errata.history.revert import _branch
from errata.history.revert_selection import select
from errata.ledger import Ledger, LedgerConflict, UnknownVersion, Version
from errata.ledger.chain import Chain
from errata.ledger.head import Head
from errata.ledger.index import EditIndex
from serving.worker.journal import Journal, JournalFailed
from tests.fakes.edit_worker import DONT_KNOW, TOKENIZER
from tests.simulate.machine import Machine

REFUSED = "refused"  # The target of edits that cannot be made.


@dataclass
class Disk:
    """The part that outlives a process: versions, moves of the head, refusals. `heads` are all heads in order."""

    versions: dict[int, Version] = field(default_factory=dict)
    moves: list[dict[str, Any]] = field(default_factory=list)
    refusals: list[Edit] = field(default_factory=list)
    heads: list[int] = field(default_factory=lambda: [0])

    def __post_init__(self) -> None:
        self.versions[0] = made(0, None, (), {})


def made(number: int, parent: int | None, edits: Sequence[Edit], card: dict[str, Any]) -> Version:
    fingerprint = f"{number}"
    return Version(number, parent, "Toy", "", fingerprint, "2026-01-01T00:00:00+00:00", tuple(edits), card, 0, {}, {}, Path())


class MemoryHead(Head):
    """The moves of the head on a `Disk`."""

    def __init__(self, disk: Disk, machine: Machine) -> None:
        self.disk, self.machine = disk, machine

    def read(self) -> dict[str, int] | None:
        return self.disk.moves[-1] if self.disk.moves else None

    def entries(self) -> Iterator[dict[str, Any]]:
        return iter(self.disk.moves)

    def retracted(self) -> frozenset[int]:
        return frozenset(move["withdrawn"] for move in self.disk.moves if "withdrawn" in move)

    def move(self, version: int, after: int, before: int, by: str, retracted: int | None = None) -> None:
        self.machine.point()
        why = {} if retracted is None else {"withdrawn": retracted}
        self.disk.moves.append({"version": version, "after": after, "moves": len(self.disk.moves) + 1, "before": before, **why})
        self.disk.heads.append(version)
        self.machine.point()


class MemoryLedger(Ledger):
    """The ledger over a `Disk`: head, epoch, lineage and look-ups are those of `Ledger`."""

    def __init__(self, disk: Disk, machine: Machine) -> None:
        self.disk, self.machine, self.directory = disk, machine, Path()
        numbers = disk.versions
        self.folders: Any = _Numbers(numbers)
        self.head_record = MemoryHead(disk, machine)
        self._edit_index, self._live = EditIndex(), (0, frozenset({0}))
        self.contents = Chain(self.folders, None, self.version)  # type: ignore[arg-type]

    def version(self, number: int) -> Version:
        if number not in self.disk.versions:
            raise UnknownVersion(f"there is no version {number}")
        return self.disk.versions[number]

    def add(self, candidate: CandidateVersion) -> Version:
        self.machine.point()
        if candidate.expected_head != self.head:
            raise LedgerConflict(candidate.expected_head, self.head)
        number = self.folders.next_number
        self.disk.versions[number] = made(number, candidate.parent, candidate.edits, candidate.scorecard)
        self.disk.heads.append(number)
        self.machine.point()
        return self.disk.versions[number]

    def refuse(self, parent: int, edit: Edit, refusal: EditRejected, says: str | None = None) -> None:
        self.machine.point()
        self.disk.refusals.append(edit)

    def verify(self, number: int) -> list[str]:
        self.version(number)
        return []

    def quarantined(self) -> list[Any]:
        return []

    def snapshot(self) -> None: ...

    def only_writer(self) -> Any:
        return nullcontext()


@dataclass
class _Numbers:
    """The numbers of the versions, as `Folders` has them."""

    versions: dict[int, Version]

    @property
    def newest(self) -> int:
        return len(self.versions) - 1

    @property
    def next_number(self) -> int:
        return len(self.versions)

    def numbers(self) -> list[int]:
        return list(self.versions)

    def quarantined_numbers(self) -> list[int]:
        return []


def answers_of(ledger: Ledger, version: int) -> dict[str, str]:
    """Return the answers of a version by prompt: those of its edits, of which the last counts."""
    return {edit.prompt: edit.target for edit in live_edits(ledger, version)}


class TableModel:
    """A live model that answers by a table. It refuses edits with the target `REFUSED`, and every batch that has one."""

    max_tokens, num_loads, held_counts = 100, 1, {"open": 0, "lost": 0, "repairable": 0}
    knows_answers = False
    model = SimpleNamespace(tokenizer=TOKENIZER, end_ids=frozenset())

    def __init__(self, ledger: MemoryLedger) -> None:
        self.ledger, self.bank = ledger, None
        self._load(ledger.head)

    def _load(self, version: int) -> None:
        self.version, self.table = version, answers_of(self.ledger, version)

    def expect(self, edits: Sequence[Edit]) -> None: ...

    def answers(self, edits: Sequence[Edit]) -> list[list[str]]:
        return [[self.table.get(edit.prompt, DONT_KNOW)] for edit in edits]

    def make(self, edits: Sequence[Edit], before: Sequence[str], _in_chat: Sequence[str]) -> CandidateVersion:
        if any(edit.target == REFUSED for edit in edits):
            raise EditRejected("the batch has an edit that is refused", code=Code.EDITOR_FAILED)
        return self._candidate(self.version, edits, {})

    def _candidate(self, parent: int, edits: Sequence[Edit], card: dict[str, Any]) -> CandidateVersion:
        return CandidateVersion(parent, self.version, tuple(edits), WeightDelta({}), EditorState(), card)

    def append(self, candidate: CandidateVersion) -> Version:
        version = self.ledger.add(candidate)
        self._load(version.number)
        return version

    def move_to(self, version: int, by: str = "", expected_head: int | None = None) -> None:
        self.ledger.move_head(version, by, expected_head)
        self._load(version)

    def retract(self, number: int, to: int) -> None:
        self.ledger.retract(number, to)
        self._load(to)

    def revert(self, ids: Sequence[str], versions: Sequence[int], mode: str = "auto") -> CandidateVersion:
        selection = select(self.ledger, self.version, ids, versions)
        reverted: dict[str, Any] = {"edits": [edit.id for edit in selection.edits]}
        reverted["versions"] = [version.number for version in selection.versions]
        if mode != "replay" and selection.is_whole:
            return self._candidate(self.version, (), {"reverted": {**reverted, "mode": "subtract"}})
        parent, later = _branch(self, selection)  # type: ignore[arg-type]
        left = [batch for version in later for batch in selection.without(version)]
        reverted |= {"mode": "replay", "head": self.version, "batches": [len(batch.edits) for batch in left]}
        return self._candidate(parent, [edit for batch in left for edit in batch.edits], {"reverted": reverted})

    def hold(self, edits: Sequence[Edit], said: Sequence[str]) -> None: ...

    def release(self, edit: Edit) -> None: ...

    def still_answers(self, edit: Edit) -> bool:
        return False

    def look(self, count: int) -> bool:
        return False

    def to_repair(self, count: int) -> list[Edit]:
        return []

    def answered(self, id: str) -> dict[str, Any]:
        return {}


class DyingJournal(Journal):
    """The real journal: the process may die before a transaction, before its commit and after it, or the disk may fail."""

    def __init__(self, path: Path, machine: Machine, node: str) -> None:
        self.machine = machine
        super().__init__(path, wait_s=0, node=node)

    @contextmanager
    def transaction(self, synced: bool = True) -> Iterator[Any]:
        self.machine.point()
        self.machine.num_transactions += 1
        if self.machine.num_transactions in self.machine.failing:
            raise JournalFailed("the disk fails once")
        with super().transaction(synced) as db:
            yield db
            self.machine.point()
        self.machine.point()
