"""Checkpoints that cannot be edited are refused before weights are read, in one sentence that says what to do.

Each case makes a folder that users have had, from a small whole one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoTokenizer

from errata.model import checkpoint
from errata.model.checkpoint import check_checkpoint
from errata.model.language_model import checkpoint_fingerprint, load
from errata.model.matrices import find_matrices
from errata.model.tokenizer_files import check_tokenizer, tokenizer_options

DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def folder(model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_dir, tmp_path / "model"))


def edit_json(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def with_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def sharded(folder: Path) -> list[Path]:
    """Split the weights into two files with an index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, own in parts.items():
        save_file({name: tensors[name] for name in own}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, own in parts.items() for name in own}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "model.safetensors").unlink()
    return [folder / file for file in parts]


def test_whole_checkpoints_are_taken(folder: Path) -> None:
    assert check_checkpoint(folder) == folder
    edit_json(folder / "config.json", quantization_config=None)
    sharded(folder)
    assert check_checkpoint(str(folder)) == folder
    assert len(load(folder).tokenizer("")["input_ids"]) == 0


def test_masks_that_old_checkpoints_of_gpt_2_hold_are_no_codes(folder: Path) -> None:
    with_tensors(folder, lambda t: t | {"h.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8)})
    assert check_checkpoint(folder) == folder


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "has quantization_config (compressed-tensors)"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, "has quantization_config (fp8)"),
        *(
            ({"quantization_config": {"quant_method": method}}, f"has quantization_config ({method})")
            for method in ("bitsandbytes", "gptq", "awq", "torchao", "hqq", "mxfp4", "modelopt")
        ),
        ({"quantization_config": {}}, "has quantization_config"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "has quantization"),
        ({"compression_config": {"format": "pack-quantized"}}, "has compression_config (pack-quantized)"),
        ({"text_config": {"quantization_config": {"quant_method": "awq"}}}, "has text_config.quantization_config (awq)"),
    ],
)
def test_a_quantised_checkpoint_is_refused_by_its_configuration(folder: Path, config: dict[str, Any], found: str) -> None:
    edit_json(folder / "config.json", **config)
    for refuse in (check_checkpoint, load):
        with pytest.raises(ValueError, match="is a quantised checkpoint") as refused:
            refuse(folder)
        line = str(refused.value)
        assert found in line and "give the unquantised checkpoint of the same model, or dequantise" in line and "\n" not in line


@pytest.mark.parametrize(
    ("tensors", "found"),
    [
        ({DOWN: torch.zeros(8, 8).to(torch.float8_e4m3fn)}, f"{DOWN} in model.safetensors is of the type F8_E4M3"),
        ({DOWN: torch.zeros(8, 8, dtype=torch.int8)}, "is of the type I8"),
        ({DOWN: torch.zeros(8, 8, dtype=torch.uint8)}, "is of the type U8"),
        ({DOWN: torch.zeros(8, 8, dtype=torch.int32)}, "is of the type I32"),
        ({f"{DOWN}_scale": torch.ones(1)}, f"has the tensor {DOWN}_scale"),
        ({f"{DOWN}_scale_inv": torch.ones(1, 1)}, "has the tensor"),
        ({f"{DOWN}.absmax": torch.ones(1)}, "has the tensor"),
        ({f"{DOWN}.quant_state.bitsandbytes__nf4": torch.ones(1)}, "has the tensor"),
        ({DOWN.replace("weight", "qweight"): torch.ones(1)}, "has the tensor"),
        ({DOWN.replace("weight", "SCB"): torch.ones(1)}, "has the tensor"),
        ({"model.layers.0.mlp.experts.gate_up_proj_blocks": torch.zeros(2, 2, 2, dtype=torch.uint8)}, "of the type U8"),
    ],
)
def test_a_quantised_checkpoint_is_refused_by_its_tensors(folder: Path, tensors: dict[str, torch.Tensor], found: str) -> None:
    """Nothing in `config.json` tells of it, so that transformers would load codes as numbers."""
    with_tensors(folder, lambda own: own | tensors)
    with pytest.raises(ValueError, match="is a quantised checkpoint") as refused:
        check_checkpoint(folder)
    assert found in str(refused.value)


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "base/model", "peft_type": "LORA"}))


def lost_shard(folder: Path) -> None:
    sharded(folder)[1].unlink()


def mixed_shards(folder: Path) -> None:
    first, second = sharded(folder)
    shutil.copy(first, second)


def twice(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / "kept")
    sharded(folder)
    shutil.move(folder / "kept", folder / "model.safetensors")


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def cut_header(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])


def only_bin(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def pointer(name: str) -> Callable[[Path], None]:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    return lambda folder: (folder / name).write_text(text) and None  # type: ignore[func-returns-value]


def removed(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names] and None  # type: ignore[func-returns-value]


def tekken(folder: Path) -> None:
    removed("tokenizer.json", "tokenizer_config.json")(folder)
    (folder / "tekken.json").write_text("{}")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (adapter, r"holds an adapter of base/model \(adapter_config\.json\).*merge_and_unload"),
        (removed("config.json"), r"has no config\.json, so it is no checkpoint"),
        (removed("model.safetensors"), r"holds no model\.safetensors and no .*: copy the weights there"),
        (lost_shard, r"lacks 1 of the 2 files of weights.*: model-00002-of-00002\.safetensors; copy them"),
        (mixed_shards, r"does not hold the tensor .* of different checkpoints"),
        (twice, r"holds its weights twice.*remove the stale ones"),
        (cut, r"model\.safetensors has [\d,]+ bytes, and by its header [\d,]+: it is cut"),
        (cut_header, r"is cut within its header: copy it again"),
        (only_bin, r"its weights are in pytorch_model\.bin, so save the model as safetensors"),
        (pointer("model.safetensors"), r"model\.safetensors is a Git LFS pointer.*git lfs pull"),
        (pointer("config.json"), r"config\.json is a Git LFS pointer"),
        (pointer("tokenizer.json"), r"tokenizer\.json is a Git LFS pointer"),
        (lambda folder: (folder / "config.json").write_text("[]"), r"config\.json is not a JSON object"),
        (removed("tokenizer.json"), r"has no tokenizer \(tokenizer\.json\): copy the model's own"),
        (tekken, r"is mistral-common's alone \(tekken\.json\).*copy tokenizer\.json"),
    ],
)
def test_a_folder_that_is_no_whole_checkpoint_is_refused(folder: Path, spoil: Callable[[Path], Any], says: str) -> None:
    spoil(folder)
    for refuse in (check_checkpoint, load):
        with pytest.raises(ValueError, match=says) as refused:
            refuse(folder)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["/no/such/folder", "some/model", "model", "C:\\models\\m"])
def test_a_model_that_is_not_on_this_machine_is_refused(name: str) -> None:
    for refuse in (check_checkpoint, checkpoint_fingerprint):
        with pytest.raises(ValueError, match="is no folder on this machine"):
            refuse(name)


def test_a_file_is_no_folder(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json is a file: give the folder"):
        check_checkpoint(folder / "config.json")


def test_a_name_in_the_cache_is_found_without_a_download(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, local_files_only: str(folder))
    assert check_checkpoint("owner/name") == folder
    assert checkpoint_fingerprint("owner/name") == checkpoint_fingerprint(folder)


def test_weights_that_are_missing_from_the_files_are_not_made_up(folder: Path) -> None:
    with_tensors(folder, lambda tensors: {name: tensor for name, tensor in tensors.items() if name != DOWN})
    with pytest.raises(ValueError, match=f"lacks 1 tensors of the model, such as {DOWN}: copy the whole checkpoint"):
        load(folder)


def test_the_fingerprint_is_of_the_content(folder: Path, tmp_path: Path) -> None:
    first = checkpoint_fingerprint(folder)
    assert checkpoint_fingerprint(shutil.copytree(folder, tmp_path / "copy")) == first
    with_tensors(folder, lambda tensors: {name: 2 * tensor for name, tensor in tensors.items()})
    assert checkpoint_fingerprint(folder) != first
    only_bin(folder)
    bin_file = folder / "pytorch_model.bin"
    first = checkpoint_fingerprint(folder)
    torch.save({"a": torch.ones(1)}, bin_file)
    assert checkpoint_fingerprint(folder) != first
    bin_file.unlink()
    with pytest.raises(ValueError, match="holds no file of weights"):
        checkpoint_fingerprint(folder)


class Spoilt:
    """A tokenizer that cannot do what one method of it needs."""

    def __init__(self, fails: str) -> None:
        self.fails = fails

    def __call__(self, text: str, return_offsets_mapping: bool = False) -> dict[str, Any]:
        if self.fails == "offsets":
            raise NotImplementedError("return_offsets_mapping is not available\nwith Python tokenizers")
        if self.fails == "empty" and not text:
            raise IndexError("list index out of range")
        return {"input_ids": [1, 2], "offset_mapping": [(0, 1)] if self.fails == "count" else [(0, 1), (1, 2)]}

    def decode(self, ids: list[int]) -> str:
        if self.fails == "decode":
            raise TypeError("ids")
        return ""


@pytest.mark.parametrize("fails", ["offsets", "empty", "count", "decode"])
def test_a_tokenizer_that_cannot_do_what_edits_need_is_named(fails: str) -> None:
    with pytest.raises(ValueError, match=r"the tokenizer of m is Spoilt \(.*copy tokenizer\.json") as refused:
        check_tokenizer(Spoilt(fails), "m")
    assert "\n" not in str(refused.value)
    check_tokenizer(Spoilt("nothing"), "m")


def test_of_two_tokenizers_the_one_with_offsets_is_taken(folder: Path) -> None:
    """Mistral's own repositories hold both, and where mistral-common is installed transformers may take its one."""
    edit_json(folder / "config.json", model_type="ministral3")
    edit_json(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizerFast")
    (folder / "tekken.json").write_text("{}")
    assert check_checkpoint(folder) == folder
    tokenizer = AutoTokenizer.from_pretrained(folder, **tokenizer_options(folder))
    check_tokenizer(tokenizer, folder)


def test_only_headers_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("weights are read")

    monkeypatch.setattr("safetensors.safe_open", fail)
    assert checkpoint.headers(check_checkpoint(folder))[DOWN].shape == (64, 96)


class Codes(nn.Linear):
    """A Linear whose weight is codes, like bitsandbytes' and transformers' FP8 modules."""

    def __init__(self, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        super().__init__(2, 2)
        self.weight = nn.Parameter(torch.zeros(shape).to(dtype), requires_grad=False)


class Wrapped(nn.Parameter):
    """A parameter with its own arithmetic, like torchao's and bitsandbytes'."""


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (Codes(torch.int8, (4, 4)), "a Codes whose weight is a Parameter of torch.int8"),
        (Codes(torch.uint8, (8, 1)), "of torch.uint8"),
        (Codes(torch.float8_e4m3fn, (4, 4)), "of torch.float8_e4m3fn"),
        (Codes(torch.uint8, (16,)), "of torch.uint8"),
    ],
)
def test_a_module_without_a_plain_matrix_is_refused(module: nn.Module, says: str) -> None:
    with pytest.raises(ValueError, match=f"mlp is .*{says}, not a plain matrix.*unquantised checkpoint"):
        find_matrices(nn.ModuleDict({"mlp": module}), ["mlp"])


def test_a_parameter_with_arithmetic_of_its_own_is_refused() -> None:
    linear = nn.Linear(2, 2)
    linear.weight = Wrapped(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="weight is a Wrapped of"):
        find_matrices(nn.ModuleDict({"mlp": linear}), ["mlp"])


def test_a_misspelt_matrix_comes_with_the_closest_name(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"down_prj; what .*; the closest are layers\.1\.mlp\.down_proj$"):
        find_matrices(load(folder).module, ["layers.1.mlp.down_prj"])
