"""Joint deltas: weights and memory change together, in a file, in a model in memory and beside one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from errata.delta.accumulator import EditedModel
from errata.delta.joint_delta import JointDelta
from errata.delta.kinds import added_up, joined_in_series, joint, load_delta, memory_of, split_by_kind, stored, weights_alone
from errata.delta.memory_delta import MemoryDelta
from errata.delta.parts import LowRank
from errata.delta.side_branch import applied
from errata.delta.weight_delta import WeightDelta
from errata.edit_memory.encoder import NAME as ENCODER
from errata.edit_memory.hooks import bank_of
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from tests.unit.edit_memory.records import a_change

NAME = "model.layers.1.mlp.down_proj"


def a_step(model: LanguageModel, scale: float = 1.0) -> WeightDelta:
    num_out, num_in = model.module.get_submodule(NAME).weight.shape  # type: ignore[misc]
    return WeightDelta({NAME: LowRank(scale * torch.ones(num_out, 1), torch.ones(num_in, 1))})


def test_both_parts_survive_a_file_with_the_same_digest(tiny_model: LanguageModel, tmp_path: Path) -> None:
    delta = joint(a_step(tiny_model), a_change("a"))
    delta.save(tmp_path / "delta.safetensors")
    read = load_delta(tmp_path / "delta.safetensors")
    assert isinstance(read, JointDelta) and read.digest() == delta.digest() == stored(delta).digest()
    assert read.num_bytes == read.weights.num_bytes + read.memory.num_bytes and read.norms() == delta.norms()
    assert delta.digest() not in (read.weights.digest(), read.memory.digest())
    other = joint(a_step(tiny_model), a_change("b"))
    assert other.digest() != delta.digest()


def test_a_joint_change_without_matrices_is_one_of_the_memory(tiny_model: LanguageModel) -> None:
    change, step = a_change("a"), a_step(tiny_model)
    assert joint(WeightDelta({}), change) is change and joint(step, None) is step


def test_several_changes_are_joined_part_by_part(tiny_model: LanguageModel) -> None:
    step, change = a_step(tiny_model), a_change("a")
    drop = MemoryDelta(change.kind, change.site, (), ("a",))
    for join in (added_up, joined_in_series):
        found = join([change, step, joint(a_step(tiny_model, 2.0), drop)])
        assert isinstance(found, JointDelta) and not found.memory.records and found.memory.dropped == ("a",)
        assert torch.allclose(found.weights.parts[NAME].dense(), torch.full_like(step.parts[NAME].dense(), 3.0))
    assert split_by_kind([joint(step, drop)]) == ([step], [drop])
    with pytest.raises(ValueError, match="memory of kind state, and a wrapper takes"):
        weights_alone(joint(step, drop), "a wrapper")


def test_a_model_takes_both_or_neither(tiny_model: LanguageModel) -> None:
    spec = find_matrices(tiny_model.module, ("layers.1.mlp.down_proj",))
    edited, before = EditedModel(tiny_model.module, spec), tiny_model.module.get_submodule(NAME).weight.clone()  # type: ignore[operator]
    edited.add(a_change("a"))
    held = bank_of(tiny_model.module)
    assert held is not None
    step, drop = a_step(tiny_model), MemoryDelta(held.kind, held.site, (), ("a",))
    with applied(tiny_model.module, joint(step, drop)):
        assert bank_of(tiny_model.module) is None and len(tiny_model.module.get_submodule(NAME)._forward_hooks) == 1
    assert bank_of(tiny_model.module) is held
    with pytest.raises(ValueError, match="not an editable matrix"):
        edited.add(joint(WeightDelta({"m": step.parts[NAME]}), drop))
    with pytest.raises(ValueError, match="one ledger holds one memory"):
        edited.add(joint(step, MemoryDelta("answer", ENCODER, (), ("a",))))
    weight = tiny_model.module.get_submodule(NAME).weight
    assert bank_of(tiny_model.module) is held and torch.equal(weight, before)  # type: ignore[arg-type]
    edited.add(joint(step, drop))
    assert bank_of(tiny_model.module) is None and torch.allclose(weight, before + 1.0, atol=1e-5)  # type: ignore[arg-type]
    content = edited.content()
    edited.set([a_change("a"), joint(step, drop)])
    assert bank_of(tiny_model.module) is None and torch.equal(weight, before + content.sums[NAME])  # type: ignore[arg-type]
    edited.set([])
    assert torch.equal(weight, before) and memory_of(step) is None  # type: ignore[arg-type]
