"""The checkpoint that the engine serves: whether vLLM can run it, and vLLM's module of each tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path

from torch import nn

from errata.model.checkpoint import check_checkpoint
from errata.model.weights import Checkpoint

__all__ = ("Checkpoint", "check_architecture", "served_module")


def check_architecture(model: str | Path) -> None:
    """Raise `ValueError` for a model that vLLM cannot run or edit here, and whose own error does not say why."""
    from transformers import AutoConfig  # Imported here because importing transformers takes seconds.

    folder = check_checkpoint(model)
    if folder != Path(model):
        raise ValueError(f"{model} is no folder but a name in Hugging Face's cache: give its folder, {folder}")
    config = AutoConfig.from_pretrained(str(model))
    if config.get_text_config() is not config and find_spec("torchvision") is None:
        kind = ", ".join(config.architectures or [config.model_type])
        raise ValueError(
            f"{model} is a {kind}, which reads images too, and vLLM needs torchvision for it, which is not installed "
            "(requirements/gpu.txt has it, requirements/cpu.txt has not); serve a text-only checkpoint, or use a GPU machine"
        )


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
