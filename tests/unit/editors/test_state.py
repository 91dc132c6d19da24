"""The state of an editor: tensors that grow by blocks."""

from __future__ import annotations

import pytest
import torch

from errata.editors.state import EditorState, GrowingTensor


def test_looking_for_a_tensor_joins_no_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"keys": torch.ones(2, 3)}
    state = EditorState().grown(2, rows, {}).grown(2, rows, {})
    assert state.tensors["keys"].shape == (4, 3)

    def refuse(_self: GrowingTensor) -> None:
        pytest.fail("the blocks are joined")

    monkeypatch.setattr(GrowingTensor, "joined", refuse)
    assert "keys" in state.tensors and "other" not in state.tensors
    assert list(state.tensors) == ["keys"]
