"""One version on disk: a folder with the delta, the editor's state, the edits, and an entry that says what each must be."""

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

from errata.delta.weight_delta import WeightDelta
from errata.durable import digest_of, file_digest, with_checksum, without_checksum
from errata.edit import Edit, EditRejected

ENTRY, DELTA, STATE, EDITS = "entry.json", "delta.safetensors", "state.safetensors", "edits.jsonl"


class LedgerConflict(RuntimeError):
    """A version was to follow one that is not the head (any more)."""

    def __init__(self, parent: int, head: int) -> None:
        super().__init__(parent, head)
        self.parent, self.head = parent, head

    def __str__(self) -> str:
        return f"a version that follows {self.parent} cannot be appended: the head is {self.head}"


class UnknownVersion(LookupError):
    """A version number that the ledger does not have."""


class LedgerDamaged(RuntimeError):
    """What is on disk is not what was written: it says what, where, and what to do."""


@dataclass(frozen=True)
class Version:
    """One entry. `created` is ISO time in UTC; `num_bytes`, `ranks` and `norms` (Frobenius) describe its own delta alone.

    `fingerprint` is SHA-256 over the parent's fingerprint and the delta's digest: it names the lineage, not the bits of the
    edited matrices, because a float sum may differ in its last bit between machines and kernels, and the lineage does not.
    `files` is the SHA-256 of each file beside the entry; empty for versions that were written before there were any.
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


def child_fingerprint(fingerprint: str, delta: WeightDelta) -> str:
    """The fingerprint of what `delta` makes of the version with `fingerprint`."""
    return digest_of((fingerprint + delta.digest()).encode())


def new_entry(
    number: int,
    parent: int | None,
    fingerprint: str,
    editor: str = "",
    plan: str = "",
    scorecard: Mapping[str, Any] | None = None,
    delta: WeightDelta | None = None,
) -> dict[str, Any]:
    delta = delta or WeightDelta({})
    sizes = {"num_bytes": delta.num_bytes, "ranks": delta.ranks(), "norms": delta.norms()}
    names = {"number": number, "parent": parent, "editor": editor, "plan": plan, "fingerprint": fingerprint}
    return {**names, "created": utc_now(), "scorecard": dict(scorecard or {}), **sizes}


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file. Unlike `save_file`, a full disk raises `OSError`, as every other write does."""
    path.write_bytes(save(dict(tensors), metadata))


def write_edits(folder: Path, edits: Iterable[Edit]) -> None:
    (folder / EDITS).write_text("".join(json.dumps(edit.to_json()) + "\n" for edit in edits))


def write_entry(folder: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    """The last file of a version: with the digests of the others, and its own. Returns what was written."""
    files = {file.name: file_digest(file) for file in sorted(folder.iterdir())}
    written = with_checksum({**entry, "files": files})
    (folder / ENTRY).write_text(json.dumps(written, indent=1))
    return written


def read_version(folder: Path) -> Version:
    """Raises `LedgerDamaged` if the entry or the edits are not what was written."""
    entry = read_entry(folder)
    lines = (folder / EDITS).read_bytes() if entry["number"] and (folder / EDITS).exists() else b""
    files = entry.get("files", {})
    if entry["number"] and files.get(EDITS, digest_of(lines)) != digest_of(lines):
        raise damaged(folder, f"{EDITS} is not what was written")
    try:
        return as_version(entry, [Edit.from_json(json.loads(line)) for line in lines.splitlines()], folder)
    except (ValueError, TypeError) as wrong:
        raise damaged(folder, f"{EDITS} or {ENTRY} cannot be read: {wrong}") from None


def read_entry(folder: Path) -> dict[str, Any]:
    """Raises `LedgerDamaged`."""
    try:
        entry = without_checksum((folder / ENTRY).read_bytes())
    except FileNotFoundError:
        raise damaged(folder, f"{ENTRY} is missing") from None
    except ValueError as wrong:
        raise damaged(folder, f"{ENTRY} is not what was written: {wrong}") from None
    if entry.get("number") != int(folder.name):
        raise damaged(folder, f"{ENTRY} is of version {entry.get('number')}")
    return entry


def as_version(entry: Mapping[str, Any], edits: Iterable[Edit], folder: Path) -> Version:
    """Raises `TypeError` if something is missing or unknown."""
    fields = {key: value for key, value in entry.items() if key not in ("base", "digest")}
    return Version(**fields, edits=tuple(edits), directory=folder)


def as_written(entry: Mapping[str, Any], edits: Iterable[Edit], folder: Path) -> Version:
    """The version that `read_version` will read of what was written, without reading it."""
    return as_version(json.loads(json.dumps(entry)), [Edit.from_json(edit.to_json()) for edit in edits], folder)


def check_file(version: Version, name: str) -> Path:
    """The path of a version's file. Raises `LedgerDamaged` if it is not there or not what was written."""
    path = version.directory / name
    if not path.exists():
        raise damaged(version.directory, f"{name} is missing")
    if version.files.get(name, "") not in ("", file_digest(path)):
        raise damaged(version.directory, f"{name} is not what was written")
    return path


def faults(folder: Path) -> Iterator[str]:
    """Everything that is wrong with a version's files: missing, cut off, changed."""
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
                yield f"{name} is not what was written; it has {path.stat().st_size:,} bytes"
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
    """Those edits of a damaged version that can still be read."""
    found = []
    for line in (folder / EDITS).read_bytes().split(b"\n") if (folder / EDITS).exists() else ():
        try:
            found.append(Edit.from_json(json.loads(line)))
        except (ValueError, AttributeError, TypeError, EditRejected):
            continue
    return tuple(found)


def damaged(folder: Path, what: str) -> LedgerDamaged:
    return LedgerDamaged(
        f"version {folder.name.lstrip('0') or 0} is damaged: {what}. Bring {folder} back from a copy, or go to a version that "
        "does not come from it (`errata rollback`)"
    )
