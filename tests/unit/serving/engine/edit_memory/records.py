"""Memories in a ledger, and a reader that knows which prompts its records fit, for the engines that serve them."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from errata.delta.memory_delta import MemoryDelta
from errata.edit_memory import encoder
from errata.edit_memory.bank import BY_QUESTION, EMBEDDED, ROWS, Kind, Record
from errata.edit_memory.lookup import Candidate
from errata.edit_memory.reader import Change
from errata.editors.state import EditorState
from errata.ledger import Ledger
from serving.engine.edit_memory.served_memory import FrontMemory
from tests.unit.conftest import MATRICES

STATE_SITE = MATRICES[0]
NUM_IN = 96  # in-features of that module


HIDDEN, VOCABULARY = 96, 100  # sizes of the embeddings of the fake engine's model
SITES: dict[Kind, str] = {"state": STATE_SITE, "datastore": "head", "rows": "embedding", "prefix": "embedding"}


def site_of(kind: Kind) -> str:
    return SITES.get(kind, encoder.NAME)


def a_record(fact: str, kind: Kind = "answer", seed: int = 0) -> Record:
    """Make a record with random rows; its edit is named after the fact, which is JSON."""
    random = torch.Generator().manual_seed(seed)
    width = encoder.NUM_DIMENSIONS if kind in BY_QUESTION else NUM_IN
    sizes = {1: (1,), 2: (1, width)}
    rows = {name: torch.rand(sizes[num_dims], generator=random) for name, num_dims in ROWS[kind].items()}
    rows |= {name: torch.ones(1, dtype=torch.long) for name in ("token", "after", "nearest", "id", "begins") if name in rows}
    if kind in EMBEDDED:
        rows["embedding"] = torch.rand(1, HIDDEN * (3 if kind == "prefix" else 1), generator=random)
    name = json.loads(fact)
    return Record(fact, f"{name}, corrected", rows, edit=f"edit-{name}", answer=f"answer {name}")


def a_change(*facts: str, kind: Kind = "answer", dropped: tuple[str, ...] = ()) -> MemoryDelta:
    return MemoryDelta(kind, site_of(kind), tuple(a_record(fact, kind) for fact in facts), dropped)


def remembered(ledger: Ledger, *facts: str, kind: Kind = "answer", dropped: tuple[str, ...] = ()) -> int:
    """Append a version whose memory has records of these facts, too."""
    change = a_change(*facts, kind=kind, dropped=dropped)
    return ledger.append(ledger.head, change, EditorState(), (), {}, ("answer", "p")).number


@dataclass
class Reader:
    """A reader of a bank with one fact for each prompt that it fits; `go_on` holds it back, `threads` are those it ran in."""

    bank: Any
    changes: dict[tuple[int, ...], tuple[list[int] | None, list[int] | None]] = field(default_factory=dict)
    go_on: threading.Event = field(default_factory=threading.Event)
    rooms: list[int] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.go_on.set()

    def change(self, ids: Sequence[int], room: int) -> Change | None:
        assert self.go_on.wait(10)
        self.rooms.append(room)
        self.threads.add(threading.current_thread().name)
        found = self.changes.get(tuple(ids))
        return None if found is None else Change((Candidate(next(iter(self.bank)), 0.925),), *found)


def a_memory(kind: Kind = "answer", **changes: Any) -> FrontMemory:
    """Make a memory of one record whose reader makes `changes`."""
    bank = a_change('"a"', kind=kind).after(None)
    return FrontMemory(7, bank, Reader(bank, **changes))  # type: ignore[arg-type]
