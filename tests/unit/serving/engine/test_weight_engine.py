"""Updates inside a vLLM worker, before and during the reload, on matrices in memory and without an engine."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from errata.delta.accumulator import Accumulator
from errata.delta.parts import Dense, LowRank, Series, Sparse
from errata.delta.weight_delta import WeightDelta
from errata.editors.state import EditorState
from errata.ledger import Ledger
from errata.model.matrices import editable_matrices
from serving.engine.readiness import Readiness, max_prepare_s
from tests.tiny_models import ARCHITECTURES, make_tiny, save_tiny
from tests.unit.conftest import MATRICES

weight_engine = pytest.importorskip("serving.engine.weight_engine")  # vLLM


class Still(weight_engine.DeltaEngine):
    """An engine that reloads nothing and records the names in `reloaded`."""

    def __init__(self, fingerprint: str) -> None:
        generator = torch.Generator().manual_seed(0)
        self.accumulator = Accumulator(
            {name: torch.randn(64, 96, generator=generator).bfloat16() for name in MATRICES}, in_place=True
        )
        self.base_fingerprint, self.prepared = fingerprint, None
        self.state = weight_engine._State(0, fingerprint)
        self.reader = ThreadPoolExecutor(1)
        self.reloaded: list[set[str]] = []
        self.model_config, self.device = SimpleNamespace(), torch.device("cpu")

    def _reload(self, changed: set[str]) -> int:
        self.reloaded.append(changed)
        return 1

    def swap(self, update: dict) -> None:
        assert self.prepare(update) is None
        self.receive_weights(self.parse_update_info(update))

    @property
    def weights(self) -> list[torch.Tensor]:
        return [self.accumulator.weight(name) for name in MATRICES]


@pytest.fixture
def grown(ledger: Ledger, random_delta) -> Ledger:
    """Make a ledger of nine versions and two snapshots; the last version changes one matrix alone."""
    for number in range(8):
        ledger.append(number, random_delta(number), EditorState(), (), {}, ("E", "p"))
    part = LowRank(torch.ones(64, 1), torch.ones(96, 1))
    ledger.append(8, WeightDelta({MATRICES[0]: part}), EditorState(), (), {}, ("E", "p"))
    return ledger


def update(ledger: Ledger, parent: int, version: int, reset: bool, snapshots: bool = True) -> dict:
    files = ledger.files_to(version, snapshots) if reset else [ledger.folders.path(version) / "delta.safetensors"]
    fingerprint = ledger.version(version).fingerprint
    found = weight_engine.UpdateInfo(parent, version, reset, [str(file) for file in files], fingerprint)
    return asdict(found)


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_chain_has_the_same_bits_in_one_update_and_one_by_one(grown: Ledger) -> None:
    at_once, one_by_one, went_back = Still("base"), Still("base"), Still("base")
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
    engine, read, seen, held = Still("base"), weight_engine.read_segments, [], []

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
    engine = Still("base")
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


class Watched:
    """An engine over `Still`'s weights that records each call, and whether a swap was under way, in `seen`."""

    def __init__(self, still: Still, readiness: Readiness) -> None:
        self.still, self.readiness, self.seen = still, readiness, []

    def look(self, asked: str) -> None:
        bound = self.readiness._preparing
        self.seen.append((asked, bound and bound[1], self.readiness._swap_began is not None))

    async def collective_rpc(self, method, args=()):
        self.look(method)
        worker = weight_engine.WorkerExtension()
        worker.weight_transfer_engine = self.still
        return [getattr(worker, method)(*args)]

    async def pause_generation(self, mode, clear_cache):
        self.look("pause")

    async def update_weights(self, request):
        self.look("update")
        self.still.update_weights(request.update_info)

    async def start_weight_update(self): ...

    async def finish_weight_update(self, weight_version): ...

    async def resume_generation(self):
        self.look("resume")


def replica(ledger: Ledger) -> Any:
    from serving.engine.generator import Generator

    one = object.__new__(Generator)
    one.ledger, one.version, one.fingerprint, one.epoch, one.replica = ledger, 0, "base", 0, "r"
    one.options, one._swapping, one._changed = SimpleNamespace(pause="keep"), asyncio.Lock(), asyncio.Condition()
    one._readiness, one.boot = Readiness("keep"), "boot"
    one.engine = Watched(Still("base"), one._readiness)
    return one


def test_a_swap_is_timed_from_the_pause_and_its_preparation_by_the_size_of_the_files(grown: Ledger) -> None:
    one = replica(grown)
    assert asyncio.run(one.swap(9))["version"] == 9
    whole, only = (
        max_prepare_s(sum(len(v.ranks) for v in versions), sum(v.num_bytes for v in versions))
        for versions in (grown.versions()[1:], grown.versions()[5:6])
    )
    swapped = [("pause", None, True), ("update", None, True), ("resume", None, True), ("errata_state", None, True)]
    seen = [call for call in one.engine.seen if call[0] != "errata_reading"]  # A busy machine reads longer.
    assert seen == [("errata_prepare", whole, False), *swapped] and 60 < only < whole
    assert not one._readiness.is_under_way
    one.engine.seen.clear()
    assert asyncio.run(one.swap(4))["version"] == 4 and asyncio.run(one.swap(5))["version"] == 5
    assert [seen for seen in one.engine.seen if seen[0] == "errata_prepare"][1:] == [("errata_prepare", only, False)]


def test_requests_are_answered_by_the_present_version_while_a_long_update_is_read(
    grown: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, go_on, read = replica(grown), threading.Event(), weight_engine.read_segments

    def slowly(path):
        assert go_on.wait(10)
        return read(path)

    async def asked() -> None:
        one._readiness.look(9, 0, 0)
        swap = asyncio.create_task(one.swap(9))
        await asyncio.sleep(0.3)
        assert not swap.done() and one._readiness.is_under_way
        async with asyncio.timeout(1):
            assert await one.admit(0) == "boot-0"
        later = asyncio.create_task(one.admit(9))
        go_on.set()
        assert (await swap)["version"] == 9 and await later == "boot-1"

    monkeypatch.setattr(weight_engine, "read_segments", slowly)
    asyncio.run(asked())
    assert [asked for asked, *_ in one.engine.seen].count("errata_reading") >= 2


def test_the_fault_of_a_long_update_is_reported_when_it_is_read(grown: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    one, read = replica(grown), weight_engine.read_segments

    def slowly(path):
        time.sleep(weight_engine.FIRST_WAIT_S)
        if path.parent.name != "snapshots":
            raise OSError(f"{path} cannot be read")
        return read(path)

    monkeypatch.setattr(weight_engine, "read_segments", slowly)
    answer = asyncio.run(one.swap(9))
    assert "cannot be read" in answer["error"] and not answer["refused"] and answer["version"] == 0
    assert not one._readiness.is_under_way and one.engine.still.state.intact
    monkeypatch.setattr(weight_engine, "read_segments", read)
    assert asyncio.run(one.swap(9))["version"] == 9


def test_a_repair_swaps_to_the_head_at_the_time_of_its_turn(grown: Ledger) -> None:
    one = replica(grown)

    async def moved_meanwhile() -> None:
        async with one._swapping:
            repair = asyncio.create_task(one._repair())
            await asyncio.sleep(0.01)
            grown.move_head(3)
        await repair

    asyncio.run(moved_meanwhile())
    assert one.version == 3 and [seen[0] for seen in one.engine.seen].count("update") == 1


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
        again, engine = Ledger.open(ledger.directory, 4), Still("base")
        if engine.prepare(update(again, 0, 6, reset=True)) is not None:
            num_faults += 1
            assert engine.prepare(update(again, 0, 6, reset=True, snapshots=False)) is None
        assert again.contents.matches(again.chain(6), again.segments(6))
    assert num_faults > len(indices)


def test_a_failure_inside_the_reload_marks_the_worker(grown: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Still("base")

    def fail(changed):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine, "_reload", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.swap(update(grown, 0, 9, reset=True))
    assert (engine.state.intact, engine.state.version) == (False, 0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_checkpoint_is_read_by_the_names_of_the_model(name: str, tmp_path: Path) -> None:
    """The keys map back to the checkpoint's own, so that vLLM gets exactly the tensors that it loaded."""
    model = make_tiny(name).module
    checkpoint = weight_engine.Checkpoint(save_tiny(name, tmp_path), model)
    own = load_file(tmp_path / "model.safetensors")
    for matrix in editable_matrices(model).matrices:
        module = model.get_submodule(matrix.name)
        assert torch.equal(checkpoint.weight(matrix.name), module.weight)
        beside = checkpoint.beside(matrix.name)
        assert [key.rpartition(".")[2] for key, _ in beside] == [n for n, _ in module.named_parameters() if n != "weight"]
        for key, tensor in [(checkpoint.key_of(matrix.name), module.weight), *beside]:
            assert torch.equal(own[key], tensor)
    with pytest.raises(ValueError, match=r"the checkpoint has no tensor model\.nothing\.weight"):
        checkpoint.key_of("model.nothing")


def test_a_sharded_checkpoint_is_read_and_a_folder_without_one_is_refused(tmp_path: Path) -> None:
    model = make_tiny("gemma3-wrapped").module
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    checkpoint = weight_engine.Checkpoint(tmp_path, model)
    for matrix in editable_matrices(model).matrices:
        assert torch.equal(checkpoint.weight(matrix.name), model.get_submodule(matrix.name).weight)
    with pytest.raises(ValueError, match=r"holds no model\.safetensors"):
        weight_engine.Checkpoint(tmp_path / "none", model)


def test_the_modules_of_gemma_3_are_found_inside_vllms_wrapper() -> None:
    """The rules are vLLM's own for such a checkpoint, whose class cannot be imported without torchvision."""
    from vllm.model_executor.models.utils import WeightsMapper

    served = nn.ModuleDict({"language_model": nn.ModuleDict({"model": nn.ModuleDict({"layers": nn.ModuleList()})})})
    block = nn.ModuleDict({"mlp": nn.ModuleDict({"gate_up_proj": nn.Identity(), "down_proj": nn.Identity()})})
    served["language_model"]["model"]["layers"].append(block)
    served.hf_to_vllm_mapper = WeightsMapper(orig_to_new_prefix={"model.language_model.": "language_model.model."})
    served.packed_modules_mapping = {"gate_up_proj": ["gate_proj", "up_proj"]}
    modules = dict(served.named_modules())
    for matrix, held_in in (("gate_proj", "gate_up_proj"), ("up_proj", "gate_up_proj"), ("down_proj", "down_proj")):
        for prefix in ("language_model.model", "model.language_model"):
            found = weight_engine.served_module(served, modules, [f"{prefix}.layers.0.mlp.{matrix}.weight"])
            assert found is block["mlp"][held_in]
    assert weight_engine.served_module(served, modules, ["model.language_model.layers.0.mlp.fc1.weight"]) is None


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="with torchvision vLLM runs the model")
def test_a_model_that_reads_images_is_refused_with_the_reason(tmp_path: Path) -> None:
    """The check runs before vLLM, whose own error is only that the model `failed to be inspected`."""
    from serving.engine.checkpoint import check_architecture
    from serving.engine.generator import Generator

    checkpoint = save_tiny("gemma3-wrapped", tmp_path / "wrapped")
    replica = SimpleNamespace(options=SimpleNamespace(model=str(checkpoint)))
    with pytest.raises(ValueError, match=r"Gemma3ForConditionalGeneration, which reads images too.*torchvision"):
        asyncio.run(Generator._start_engine(replica))
    check_architecture(save_tiny("gemma3", tmp_path / "text"))
    with pytest.raises(ValueError, match="some/model is no folder"):
        check_architecture("some/model")


def test_an_engine_ends_when_its_replica_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The replica and its engine are two forked processes."""
    monkeypatch.setattr(weight_engine, "PARENT_PERIOD_S", 0.02)
    read, write = os.pipe()
    replica = os.fork()
    if replica == 0:
        try:
            if os.fork() == 0:
                parent = os.getppid()
                os.write(write, str(os.getpid()).encode())
                weight_engine._end_with_parent(parent)
            time.sleep(60)
        finally:
            os._exit(0)
    engine = psutil.Process(int(os.read(read, 20)))
    assert engine.ppid() == replica
    os.kill(replica, signal.SIGKILL)
    os.waitpid(replica, 0)
    deadline = time.monotonic() + 10
    while engine.is_running() and engine.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.02)
