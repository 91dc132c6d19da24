"""The memory in front of an engine, folded from the files of a ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from errata.delta.weight_delta import WeightDelta
from errata.edit_memory.bank import Kind
from errata.edit_memory.embedding_reader import EmbeddingReader, EmbeddingSizes
from errata.editors.state import EditorState
from errata.ledger import Ledger
from serving.engine.edit_memory import served_memory
from serving.engine.edit_memory.served_memory import FrontMemory, ServedMemory
from tests.unit.serving.engine.edit_memory.records import HIDDEN, VOCABULARY, Reader, remembered


@pytest.fixture(autouse=True)
def no_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read memories without the sentence encoder."""
    monkeypatch.setattr(served_memory, "MemoryReader", lambda bank, _renderer, _max_tokens: Reader(bank))
    monkeypatch.setattr(served_memory.SentenceEncoder, "load", lambda: None)


def served_by(ledger: Ledger, kind: Kind | None = "answer") -> ServedMemory:
    return ServedMemory(ledger.base["model"], EmbeddingSizes(VOCABULARY, HIDDEN, 64), kind)


def swap(served: ServedMemory, ledger: Ledger, version: int, reset: bool = False, snapshots: bool = True) -> FrontMemory:
    """Serve a version by its own file, or by all files from the base."""
    files = ledger.files_to(version, snapshots) if reset else [ledger.version(version).directory / "delta.safetensors"]
    served.serves(asyncio.run(served.prepare({"version": version, "reset": reset, "files": [str(file) for file in files]})))
    return served.now


def facts(memory: FrontMemory) -> list[str]:
    return [] if memory.bank is None else [record.fact for record in memory.bank]


def test_a_memory_is_the_same_one_by_one_and_at_once(ledger: Ledger) -> None:
    for number in range(9):
        dropped = ('"0"',) if number == 5 else ()
        remembered(ledger, f'"{number}"', '"again"', dropped=dropped)
    one_by_one, at_once, whole = (served_by(ledger) for _ in range(3))
    for number in range(1, 10):
        swap(one_by_one, ledger, number)
    swap(at_once, ledger, 9, reset=True)
    swap(whole, ledger, 9, reset=True, snapshots=False)
    assert ledger.snapshots.newest is not None
    bank = ledger.memory(9)
    assert bank is not None
    for served in (one_by_one, at_once, whole):
        assert sorted(facts(served.now)) == sorted(bank.records) == sorted([*(f'"{n}"' for n in range(1, 9)), '"again"'])
        assert served.now.num_records == 9 and served.now.kind == "answer" and served.now.reader is not None


def test_a_rollback_takes_the_memory_back(ledger: Ledger) -> None:
    remembered(ledger, '"a"')
    remembered(ledger, '"b"')
    served = served_by(ledger)
    for version in (1, 2):
        swap(served, ledger, version)
    assert facts(swap(served, ledger, 1, reset=True)) == ['"a"'] and served.now.version == 1
    none = swap(served, ledger, 0, reset=True)
    assert (none.reader, none.kind, none.num_records) == (None, None, 0)


def test_a_memory_whose_records_are_all_dropped_is_read_no_more(ledger: Ledger) -> None:
    remembered(ledger, '"a"')
    remembered(ledger, dropped=('"a"',))
    served = served_by(ledger)
    swap(served, ledger, 1)
    assert swap(served, ledger, 2).reader is None and served.now.kind is None
    remembered(ledger, '"b"')
    assert facts(swap(served, ledger, 3)) == ['"b"']


def test_changes_of_weights_are_not_read(
    ledger: Ledger, random_delta: Callable[..., WeightDelta], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        ledger.append(number, random_delta(number), EditorState(), (), {}, ("E", "p"))
    read: list[Any] = []
    monkeypatch.setattr(served_memory, "read_segments", read.append)
    served = served_by(ledger, None)
    assert swap(served, ledger, 6, reset=True).bank is None and read == []


@pytest.mark.parametrize(("kind", "says"), [(None, "started for changes of weights"), ("text", "a memory of kind text")])
def test_a_memory_that_the_engine_was_not_started_for_is_refused(ledger: Ledger, kind: Kind | None, says: str) -> None:
    remembered(ledger, '"a"')
    served = served_by(ledger, kind)
    with pytest.raises(ValueError, match=f"memory of kind answer.*{says}.*editor="):
        swap(served, ledger, 1)
    assert served.now.bank is None


def test_a_file_that_cannot_be_read_is_a_refusal(ledger: Ledger, tmp_path: Path) -> None:
    torn = tmp_path / "torn"
    torn.write_bytes(b"torn")
    with pytest.raises(ValueError, match="torn cannot be read"):
        asyncio.run(served_by(ledger).prepare({"version": 1, "reset": True, "files": [str(torn)]}))


@pytest.mark.parametrize("kind", ["state", "datastore"])
def test_a_memory_that_is_read_inside_the_model_has_no_reader_in_front(ledger: Ledger, kind: Kind) -> None:
    remembered(ledger, '"a"', kind=kind)
    memory = swap(served_by(ledger, kind), ledger, 1)
    assert (memory.kind, memory.num_records, memory.reader) == (kind, 1, None)


@pytest.mark.parametrize(("kind", "num_vectors"), [("rows", 1), ("prefix", 3)])
def test_a_memory_of_embeddings_has_its_vectors_in_front(ledger: Ledger, kind: Kind, num_vectors: int) -> None:
    for fact in ('"a"', '"b"'):
        remembered(ledger, fact, kind=kind)
    memory = swap(served_by(ledger, kind), ledger, 2, reset=True)
    assert memory.kind == kind and isinstance(memory.reader, EmbeddingReader)
    assert memory.reader.table_ND.shape == (2 * num_vectors, HIDDEN) and memory.reader.vocabulary == VOCABULARY
