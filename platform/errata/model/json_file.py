"""JSON files of a checkpoint, and what is wrong with those that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

POINTER = b"version https://git-lfs"


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object. Raises `ValueError` with what is wrong with it."""
    try:
        data = path.read_bytes()
    except OSError as wrong:
        raise ValueError(f"{path} cannot be read: {wrong.strerror}") from None
    check_pointer(path, data[: len(POINTER)])
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not a JSON object, so it is damaged or of something else: copy it again")
    return found


def check_pointer(path: Path, begin: bytes) -> None:
    """Raise `ValueError` if the file begins as a pointer of Git LFS does."""
    if begin == POINTER:
        raise ValueError(f"{path} is a Git LFS pointer and not the file itself: fetch it with `git lfs pull`")
