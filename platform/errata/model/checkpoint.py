"""A checkpoint on disk, judged by its small files and by the headers of its weights: no weight is read.

`check_checkpoint` refuses what cannot be edited, or would be edited wrongly, in one sentence: what was found, where, and what
to do. Whatever loads a model calls it first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errata.model.architecture import check_model_type
from errata.model.json_file import POINTER, check_pointer, read_json
from errata.model.tokenizer_files import check_tokenizer_files

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
# Fields of config.json that describe a quantisation; `quantization` is MLX's, `compression_config` an old compressed-tensors'.
QUANTISED_FIELDS = ("quantization_config", "compression_config", "quantization")
NESTED = ("text_config", "llm_config", "language_config")  # where a model that also reads images has its language model
# Tensors that only a quantised matrix has, by the last part of their names.
COMPANION = re.compile(
    r"\.(weight_scale\w*|weight_zero_point|weight_packed|weight_g_idx|qweight|qzeros|SCB|weight_scb|W_q"
    r"|weight\.(?:absmax|quant_map|quant_state\S*|nested_\w+)|weight:\w+)$"
)
OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack")
MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit


@dataclass(frozen=True)
class TensorHeader:
    """A tensor in the header of a safetensors file; `dtype` is in safetensors' words, such as `BF16`."""

    dtype: str
    shape: tuple[int, ...]
    file: Path


def folder_of(model: str | Path) -> Path:
    """Return the model's folder: `model` itself, or the one of a hub name in Hugging Face's cache; nothing is downloaded.

    Raises `ValueError` if it is not on this machine.
    """
    folder = Path(model)
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise ValueError(f"{model} is a file: give the folder of the checkpoint, such as {folder.parent}")
    return _cached(str(model))


def _cached(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except HFValidationError:
        raise ValueError(f"{name} is no folder on this machine: give the folder of a checkpoint") from None
    except LocalEntryNotFoundError:
        raise ValueError(
            f"{name} is no folder on this machine, and no model of this name is in Hugging Face's cache: give the folder of a "
            f"checkpoint, or download one (`hf download {name if '/' in name else f'OWNER/{name}'} --local-dir FOLDER`)"
        ) from None


def check_checkpoint(model: str | Path) -> Path:
    """Check that the model's checkpoint can be edited, and return its folder.

    Raises `ValueError` for a model that is not on this machine, an adapter, a checkpoint that is quantised, incomplete, damaged
    or not of safetensors files, of a model that transformers does not know or that writes no text, and for a tokenizer or a
    chat template that is missing or cannot be used.
    """
    folder = folder_of(model)
    _check_kind(folder)
    config = read_json(folder / CONFIG)
    parts = {"": config} | {f"{name}.": part for name in NESTED if isinstance(part := config.get(name), dict)}
    for where, part in parts.items():
        for field in (field for field in QUANTISED_FIELDS if part.get(field) is not None):
            raise ValueError(_quantised(folder, f"{CONFIG} has {where}{field}{_method(part[field])}"))
    check_model_type(folder / CONFIG, config)
    _check_dtypes(folder, headers(folder))
    check_tokenizer_files(folder)
    return folder


def _check_kind(folder: Path) -> None:
    """Raise `ValueError` for a folder that holds an adapter, or no model."""
    if (folder / ADAPTER).exists():
        base = read_json(folder / ADAPTER).get("base_model_name_or_path") or "its base model"
        raise ValueError(
            f"{folder} holds an adapter of {base} ({ADAPTER}) and no whole model: merge it (PEFT's `merge_and_unload`), save "
            "the result with `save_pretrained`, and give that folder"
        )
    if not (folder / CONFIG).exists():
        raise ValueError(f"{folder} has no {CONFIG}, so it is no checkpoint: give the folder that holds it beside the weights")


def _method(value: Any) -> str:
    """Name the method of a quantisation config in brackets; nothing if it does not tell."""
    names = [value.get(key) for key in ("quant_method", "quant_algo", "format")] if isinstance(value, Mapping) else []
    return next((f" ({name})" for name in names if name), "")


def _quantised(folder: Path, found: str) -> str:
    return (
        f"{folder} is a quantised checkpoint ({found}), and codes with scales cannot be edited: give the unquantised "
        "checkpoint of the same model, or dequantise this one and save it as bfloat16 (docs/models.md)"
    )


def _check_dtypes(folder: Path, tensors: Mapping[str, TensorHeader]) -> None:
    """Raise `ValueError` for codes instead of numbers, and for scales of codes, wherever `config.json` tells of neither."""
    for name, tensor in tensors.items():
        is_matrix = len(tensor.shape) >= 2 and name.endswith((".weight", "_blocks"))
        if is_matrix and tensor.dtype not in FLOATS:
            raise ValueError(_quantised(folder, f"{name} in {tensor.file.name} is of the type {tensor.dtype}"))
        if COMPANION.search(name):
            raise ValueError(_quantised(folder, f"{tensor.file.name} has the tensor {name}"))


def headers(folder: Path) -> dict[str, TensorHeader]:
    """Read the headers of all weights, by the checkpoint's own names. Raises `ValueError` for a file missing or damaged."""
    files = files_by_key(folder)
    read = {file: header(file) for file in dict.fromkeys(files.values())}
    if lost := [key for key, file in files.items() if key not in read[file]]:
        raise ValueError(
            f"{files[lost[0]]} does not hold the tensor {lost[0]}, which {INDEX} says is there: the files are of different "
            "checkpoints, so copy them again"
        )
    return {key: read[file][key] for key, file in files.items()}


def files_by_key(folder: Path) -> dict[str, Path]:
    """Find the file of each tensor, as `from_pretrained` and vLLM do. Raises `ValueError` for a missing or doubtful file."""
    index = folder / INDEX
    if index.exists():
        return _indexed(folder, index)
    if (folder / SINGLE).exists():
        return dict.fromkeys(header(folder / SINGLE), folder / SINGLE)
    others = [file.name for pattern in OTHER_WEIGHTS for file in folder.glob(pattern)]
    if weights := [name for name in others if name != "training_args.bin"]:
        raise ValueError(
            f"{folder} holds no {SINGLE}, and edits are made and served from safetensors files alone: its weights are in "
            f"{weights[0]}, so save the model as safetensors (docs/models.md has the line)"
        )
    raise ValueError(f"{folder} holds no {SINGLE} and no {INDEX}: copy the weights there, or give the folder that holds them")


def _indexed(folder: Path, index: Path) -> dict[str, Path]:
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files or not all(isinstance(file, str) for file in files.values()):
        raise ValueError(f"{index} has no weight_map from tensors to files: copy it again")
    named = sorted(set(files.values()))
    if outside := [file for file in named if Path(file).name != file]:
        raise ValueError(f"{index} names files that are not beside it: {', '.join(outside)}")
    if missing := [file for file in named if not (folder / file).exists()]:
        raise ValueError(
            f"{folder} lacks {len(missing)} of the {len(named)} files of weights that {INDEX} names: {', '.join(missing)}; "
            "copy them there"
        )
    if (folder / SINGLE).exists() and named != [SINGLE]:
        raise ValueError(f"{folder} holds its weights twice, in {SINGLE} and in the files of {INDEX}: remove the stale ones")
    return {key: folder / file for key, file in files.items()}


def header(path: Path) -> dict[str, TensorHeader]:
    """Read the header of a safetensors file. Raises `ValueError` for a file that is damaged or cut."""
    try:
        with path.open("rb") as file:
            begin = file.read(len(POINTER))
            check_pointer(path, begin)
            num_bytes = int.from_bytes(begin[:8], "little")
            size = path.stat().st_size
            if len(begin) < 8 or not 2 <= num_bytes <= MAX_HEADER_BYTES or 8 + num_bytes > size:
                raise ValueError(f"{path} is no safetensors file, or is cut within its header: copy it again")
            file.seek(8)
            data = file.read(num_bytes)
    except OSError as wrong:
        raise ValueError(f"{path} cannot be read: {wrong.strerror}") from None
    try:
        found = json.loads(data)
        found.pop("__metadata__", None)
        end = max((int(one["data_offsets"][1]) for one in found.values()), default=0)
        tensors = {name: TensorHeader(str(one["dtype"]), tuple(map(int, one["shape"])), path) for name, one in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise ValueError(f"{path} is no safetensors file: its header is damaged; copy it again") from None
    if 8 + num_bytes + end != size:
        raise ValueError(
            f"{path} has {size:,} bytes, and by its header {8 + num_bytes + end:,}: it is cut or damaged; copy it again"
        )
    return tensors


# -- names ------------------------------------------------------------------------------------------------------------

PREFIXES = frozenset({"model", "transformer", "language_model", "text_model", "decoder"})


def matrix_names(keys: Mapping[str, TensorHeader]) -> list[str]:
    """Name the checkpoint's matrices that may be editable: every weight with two axes, except those of embeddings."""
    names = (key.removesuffix(".weight") for key, one in keys.items() if key.endswith(".weight") and len(one.shape) == 2)
    return [name for name in names if re.search(r"\.\d+\.", f".{name}")]


def without_prefix(name: str) -> str:
    """Cut what differs between a checkpoint's names and a model's, such as `model.language_model.`."""
    parts = name.split(".")
    while len(parts) > 1 and parts[0] in PREFIXES:
        parts = parts[1:]
    return ".".join(parts)
