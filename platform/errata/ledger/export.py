"""Export of a version as a plain Hugging Face checkpoint, which `vllm serve` and `from_pretrained` load.

The base's files are copied byte by byte, and its weights under their own names, in their own files and dtypes; only the edited
matrices differ. Files that hold the same weights in another format are left out. Edits that a version keeps in a memory are
not in its weights: the file `edits_in_memory.json` lists them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from errata.delta.accumulator import Accumulator
from errata.delta.kinds import Delta, split_by_kind
from errata.delta.memory_delta import held_after
from errata.durable import new_folder
from errata.edit_memory.bank import Bank
from errata.model.checkpoint import INDEX, check_checkpoint
from errata.model.matrices import find_matrices
from errata.model.weights import Checkpoint, architecture_of

# Formats of weights: the exported ones are of safetensors alone. With them go their indexes, `*.bin.index.json` and the like.
WEIGHTS = frozenset(
    ".safetensors .bin .pt .pth .ckpt .h5 .msgpack .gguf .onnx .onnx_data .ot .npz .tflite .mlmodel .nemo .pdparams".split()
)
IN_MEMORY = "edits_in_memory.json"
MAX_BYTES = 2**28  # A larger file holds weights, whatever its name.


def export(base: Mapping[str, Any], segments: Sequence[Delta], directory: str | Path) -> Path:
    """Write the base model with the changes of weights among these deltas, in its own dtype.

    Raises `ValueError` if `directory` exists and is not empty, or if the base cannot be edited.
    """
    target = Path(directory)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{directory} exists and is not empty")
    source = check_checkpoint(base["model"])
    architecture = architecture_of(source)
    spec, checkpoint = find_matrices(architecture, base["matrices"]), Checkpoint(source, architecture)
    accumulator = Accumulator({m.name: m.oriented(checkpoint.weight(m.name)) for m in spec.matrices}, in_place=True)
    weights, memory = split_by_kind(segments)
    for delta in weights:
        accumulator.check(delta)
    for delta in weights:
        accumulator.add(delta)
    edited = {checkpoint.key_of(name): name for name in accumulator.sum_OI}
    target.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(target) as folder:
        for file in dict.fromkeys(checkpoint.files.values()):
            names = {key: name for key, name in edited.items() if checkpoint.files[key] == file}
            tensors = {key: spec[name].oriented(accumulator.weight(name)).contiguous() for key, name in names.items()}
            _write_weights(file, folder / file.name, tensors)
        for file in _other_files(source):
            copy = folder / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        if (bank := held_after(memory)) is not None and len(bank):
            (folder / IN_MEMORY).write_text(json.dumps(_described(bank), indent=1) + "\n")
    return target


def _described(bank: Bank) -> dict[str, Any]:
    note = "This checkpoint does not answer by these edits: the version keeps them in a memory beside the weights."
    return {"note": note, "kind": bank.kind, "edits": [record.text for record in bank]}


def _write_weights(source: Path, copy: Path, changed: Mapping[str, Any]) -> None:
    """Copy a file of weights, with some of its tensors replaced."""
    if not changed:
        shutil.copyfile(source, copy)
        return
    with safe_open(str(source), framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(str(source)) | dict(changed), str(copy), metadata)


def _other_files(source: Path) -> Iterator[Path]:
    """Find every file of the base that is not of weights; hidden ones are of git or of a download."""
    for file in sorted(source.rglob("*")):
        parts = file.relative_to(source).parts
        if file.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in parts):
            is_index = file.suffix == ".json" and Path(Path(file.stem).stem).suffix in WEIGHTS and parts != (INDEX,)
            if not is_index and file.suffix not in WEIGHTS and file.stat().st_size <= MAX_BYTES:
                yield file
