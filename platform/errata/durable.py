"""Atomic, synced writes of files and folders, append-only logs, and digests that reveal damage."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from io import FileIO
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from filelock import lock_descriptor

TEMPORARY = ".new-"
IN_USE = ".lock"


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
    with _temporary(path) as folder:
        folder.mkdir()
        yield folder
        with ThreadPoolExecutor() as pool:  # Concurrent syncs share one write of the file system's journal.
            list(pool.map(sync, [folder, *folder.rglob("*")]))
        os.rename(folder, path)
        try:
            sync(path.parent)
        except OSError:
            os.rename(path, doubtful or folder)
            raise


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a temporary file, which is synced and replaces `path` if the block raises nothing, and removed if it does."""
    with _temporary(path) as file:
        yield file
        sync(file)
        os.replace(file, path)
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace a text file (UTF-8), whose mode stays: readers see the old text or the new one.

    What cannot be replaced is written to: a device, a pipe, the file behind a link, and one in a folder without write access.
    """
    is_file = path.is_file() and not path.is_symlink()
    if os.access(path.parent, os.W_OK) and (is_file or not os.path.lexists(path)):
        with replaced(path) as file:
            file.write_text(text, encoding="utf-8")
            if is_file:
                file.chmod(stat.S_IMODE(path.stat().st_mode))
    else:  # Without a folder it fails, with an error that names `path` and not a temporary file.
        path.write_text(text, encoding="utf-8")


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """Yield a hidden name beside `path` that no other writer uses, so that two writers of one path cannot mix their files.

    The names are numbered, and each has a lock that dies with its writer. A writer takes the first name whose lock is free,
    removes what killed writers left there and at the names that follow, and yields it.
    """
    names = (path.with_name(f"{TEMPORARY}{path.name}.{number}") for number in count())
    with ExitStack() as at_end:
        name = next(name for name in names if _taken(name, at_end))
        for other in takewhile(_is_used, names):
            with ExitStack() as now:
                _taken(other, now)
        yield name


def _is_used(name: Path) -> bool:
    return name.exists() or name.with_name(name.name + IN_USE).exists()


def _taken(name: Path, until: ExitStack) -> bool:
    """Take a temporary name, and return False if a living writer has it. What is there is removed, now and at the end."""
    lock = name.with_name(name.name + IN_USE)
    with ExitStack() as unless_taken:
        file = unless_taken.enter_context(FileIO(lock, "a+"))
        if not lock_descriptor(file.fileno(), blocking=False):
            return False
        if not _is_at(lock, file):  # The writer that had the name has just removed the lock file, after it was opened here.
            return False
        until.push(unless_taken.pop_all())
    until.callback(lock.unlink, missing_ok=True)
    until.callback(_remove, name)
    _remove(name)
    return True


def _is_at(path: Path, file: FileIO) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_temporary(folder: Path) -> int:
    """Remove what killed writers left half-written in a folder, and return the count. Its only writer may call this."""
    left = list(folder.glob(f"{TEMPORARY}*"))
    for path in left:
        _remove(path)
    return sum(path.suffix != IN_USE for path in left)


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
    return (record for record, _ in records_from(path))


def records_from(path: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Iterate over the records from a byte of a log on, each with the byte behind its line; the log is read line by line."""
    if not path.exists():
        return
    with path.open("rb") as log:
        log.seek(offset)
        for line in log:
            offset += len(line)
            with contextlib.suppress(ValueError):
                if isinstance(record := json.loads(line), dict):
                    yield record, offset


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
