"""The checkpoint that the engine serves: its tensors by transformers module, and vLLM's module of each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key


def check_architecture(model: str | Path) -> None:
    """Raise `ValueError` for a model that vLLM cannot run or edit here and whose own error does not say why."""
    if not Path(model).is_dir():
        raise ValueError(
            f"{model} is no folder; give the folder of the checkpoint, because edited matrices are made from its tensors"
        )
    config = AutoConfig.from_pretrained(str(model))
    if config.get_text_config() is not config and find_spec("torchvision") is None:
        kind = ", ".join(config.architectures or [config.model_type])
        raise ValueError(
            f"{model} is a {kind}, which reads images too, and vLLM needs torchvision for it, which is not installed "
            "(requirements/gpu.txt has it, requirements/cpu.txt has not); serve a text-only checkpoint, or use a GPU machine"
        )


class Checkpoint:
    """The tensors of a folder of safetensors files, by module of the transformers model."""

    def __init__(self, directory: str | Path, architecture: nn.Module) -> None:
        self.files = _files_by_key(Path(directory))
        self.keys = _keys_by_name(self.files, architecture)

    def key_of(self, name: str) -> str:
        """Return the checkpoint's key of a module's weight. Raises `ValueError` if there is none."""
        if f"{name}.weight" not in self.keys:
            raise ValueError(f"the checkpoint has no tensor {name}.weight")
        return self.keys[f"{name}.weight"]

    def weight(self, name: str) -> Tensor:
        return self._read(self.key_of(name))

    def beside(self, name: str) -> list[tuple[str, Tensor]]:
        """Read the module's other tensors, such as its bias, with their keys."""
        found = [key for full, key in self.keys.items() if full.rpartition(".")[0] == name and full != f"{name}.weight"]
        return [(key, self._read(key)) for key in found]

    def _read(self, key: str) -> Tensor:
        with safe_open(str(self.files[key]), framework="pt") as file:
            return file.get_tensor(key)


def _files_by_key(directory: Path) -> dict[str, Path]:
    index = directory / "model.safetensors.index.json"
    if index.exists():
        files = json.loads(index.read_text())["weight_map"]
        if outside := sorted({file for file in files.values() if Path(file).name != file}):
            raise ValueError(f"{index} names files that are not beside it: {', '.join(outside)}")
        return {key: directory / file for key, file in files.items()}
    if (directory / "model.safetensors").exists():
        with safe_open(str(directory / "model.safetensors"), framework="pt") as file:
            return dict.fromkeys(file.keys(), directory / "model.safetensors")
    raise ValueError(f"{directory} holds no model.safetensors; edits are served from a safetensors checkpoint")


def _keys_by_name(keys: Iterable[str], architecture: Any) -> dict[str, str]:
    """Map each tensor of the model to the checkpoint's key, by the rules of `from_pretrained`.

    Checkpoints of GPT-2 omit `transformer.`; those of Gemma 3 with images put `language_model.` before `model.`.
    """
    transforms = get_model_conversion_mapping(architecture)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    prefix, tensors = architecture.base_model_prefix, architecture.state_dict()
    return {rename_source_key(key, renamings, [], prefix, tensors)[0]: key for key in keys}


def served_module(model: nn.Module, modules: Mapping[str, nn.Module], names: Iterable[str]) -> nn.Module | None:
    """Find vLLM's module that holds a weight, such as `…mlp.gate_up_proj` for `…mlp.up_proj`; None if there is none.

    `names` are tried in order: vLLM's mapping rules apply to the checkpoint's names, and without rules its modules have the
    names of transformers.
    """
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    packed = getattr(model, "packed_modules_mapping", None) or {}
    for name in names:
        mapped = mapper.map_name(name) if mapper is not None else name
        stem, _, last = (mapped or "").removesuffix(".weight").rpartition(".")
        for candidate in (last, *(fused for fused, members in packed.items() if last in members)):
            if f"{stem}.{candidate}" in modules:
                return modules[f"{stem}.{candidate}"]
    return None
