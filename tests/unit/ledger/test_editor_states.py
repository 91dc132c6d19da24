"""Editor states on disk: a growing state is stored as its new rows, with the same bits."""

from __future__ import annotations

import pytest
import torch

from errata.editors.state import EditorState
from errata.ledger import Ledger
from tests.unit.ledger.damage import append_state


def states_equal(one: EditorState, other: EditorState) -> bool:
    return one.num_edits == other.num_edits and {k: (t.dtype, t.tolist()) for k, t in one.tensors.items()} == {
        k: (t.dtype, t.tolist()) for k, t in other.tensors.items()
    }


def test_a_growing_state_is_stored_as_its_new_rows(ledger, random_delta):
    states, state = [], EditorState(0, {"contexts": torch.arange(50)})
    for number in range(1, 15):
        state = state.grown(2, {"past": torch.full((2, 3), float(number)), "num_rows": torch.tensor([2])}, {})
        append_state(ledger, random_delta, state)
        states.append(state)
    sizes = [(ledger.folders.path(n) / "state.safetensors").stat().st_size for n in range(2, 15)]
    assert max(sizes) - min(sizes) < 16, sizes
    again = Ledger.open(ledger.directory, 4)
    for number in (14, 1, 8, 9, 4):
        assert states_equal(again.state(number), states[number - 1])
    with pytest.raises(ValueError, match="only the rows of one version"):
        EditorState.load(ledger.folders.path(14) / "state.safetensors")


def test_states_are_exact_after_reopening_rollback_and_branching(ledger, random_delta):
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
def test_a_state_is_read_with_the_bits_that_it_was_saved_with(ledger, random_delta, before, after):
    for tensor in (before, after):
        append_state(ledger, random_delta, EditorState(1, {"t": tensor}))
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
