"""The chain of versions on disk: each is a delta, the editor's state after it, the edits, and its scorecard.

Versions are only ever added: under a temporary name, synced, renamed, so that a crash leaves a whole version or none.
Version 0 is the unedited model. Weights and editor state are one version, so going back takes both back.
Reading needs no lock; one writer at a time holds `lock`. What a version is never changes, hence the caches.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from errata.delta import EditedModel, WeightDelta
from errata.edit import Edit, EditRejected
from errata.editors.editor import EditorState
from errata.model import find_matrices, load
from errata.probes import FILE as PROBES

ENTRY, DELTA, STATE, EDITS = "entry.json", "delta.safetensors", "state.safetensors", "edits.jsonl"
REFUSALS = "refusals.jsonl"
TEMPORARY = ".new-"


class LedgerConflict(RuntimeError):
    """A version was to follow one that is not the head (any more)."""

    def __init__(self, parent: int, head: int) -> None:
        super().__init__(parent, head)
        self.parent, self.head = parent, head

    def __str__(self) -> str:
        return f"a version that follows {self.parent} cannot be appended: the head is {self.head}"


class UnknownVersion(LookupError):
    """A version number that the ledger does not have."""


@dataclass(frozen=True)
class Version:
    """One entry. `created` is ISO time in UTC; `num_bytes`, `ranks` and `norms` (Frobenius) describe its own delta alone.

    `fingerprint` is SHA-256 over the parent's fingerprint and the delta's digest: it names the lineage, not the bits of the
    edited matrices, because a float sum may differ in its last bit between machines and kernels, and the lineage does not.
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


class Ledger:
    """A ledger directory. Make one with `Ledger.create`, or open it anywhere with `Ledger.open`.

    Every `snapshot_every` versions, their factors are also written into one file, so that opening version N reads about
    N / `snapshot_every` files; the snapshot keeps each version's tensors apart, so the sum has the same bits either way.
    """

    def __init__(self, directory: str | Path, snapshot_every: int = 20) -> None:
        self.directory, self.snapshot_every = Path(directory), snapshot_every
        self._versions: dict[int, Version] = {}
        self._covered: dict[int, list[int]] = {}
        self._edit_ids: dict[str, int] = {}
        self._num_indexed = 0

    @classmethod
    def create(cls, directory: str | Path, base: Mapping[str, Any], snapshot_every: int = 20) -> Ledger:
        """A ledger over `base`, {"model": path, "fingerprint": str, "matrices": [names]}: new, or the one that is there.

        Raises `ValueError` if `base` lacks one of these, or a ledger over another base is there.
        """
        base = {**base, "matrices": list(base.get("matrices", ())), "model": str(base.get("model", ""))}
        if missing := [key for key in ("model", "fingerprint", "matrices") if not base.get(key)]:
            raise ValueError(f"the base of a ledger needs {', '.join(missing)}")
        ledger = cls(directory, snapshot_every)
        for folder in ("versions", "snapshots"):
            (ledger.directory / folder).mkdir(parents=True, exist_ok=True)
        with ledger._only_writer():
            if not ledger._path(0).exists():
                with ledger._new_version(0) as folder_0:
                    (folder_0 / ENTRY).write_text(json.dumps({**_entry(0, None, base["fingerprint"]), "base": base}, indent=1))
        if ledger.base != base:
            raise ValueError(f"the ledger in {directory} is over another base: {ledger.base}, not {base}")
        return ledger

    @classmethod
    def open(cls, directory: str | Path, snapshot_every: int = 20) -> Ledger:
        """Raises `FileNotFoundError` if no ledger is there."""
        ledger = cls(directory, snapshot_every)
        if not (ledger._path(0) / ENTRY).exists():
            raise FileNotFoundError(f"there is no ledger in {directory}")
        return ledger

    def _path(self, number: int) -> Path:
        return self.directory / "versions" / f"{number:08d}"

    def _snapshot(self, number: int) -> Path:
        return self.directory / "snapshots" / f"{number:08d}.safetensors"

    @property
    def base(self) -> dict[str, Any]:
        return cast(dict[str, Any], json.loads((self._path(0) / ENTRY).read_text())["base"])

    @property
    def newest(self) -> int:
        return max(int(name) for name in os.listdir(self.directory / "versions") if name.isdigit())

    @property
    def head(self) -> int:
        """The version to serve: the newest, unless the head was moved after the newest was made."""
        try:
            moved = json.loads((self.directory / "HEAD").read_text())
        except FileNotFoundError:
            return self.newest
        newest = self.newest
        return newest if newest > moved["after"] else int(moved["version"])

    def version(self, number: int) -> Version:
        """Raises `UnknownVersion`."""
        if number not in self._versions:
            path = self._path(number) if number >= 0 else None
            if path is None or not path.is_dir():
                raise UnknownVersion(f"there is no version {number}; the newest is {self.newest}")
            entry = json.loads((path / ENTRY).read_text())
            entry.pop("base", None)
            edits = (path / EDITS).read_text().splitlines() if number else ()
            self._versions[number] = Version(
                **entry, edits=tuple(Edit.from_json(json.loads(line)) for line in edits), directory=path
            )
        return self._versions[number]

    def versions(self) -> list[Version]:
        """All of them, version 0 first, with those that no longer lead to the head."""
        return [self.version(number) for number in range(self.newest + 1)]

    def chain(self, number: int) -> list[int]:
        """The versions whose deltas make `number`, in order, without version 0."""
        numbers: list[int] = []
        while number:
            numbers.append(number)
            number = self.version(number).parent or 0
        return numbers[::-1]

    def delta(self, number: int) -> WeightDelta:
        self.version(number)
        return WeightDelta.load(self._path(number) / DELTA) if number else WeightDelta({})

    def state(self, number: int) -> EditorState | None:
        """What the editor remembers after `number`; None for version 0, which no editor made."""
        self.version(number)
        return EditorState.load(self._path(number) / STATE) if number else None

    def files_to(self, number: int) -> list[Path]:
        """The files that make version `number` from the base: `read_segments` of each, in order, is `segments(number)`."""
        self.version(number)
        files: list[Path] = []
        while number:
            covered = self._covered_by(number)
            files.append(self._snapshot(number) if covered else self._path(number) / DELTA)
            number = self.version(covered[0] if covered else number).parent or 0
        return files[::-1]

    def segments(self, number: int) -> list[WeightDelta]:
        """The deltas to sum, in this order, onto the base."""
        return [delta for path in self.files_to(number) for delta in read_segments(path)]

    def _covered_by(self, number: int) -> list[int]:
        """The versions inside the snapshot that ends at `number`; empty if there is none."""
        if number not in self._covered and self._snapshot(number).exists():
            with safe_open(str(self._snapshot(number)), framework="pt") as file:
                self._covered[number] = json.loads(file.metadata()["versions"])
        return self._covered.get(number, [])

    def append(
        self,
        parent: int,
        delta: WeightDelta,
        state: EditorState,
        edits: Iterable[Edit],
        scorecard: Mapping[str, Any],
        editor: str,
        plan: str,
    ) -> Version:
        """Add the version that follows `parent`, and make it the head.

        Raises `LedgerConflict` if `parent` is not the head. Any other failure leaves the ledger as it was.
        """
        with self._only_writer():
            if parent != self.head:
                raise LedgerConflict(parent, self.head)
            self._take_snapshot(parent)  # before the version, so that a failure here leaves no version behind
            number = self.newest + 1
            digest = hashlib.sha256((self.version(parent).fingerprint + delta.digest()).encode()).hexdigest()
            entry = _entry(number, parent, digest, editor, plan, dict(scorecard), delta)
            with self._new_version(number) as folder:
                delta.save(folder / DELTA)
                state.save(folder / STATE)
                (folder / EDITS).write_text("".join(json.dumps(edit.to_json()) + "\n" for edit in edits))
                (folder / ENTRY).write_text(json.dumps(entry, indent=1))
        return self.version(number)

    def move_head(self, number: int) -> None:
        """Serve `number` again, or once more a later one. Nothing is deleted; the next version will follow `number`."""
        self.version(number)
        with self._only_writer():
            before = self.head
            if before == number:
                return
            move = {"version": number, "after": self.newest}
            _temporary(self.directory / "HEAD").write_text(json.dumps(move))
            _replace(self.directory / "HEAD")
            with (self.directory / "moves.jsonl").open("a") as log:
                log.write(json.dumps({**move, "before": before, "time": _now()}) + "\n")

    def edits(self, number: int) -> Iterator[Edit]:
        """Those of every version that makes `number`, in order."""
        for ancestor in self.chain(number):
            yield from self.version(ancestor).edits

    def refuse(self, parent: int, edit: Edit, refusal: EditRejected) -> None:
        """Note down an edit that was not made on `parent`, and why: for the record, versions are as they were."""
        scores = getattr(refusal, "scores", {})
        record = {"time": _now(), "parent": parent, "edit": edit.to_json(), "reason": refusal.reason, "field": refusal.field}
        line = json.dumps({**record, "scores": scores}).encode() + b"\n"
        with self._only_writer(), (self.directory / REFUSALS).open("a+b") as log:
            if log.tell():
                log.seek(-1, os.SEEK_END)
                if log.read() != b"\n":  # a crash has left half a line
                    line = b"\n" + line
            log.write(line)
            log.flush()
            os.fsync(log.fileno())

    def refusals(self) -> Iterator[dict[str, Any]]:
        """{"time", "parent", "edit", "reason", "field", "scores"} of every edit that was refused, oldest first."""
        path = self.directory / REFUSALS
        for line in path.read_bytes().split(b"\n") if path.exists() else ():
            with contextlib.suppress(ValueError):  # half a line, or the nothing after the last
                yield json.loads(line)

    def find_edit(self, edit_id: str) -> int | None:
        """The version that first applied the edit with this id, whether or not it is part of the head."""
        newest = self.newest
        while self._num_indexed <= newest:
            for edit in self.version(self._num_indexed).edits:
                if edit.id is not None:
                    self._edit_ids.setdefault(edit.id, self._num_indexed)
            self._num_indexed += 1
        return self._edit_ids.get(edit_id)

    def export(self, number: int, directory: str | Path) -> Path:
        """Version `number` as a plain Hugging Face checkpoint, in the base model's own dtype.

        Raises `ValueError` if `directory` exists and is not empty, `UnknownVersion`.
        """
        segments, target = self.segments(number), Path(directory)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ValueError(f"{directory} exists and is not empty")
        base = self.base
        model = load(base["model"], dtype=cast(torch.dtype, "auto"))
        EditedModel(model.module, find_matrices(model.module, base["matrices"])).set(segments)
        target.parent.mkdir(parents=True, exist_ok=True)
        with _renamed_to(target) as folder:
            model.module.save_pretrained(str(folder))
            model.tokenizer.save_pretrained(str(folder))
            if (probes := Path(base["model"]) / PROBES).exists():
                shutil.copy(probes, folder)
        return target

    @contextmanager
    def _only_writer(self) -> Iterator[None]:
        with (self.directory / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # let go when the file is closed, or its process dies
            yield

    @contextmanager
    def _new_version(self, number: int) -> Iterator[Path]:
        """A folder to fill that becomes version `number` if nothing is raised; removes what crashed writers left."""
        for leftover in (self.directory / "versions").glob(f"{TEMPORARY}*"):
            shutil.rmtree(leftover)
        with _renamed_to(self._path(number)) as folder:
            yield folder

    def _take_snapshot(self, number: int) -> None:
        """Once the chain to `number` has `snapshot_every` deltas since its last snapshot, join these into one file."""
        numbers: list[int] = []
        ancestor = number
        while ancestor and not self._covered_by(ancestor):
            numbers.append(ancestor)
            ancestor = self.version(ancestor).parent or 0
        if len(numbers) < self.snapshot_every:
            return
        numbers.reverse()
        tensors = {f"{n:08d}|{key}": t for n in numbers for key, t in self.delta(n).to_tensors().items()}
        path = self._snapshot(number)
        save_file(tensors, str(_temporary(path)), metadata={"versions": json.dumps(numbers)})
        _replace(path)


def read_segments(path: str | Path) -> list[WeightDelta]:
    """The deltas in a file that `Ledger.files_to` names, in order: one from a version's file, many from a snapshot."""
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata() or {}
        if "versions" not in metadata:
            return [WeightDelta.load(path)]
        grouped: dict[int, dict[str, Tensor]] = {number: {} for number in json.loads(metadata["versions"])}
        for name in file.keys():  # noqa: SIM118
            number, _, key = name.partition("|")
            grouped[int(number)][key] = file.get_tensor(name)
    return [WeightDelta.from_tensors(tensors) for tensors in grouped.values()]


def _entry(
    number: int,
    parent: int | None,
    fingerprint: str,
    editor: str = "",
    plan: str = "",
    scorecard: dict[str, Any] | None = None,
    delta: WeightDelta | None = None,
) -> dict[str, Any]:
    delta = delta or WeightDelta({})
    sizes = {"num_bytes": delta.num_bytes, "ranks": delta.ranks(), "norms": delta.norms()}
    names = {"number": number, "parent": parent, "editor": editor, "plan": plan, "fingerprint": fingerprint}
    return {**names, "created": _now(), "scorecard": scorecard or {}, **sizes}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _temporary(path: Path) -> Path:
    return path.with_name(f"{TEMPORARY}{path.name}")


@contextmanager
def _renamed_to(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`: synced and renamed to it if nothing is raised, and gone in any case."""
    folder = _temporary(path)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
        for file in (*folder.iterdir(), folder):
            _sync(file)
        os.rename(folder, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    _sync(path.parent)


def _replace(path: Path) -> None:
    """Put the temporary file written beside `path` in its place, for good."""
    _sync(_temporary(path))
    os.replace(_temporary(path), path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
