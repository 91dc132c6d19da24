"""The card of a version in MLflow."""

from __future__ import annotations

import csv
import io

import torch

from errata.delta.parts import LowRank
from errata.delta.weight_delta import WeightDelta
from errata.edit import Code, Edit, EditRejected
from errata.editors.state import EditorState
from errata.registry import version_card
from tests.unit.registry.mirroring import MATRIX


def test_a_description_keeps_to_limits_and_escapes_markdown(ledger):
    edits = [Edit(f"<b>*{i}* | x\ny" + "[" * 500, "t|u", subject="x") for i in range(40)]
    card = {
        "efficacy": 1.0,
        "by_kind": {"../two hop?": 0.25, "": 1.0},
        "ppl": float("inf"),
        "warnings": ["locality | fell"],
        "num_edits": 40,
    }
    delta = WeightDelta({MATRIX: LowRank(torch.ones(3, 1), torch.ones(2, 1))})
    version = ledger.append(0, delta, EditorState(1), edits, card, ("RLEdit", "plan_a"))
    text = version_card.description(version)
    assert len(text) <= 5000
    assert "follows version 0: 40 edits" in text
    assert "locality \\| fell" in text
    assert "<b>" not in text.replace("\\<b", "")
    assert "| \\<b>\\*0\\* \\| x y" in text
    metrics = version_card.metrics(version)
    assert metrics["by_kind/two hop_"] == 0.25
    assert metrics[f"rank/{MATRIX}"] == 1.0
    assert "ppl" not in metrics
    assert version_card.tags(version)["errata.num_warnings"] == "1"
    assert version_card.params(version) == {"editor": "RLEdit", "plan": "plan_a", "parent": "0", "num_edits": "40"}
    assert len(version_card.edits_csv(version).splitlines()) > 40


def test_the_table_of_refused_edits_has_each_field_of_the_ledger(ledger):
    edit = Edit("who?", "Eve, the 2nd", subject="who", id="one", poster="ada")
    ledger.refuse(0, edit, EditRejected("too large", code=Code.GUARD_CHANGE, field="target"), says="Bob")
    [row] = csv.DictReader(io.StringIO(version_card.refusals_csv(ledger.refusals())))
    [record] = ledger.refusals()
    assert set(row) >= set(record) - {"edit"}
    assert (row["prompt"], row["target"], row["id"], row["poster"]) == ("who?", "Eve, the 2nd", "one", "ada")
    assert (row["reason"], row["code"], row["field"], row["parent"]) == ("too large", "guard.change", "target", "0")
    assert row["says"] == "Bob"
