"""One version on disk: a folder with the delta, the editor's state, the edits, and an entry with the digest of each file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from errata.delta.kinds import Delta
from errata.delta.weight_delta import WeightDelta
from errata.durable import digest_of, file_digest, with_checksum, without_checksum
from errata.edit import Edit, EditRejected

Origin = tuple[str, str]  # (editor, plan): the editor that made a version and the artifact that it used

ENTRY, DELTA, STATE, EDITS = "entry.json", "delta.safetensors", "state.safetensors", "edits.jsonl"


class LedgerConflict(RuntimeError):
    """The version to append follows a version that is not, or no longer, the head."""

    def __init__(self, parent: int, head: int) -> None:
        super().__init__(parent, head)
        self.parent, self.head = parent, head

    def __str__(self) -> str:
        return f"a version that follows {self.parent} cannot be appended: the head is {self.head}"


class HeadMoved(LedgerConflict):
    """The head is not the version that the caller of a move expects; nothing was moved."""

    def __str__(self) -> str:
        return (
            f"the live version is {self.head}, and not {self.parent} as `expected_head` says: nothing was changed. See what "
            "came in between (GET /v1/versions), and ask again"
        )


class UnknownVersion(LookupError):
    """The ledger has no version of this number."""


class LedgerDamaged(RuntimeError):
    """A file is not as it was written. The message names the file, the fault and the remedy."""


@dataclass(frozen=True)
class Version:
    """An entry of the ledger with its edits.

    `created` is the ISO time in UTC; `num_bytes`, `ranks` and `norms` (Frobenius) describe the version's own delta.
    `fingerprint` is the SHA-256 over the parent's fingerprint and the delta's digest. It identifies the lineage and not the
    bits of the edited matrices, because a float sum may differ in its last bit between machines and kernels.
    `files` holds the SHA-256 of each file beside the entry, and is empty for entries of the first format.
    """

    number: int
    parent: int | None
    editor: str
    plan: str
    fingerprint: str
    created: str
    edits: tuple[Edit, ...]
    scorecard: dict[str, Any]
    num_bytes: int
    ranks: dict[str, int]
    norms: dict[str, float]
    directory: Path
    files: dict[str, str] = field(default_factory=dict)


def child_fingerprint(fingerprint: str, delta: Delta) -> str:
    """Return the fingerprint of the version that `delta` makes of its parent, which has `fingerprint`."""
    return digest_of((fingerprint + delta.digest()).encode())


def new_entry(
    number: int,
    parent: int | None,
    fingerprint: str,
    origin: Origin = ("", ""),
    scorecard: Mapping[str, Any] | None = None,
    delta: Delta | None = None,
) -> dict[str, Any]:
    """Make the entry of a version, without the digests of its files."""
    delta = delta or WeightDelta({})
    sizes = {"num_bytes": delta.num_bytes, "ranks": delta.ranks(), "norms": delta.norms()}
    names = {"number": number, "parent": parent, "editor": origin[0], "plan": origin[1], "fingerprint": fingerprint}
    return {**names, "created": utc_now(), "scorecard": dict(scorecard or {}), **sizes}


def utc_now() -> str:
    """Return the ISO time in UTC, in milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file. Unlike `save_file`, it raises `OSError` if the disk is full."""
    path.write_bytes(save(dict(tensors), metadata))


def write_edits(folder: Path, edits: Iterable[Edit]) -> None:
    """Write the edits of a version, one line of JSON each."""
    (folder / EDITS).write_text("".join(json.dumps(edit.to_json()) + "\n" for edit in edits))


def write_entry(folder: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Write the entry, the last file of a version, with the digests of the others and its own. Returns what was written."""
    files = {file.name: file_digest(file) for file in sorted(folder.iterdir())}
    written = with_checksum({**entry, "files": files})
    (folder / ENTRY).write_text(json.dumps(written, indent=1))
    return written


def read_version(folder: Path) -> Version:
    """Read a version. Raises `LedgerDamaged` if the entry or the edits are not as they were written."""
    entry = read_entry(folder)
    lines = (folder / EDITS).read_bytes() if entry["number"] and (folder / EDITS).exists() else b""
    files = entry.get("files", {})
    if entry["number"] and files.get(EDITS, digest_of(lines)) != digest_of(lines):
        raise damaged(folder, f"{EDITS} is not as it was written")
    try:
        return as_version(entry, [Edit.from_json(json.loads(line)) for line in lines.splitlines()], folder)
    except (ValueError, TypeError) as wrong:
        raise damaged(folder, f"{EDITS} or {ENTRY} cannot be read: {wrong}") from None


def read_entry(folder: Path) -> dict[str, Any]:
    """Read the entry in a version's folder. Raises `LedgerDamaged`."""
    try:
        entry = without_checksum((folder / ENTRY).read_bytes())
    except FileNotFoundError:
        raise damaged(folder, f"{ENTRY} is missing") from None
    except ValueError as wrong:
        raise damaged(folder, f"{ENTRY} is not as it was written: {wrong}") from None
    if entry.get("number") != int(folder.name):
        raise damaged(folder, f"{ENTRY} is of version {entry.get('number')}")
    return entry


def as_version(entry: Mapping[str, Any], edits: Iterable[Edit], folder: Path) -> Version:
    """Build a `Version` of an entry. Raises `TypeError` if a field is missing or unknown."""
    fields = {key: value for key, value in entry.items() if key not in ("base", "digest")}
    return Version(**fields, edits=tuple(edits), directory=folder)


def as_written(entry: Mapping[str, Any], edits: Iterable[Edit], folder: Path) -> Version:
    """Return the version that `read_version` will read from `folder`, without reading it."""
    return as_version(json.loads(json.dumps(entry)), [Edit.from_json(edit.to_json()) for edit in edits], folder)


def check_file(version: Version, name: str) -> Path:
    """Return the path of a version's file. Raises `LedgerDamaged` if the file is missing or not as it was written."""
    path = version.directory / name
    if not path.exists():
        raise damaged(version.directory, f"{name} is missing")
    if version.files.get(name, "") not in ("", file_digest(path)):
        raise damaged(version.directory, f"{name} is not as it was written")
    return path


def faults(folder: Path) -> Iterator[str]:
    """Iterate over the faults of a version's files: missing, truncated or changed."""
    try:
        entry = read_entry(folder)
    except LedgerDamaged as damage:
        yield str(damage)
        return
    for name in (DELTA, STATE, EDITS) if entry["number"] else ():
        path = folder / name
        if not path.exists():
            yield f"{name} is missing"
        elif name in entry.get("files", {}):
            if file_digest(path) != entry["files"][name]:
                yield f"{name} is not as it was written; it has {path.stat().st_size:,} bytes"
        elif name != EDITS:
            try:
                with safe_open(str(path), framework="pt"):
                    pass
            except SafetensorError as wrong:
                yield f"{name} cannot be read: {wrong}"
    try:
        read_version(folder)
    except LedgerDamaged as damage:
        yield str(damage)


def edits_left(folder: Path) -> tuple[Edit, ...]:
    """Return the edits of a damaged version that can still be read."""
    found = []
    for line in (folder / EDITS).read_bytes().split(b"\n") if (folder / EDITS).exists() else ():
        try:
            found.append(Edit.from_json(json.loads(line)))
        except (ValueError, AttributeError, TypeError, EditRejected):
            continue
    return tuple(found)


def damaged(folder: Path, what: str) -> LedgerDamaged:
    """Make the error for a damaged version."""
    return LedgerDamaged(
        f"version {folder.name.lstrip('0') or 0} is damaged: {what}. Restore {folder} from a backup, or roll back to a version "
        "that does not descend from it (`errata rollback`)"
    )
