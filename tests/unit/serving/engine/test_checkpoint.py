"""The served checkpoint: its tensors by the model's names, vLLM's modules, and models that vLLM cannot run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from errata.model.matrices import editable_matrices
from serving.engine.checkpoint import Checkpoint, check_architecture, served_module
from tests.tiny_models import ARCHITECTURES, make_tiny, save_tiny


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_checkpoint_is_read_by_the_names_of_the_model(name: str, tmp_path: Path) -> None:
    """The keys map back to the checkpoint's own, so that vLLM gets exactly the tensors that it loaded."""
    model = make_tiny(name).module
    checkpoint = Checkpoint(save_tiny(name, tmp_path), model)
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
    checkpoint = Checkpoint(tmp_path, model)
    for matrix in editable_matrices(model).matrices:
        assert torch.equal(checkpoint.weight(matrix.name), model.get_submodule(matrix.name).weight)
    with pytest.raises(ValueError, match=r"holds no model\.safetensors"):
        Checkpoint(tmp_path / "none", model)


def test_the_modules_of_gemma_3_are_found_inside_vllms_wrapper() -> None:
    """The rules are vLLM's own for such a checkpoint, whose class cannot be imported without torchvision."""
    WeightsMapper = pytest.importorskip("vllm.model_executor.models.utils").WeightsMapper

    served = nn.ModuleDict({"language_model": nn.ModuleDict({"model": nn.ModuleDict({"layers": nn.ModuleList()})})})
    block = nn.ModuleDict({"mlp": nn.ModuleDict({"gate_up_proj": nn.Identity(), "down_proj": nn.Identity()})})
    served["language_model"]["model"]["layers"].append(block)
    served.hf_to_vllm_mapper = WeightsMapper(orig_to_new_prefix={"model.language_model.": "language_model.model."})
    served.packed_modules_mapping = {"gate_up_proj": ["gate_proj", "up_proj"]}
    modules = dict(served.named_modules())
    for matrix, held_in in (("gate_proj", "gate_up_proj"), ("up_proj", "gate_up_proj"), ("down_proj", "down_proj")):
        for prefix in ("language_model.model", "model.language_model"):
            found = served_module(served, modules, [f"{prefix}.layers.0.mlp.{matrix}.weight"])
            assert found is block["mlp"][held_in]
    assert served_module(served, modules, ["model.language_model.layers.0.mlp.fc1.weight"]) is None


def test_a_model_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    check_architecture(save_tiny("gemma3", tmp_path / "text"))
    with pytest.raises(ValueError, match="some/model is no folder"):
        check_architecture("some/model")
