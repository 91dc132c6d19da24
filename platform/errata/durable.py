"""Files that a crash, a kill or a full disk leaves either whole or as they were, and digests that show damage."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

TEMPORARY = ".new-"


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def new_folder(path: Path, doubtful: Path | None = None) -> Iterator[Path]:
    """A temporary folder beside `path`: synced and renamed to it if nothing is raised, and gone in any case.

    If it had its name and that could not be synced, it is put at `doubtful`, where that is given: others may have read it.
    """
    folder = path.with_name(f"{TEMPORARY}{path.name}")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir()
        yield folder
        with ThreadPoolExecutor() as pool:  # at once: a file system then writes its journal once, not once a file
            list(pool.map(sync, folder.iterdir()))
        sync(folder)
        os.rename(folder, path)
        try:
            sync(path.parent)
        except OSError:
            os.rename(path, doubtful or folder)
            raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A temporary file to write beside `path`: put in its place if nothing is raised, and gone in any case."""
    file = path.with_name(f"{TEMPORARY}{path.name}")
    try:
        yield file
        sync(file)
        os.replace(file, path)
    finally:
        file.unlink(missing_ok=True)
    sync(path.parent)


def append_line(path: Path, line: bytes, synced: bool = True) -> None:
    """Add a line to a log, on a line of its own even after half a line. If it cannot be written the log is as it was."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        size = os.lseek(descriptor, 0, os.SEEK_END)
        half = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        rest = b"\n" * half + line + b"\n"
        try:
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            if synced:
                os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    append_line(path, json.dumps(record).encode())


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a log, oldest first, without what is no whole line of JSON."""
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        with contextlib.suppress(ValueError):
            if isinstance(record := json.loads(line), dict):
                yield record


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """As safetensors' own `save_file`, but that a full disk is an `OSError` as everywhere else."""
    path.write_bytes(save(dict(tensors), metadata))


def digest_of(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def with_checksum(record: Mapping[str, Any]) -> dict[str, Any]:
    """With a SHA-256 over the rest of it as `digest`."""
    return {**record, "digest": digest_of(_canonical(record))}


def without_checksum(data: bytes) -> dict[str, Any]:
    """The record of a file, without its digest. Raises `ValueError` if it is not what was written; older ones have none."""
    record = json.loads(data)
    if not isinstance(record, dict):
        raise ValueError("it is no JSON object")
    if "digest" in record and record.pop("digest") != digest_of(_canonical(record)):
        raise ValueError("its digest is another")
    return record


def _canonical(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
