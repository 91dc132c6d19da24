"""Hard edits of the testbed and of CounterFact."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from errata.datasets.reader import read_edits
from errata.edit import Edit
from errata.testbed.harmful_edits import hard_cases, hard_edits


def test_the_testbed_has_hard_edits(tiny_model, world):
    edits = hard_edits(world, 12)
    assert hard_edits(world, 12) == edits != hard_edits(world, 12, seed=1)
    assert len({edit.prompt for edit in edits}) == 12 and not any(list(edit.faults()) for edit in edits)
    assert list(hard_cases(edits, tiny_model.tokenizer)) == edits


def test_the_subject_of_a_hard_edit_is_one_token_that_begins_the_prompt(tiny_model, world):
    usual = world.edits("test", 5)  # subjects of two words
    late = Edit("tomorrow the river ends", "Oslo", subject="river")
    without = Edit("the river ends", "Oslo")
    hard = Edit("the river ends", "Oslo", subject="the")
    assert list(hard_cases([*usual, late, without, hard], tiny_model.tokenizer)) == [hard]


@pytest.mark.skipif(
    "ERRATA_COUNTERFACT" not in os.environ, reason="ERRATA_COUNTERFACT is not set to the folder of CounterFact's files"
)
def test_counterfact_has_hard_cases():
    from transformers import PreTrainedTokenizerFast

    from errata.testbed.counterfact import CounterFact
    from errata.testbed.language_model import Shape, make_tokenizer

    folder = Path(os.environ["ERRATA_COUNTERFACT"])
    tokenizer: PreTrainedTokenizerFast = make_tokenizer(CounterFact(str(folder), 500, 100), Shape())
    found = list(hard_cases(read_edits(folder / "counterfact_edit.json"), tokenizer))
    assert 0 < len(found) < len(json.loads((folder / "counterfact_edit.json").read_text())) // 10
    assert all(edit.prompt.startswith(edit.subject or "-") for edit in found)
