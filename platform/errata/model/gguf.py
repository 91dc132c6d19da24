"""GGUF files as checkpoints: the dequantised weights, the tokenizer and the chat template, saved as safetensors.

A GGUF file holds one model whose matrices are quantised. Edits need plain numbers, so the file is converted once. transformers
reads it (with the packages `gguf` and `accelerate`); what its dequantised model cannot do, to be saved, a fresh model does.
"""

from __future__ import annotations

import struct
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from errata.durable import file_digest, new_folder
from errata.home import home
from errata.locks import hold

SUFFIX = ".gguf"
MAGIC = b"GGUF"
NEEDED = ("gguf", "accelerate")
WAIT_S = 1800.0  # for another process that converts the same file


def is_gguf(model: str | Path) -> bool:
    """Say if a model is given as a GGUF file."""
    return str(model).endswith(SUFFIX)


def converted(file: str | Path, folder: Path | None = None) -> Path:
    """Return the folder of the file's checkpoint, which is made on first use; by default under $ERRATA_HOME/models.

    Raises `ValueError` for a file that is missing or no GGUF file, whose architecture transformers cannot read, and for missing
    packages.
    """
    file = Path(file)
    check_gguf(file)
    folder = folder or home() / "models" / f"{file.stem.lower()}-{file_digest(file)[:12]}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with hold(folder.with_name(f"{folder.name}.lock"), WAIT_S):
        if not folder.exists():  # Another process may have made it meanwhile.
            with new_folder(folder) as made:
                _convert(file, made)
    return folder


def check_gguf(file: Path) -> None:
    """Raise `ValueError` for a file that is missing or not of this format, and for missing packages."""
    try:
        with file.open("rb") as opened:
            begin = opened.read(len(MAGIC))
    except OSError as wrong:
        raise ValueError(f"{file} cannot be read: {wrong.strerror}") from None
    if begin != MAGIC:
        raise ValueError(f"{file} is no GGUF file, or is damaged: copy it again")
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise ValueError(f"{file.name} needs the packages {' and '.join(missing)}: pip install {' '.join(missing)}")


def _convert(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        read: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    except (ValueError, KeyError, IndexError, NotImplementedError, AttributeError, struct.error) as refused:
        reason = " ".join(str(refused).split())[:200]
        raise ValueError(
            f"transformers cannot read {file.name} ({reason}): give the model's safetensors checkpoint instead"
        ) from None
    config = read.config
    for leftover in ("quantization_config", "_name_or_path"):
        if hasattr(config, leftover):
            delattr(config, leftover)
    config.architectures = [type(read).__name__]
    plain = type(read)(config)
    plain.load_state_dict(read.state_dict())
    plain.tie_weights()
    plain.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
