"""Export of a version as a plain Hugging Face checkpoint, which `vllm serve` and `from_pretrained` load."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from errata.delta.accumulator import EditedModel
from errata.delta.weight_delta import WeightDelta
from errata.durable import new_folder
from errata.guard.probes import FILE as PROBES
from errata.model.language_model import load
from errata.model.matrices import find_matrices

BESIDE = (PROBES, "preprocessor_config.json", "processor_config.json")  # The last two belong to models that also read images.


def export(base: Mapping[str, Any], segments: Sequence[WeightDelta], directory: str | Path) -> Path:
    """Write the base model with these deltas, in its own dtype. Raises `ValueError` if `directory` exists and is not empty."""
    target = Path(directory)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{directory} exists and is not empty")
    model = load(base["model"], dtype=cast(torch.dtype, "auto"))
    EditedModel(model.module, find_matrices(model.module, base["matrices"])).set(segments)
    target.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(target) as folder:
        model.module.save_pretrained(str(folder))
        model.tokenizer.save_pretrained(str(folder))
        for file in (Path(base["model"]) / name for name in BESIDE):
            if file.exists():
                shutil.copy(file, folder)
    return target
