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
from errata.ledger.journal_copy import journal_of
from errata.ledger.remote import RemoteFolder, pull, push
from serving.worker.journal import Journal

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


# -- the journal ------------------------------------------------------------------------------------------------------


def test_the_journal_is_pushed_and_pulled_with_the_ledger(
    ledger: Ledger, random_delta: Random, where: str, tmp_path: Path
) -> None:
    append(ledger, random_delta)
    journal = Journal(journal_of(ledger.directory))
    ids = journal.submit([{"prompt": "p", "target": "t"}], "k", "ada")
    journal.close()
    push(ledger.directory, where)
    push(ledger.directory, where)
    assert len(list((tmp_path / "copy" / "journals").iterdir())) == 1
    pull(where, tmp_path / "back")
    back = Journal(journal_of(tmp_path / "back"))
    assert back.submit([{"prompt": "p", "target": "t"}], "k", "ada") == ids
    back.close()


def test_a_new_copy_of_the_journal_takes_the_place_of_the_last_one(
    ledger: Ledger, random_delta: Random, where: str, tmp_path: Path
) -> None:
    append(ledger, random_delta)
    journal = Journal(journal_of(ledger.directory))
    journal.submit([{"prompt": "p", "target": "t"}])
    journal.close()
    push(ledger.directory, where)
    (first,) = (tmp_path / "copy" / "journals").iterdir()
    journal = Journal(journal_of(ledger.directory))
    journal.submit([{"prompt": "q", "target": "t"}])
    journal.close()
    push(ledger.directory, where)
    (second,) = (tmp_path / "copy" / "journals").iterdir()
    assert second.name > first.name
    second.with_name("99999999999999999999-" + "0" * 64 + ".sqlite").write_bytes(b"torn")  # As by a push that was stopped.
    pull(where, tmp_path / "back")
    back = Journal(journal_of(tmp_path / "back"))
    assert back.depth == 2
    back.close()
    second.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"the copy of the journal at .* is damaged"):
        pull(where, tmp_path / "other")
    assert not (tmp_path / "other").exists()


# -- names at a remote ------------------------------------------------------------------------------------------------


class Bucket(RemoteFolder):
    """A remote folder with keys that no folder of a file system can have, as a bucket may have them."""

    keys: tuple[str, ...] = ()

    def sizes(self, folder: str) -> dict[str, int]:
        more = {key.removeprefix(f"{folder}/"): 4 for key in self.keys if key.startswith(f"{folder}/")}
        return super().sizes(folder) | (more if self.name.startswith("file:") else {})

    def read(self, path: str) -> bytes:
        return b"evil" if path in self.keys else super().read(path)


@pytest.mark.parametrize(
    "key",
    [
        "versions/00000001/../../../../evil",
        "versions/00000001/sub/evil",
        "versions/00000001/evil",
        "versions/../../evil/entry.json",
        "versions/1/entry.json",
        "versions/00000009\n/entry.json",
        "snapshots/00000020/../../../evil",
        "snapshots/00000020evil.safetensors",
        "snapshots/00000020.evil",
        "journals/../../../evil",
        "journals/99999999999999999999-x.sqlite",
    ],
)
def test_only_the_names_of_a_ledger_are_pulled(
    ledger: Ledger, random_delta: Random, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    append(ledger, random_delta, 2)
    push(ledger.directory, where)
    target = tmp_path / "a" / "b" / "c" / "back"
    target.parent.mkdir(parents=True)
    monkeypatch.setattr(remote, "RemoteFolder", Bucket)
    monkeypatch.setattr(Bucket, "keys", (key,))
    assert pull(where, target) == 3
    assert_same(ledger, target)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in written if "evil" in path.name or path.read_bytes() == b"evil"]
