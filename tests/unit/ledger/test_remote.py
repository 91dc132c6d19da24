"""A ledger pushed to a URI and pulled from it is the same ledger, wherever an earlier push or pull was interrupted."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from errata.delta.weight_delta import WeightDelta
from errata.edit import Code, Edit, EditRejected
from errata.editors.state import EditorState
from errata.ledger import Ledger, remote
from errata.ledger.remote import RemoteFolder, pull, push

Random = Callable[..., WeightDelta]


def append(ledger: Ledger, random_delta: Random, num: int = 1) -> None:
    for _ in range(num):
        number = ledger.newest + 1
        state = EditorState(number, {"past": torch.full((number, 3), float(number))})
        ledger.append(
            ledger.head, random_delta(number), state, [Edit("p", "t", id=f"edit-{number}")], {"locality": 1.0}, ("E", "p")
        )


def assert_same(one: Ledger, other: Path) -> None:
    """Compare what a reader sees of two ledgers, and the digests of their files."""
    found = Ledger.open(other)
    assert (found.head, found.newest, found.base) == (one.head, one.newest, one.base)
    assert [v.fingerprint for v in found.versions()] == [v.fingerprint for v in one.versions()]
    assert all(found.verify(version.number) == [] for version in found.versions())
    assert list(found.head_log()) == list(one.head_log()) and list(found.refusals()) == list(one.refusals())
    assert [edit.id for edit in found.edits(found.head)] == [edit.id for edit in one.edits(one.head)]
    assert torch.equal(found.state(found.head).tensors["past"], one.state(one.head).tensors["past"])
    assert not list(other.rglob(".new-*"))


@pytest.fixture
def where(tmp_path: Path) -> str:
    return f"file://{tmp_path / 'copy'}"


def test_a_pulled_ledger_equals_the_pushed_one(ledger: Ledger, random_delta: Random, where: str, tmp_path: Path) -> None:
    append(ledger, random_delta, 6)
    ledger.refuse(ledger.head, Edit("bad", "t"), EditRejected("too large", code=Code.EDITOR_FAILED))
    ledger.move_head(3, "ada")
    append(ledger, random_delta)  # It follows version 3.
    ledger.move_head(2, "ada")
    assert push(ledger.directory, where) == 8
    assert pull(where, tmp_path / "back") == 8
    assert_same(ledger, tmp_path / "back")
    assert sorted(p.name for p in (tmp_path / "back" / "snapshots").iterdir()) == sorted(
        p.name for p in (ledger.directory / "snapshots").iterdir()
    )
    append(Ledger.open(tmp_path / "back"), random_delta)  # The pulled ledger can be appended to.
    assert Ledger.open(tmp_path / "back").head == 8


def test_only_new_versions_are_copied(ledger: Ledger, random_delta: Random, where: str, tmp_path: Path) -> None:
    append(ledger, random_delta, 3)
    push(ledger.directory, where)
    pull(where, tmp_path / "back")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "copy" / "versions").rglob("*") if path.is_file()}
    append(ledger, random_delta, 2)
    assert (push(ledger.directory, where), push(ledger.directory, where)) == (2, 0)
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    assert (pull(where, tmp_path / "back"), pull(where, tmp_path / "back")) == (2, 0)
    assert_same(ledger, tmp_path / "back")


class Cut(RemoteFolder):
    """A remote folder whose connection fails after `left` writes."""

    left = 0

    def write(self, path: str, content: bytes) -> None:
        if Cut.left == 0:
            raise OSError("the connection was lost")
        Cut.left -= 1
        super().write(path, content)


def test_an_interrupted_push_leaves_an_earlier_state_of_the_ledger(
    ledger: Ledger, random_delta: Random, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(ledger, random_delta, 5)
    ledger.move_head(2)
    num_files = 1 + 5 * 4 + 2 + 2  # Files of versions, of a snapshot, the head and its log.
    for num_writes in range(num_files):
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.rmtree(tmp_path / "back", ignore_errors=True)
        Cut.left = num_writes
        with monkeypatch.context() as patched, pytest.raises(OSError, match="connection"):
            patched.setattr(remote, "RemoteFolder", Cut)
            push(ledger.directory, where)
        if num_writes:
            newest = min(5, (num_writes - 1) // 4)
            assert pull(where, tmp_path / "back") == newest + 1
            assert Ledger.open(tmp_path / "back").head == (2 if num_writes == num_files - 1 else newest)
    push(ledger.directory, where)
    pull(where, tmp_path / "back")
    assert_same(ledger, tmp_path / "back")


def test_a_damaged_remote_is_refused_and_changes_nothing(
    ledger: Ledger, random_delta: Random, where: str, tmp_path: Path
) -> None:
    append(ledger, random_delta, 3)
    push(ledger.directory, where)
    file = tmp_path / "copy" / "versions" / "00000002" / "delta.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"version 2 at .* is damaged.*not as it was written"):
        pull(where, tmp_path / "back")
    assert Ledger.open(tmp_path / "back").newest == 1
    file.write_bytes((ledger.directory / "versions" / "00000002" / "delta.safetensors").read_bytes())
    assert pull(where, tmp_path / "back") == 2
    assert_same(ledger, tmp_path / "back")


def test_another_ledger_is_not_overwritten(ledger: Ledger, random_delta: Random, where: str, tmp_path: Path) -> None:
    append(ledger, random_delta, 2)
    push(ledger.directory, where)
    other = Ledger.create(tmp_path / "other", {"model": "m", "fingerprint": "another", "matrices": ["a"]})
    with pytest.raises(ValueError, match="version 0 there is another"):
        push(other.directory, where)
    with pytest.raises(ValueError, match="version 0 there is another"):
        pull(where, other.directory)
    pull(where, tmp_path / "back")
    append(Ledger.open(tmp_path / "back"), random_delta)
    with pytest.raises(ValueError, match="version 3 there is another"):
        pull(where, tmp_path / "back")
    append(ledger, random_delta)  # The same number with another creation time.
    push(ledger.directory, where)
    with pytest.raises(ValueError, match="version 3 there is another"):
        pull(where, tmp_path / "back")


def test_a_head_that_was_moved_differently_is_kept(ledger: Ledger, random_delta: Random, where: str, tmp_path: Path) -> None:
    append(ledger, random_delta, 2)
    push(ledger.directory, where)
    pull(where, tmp_path / "back")
    Ledger.open(tmp_path / "back").move_head(1)
    with pytest.raises(ValueError, match="its head log has other moves"):
        pull(where, tmp_path / "back")
    assert Ledger.open(tmp_path / "back").head == 1


def test_a_quarantined_version_is_not_pushed(ledger: Ledger, random_delta: Random, where: str, tmp_path: Path) -> None:
    append(ledger, random_delta, 2)
    (ledger.directory / "versions" / "00000002").rename(ledger.directory / "versions" / "00000002.corrupt")
    assert push(ledger.directory, where) == 2 and not list((tmp_path / "copy").rglob("*.corrupt*"))
