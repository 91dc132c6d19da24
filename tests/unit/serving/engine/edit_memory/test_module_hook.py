"""The hook of a vLLM worker that mixes experts in: it does what that of transformers does, in modules of several matrices."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from errata.delta.memory_delta import MemoryDelta
from errata.edit_memory.bank import Bank, Record
from errata.edit_memory.experts import Experts, ExpertsHooks, packed, shared_of, signs
from errata.edit_memory.lookup import NONE
from errata.model.matrices import MatrixSpec, ModelSpec

module_hook = pytest.importorskip("serving.engine.edit_memory.module_hook")  # vLLM
logits_hook = pytest.importorskip("serving.engine.edit_memory.logits_hook")
NUM_IN, NUM_HIDDEN, READ = 12, 20, 4  # `READ` is the token at which a record decides


class Parted(nn.Module):
    """Two matrices in modules of their own, as transformers has them, or in one, whose output is a pair, as in vLLM."""

    def __init__(self, is_fused: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(10, NUM_IN)
        gate, up, self.down = nn.Linear(NUM_IN, NUM_HIDDEN), nn.Linear(NUM_IN, NUM_HIDDEN), nn.Linear(NUM_HIDDEN, NUM_IN)
        if is_fused:
            self.both = nn.Linear(NUM_IN, 2 * NUM_HIDDEN)
            self.both.weight.data = torch.cat([gate.weight, up.weight]).detach()
            self.both.bias.data = torch.cat([gate.bias, up.bias]).detach()
            self.both.register_forward_hook(lambda _module, _args, output: (output, None))
        else:
            self.gate, self.up = gate, up

    def forward(self, input_ids: Tensor) -> Tensor:
        vector = self.embedding(input_ids)
        gate, up = self.both(vector)[0].chunk(2, dim=-1) if hasattr(self, "both") else (self.gate(vector), self.up(vector))
        found: Tensor = self.down(gate.tanh() * up)
        return found


SPEC = ModelSpec((MatrixSpec("gate", NUM_IN, NUM_HIDDEN), MatrixSpec("up", NUM_IN, NUM_HIDDEN), MatrixSpec("down", 20, 12)))


def bank_at(model: Parted, *names: str) -> Bank:
    """Make a bank with experts of these matrices, of which the first is the site, and a record at the token `READ`."""
    generator = torch.Generator().manual_seed(1)
    found = {}
    for name in names:
        shape = SPEC[name].shape
        sizes = ((3, 2, shape[1]), (3, shape[0], 2), (3, SPEC[names[0]].num_in), (3,))
        found[name] = Experts(*(torch.randn(size, generator=generator) for size in sizes))
    centre = torch.zeros(SPEC[names[0]].num_in)
    code = packed(signs(model.embedding.weight[READ][None].detach(), centre, 64))
    record = Record('"a"', "a", {"code": code, "radius": torch.ones(1)}, edit="an edit")
    return MemoryDelta("experts", names[0], (record,), (), shared_of(found, centre, 2)).after(None)


class Notes:
    """The edits of the rows that decide, by request."""

    def __init__(self) -> None:
        self.found: list[list[str | None]] = []

    def add(self, bank: Bank, found: Any) -> None:
        rows = found.row_T.tolist()
        self.found.append([None if row == NONE else bank.record_of_row(row).edit for row in rows])
        assert all(score == 1.0 for row, score in zip(rows, found.score_T.tolist(), strict=True) if row != NONE)


@pytest.mark.parametrize("names", [("up",), ("gate",), ("gate", "up"), ("up", "down")])
@torch.no_grad()
def test_matrices_in_one_module_are_mixed_as_in_their_own(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]) -> None:
    whole, parted, ids = Parted(is_fused=True), Parted(is_fused=False), torch.tensor([1, READ, 2, READ, 3, 5])
    plain = whole(ids)
    bank = bank_at(whole, *names)
    ExpertsHooks(parted, bank)
    metadata = {"layer": SimpleNamespace(query_start_loc=torch.tensor([0, 2, 3, 4, 6]))}
    monkeypatch.setattr(logits_hook, "is_forward_context_available", lambda: True)
    monkeypatch.setattr(logits_hook, "get_forward_context", lambda: SimpleNamespace(attn_metadata=metadata))
    notes = Notes()
    places = module_hook.places_of(SPEC, {"gate": whole.both, "up": whole.both, "down": whole.down})
    hook = module_hook.experts_hook(whole, places, bank, notes)
    found, expected = whole(ids), parted(ids)
    assert torch.allclose(found, expected, atol=1e-5)
    at = (ids == READ).nonzero()[:, 0]
    assert not torch.allclose(found[at], plain[at], atol=0.1)
    others = (ids != READ).nonzero()[:, 0]
    assert torch.equal(found[others], plain[others]), "other tokens keep their bits"
    assert notes.found == [["an edit", None, "an edit", None]], "of the last token of each request"
    metadata.clear()
    whole(ids)
    assert len(notes.found) == 1, "a warm-up has no requests"
    hook.remove()
    assert torch.equal(whole(ids), plain)
