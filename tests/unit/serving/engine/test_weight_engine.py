"""Updates inside a vLLM worker, before and during the reload, on matrices in memory and without an engine."""

from __future__ import annotations

import json
import weakref
from dataclasses import asdict

import pytest
import torch

from errata.delta.parts import Dense, LowRank, Series, Sparse
from errata.delta.weight_delta import WeightDelta
from errata.editors.state import EditorState
from errata.ledger import Ledger
from tests.unit.conftest import MATRICES

weight_engine = pytest.importorskip("serving.engine.weight_engine")  # vLLM
InMemoryDeltaEngine = pytest.importorskip("tests.fakes.engine").InMemoryDeltaEngine


def update(ledger: Ledger, parent: int, version: int, reset: bool, snapshots: bool = True) -> dict:
    files = ledger.files_to(version, snapshots) if reset else [ledger.folders.path(version) / "delta.safetensors"]
    fingerprint = ledger.version(version).fingerprint
    found = weight_engine.UpdateInfo(parent, version, reset, [str(file) for file in files], fingerprint)
    return asdict(found)


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_chain_has_the_same_bits_in_one_update_and_one_by_one(grown: Ledger) -> None:
    at_once, one_by_one, went_back = InMemoryDeltaEngine("base"), InMemoryDeltaEngine("base"), InMemoryDeltaEngine("base")
    base = at_once.weights
    at_once.swap(update(grown, 0, 9, reset=True))
    for number in range(1, 10):
        one_by_one.swap(update(grown, number - 1, number, reset=False))
    for number in (9, 5, 9):
        went_back.swap(update(grown, went_back.state.version, number, reset=True))
    assert same(at_once.weights, one_by_one.weights) and same(at_once.weights, went_back.weights)
    assert not same(at_once.weights, base)
    assert at_once.reloaded == [set(MATRICES)] and one_by_one.reloaded[-1] == {MATRICES[0]}
    assert (at_once.state.version, at_once.state.fingerprint) == (9, grown.version(9).fingerprint)
    at_once.swap(update(grown, 9, 0, reset=True))
    assert same(at_once.weights, base) and at_once.reloaded[-1] == set(MATRICES) and at_once.state.intact


def test_a_long_chain_is_never_in_memory(grown: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, read, seen, held = InMemoryDeltaEngine("base"), weight_engine.read_segments, [], []

    def watched(path):
        held.append(sum(delta() is not None for delta in seen))
        deltas = read(path)
        seen.extend(map(weakref.ref, deltas))
        return deltas

    monkeypatch.setattr(weight_engine, "read_segments", watched)
    assert engine.prepare(update(grown, 0, 9, reset=True)) is None
    assert len(seen) == 9 and max(held) <= 1, "of the file before, the last at most"
    assert not any(delta() for delta in seen)
    assert engine.accumulator.sum_OI == {} and engine.state.version == 0, "it serves the weights as they are"


def test_an_update_with_a_fault_names_it_and_changes_nothing(grown: Ledger, tmp_path) -> None:
    engine = InMemoryDeltaEngine("base")
    engine.swap(update(grown, 0, 5, reset=True))
    before = engine.weights
    torn = tmp_path / "torn"
    torn.write_bytes(b"torn")
    WeightDelta({"other": LowRank(torch.ones(2, 1), torch.ones(2, 1))}).save(tmp_path / "other")
    good = update(grown, 5, 9, reset=True)
    for fault, kind, says in (
        ({"files": good["files"][:-1]}, "lineage", "not version 9"),
        ({"files": [*good["files"], str(torn)]}, "invalid", "SafetensorError"),
        ({"files": [*good["files"], str(tmp_path / "gone")]}, "io", "FileNotFoundError"),
        ({"files": [str(tmp_path / "other")]}, "invalid", "ValueError: other is not an editable matrix"),
        ({"reset": False, "parent": 4}, "lineage", "starts from version 4, this worker has version 5"),
        ({"reset": False, "files": good["files"][-1:]}, "lineage", "not version 9"),
    ):
        found = engine.prepare({**good, **fault})
        assert found["kind"] == kind and says in found["message"]
        with pytest.raises(ValueError, match=says):
            engine.receive_weights(engine.parse_update_info({**good, **fault}))
    assert same(engine.weights, before) and (engine.state.version, engine.state.intact) == (5, True)
    assert len(engine.reloaded) == 1 and engine.prepared is None
    engine.receive_weights(engine.parse_update_info(good))
    assert engine.state.version == 9


def mixed(number: int) -> WeightDelta:
    """Make a delta with parts of every kind."""
    generator = torch.Generator().manual_seed(number)
    factors = LowRank(torch.randn(64, 2, generator=generator), torch.randn(96, 2, generator=generator))
    few = Sparse(torch.tensor([3, 70, 6143]), torch.randn(3, generator=generator), (64, 96))
    return WeightDelta({MATRICES[number % 2]: [factors, few, Series((factors, few)), Dense(factors.dense())][number % 4]})


def test_a_flipped_bit_of_a_snapshot_makes_the_replica_read_the_versions_own_files(ledger: Ledger) -> None:
    """The next update is tried only after a reported fault, and is served only if it is sound."""
    for number in range(6):
        ledger.append(number, mixed(number), EditorState(), (), {}, ("E", "p"))
    path = ledger.snapshots.path(4)
    whole = path.read_bytes()
    begin = 8 + int.from_bytes(whole[:8], "little")
    entries = json.loads(whole[8:begin])
    indices = [entry["data_offsets"] for name, entry in entries.items() if name.rpartition("|")[2] in ("index", "shape")]
    places = [*range(8, begin, 9), *(begin + i for low, high in indices for i in range(low, high))]
    bits = [(place, 1 << place % 7) for place in places] + [(whole.index(b"[1, 2, 3, 4]") + 1, bit) for bit in (1, 4, 8)]
    num_faults = 0
    for place, bit in bits:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
        again, engine = Ledger.open(ledger.directory, 4), InMemoryDeltaEngine("base")
        if engine.prepare(update(again, 0, 6, reset=True)) is not None:
            num_faults += 1
            assert engine.prepare(update(again, 0, 6, reset=True, snapshots=False)) is None
        assert again.contents.matches(again.chain(6), again.segments(6))
    assert num_faults > len(indices)


def test_a_failure_inside_the_reload_marks_the_worker(grown: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = InMemoryDeltaEngine("base")

    def fail(changed):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine, "_reload", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.swap(update(grown, 0, 9, reset=True))
    assert (engine.state.intact, engine.state.version) == (False, 0)


def test_any_fault_of_a_preparation_is_a_refusal_and_no_exception(grown: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    extension = weight_engine.WorkerExtension()
    extension.weight_transfer_engine = InMemoryDeltaEngine("base")
    faults = [(KeyError("a part"), "invalid"), (RuntimeError("shapes"), "invalid"), (MemoryError(), "io")]
    faults += [(torch.OutOfMemoryError("16 GiB"), "io"), (OSError(5, "Input/output error"), "io")]
    for error, kind in faults:

        def fail(path, error=error):
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(weight_engine, "read_segments", fail)
            answer = extension.errata_prepare(update(grown, 0, 9, reset=True))
            while not answer["is_read"]:
                answer = extension.errata_reading()
        assert answer["fault"]["kind"] == kind and type(error).__name__ in answer["fault"]["message"]
    assert extension.errata_state()["intact"]
