"""Checkout: each version has the bits that it is served with, and the model comes back to its own."""

from __future__ import annotations

import torch

from errata.delta.accumulator import EditedModel
from errata.delta.weight_delta import in_series
from errata.editors.state import EditorState
from errata.history.checkout import checked_out
from errata.ledger import Ledger
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from tests.unit.conftest import MATRICES


def test_a_checkout_has_the_bits_of_each_version(tiny_model: LanguageModel, ledger: Ledger, random_delta) -> None:
    for number in range(9):
        delta = in_series([random_delta(90), random_delta(91)]) if number == 6 else random_delta(number)
        ledger.append(number, delta, EditorState(), [], {}, ("Any", ""))
    ledger.append(4, random_delta(50), EditorState(), [], {}, ("Any", ""), expected_head=9)  # Version 10 is on a branch.
    spec = find_matrices(tiny_model.module, MATRICES)
    edited, weight = EditedModel(tiny_model.module, spec), tiny_model.module.get_submodule(MATRICES[0]).weight
    wanted = []
    for number in range(11):
        edited.set(ledger.segments(number))
        wanted.append(weight.clone())
    edited.set(ledger.segments(9))
    with checked_out(edited, ledger, 9) as checkout:
        for number in (9, 0, 4, 6, 5, 7, 10, 3, 9, 1, 8, 2):
            checkout.to(number)
            assert torch.equal(weight, wanted[number]), number
    assert torch.equal(weight, wanted[9])
    edited.add(random_delta(99))
    expected = edited.content().sums[MATRICES[0]]
    edited.set([*ledger.segments(9), random_delta(99)])
    assert torch.equal(edited.content().sums[MATRICES[0]], expected)
