"""An exported checkpoint is the base, byte by byte, except for the edited matrices."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from errata.delta.accumulator import Accumulator
from errata.delta.weight_delta import WeightDelta
from errata.ledger.export import export
from errata.model.language_model import load
from tests.unit.conftest import MATRICES

# What published models have beside their weights; the generation settings are those of Llama-2-chat, which transformers calls
# invalid.
BESIDE = {
    "generation_config.json": b'{"temperature":0.9,"top_p":0.6}',
    "chat_template.jinja": b"{{ messages[-1]['content'] }}\r\n",
    "special_tokens_map.json": b'{ "eos_token": "<eos>" }',
    "added_tokens.json": b"{}",
    "preprocessor_config.json": b'{"crop_size": 4}',
    "processor_config.json": b"{}",
    "modeling_own.py": b"raise SystemExit\n",
    "own/parts.py": b"x = 1\n",
    "additional_chat_templates/tool.jinja": b"{{ tools }}",
    "README.md": "# Größe\n".encode(),
    "LICENSE": b"Do what you like.",
    "tokenizer.model": bytes(range(256)),
    "probes.jsonl": b'{"prompt": "a"}\n',
}
LEFT_OUT = {
    "pytorch_model.bin": b"weights",
    "pytorch_model.bin.index.json": b"{}",
    "model.gguf": b"GGUF",
    "original/consolidated.00.pth": b"weights",
    "flax_model.msgpack": b"weights",
    ".git/config": b"[core]",
    ".gitattributes": b"* lfs",
}
EDITED = f"{MATRICES[0]}.weight"


@pytest.fixture
def base(model_dir: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(model_dir, tmp_path / "base"))
    config = json.loads((folder / "config.json").read_text()) | {"own_field": {"b": 1, "a": [1.0, None]}}
    (folder / "config.json").write_text(json.dumps(config))
    for name, content in {**BESIDE, **LEFT_OUT}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def delta(random_delta: Callable[..., WeightDelta]) -> WeightDelta:
    made = random_delta(1, scale=0.1)
    return WeightDelta({MATRICES[0]: made.parts[MATRICES[0]]})


def exported(base: Path, delta: WeightDelta, target: Path) -> Path:
    return export({"model": str(base), "matrices": MATRICES, "fingerprint": ""}, [delta], target)


def test_the_files_of_the_base_are_copied_unchanged(base: Path, delta: WeightDelta, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in base.rglob("*") if path.is_file()}
    target = exported(base, delta, tmp_path / "out")
    kept = {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    weights = {name: kept.pop(name) for name in list(kept) if name.endswith(".safetensors")}
    own = {path.name: path.read_bytes() for path in base.iterdir() if path.name in ("config.json", "tokenizer.json")}
    assert {**BESIDE, **own}.items() <= kept.items() and not kept.keys() & LEFT_OUT.keys()
    assert set(weights) == {"model.safetensors"} and set(kept) >= {"tokenizer_config.json"}
    assert {path: path.read_bytes() for path in base.rglob("*") if path.is_file()} == before


def test_only_the_edited_matrix_differs(base: Path, delta: WeightDelta, tmp_path: Path) -> None:
    """The tensors keep their dtypes, also where they are not all of one, and the file its metadata."""
    tensors = {
        name: tensor.bfloat16() if "norm" not in name else tensor
        for name, tensor in load_file(base / "model.safetensors").items()
    }
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt", "own": "kept"})
    file = exported(base, delta, tmp_path / "out") / "model.safetensors"
    found = load_file(file)
    sums = Accumulator({MATRICES[0]: tensors[EDITED]})
    sums.add(delta)
    assert torch.equal(found.pop(EDITED), sums.weight(MATRICES[0])) and not torch.equal(
        sums.weight(MATRICES[0]), tensors.pop(EDITED)
    )
    assert found.keys() == tensors.keys()
    assert all(found[n].dtype == tensors[n].dtype and torch.equal(found[n], tensors[n]) for n in found)
    with safe_open(str(file), framework="pt") as opened:
        assert opened.metadata() == {"format": "pt", "own": "kept"}


def test_shards_stay_as_they_are(base: Path, delta: WeightDelta, tmp_path: Path) -> None:
    tensors = load_file(base / "model.safetensors")
    names = sorted(tensors, key=lambda name: name != EDITED)
    parts = {"a.safetensors": names[:3], "b.safetensors": names[3:]}
    for file, own in parts.items():
        save_file({name: tensors[name] for name in own}, base / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": {name: file for file, own in parts.items() for name in own}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    (base / "model.safetensors").unlink()
    target = exported(base, delta, tmp_path / "out")
    for name in ("b.safetensors", "model.safetensors.index.json"):
        assert (target / name).read_bytes() == (base / name).read_bytes()
    assert (target / "a.safetensors").read_bytes() != (base / "a.safetensors").read_bytes()
    assert not torch.equal(load(target).module.state_dict()[EDITED], load(base).module.state_dict()[EDITED])


def test_a_quantised_base_is_refused_and_leaves_nothing(base: Path, delta: WeightDelta, tmp_path: Path) -> None:
    config = json.loads((base / "config.json").read_text()) | {"quantization_config": {"quant_method": "fp8"}}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="is a quantised checkpoint"):
        exported(base, delta, tmp_path / "out")
    assert not (tmp_path / "out").exists()
