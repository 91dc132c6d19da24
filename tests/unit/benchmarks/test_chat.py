"""The edits of the chat benchmark, and what is counted of them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from benchmarks.chat import ChatSettings, Outcome, read, table
from benchmarks.chat_edits import FORMS, HAND_MADE, PostedEdit, mixed_edits, world_edits
from errata.testbed.world import World
from serving.api.schemas import EditsIn


def test_edits_in_all_forms_follow_from_the_seed() -> None:
    edits = mixed_edits(200)
    assert edits == mixed_edits(200) != mixed_edits(200, seed=1)
    forms, scripts = Counter(one.form for one in edits), {one.script for one in edits}
    assert set(forms) == set(FORMS) and min(forms.values()) >= 15
    assert {
        "accented",
        "Cyrillic",
        "Greek",
        "Arabic",
        "Hebrew",
        "Devanagari",
        "Thai",
        "Chinese",
        "Japanese",
        "Korean",
    } <= scripts
    keys = [key for one in edits for key in one.edit.keys]
    assert len(keys) == len(set(keys)), "no edit takes the place of another one"
    EditsIn.model_validate({"edits": [one.body for one in edits]})
    with pytest.raises(ValueError, match=f"{len(HAND_MADE)} edits are written by hand"):
        mixed_edits(3)


def test_edits_of_the_world_are_completions() -> None:
    edits = world_edits(World(20), 5)
    assert [one.edit.form for one in edits] == ["completion"] * 5


def outcome(says: str, /, **reported: Any) -> Outcome:
    posted = PostedEdit("question", "Latin", {"question": "Where is it?", "target": "India"})
    return Outcome(posted, {"state": "applied", **reported}, [says])


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        (outcome("It is in India."), "answered"),
        (outcome("It is in India.", changed=False), "unchanged"),
        (outcome("It is in Peru.", changed=False), "unanswered"),
        (outcome("It is in Peru.", answered=True), "unanswered"),
        (outcome("It is in Peru.", answered=False), "lost"),
        (outcome("It is in Peru.", state="rejected"), "rejected"),
        (outcome("", state="superseded"), "superseded"),
    ],
)
def test_an_outcome_is_what_the_service_says_and_what_the_model_says(found: Outcome, kind: str) -> None:
    assert found.kind == kind and found.to_json()["kind"] == kind


def test_the_report_has_what_the_model_said_and_what_the_service_reported() -> None:
    found = outcome("It is in Peru.", state="rejected", code="ineffective", reason="no", says="It is in Chile.").to_json()
    assert found["says"] == ["It is in Peru."]
    assert found["reported"] == {"code": "ineffective", "reason": "no", "says": "It is in Chile."}


def test_the_table_counts_by_group_and_in_all() -> None:
    found = [outcome("India"), outcome("", state="rejected", reason="no", says="It is in Peru.")]
    found += [outcome("", state="rejected", reason="the edited model answers 'Peru' instead of 'India'")]
    rows = table(found, "form")
    assert [row["form"] for row in rows] == ["question", "all"]
    assert rows[0] == rows[1] | {"form": "question"}
    assert {name: rows[1][name] for name in ("posted", "answered", "rejected", "unnamed")} == {
        "posted": 3,
        "answered": 1,
        "rejected": 2,
        "unnamed": 1,
    }


def test_arguments_leave_at_least_one_edit() -> None:
    assert read(["--world-edits=0", "--edits", "20"]) == ChatSettings(edits=20, world_edits=0)
    for wrong in (["--edits=0", "--world-edits=0"], ["--edits=-1"], ["--batch-size=0"]):
        with pytest.raises(ValueError, match="at least one edit"):
            read(wrong)
