"""The demo's own argument."""

import pytest

from jobs.demo import take_count
from jobs.demo_run import NUM_EDITS


def test_the_number_of_edits_is_taken_out_of_the_arguments() -> None:
    arguments = ["demo.py", "seed=1", "edits=500", "plan=world"]
    assert take_count(arguments) == 500
    assert arguments == ["demo.py", "seed=1", "plan=world"]
    assert take_count(arguments) == NUM_EDITS


@pytest.mark.parametrize("number", ["", "0", "-1", "many", "1.5", "٣"])
def test_another_number_is_refused_by_name(number: str) -> None:
    with pytest.raises(ValueError, match="edits is the number of corrections"):
        take_count(["demo.py", f"edits={number}"])
