"""Past keys in the state: those of superseded edits are replaced, exactly, and also from a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from errata.edit import Edit, EditBatch
from errata.editors.past_keys import PROMPTS, edits_by_answer, next_state, past_keys, preconditioners_for
from errata.editors.solve import KeyPreconditioner
from errata.editors.state import EditorState

I = 12  # noqa: E741
A, B, C = (Edit(prompt, "blue") for prompt in ("the sky is", "the sea is", "grass is"))
WEIGHT = 0.5


def bases() -> dict[str, Tensor]:
    return {"in": torch.eye(I, dtype=torch.float64)}


def keys_of(edit: Edit, seed: int) -> Tensor:
    return torch.randn(2, I, generator=torch.Generator().manual_seed(seed)) + len(edit.prompt)


def edited(state: EditorState, *edits: Edit, seed: int = 0) -> EditorState:
    """Return the state after a batch, with two keys for each edit."""
    batch = EditBatch(edits)
    keys = {"in": torch.cat([keys_of(edit, seed + i) for i, edit in enumerate(edits)])}
    rows = [edit for edit in edits for _ in range(2)]
    return next_state(state, rows, preconditioners_for(batch, state, bases, WEIGHT), keys, WEIGHT, num_edits=len(edits))


def metric(state: EditorState, batch: EditBatch | None = None) -> Tensor:
    found = preconditioners_for(batch or EditBatch((Edit("other", "x"),)), state, bases, WEIGHT)
    return found["in"].apply(torch.eye(I, dtype=torch.float64))


def of_keys(*keys: Tensor) -> Tensor:
    return KeyPreconditioner.start(bases()["in"]).remember(torch.cat(keys), WEIGHT).apply(torch.eye(I, dtype=torch.float64))


def test_the_keys_of_a_later_edit_of_the_same_prompt_replace_those_of_the_earlier_one() -> None:
    state = edited(edited(EditorState(), A, B), replace(A, target="red"), C, seed=7)
    torch.testing.assert_close(metric(state), of_keys(keys_of(B, 1), keys_of(A, 7), keys_of(C, 8)))
    assert state.num_edits == 4 and len(state.tensors["in"]) == 8  # The rows stay: the state only grows.


def test_they_are_taken_out_before_the_later_edit_is_made() -> None:
    state = edited(EditorState(), A, B)
    again = EditBatch((replace(A, prompt="the  sky is ", target="red"),))  # The same prompt by the rule of equality.
    torch.testing.assert_close(metric(state, again), of_keys(keys_of(B, 1)))
    torch.testing.assert_close(past_keys(again, state, "in"), keys_of(B, 1))
    assert len(past_keys(EditBatch((C,)), state, "in")) == 4


def test_an_edit_in_two_forms_is_replaced_once_and_whole() -> None:
    both = replace(A, form="both")
    state = edited(edited(EditorState(), both), replace(A, target="red"), seed=3)
    state = edited(state, replace(A, form="chat", target="green"), seed=5)
    torch.testing.assert_close(metric(state), of_keys(keys_of(A, 3), keys_of(A, 5)))


def test_repeated_edits_inside_a_batch_all_stay() -> None:
    state = edited(EditorState(), A, A)
    torch.testing.assert_close(metric(state), of_keys(keys_of(A, 0), keys_of(A, 1)))
    torch.testing.assert_close(metric(state, EditBatch((A,))), bases()["in"])


def test_a_state_from_a_file_has_the_same_bits(tmp_path: Path) -> None:
    state = EditorState()
    for seed in range(12):  # Long enough to be folded.
        state = edited(state, (A, B, C)[seed % 3], seed=10 * seed)
    state.save(tmp_path / "state.safetensors")
    loaded = EditorState.load(tmp_path / "state.safetensors")
    assert torch.equal(metric(state), metric(loaded))
    assert torch.equal(metric(edited(state, B, seed=3)), metric(edited(loaded, B, seed=3)))


def test_a_state_of_an_earlier_release_keeps_its_keys_and_replaces_new_ones() -> None:
    new = edited(EditorState(), A)
    old = EditorState(new.num_edits, {name: new.tensors[name] for name in new.tensors if name != PROMPTS})
    state = edited(edited(old, replace(A, target="red"), seed=3), replace(A, target="green"), seed=5)
    torch.testing.assert_close(metric(state), of_keys(keys_of(A, 0), keys_of(A, 5)))
    assert len(state.tensors[PROMPTS]) == len(state.tensors["in"]) == 6
    assert len(past_keys(EditBatch((A,)), state, "in")) == 2


def test_without_re_edits_no_key_is_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeyPreconditioner, "forget", lambda *_: pytest.fail("nothing is replaced"))
    state = edited(edited(EditorState(), A), B, seed=3)
    bare = EditorState(state.num_edits, state.tensors)
    assert torch.equal(metric(state), metric(bare))


def test_each_answer_token_has_its_edit() -> None:
    batch = EditBatch((replace(A, form="both"), B))
    assert edits_by_answer(batch, [2, 1, 3]) == [*[batch.edits[0]] * 3, *[B] * 3]
