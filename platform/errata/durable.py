"""Atomic, synced writes of files and folders, append-only logs, and digests that reveal damage."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TEMPORARY = ".new-"


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def new_folder(path: Path, doubtful: Path | None = None) -> Iterator[Path]:
    """Yield a temporary folder, which is synced and renamed to `path` if the block raises nothing, and removed if it does.

    If the parent folder cannot be synced after the rename, readers may have seen `path`: the folder is then moved to
    `doubtful` if that is given, and removed otherwise.
    """
    folder = _temporary(path)
    try:
        folder.mkdir()
        yield folder
        with ThreadPoolExecutor() as pool:  # Concurrent syncs share one write of the file system's journal.
            list(pool.map(sync, folder.rglob("*")))
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
    """Yield a temporary file, which is synced and replaces `path` if the block raises nothing, and removed if it does."""
    file = _temporary(path)
    try:
        yield file
        sync(file)
        os.replace(file, path)
    finally:
        file.unlink(missing_ok=True)
    sync(path.parent)


def _temporary(path: Path) -> Path:
    """Return a hidden name beside `path` that no other writer uses, so that two writers of one path cannot mix their files."""
    return path.with_name(f"{TEMPORARY}{path.name}.{secrets.token_hex(4)}")


def append_line(path: Path, line: bytes, synced: bool = True) -> None:
    """Append a line to a log, on a line of its own even after a torn one. If the write fails, the log is unchanged."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        size = os.lseek(descriptor, 0, os.SEEK_END)
        is_torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        rest = b"\n" * is_torn + line + b"\n"
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
    """Append a record to a log as one line of JSON."""
    append_line(path, json.dumps(record).encode())


def records(path: Path) -> Iterator[dict[str, Any]]:
    """Iterate over the records of a log, oldest first. Lines that are not a whole JSON object are skipped."""
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        with contextlib.suppress(ValueError):
            if isinstance(record := json.loads(line), dict):
                yield record


def digest_of(data: bytes | memoryview) -> str:
    """Return the SHA-256 of `data` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def with_checksum(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record with a field `digest`: the SHA-256 over the other fields."""
    return {**record, "digest": digest_of(_canonical(record))}


def without_checksum(data: bytes) -> dict[str, Any]:
    """Parse a record and check its digest, which is removed. Records of older versions have none.

    Raises `ValueError` if the data is not a JSON object or does not match its digest.
    """
    record = json.loads(data)
    if not isinstance(record, dict):
        raise ValueError("it is not a JSON object")
    if "digest" in record and record.pop("digest") != digest_of(_canonical(record)):
        raise ValueError("its content does not match its digest")
    return record


def _canonical(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
