"""The tensors of a checkpoint by module of the transformers model, read one at a time."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from errata.model.checkpoint import files_by_key


class Checkpoint:
    """The tensors of a folder of safetensors files, by module of the transformers model."""

    def __init__(self, directory: str | Path, architecture: nn.Module) -> None:
        self.files = files_by_key(Path(directory))
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


def _keys_by_name(keys: Iterable[str], architecture: Any) -> dict[str, str]:
    """Map each tensor of the model to the checkpoint's key, by the rules of `from_pretrained`.

    Checkpoints of GPT-2 omit `transformer.`; those of Gemma 3 with images put `language_model.` before `model.`.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    transforms = get_model_conversion_mapping(architecture)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    prefix, tensors = architecture.base_model_prefix, architecture.state_dict()
    return {rename_source_key(key, renamings, [], prefix, tensors)[0]: key for key in keys}


def architecture_of(folder: str | Path) -> Any:
    """Make the model without weights, for names, sizes and orientation."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(str(folder)))
