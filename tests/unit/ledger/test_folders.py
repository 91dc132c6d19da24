"""A full disk at any write of a ledger leaves it as it was, and what its files hold grows with what is new alone."""

from __future__ import annotations

import contextlib
import errno
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from errata.durable import append_line, records
from errata.edit import Code, Edit, EditRejected
from errata.editors.state import EditorState
from errata.ledger import Ledger, LedgerConflict
from errata.ledger.recovery import recover

EDIT = Edit("a prompt", "its target", id="one", poster="ada")


def append(ledger, random_delta, state=None):
    state = EditorState(1, {"past": torch.ones(40, 30)}) if state is None else state
    return ledger.append(ledger.head, random_delta(ledger.newest + 1), state, [EDIT], {"efficacy": 1.0}, ("E", "p"))


def files_of(directory: Path) -> dict[str, bytes]:
    """What a ledger holds: not its lock, logs without a line, and snapshots, which say nothing new."""
    files = [path for path in directory.rglob("*") if path.is_file() and path.name != "lock"]
    files = [path for path in files if path.parent.name != "snapshots"]
    return {str(path.relative_to(directory)): path.read_bytes() for path in files if path.stat().st_size}


@contextlib.contextmanager
def no_file_over(num_bytes: int) -> Iterator[None]:
    """Every write beyond so many bytes of a file fails, as on a full disk, with EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("num_bytes", [0, 100, 300, 1_000, 2_000, 2_800])
@pytest.mark.parametrize("num_before", [1, 4])
def test_a_version_that_does_not_fit_leaves_no_trace(ledger, random_delta, num_bytes, num_before):
    for _ in range(num_before):  # with 4 a snapshot comes first
        append(ledger, random_delta)
    before = files_of(ledger.directory)
    with no_file_over(num_bytes), pytest.raises(OSError) as full:
        append(ledger, random_delta)
    assert full.value.errno == errno.EFBIG
    assert files_of(ledger.directory) == before
    assert (ledger.head, ledger.newest, Ledger.open(ledger.directory).head) == (num_before, num_before, num_before)
    assert append(ledger, random_delta).number == num_before + 1
    assert ledger.verify(num_before + 1) == [] and recover(ledger).notes == ()


@pytest.mark.parametrize("what", ["move", "refuse", "withdraw"])
@pytest.mark.parametrize("num_bytes", [0, 50, 150])
def test_moves_and_refusals_that_do_not_fit_leave_no_trace(ledger, random_delta, what, num_bytes):
    append(ledger, random_delta)
    append(ledger, random_delta)
    for number in (1, 2):  # the log has two lines then, so that with 150 bytes HEAD can be written and the log cannot
        ledger.move_head(number)
        ledger.refuse(number, EDIT, EditRejected("no room", code=Code.EDITOR_FAILED))
    do = {
        "move": lambda: ledger.move_head(1, by="ada"),
        "refuse": lambda: ledger.refuse(2, EDIT, EditRejected("no room", field="prompt", code=Code.EDITOR_FAILED)),
        "withdraw": lambda: ledger.retract(2, 1),
    }[what]
    before = files_of(ledger.directory)
    with no_file_over(num_bytes), pytest.raises(OSError):
        do()
    assert files_of(ledger.directory) == before
    assert ledger.head == 2 and not ledger.retracted()
    do()
    counts = ledger.head, len(list(ledger.head_log())), len(list(ledger.refusals()))
    assert counts == ((2, 2, 3) if what == "refuse" else (1, 3, 2))


def test_a_line_that_fits_in_part_is_taken_back(tmp_path):
    log = tmp_path / "log"
    append_line(log, b'{"a": 1}')
    with no_file_over(15), pytest.raises(OSError):
        append_line(log, b'{"b": 2}')
    assert log.read_bytes() == b'{"a": 1}\n'
    append_line(log, b'{"c": 3}')
    assert list(records(log)) == [{"a": 1}, {"c": 3}]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB of its own, where one may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_on_a_disk_that_is_really_full_every_call_is_whole_or_nothing(small_disk, random_delta):
    ledger = Ledger.create(small_disk / "ledger", {"model": "m", "fingerprint": "f", "matrices": ["w"]}, snapshot_every=4)
    for _ in range(4):
        append(ledger, random_delta)
    ballast = small_disk / "ballast"
    num_failed = 0
    for free in range(0, 80_000, 3_000):
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(b"0" * 4096):
                pass
        ballast.open("r+b").truncate(max(0, ballast.stat().st_size - free))
        before, head = files_of(ledger.directory), ledger.head
        try:
            append(ledger, random_delta)
            ledger.move_head(1)
            ledger.refuse(1, EDIT, EditRejected("no", code=Code.EDITOR_FAILED))
            ledger.move_head(ledger.newest)
        except OSError as full:
            assert full.errno == errno.ENOSPC
            num_failed += 1
            if ledger.newest == head:
                assert files_of(ledger.directory) == before
        ballast.unlink()
        ledger.move_head(ledger.newest)
        again = Ledger.open(ledger.directory, 4)
        assert recover(again).quarantined == () and again.head == again.newest
        assert all(again.verify(version.number) == [] for version in again.versions())
    assert num_failed > 3 and ledger.newest > 4


def states_equal(one: EditorState, other: EditorState) -> bool:
    return one.num_edits == other.num_edits and {k: (t.dtype, t.tolist()) for k, t in one.tensors.items()} == {
        k: (t.dtype, t.tolist()) for k, t in other.tensors.items()
    }


def test_a_growing_state_is_stored_by_its_new_rows_and_comes_back_whole(ledger, random_delta):
    states, state = [], EditorState(0, {"contexts": torch.arange(50)})
    for number in range(1, 15):
        state = state.grown(2, {"past": torch.full((2, 3), float(number)), "num_rows": torch.tensor([2])}, {})
        append(ledger, random_delta, state)
        states.append(state)
    sizes = [(ledger.folders.path(n) / "state.safetensors").stat().st_size for n in range(2, 15)]
    assert max(sizes) - min(sizes) < 16, sizes
    again = Ledger.open(ledger.directory, 4)
    for number in (14, 1, 8, 9, 4):
        assert states_equal(again.state(number), states[number - 1])
    with pytest.raises(ValueError, match="new rows alone"):
        EditorState.load(ledger.folders.path(14) / "state.safetensors")


def test_after_reopening_going_back_and_branching_states_are_exact(ledger, random_delta):
    state = EditorState()
    states = {}

    def make(at: Ledger, state: EditorState, parent: int, head: int) -> EditorState:
        rows = torch.randn(2, 3, generator=torch.Generator().manual_seed(at.newest))
        state = state.grown(1, {"past": rows}, {})
        made = at.append(parent, random_delta(at.newest), state, (), {}, ("E", "p"), expected_head=head)
        states[made.number] = state
        return state

    for number in range(6):
        state = make(ledger, state, number, number)
    again = Ledger.open(ledger.directory, 4)
    make(again, again.state(3), 3, 6)
    again.move_head(5)
    make(again, states[5], 5, 5)  # of another process' making: compared, not known
    make(again, states[2], 8, 8)  # shorter than its parent's
    replayed = states[1].grown(1, {"past": torch.ones(2, 3)}, {}).grown(1, {"past": torch.ones(2, 3)}, {})
    states[10] = replayed  # as long as version 3's, with other rows
    again.append(3, random_delta(99), replayed, (), {}, ("E", "p"), expected_head=9)
    for number, wanted in states.items():
        for each in (again, Ledger.open(ledger.directory, 4)):
            assert states_equal(each.state(number), wanted), number


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (torch.zeros(2), torch.tensor([-0.0, 0.0, 1.0])),
        (torch.tensor([float("nan")]), torch.tensor([float("nan"), 2.0])),
        (torch.ones(2), torch.ones(3, dtype=torch.float64)),
        (torch.ones(2, 3), torch.ones(2, 4)),
        (torch.tensor(1.0), torch.tensor(2.0)),
        (torch.ones(3), torch.ones(2)),
        (torch.ones(0, 3), torch.ones(2, 3)),
        (torch.ones(2, 3, dtype=torch.bfloat16), torch.ones(3, 3, dtype=torch.bfloat16)),
        (torch.tensor([True, False]), torch.tensor([True, False, True])),
    ],
)
def test_a_state_has_the_bits_it_was_saved_with(ledger, random_delta, before, after):
    for tensor in (before, after):
        append(ledger, random_delta, EditorState(1, {"t": tensor}))
    for number, tensor in ((1, before), (2, after)):
        found = Ledger.open(ledger.directory).state(number).tensors["t"]
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


def test_states_that_grow_share_blocks_and_never_each_others() -> None:
    first = EditorState().grown(1, {"past": torch.ones(4, 2)}, {})
    left, right = (first.grown(1, {"past": torch.full((1, 2), value)}, {}) for value in (2.0, 3.0))
    assert left.blocks["past"].before is right.blocks["past"].before is first.blocks["past"]
    assert [s.tensors["past"][-1, 0].item() for s in (first, left, right)] == [1.0, 2.0, 3.0]
    assert left.blocks["past"].blocks_after(right.blocks["past"]) is None
    assert [len(block) for block in left.blocks["past"].blocks()] == [4, 1]
    assert [s.num_edits for s in (first, left.grown(3, {}, {}))] == [1, 5]


def test_a_long_state_is_freed_and_joined_without_recursion() -> None:
    state = EditorState()
    for number in range(20_000):
        state = state.grown(1, {"past": torch.tensor([number])}, {})
    assert torch.equal(state.tensors["past"], torch.arange(20_000))
    assert state.blocks["past"].num_rows == 20_000


def test_a_conflict_is_one_before_anything_is_written(ledger, random_delta):
    append(ledger, random_delta)
    before = files_of(ledger.directory)
    with no_file_over(0), pytest.raises(LedgerConflict):
        ledger.append(0, random_delta(1), EditorState(), (), {}, ("E", "p"))
    assert files_of(ledger.directory) == before
