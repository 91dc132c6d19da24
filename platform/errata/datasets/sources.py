"""Sources of edits: a local path, folder or pattern, a URI that pyarrow opens, or a dataset on Hugging Face.

`edits.jsonl`, `parts/` (its Parquet files), `parts/*.parquet`, `s3://bucket/key`, `gs://…`, `file:///…`, and on Hugging
Face `hf://datasets/OWNER/NAME/FILE`; `hf:OWNER/NAME` or `hf:OWNER/NAME:SPLIT` are rows that the `datasets` library streams.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from os import PathLike
from pathlib import PurePosixPath
from typing import Any, cast

import pyarrow as pa
import pyarrow.fs as pafs

HUB_FILES = "hf://"
HUB_ROWS = "hf:"
PATTERN = frozenset("*?[")


@dataclass(frozen=True)
class Source:
    """One file on a pyarrow filesystem."""

    filesystem: pafs.FileSystem
    path: str

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


def sources_of(where: str | PathLike[str], filesystem: pafs.FileSystem | None = None) -> list[Source]:
    """Files that `where` names, ordered by name.

    `where` is a path on `filesystem` if that is given, else a URI or a local path. Raises `FileNotFoundError` if there is no
    such file and `ValueError` for a URI that cannot be opened.
    """
    text = str(where)
    if filesystem is None:
        filesystem, path = _located(text)
    else:
        path = text
    info = filesystem.get_file_info(path)
    if info.type == pafs.FileType.File:
        return [Source(filesystem, path)]
    if info.type == pafs.FileType.Directory:
        found = _matching(filesystem, path, "*.parquet")
        missing = f"{text} is a folder without Parquet files; name a file or a pattern, {text.rstrip('/')}/*.jsonl"
    elif PATTERN & set(PurePosixPath(path).name):
        found = _matching(filesystem, str(PurePosixPath(path).parent), PurePosixPath(path).name)
        missing = f"no file matches {text}"
    else:
        found, missing = [], f"no file {text}"
    if not found:
        raise FileNotFoundError(missing)
    return found


def _matching(filesystem: pafs.FileSystem, folder: str, pattern: str) -> list[Source]:
    listed = filesystem.get_file_info(pafs.FileSelector(folder, allow_not_found=True))
    return [
        Source(filesystem, info.path)
        for info in sorted(listed, key=lambda info: info.path)
        if info.type == pafs.FileType.File and fnmatch(info.base_name, pattern) and not info.base_name.startswith(("_", "."))
    ]


def _located(where: str) -> tuple[pafs.FileSystem, str]:
    if where.startswith(HUB_FILES):
        return _hub(where)
    if "://" not in where:
        return pafs.LocalFileSystem(), where
    try:
        return pafs.FileSystem.from_uri(where)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as failed:
        raise ValueError(f"{where} cannot be opened: {failed}; URIs are file://, s3://, gs://, hdfs:// and hf://") from failed


def _hub(where: str) -> tuple[pafs.FileSystem, str]:
    """Filesystem of Hugging Face and the path on it. Raises `OSError` without a network or for an unknown dataset."""
    from huggingface_hub import HfFileSystem
    from huggingface_hub.errors import HfHubHTTPError

    # The bases are OSError and the HTTP library's error, which differs between versions of huggingface_hub.
    failures = cast(tuple[type[Exception], ...], HfHubHTTPError.__bases__)
    path = where.removeprefix(HUB_FILES)
    filesystem = pafs.PyFileSystem(pafs.FSSpecHandler(HfFileSystem()))
    try:
        filesystem.get_file_info(path)
    except failures as failed:
        raise OSError(f"{where} cannot be reached: {failed}") from failed
    return filesystem, path


def hub_rows(where: str) -> Iterator[dict[str, Any]]:
    """Stream the rows of a dataset on Hugging Face. Raises `ValueError` if `datasets` is not installed."""
    try:
        import datasets
    except ImportError:
        raise ValueError(
            f"{where} needs the `datasets` package (pip install datasets) and a network; without it, download a file of the "
            "dataset and name that, or name it as hf://datasets/OWNER/NAME/FILE"
        ) from None
    name, _, split = where.removeprefix(HUB_ROWS).partition(":")
    yield from datasets.load_dataset(name, split=split or "train", streaming=True)


def is_hub_rows(where: str | PathLike[str]) -> bool:
    """Test whether `where` names rows of a dataset (`hf:`), not a file (`hf://`)."""
    return str(where).startswith(HUB_ROWS) and not str(where).startswith(HUB_FILES)
