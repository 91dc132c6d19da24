"""The demo's own arguments."""

import pytest

from jobs.demo import take_own
from jobs.demo_run import NUM_EDITS


def test_the_number_of_edits_and_the_editor_are_taken_out_of_the_arguments() -> None:
    arguments = ["demo.py", "seed=1", "edits=500", "plan=world", "editor=SCR"]
    assert take_own(arguments) == (500, "SCR")
    assert arguments == ["demo.py", "seed=1", "plan=world"]
    assert take_own(arguments) == (NUM_EDITS, "")


@pytest.mark.parametrize("number", ["", "0", "-1", "many", "1.5", "٣"])
def test_another_number_is_refused_by_name(number: str) -> None:
    with pytest.raises(ValueError, match="edits is the number of corrections"):
        take_own(["demo.py", f"edits={number}"])


def test_an_editor_that_needs_settings_is_refused_with_those_that_do_not() -> None:
    with pytest.raises(ValueError, match=r"editor is one of RLEdit, state, .*SCR.*not 'AlphaEdit'"):
        take_own(["demo.py", "editor=AlphaEdit"])
