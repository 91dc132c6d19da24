"""A ledger's copy at a URI that pyarrow opens (a bucket, another disk), and a ledger from such a copy.

A version never changes, so a copy is what is missing, in order, and what says which is live last: cut off anywhere, it is the
ledger as it once was. A version whose entry is not there is not there: an object store renames no folder, so there the entry
is written after the version's other files. The index is not copied: it only saves reading the versions.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from errata.durable import new_folder, replaced
from errata.ledger.entry import faults
from errata.ledger.head import HEAD, MOVES
from errata.ledger.ledger import ENTRY, REFUSALS, Ledger

VERSIONS, SNAPSHOTS = "versions", "snapshots"
STATE_SUFFIX = ".state.safetensors"


@dataclass(frozen=True)
class RemoteFolder:
    """A folder on a filesystem of pyarrow's; `name` is how it is told of."""

    filesystem: pafs.FileSystem
    root: str
    name: str

    @classmethod
    def local(cls, directory: str | Path) -> RemoteFolder:
        return cls(pafs.LocalFileSystem(), str(Path(directory).absolute()), str(directory))

    @classmethod
    def at(cls, where: str) -> RemoteFolder:
        """Raises `ValueError` for what is no URI that can be opened here."""
        try:
            filesystem, root = pafs.FileSystem.from_uri(where)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as failed:
            raise ValueError(f"{where} cannot be opened: {failed}; URIs are file:///…, s3://…, gs://… and hdfs://…") from None
        return cls(filesystem, root.rstrip("/"), where)

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of each file below `folder`, by its path from there."""
        below = f"{self.root}/{folder}"
        found = self.filesystem.get_file_info(pafs.FileSelector(below, allow_not_found=True, recursive=True))
        return {file.path.removeprefix(f"{below}/"): file.size for file in found if file.is_file}

    def read(self, path: str) -> bytes:
        """Nothing if the file is not there."""
        if not self.filesystem.get_file_info(f"{self.root}/{path}").is_file:
            return b""
        with self.filesystem.open_input_stream(f"{self.root}/{path}") as stream:
            return bytes(stream.read())

    def write(self, path: str, content: bytes) -> None:
        whole = f"{self.root}/{path}"
        self.filesystem.create_dir(whole.rpartition("/")[0], recursive=True)
        with self.filesystem.open_output_stream(whole) as stream:
            stream.write(content)

    def versions(self) -> dict[int, list[str]]:
        """The files of each version that has its entry, by number; those that were set aside are left out."""
        found: dict[str, list[str]] = {}
        for path in self.sizes(VERSIONS):
            folder, _, file = path.partition("/")
            found.setdefault(folder, []).append(file)
        return {int(folder): sorted(files) for folder, files in sorted(found.items()) if folder.isdigit() and ENTRY in files}


def push(directory: str | Path, where: str) -> int:
    """Bring the copy at the URI `where` up to the ledger in `directory`, which may be in use; returns how many were new.

    Raises `FileNotFoundError` if there is no ledger, `ValueError` if at `where` there is another one, or for a wrong URI.
    """
    Ledger.open(directory)
    here, there = RemoteFolder.local(directory), RemoteFolder.at(where)
    tail = _tail(here)  # read first: it names no version that is listed later
    files = here.versions()
    new = _missing(here, files, there)
    for number in new:
        for file in sorted(files[number], key=lambda file: file == ENTRY):
            path = f"{VERSIONS}/{number:08d}/{file}"
            there.write(path, here.read(path))
    for path in _new_snapshots(here, there):
        there.write(path, here.read(path))
    for path, content in tail.items():
        there.write(path, content)
    return len(new)


def pull(where: str, directory: str | Path) -> int:
    """Bring the ledger in `directory`, or a new one there, up to the copy at `where`; returns how many versions were new.

    No service may be using it. A version is checked against its digests before it appears. Raises `FileNotFoundError` if
    there is no copy, `ValueError` if one of its versions is damaged or `directory` holds another ledger, or for a wrong URI.
    """
    here, there = RemoteFolder.local(directory), RemoteFolder.at(where)
    tail, files = _tail(there), there.versions()
    if not files:
        raise FileNotFoundError(f"there is no ledger at {where}")
    new = _missing(there, files, here)
    folder = Path(directory)
    for name in (VERSIONS, SNAPSHOTS):
        (folder / name).mkdir(parents=True, exist_ok=True)
    with Ledger(folder).only_writer():
        for number in new:
            with (
                _fetched(there, number, files[number], folder) as fetched,
                new_folder(folder / VERSIONS / fetched.name) as final,
            ):
                for file in fetched.iterdir():
                    file.rename(final / file.name)
        for path in _new_snapshots(there, here):
            here.write(path, there.read(path))
        for name, content in tail.items():
            with replaced(folder / name) as file:
                file.write_bytes(content)
    return len(new)


@contextmanager
def _fetched(there: RemoteFolder, number: int, files: list[str], beside: Path) -> Iterator[Path]:
    """A version's folder, whole and as it was written; gone afterwards."""
    with tempfile.TemporaryDirectory(dir=beside, prefix=".pulled-") as unchecked:
        folder = Path(unchecked) / f"{number:08d}"
        folder.mkdir()
        for file in files:
            (folder / file).write_bytes(there.read(f"{VERSIONS}/{folder.name}/{file}"))
        if wrong := list(faults(folder)):
            raise ValueError(
                f"version {number} at {there.name} is damaged, so nothing from it on was taken: {'; '.join(wrong)}"
            )
        yield folder


def _tail(tree: RemoteFolder) -> dict[str, bytes]:
    """What comes last, in order: the logs, and what was moved to by hand; only what is there."""
    head = tree.read(HEAD)  # before its log, which is written first
    found = {REFUSALS: tree.read(REFUSALS), MOVES: tree.read(MOVES), HEAD: head}
    return {name: content for name, content in found.items() if content}


def _missing(source: RemoteFolder, files: dict[int, list[str]], target: RemoteFolder) -> list[int]:
    """The versions that the target lacks. Raises `ValueError` unless the target is the source as it once was."""
    there = target.versions()
    shared = sorted(set(files) & set(there))
    strange = sorted(set(there) - set(files))
    # Every entry tells its parent's lineage by its fingerprint, so the first and the last stand for those between.
    for number in dict.fromkeys((*shared[:1], *shared[-1:])):
        path = f"{VERSIONS}/{number:08d}/{ENTRY}"
        strange += [number] if source.read(path) != target.read(path) else []
    otherwise = f"version {min(strange)} there is another" if strange else ""
    if not strange and not source.read(MOVES).startswith(target.read(MOVES)):
        otherwise = "its live version was moved otherwise"
    if otherwise:
        raise ValueError(f"{target.name} is no earlier state of {source.name}: {otherwise}. Name a place of its own")
    return sorted(set(files) - set(there))


def _new_snapshots(source: RemoteFolder, target: RemoteFolder) -> list[str]:
    """Files that the target lacks or has in another size; a snapshot's states first, without which it is not looked at."""
    there = target.sizes(SNAPSHOTS)
    new = [name for name, size in source.sizes(SNAPSHOTS).items() if there.get(name) != size and name[:8].isdigit()]
    return [f"{SNAPSHOTS}/{name}" for name in sorted(new, key=lambda name: not name.endswith(STATE_SUFFIX))]
