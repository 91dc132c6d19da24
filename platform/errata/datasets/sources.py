"""Where a file of edits is: a local path, folder or pattern, a URI that pyarrow knows, or a dataset of Hugging Face's.

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
    """One file on a filesystem of pyarrow's."""

    filesystem: pafs.FileSystem
    path: str

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


def sources_of(where: str | PathLike[str], filesystem: pafs.FileSystem | None = None) -> list[Source]:
    """The files that `where` names, in the order of their names; on `filesystem`, if it is given, else where the URI or path
    says.

    Raises `FileNotFoundError` if there is none and `ValueError` for a URI that cannot be opened here.
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
        missing = f"no file is named like {text}"
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
    """Raises `OSError` where there is no network, or no such dataset."""
    from huggingface_hub import HfFileSystem
    from huggingface_hub.errors import HfHubHTTPError

    # OSError, and that of the HTTP library, which changed with the hub's versions.
    failures = cast(tuple[type[Exception], ...], HfHubHTTPError.__bases__)
    path = where.removeprefix(HUB_FILES)
    filesystem = pafs.PyFileSystem(pafs.FSSpecHandler(HfFileSystem()))
    try:
        filesystem.get_file_info(path)
    except failures as failed:
        raise OSError(f"{where} cannot be reached: {failed}") from failed
    return filesystem, path


def hub_rows(where: str) -> Iterator[dict[str, Any]]:
    """Rows of a dataset on Hugging Face, streamed. Raises `ValueError` if `datasets` is not installed."""
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
    return str(where).startswith(HUB_ROWS) and not str(where).startswith(HUB_FILES)
