"""Fields of nested frozen dataclasses, set by name and read from text."""

from __future__ import annotations

import math
import re
from dataclasses import fields
from typing import Any, get_type_hints

import pytest

from errata.editors import EDITORS, make_editor
from errata.editors.hypernet.rledit import RLEdit
from errata.guard.limits import Guard
from errata.overrides import with_fields
from jobs import plan
from jobs.suites import Suite


def test_fields_are_set_by_name() -> None:
    editor = with_fields(RLEdit(), {"rank": 3, "reward.discount": 0.5})
    assert (editor.rank, editor.reward.discount, editor.reward.backtrack_depth) == (3, 0.5, 10)
    with pytest.raises(ValueError, match=r"reward\.colour: Reward has no field 'colour'"):
        with_fields(RLEdit(), {"reward.colour": 1})


@pytest.mark.parametrize(
    ("editor", "field", "value", "wanted"),
    [
        ("FT-L", "epsilon", "inf", math.inf),
        ("FT-L", "epsilon", "2", 2.0),
        ("FT-L", "epsilon", "nan", "'nan' is not of type float"),
        ("FT-L", "epsilon", "True", "'True' is not of type float"),
        ("MEMIT", "bare_share", "None", None),
        ("MEMIT", "bare_share", "half", "'half' is not of type float or None"),
        ("ROME", "bare_share", "0.25", 0.25),
        ("O-Edit", "past_rank", "12", 12),
        ("O-Edit", "past_rank", "None", None),
        ("O-Edit", "past_rank", "many", "'many' is not of type int or None"),
        ("O-Edit", "past_rank", "1.5", "'1.5' is not of type int or None"),
        ("MEMIT", "seed", "None", "'None' is not of type int"),
        ("MEMIT", "position", "either", "either"),
        ("MEMIT", "position", "promt", "position: 'promt' is not one of subject, either, prompt"),
        ("MEMIT", "context_lengths", "10", (10,)),
        ("MEMIT", "context_lengths", "10, 20", (10, 20)),
        ("MEMIT", "context_lengths", "[10, 20]", (10, 20)),
        ("MEMIT", "context_lengths", "()", ()),
        (
            "MEMIT",
            "context_lengths",
            "ten",
            "'ten' in 'ten' is not of type int; give values separated by commas, such as context_",
        ),
        ("MEMIT", "context_lengths", "10,1.5", "1.5 in '10,1.5' is not of type int"),
        ("MEMIT", "context_lengths", "10,True", "True in '10,True' is not of type int"),
        ("MEMIT", "context_lengths", "", "'' has an empty part; give values separated by commas"),
        ("MEMIT", "context_lengths", "10,,20", "'10,,20' has an empty part"),
        ("MEMIT", "context_words", "The,You", ("The", "You")),
        ("MEMIT", "context_words", "7", ("7",)),
        ("MEMIT", "modules", "", "'' has an empty part"),
        ("MEMIT", "search", "5", "search: '5' is not of type Search; set its fields, such as search.num_steps"),
        ("MEMIT", "search.num_step", "5", "did you mean search.num_steps?"),
        ("MEMIT", "num_steps", "5", "did you mean search.num_steps?"),
        ("RECT", "modules", "a", "did you mean host.modules?"),
        ("R-ROME", "use_moments", "False", False),
        ("R-ROME", "use_moments", "true", True),
        ("R-ROME", "use_moments", "0", "'0' is not of type bool; give True or False"),
        ("R-ROME", "use_moments", "no", "'no' is not of type bool; give True or False"),
        ("MEMIT", "bare_share", "half", "give 0.5, for example"),
    ],
)
def test_fields_are_read_from_text(editor: str, field: str, value: str, wanted: Any) -> None:
    if isinstance(wanted, str) and " " in wanted:
        with pytest.raises(ValueError, match=re.escape(wanted)):
            make_editor(editor, settings={field: value})
    else:
        found = getattr(make_editor(editor, settings={field: value}), field)
        assert found == wanted and type(found) is type(wanted)


@pytest.mark.parametrize("kind", [*EDITORS.values(), plan.Plan, Guard, Suite])
def test_every_field_has_a_type_to_read_it_as(kind: type) -> None:
    assert get_type_hints(kind).keys() >= {one.name for one in fields(kind)}
