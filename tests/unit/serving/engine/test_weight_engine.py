"""Updates inside a vLLM worker, before and during the reload, on matrices in memory and without an engine."""

from __future__ import annotations

import json
import weakref
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch

from errata.delta.memory_delta import MemoryDelta
from errata.delta.parts import Dense, LowRank, Series, Sparse
from errata.delta.weight_delta import WeightDelta
from errata.edit_memory.bank import Kind, Record
from errata.edit_memory.experts import Experts, shared_of
from errata.editors.state import EditorState
from errata.ledger import Ledger
from tests.unit.conftest import MATRICES
from tests.unit.serving.engine.edit_memory import records

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


# -- memories ---------------------------------------------------------------------------------------------------------


def test_a_memory_counts_for_the_lineage_and_changes_no_matrix(ledger: Ledger) -> None:
    for number in range(6):
        records.remembered(ledger, f'"{number}"')
    one_by_one, at_once = InMemoryDeltaEngine("base"), InMemoryDeltaEngine("base")
    base = at_once.weights
    for number in range(1, 7):
        prepared = update(ledger, number - 1, number, reset=False)
        assert one_by_one.prepare(prepared) is None and not one_by_one.prepared.changed
        one_by_one.follow(one_by_one.parse_update_info(prepared))
    whole = update(ledger, 0, 6, reset=True)
    at_once.follow(at_once.parse_update_info(whole))
    for engine in (one_by_one, at_once):
        assert (engine.state.version, engine.state.fingerprint) == (6, ledger.version(6).fingerprint)
        assert engine.reloaded == [] and same(engine.weights, base) and engine.hook is None
    found = at_once.prepare({**whole, "files": whole["files"][:-1]})
    assert found is not None and found["kind"] == "lineage"


def test_an_update_of_weights_is_not_followed_without_a_reload(grown: Ledger) -> None:
    engine = InMemoryDeltaEngine("base")
    with pytest.raises(ValueError, match="version 9 changes weights"):
        engine.follow(engine.parse_update_info(update(grown, 0, 9, reset=True)))
    assert (engine.state.version, engine.state.intact, engine.reloaded) == (0, True, [])
    engine.swap(update(grown, 0, 9, reset=True))
    back = engine.parse_update_info(update(grown, 9, 0, reset=True))
    with pytest.raises(ValueError, match="version 0 changes weights"):
        engine.follow(back)


def test_the_answer_to_a_preparation_says_whether_weights_change(grown: Ledger) -> None:
    records.remembered(grown, '"a"')
    extension = weight_engine.WorkerExtension()
    extension.weight_transfer_engine = engine = InMemoryDeltaEngine("base")

    def asked(version: int, reset: bool) -> bool:
        answer = extension.errata_prepare(update(grown, engine.state.version, version, reset))
        while not answer["is_read"]:
            answer = extension.errata_reading()
        assert answer["fault"] is None
        return bool(answer["changes_weights"])

    assert asked(9, reset=True) and asked(10, reset=True)
    engine.swap(update(grown, 0, 9, reset=True))
    assert not asked(10, reset=False)
    assert extension.errata_follow(update(grown, 9, 10, reset=False))["version"] == 10
    assert asked(0, reset=True)


def test_a_memory_that_this_engine_cannot_read_is_refused(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    records.remembered(ledger, '"a"', kind="state")
    engine, wanted = InMemoryDeltaEngine("base"), update(ledger, 0, 1, reset=False)
    for eager, parallel, base, says in (
        (False, 1, engine.accumulator.base_OI, "needs an eager engine"),
        (True, 2, engine.accumulator.base_OI, "on one device"),
        (True, 1, {}, "no editable matrix of this model"),
        (True, 1, {MATRICES[0]: torch.zeros(64, 7)}, "no editable matrix of this model"),
    ):
        engine.model_config.enforce_eager, engine.parallel_config.tensor_parallel_size = eager, parallel
        monkeypatch.setattr(engine.accumulator, "base_OI", base)
        fault = engine.prepare(wanted)
        assert fault is not None and fault["kind"] == "invalid" and says in fault["message"]
        assert engine.prepared is None


@pytest.mark.parametrize("kind", ["datastore", "rows", "prefix"])
def test_a_memory_of_another_models_vectors_is_refused(ledger: Ledger, monkeypatch: pytest.MonkeyPatch, kind: Kind) -> None:
    records.remembered(ledger, '"a"', kind=kind)
    engine, wanted = InMemoryDeltaEngine("base"), update(ledger, 0, 1, reset=False)
    assert engine.prepare(wanted) is None
    for sizes in ({}, {"embedding": 90, "head": 90}):
        monkeypatch.setattr(engine, "embeddings", sizes)
        fault = engine.prepare(wanted)
        assert fault is not None and "no embedding or output layer of this model" in fault["message"]


def remember_experts(ledger: Ledger, *facts: str, num_in: int = 96, dropped: tuple[str, ...] = ()) -> int:
    """Append a version with experts of the first matrix and the codes of facts."""
    down_ERI, up_EOR = torch.ones(2, 1, num_in), torch.ones(2, 64, 1)
    experts = {MATRICES[0]: Experts(down_ERI, up_EOR, torch.zeros(2, num_in), torch.zeros(2))}
    rows = {"code": torch.zeros(1, 8, dtype=torch.uint8), "radius": torch.ones(1)}
    made = tuple(Record(fact, "a text", rows, edit=fact) for fact in facts)
    delta = MemoryDelta("experts", MATRICES[0], made, dropped, shared_of(experts, torch.zeros(num_in), 1))
    return ledger.append(ledger.head, delta, EditorState(), (), {}, ("ELDER", "p")).number


def test_experts_are_changed_as_weights_are_because_the_cache_depends_on_them(ledger: Ledger) -> None:
    """Each way into such a memory and out of it is a reload, of no matrix; one without a change of it is none."""
    remember_experts(ledger, '"a"')
    remember_experts(ledger, '"b"', dropped=('"a"',))
    ledger.append(2, WeightDelta({}), EditorState(), (), {}, ("ELDER", "p"))
    extension = weight_engine.WorkerExtension()
    extension.weight_transfer_engine = engine = InMemoryDeltaEngine("base")
    for version, reset, is_reload in ((1, False, True), (2, False, True), (3, False, False), (0, True, True), (3, True, True)):
        wanted = update(ledger, engine.state.version, version, reset)
        answer = extension.errata_prepare(wanted)
        while not answer["is_read"]:
            answer = extension.errata_reading()
        assert (answer["fault"], answer["changes_weights"]) == (None, is_reload), version
        if is_reload:
            with pytest.raises(ValueError, match=f"version {version} changes weights"):
                engine.follow(engine.parse_update_info(wanted))
            engine.swap(wanted)
        else:
            engine.follow(engine.parse_update_info(wanted))
        assert engine.state.version == version and engine.reloaded == []
        held = [] if engine.hook is None else list(engine.hook.bank.records)
        assert held == {0: [], 1: ['"a"']}.get(version, ['"b"'])
        assert len(engine.model._forward_pre_hooks) == (1 if held else 0)


@pytest.mark.parametrize("num_in", [96, 90])
def test_experts_of_another_model_are_refused(ledger: Ledger, num_in: int) -> None:
    remember_experts(ledger, '"a"', num_in=num_in)
    fault = InMemoryDeltaEngine("base").prepare(update(ledger, 0, 1, reset=False))
    assert (fault is None) == (num_in == 96)
    assert fault is None or (fault["kind"] == "invalid" and "the memory has experts of" in fault["message"])


def test_a_datastore_is_mixed_in_from_its_version_on_and_no_longer(ledger: Ledger) -> None:
    first = records.remembered(ledger, '"a"', kind="datastore")
    engine = InMemoryDeltaEngine("base")
    engine.follow(engine.parse_update_info(update(ledger, 0, first, reset=False)))
    assert isinstance(engine.hook, weight_engine.MixingHook) and "compute_logits" in vars(engine.model)
    engine.follow(engine.parse_update_info(update(ledger, first, 0, reset=True)))
    assert engine.hook is None and "compute_logits" not in vars(engine.model)


@pytest.mark.parametrize("kind", ["rows", "prefix"])
def test_a_memory_of_embeddings_comes_with_the_requests(ledger: Ledger, kind: Kind) -> None:
    records.remembered(ledger, '"a"', kind=kind)
    engine = InMemoryDeltaEngine("base")
    engine.follow(engine.parse_update_info(update(ledger, 0, 1, reset=False)))
    assert engine.state.version == 1 and engine.bank is None and engine.hook is None


def test_embeddings_of_requests_need_a_runner_that_reads_them() -> None:
    extension = weight_engine.WorkerExtension()
    extension.model_runner = SimpleNamespace(enable_prompt_embeds=False)
    extension.errata_read_embeddings(True)
    assert extension.model_runner.enable_prompt_embeds
    extension.model_runner = SimpleNamespace()
    with pytest.raises(RuntimeError, match="VLLM_USE_V2_MODEL_RUNNER=0"):
        extension.errata_read_embeddings(True)


def test_a_memory_of_states_is_read_from_its_version_on_and_no_longer(ledger: Ledger) -> None:
    first = records.remembered(ledger, '"a"', kind="state")
    second = records.remembered(ledger, '"b"', kind="state")
    engine = InMemoryDeltaEngine("base")
    for number in (first, second):
        engine.follow(engine.parse_update_info(update(ledger, number - 1, number, reset=False)))
        assert engine.hook.bank is engine.bank and len(engine.bank) == number
    engine.follow(engine.parse_update_info(update(ledger, second, first, reset=True)))
    assert list(engine.bank.records) == ['"a"']
    engine.follow(engine.parse_update_info(update(ledger, first, 0, reset=True)))
    assert engine.hook is None and engine.bank is None
    assert not engine.model._forward_pre_hooks and "compute_logits" not in vars(engine.model)
