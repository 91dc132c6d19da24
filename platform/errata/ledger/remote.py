"""Push of a ledger and its journal to a folder at a URI that pyarrow opens (a bucket, another disk), and pull from there.

A version never changes, so a push writes the missing versions in order, and the pointers to the live one last: wherever it is
interrupted, the remote is an earlier state of the ledger. An object store cannot rename a folder, so a version counts as
present only with its entry, which is written after its other files. The index, a cache of the versions, is not pushed.

The journal is copied after the versions were listed and before they are written, so that the copy of it knows every edit of
every version there. Edits that it calls applied in a version that the copy of the ledger lacks are made again.

A remote folder may hold any names, and another program may have written them: only the names that a ledger has are read.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from errata.durable import TEMPORARY, digest_of, new_folder, replaced
from errata.ledger.entry import DELTA, EDITS, ENTRY, STATE, faults
from errata.ledger.head import HEAD, MOVES
from errata.ledger.journal_copy import copied, journal_of, put_back
from errata.ledger.ledger import REFUSALS, Ledger

VERSIONS, SNAPSHOTS, JOURNALS = "versions", "snapshots", "journals"
_VERSION, _FILES = re.compile(r"\d{8}"), (DELTA, STATE, EDITS, ENTRY)
_SNAPSHOT = re.compile(r"\d{8}(\.state)?\.safetensors")
_JOURNAL = re.compile(r"\d{20}-([0-9a-f]{64})\.sqlite")
STATE_SUFFIX = ".state.safetensors"


@dataclass(frozen=True)
class RemoteFolder:
    """A folder on a pyarrow filesystem; `name` is what messages call it."""

    filesystem: pafs.FileSystem
    root: str
    name: str

    @classmethod
    def local(cls, directory: str | Path) -> RemoteFolder:
        """Return a folder of this machine."""
        return cls(pafs.LocalFileSystem(), str(Path(directory).absolute()), str(directory))

    @classmethod
    def at(cls, where: str) -> RemoteFolder:
        """Return the folder at a URI. Raises `ValueError` if the URI cannot be opened."""
        try:
            filesystem, root = pafs.FileSystem.from_uri(where)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as failed:
            raise ValueError(f"{where} cannot be opened: {failed}; use a URI file:///…, s3://…, gs://… or hdfs://…") from None
        return cls(filesystem, root.rstrip("/"), where)

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the bytes of each file below `folder`, by its path from there."""
        below = f"{self.root}/{folder}"
        found = self.filesystem.get_file_info(pafs.FileSelector(below, allow_not_found=True, recursive=True))
        return {file.path.removeprefix(f"{below}/"): file.size for file in found if file.is_file}

    def read(self, path: str) -> bytes:
        """Read a file; empty if it does not exist."""
        if not self.filesystem.get_file_info(f"{self.root}/{path}").is_file:
            return b""
        with self.filesystem.open_input_stream(f"{self.root}/{path}") as stream:
            return bytes(stream.read())

    def write(self, path: str, content: bytes) -> None:
        """Write a file and the folders above it."""
        whole = f"{self.root}/{path}"
        self.filesystem.create_dir(whole.rpartition("/")[0], recursive=True)
        with self.filesystem.open_output_stream(whole) as stream:
            stream.write(content)

    def delete(self, path: str) -> None:
        self.filesystem.delete_file(f"{self.root}/{path}")

    def versions(self) -> dict[int, list[str]]:
        """Return the files of each version that has its entry, by number, without the versions in quarantine."""
        found: dict[str, list[str]] = {}
        for path in self.sizes(VERSIONS):
            folder, _, file = path.partition("/")
            if _VERSION.fullmatch(folder) and file in _FILES:
                found.setdefault(folder, []).append(file)
        return {int(folder): sorted(files) for folder, files in sorted(found.items()) if ENTRY in files}

    def journals(self) -> list[str]:
        """Return the paths of the copies of the journal, oldest first."""
        return [f"{JOURNALS}/{name}" for name in sorted(self.sizes(JOURNALS)) if _JOURNAL.fullmatch(name)]


def push(directory: str | Path, where: str, journal: str | Path | None = None) -> int:
    """Push the ledger in `directory` and its journal, which may be in use, to the URI `where`.

    Returns the number of new versions. The journal is the one beside the ledger, unless another is given. Raises
    `FileNotFoundError` if there is no ledger, and `ValueError` for a wrong URI, a journal that cannot be copied, or if `where`
    holds another ledger.
    """
    Ledger.open(directory)
    here, there = RemoteFolder.local(directory), RemoteFolder.at(where)
    pointers = _pointers(here)  # Read before the versions are listed, so that they point to none that is missing there.
    files = here.versions()
    new = _missing(here, files, there)
    earlier = there.journals()
    is_new = _push_journal(Path(journal or journal_of(directory)), there, earlier)
    for number in new:
        for file in sorted(files[number], key=lambda file: file == ENTRY):
            path = f"{VERSIONS}/{number:08d}/{file}"
            there.write(path, here.read(path))
    for path in _new_snapshots(here, there):
        there.write(path, here.read(path))
    for path, content in pointers.items():
        there.write(path, content)
    for path in earlier if is_new else ():
        there.delete(path)
    return len(new)


def _push_journal(journal: Path, there: RemoteFolder, earlier: list[str]) -> bool:
    """Write a copy of the journal, unless the last one has its bytes; its name has time and digest. False without a new one."""
    with copied(journal) as copy:
        if copy is None:
            return False
        content = copy.read_bytes()
    digest = digest_of(content)
    if earlier and digest in earlier[-1]:
        return False
    there.write(f"{JOURNALS}/{time.time_ns():020d}-{digest}.sqlite", content)
    return True


def pull(where: str, directory: str | Path, journal: str | Path | None = None) -> int:
    """Pull the ledger at the URI `where` into `directory`, which holds an earlier state of it or nothing, and its journal.

    Returns the number of new versions. No service may use the ledger meanwhile. A version is checked against its digests
    before it appears. Raises `FileNotFoundError` if `where` holds no ledger, and `ValueError` for a wrong URI, a damaged
    version or journal, or if `directory` holds another ledger or the journal has edits that the copy lacks.
    """
    here, there = RemoteFolder.local(directory), RemoteFolder.at(where)
    pointers, files = _pointers(there), there.versions()
    if not files:
        raise FileNotFoundError(f"there is no ledger at {where}")
    new = _missing(there, files, here)
    folder = Path(directory)
    _pull_journal(there, Path(journal or journal_of(directory)))
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
        for name, content in pointers.items():
            with replaced(folder / name) as file:
                file.write_bytes(content)
    return len(new)


def _pull_journal(there: RemoteFolder, journal: Path) -> None:
    """Put the newest whole copy of the journal back; copies of earlier releases have none. Raises `ValueError`."""
    copies = there.journals()
    for path in reversed(copies):
        if digest_of(content := there.read(path)) in path:
            journal.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=journal.parent, prefix=TEMPORARY) as unchecked:
                copy = Path(unchecked) / "journal"
                copy.write_bytes(content)
                put_back(copy, journal)
            return
    if copies:
        raise ValueError(f"the copy of the journal at {there.name} is damaged, and nothing was pulled: push again")


@contextmanager
def _fetched(there: RemoteFolder, number: int, files: list[str], beside: Path) -> Iterator[Path]:
    """Yield a temporary folder with a version that was checked against its digests. Raises `ValueError` if it is damaged."""
    with tempfile.TemporaryDirectory(dir=beside, prefix=TEMPORARY) as unchecked:
        folder = Path(unchecked) / f"{number:08d}"
        folder.mkdir()
        for file in files:
            (folder / file).write_bytes(there.read(f"{VERSIONS}/{folder.name}/{file}"))
        if wrong := list(faults(folder)):
            raise ValueError(
                f"version {number} at {there.name} is damaged, so it and later versions were not pulled: {'; '.join(wrong)}"
            )
        yield folder


def _pointers(folder: RemoteFolder) -> dict[str, bytes]:
    """Read the files that are written last, in order: the logs and the head, as far as they exist."""
    head = folder.read(HEAD)  # Read before its log, because a move is logged first.
    found = {REFUSALS: folder.read(REFUSALS), MOVES: folder.read(MOVES), HEAD: head}
    return {name: content for name, content in found.items() if content}


def _missing(source: RemoteFolder, files: dict[int, list[str]], target: RemoteFolder) -> list[int]:
    """Return the versions that the target lacks. Raises `ValueError` unless the target is an earlier state of the source."""
    there = target.versions()
    shared = sorted(set(files) & set(there))
    foreign = sorted(set(there) - set(files))
    # A fingerprint covers the whole lineage, so the first and the last shared version suffice.
    for number in dict.fromkeys((*shared[:1], *shared[-1:])):
        path = f"{VERSIONS}/{number:08d}/{ENTRY}"
        foreign += [number] if source.read(path) != target.read(path) else []
    difference = f"version {min(foreign)} there is another" if foreign else ""
    if not foreign and not source.read(MOVES).startswith(target.read(MOVES)):
        difference = "its head log has other moves"
    if difference:
        raise ValueError(f"{target.name} is not an earlier state of {source.name}: {difference}. Use an empty folder")
    return sorted(set(files) - set(there))


def _new_snapshots(source: RemoteFolder, target: RemoteFolder) -> list[str]:
    """List the files that the target lacks or has in another size; states first, because a snapshot needs its state."""
    there = target.sizes(SNAPSHOTS)
    new = [name for name, size in source.sizes(SNAPSHOTS).items() if there.get(name) != size and _SNAPSHOT.fullmatch(name)]
    return [f"{SNAPSHOTS}/{name}" for name in sorted(new, key=lambda name: not name.endswith(STATE_SUFFIX))]
