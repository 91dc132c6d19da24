"""Settings of the run of two tiers, and the figures over a service that answers immediately."""

from __future__ import annotations

import re
import threading
from typing import Any, cast

import pytest

from benchmarks.tiers import Play, TierSettings, over_time, parsed
from errata.client.client import Client
from errata.client.errors import ErrataError
from errata.edit import Question
from errata.testbed import smollm2


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "check", lambda: None)


def test_settings_are_read_by_name() -> None:
    assert parsed([]) == TierSettings()
    found = parsed(["edits=9", "--rate", "2.5", "rows=tiers,memory"])
    assert (found.edits, found.rate, found.rows) == (9, 2.5, ("tiers", "memory"))


@pytest.mark.parametrize(
    ("argument", "says"),
    [("edits=0", "at least 1: edits"), ("rate=0", "rate is above 0"), ("rows=all", "there is no row 'all'")],
)
def test_a_wrong_argument_is_named(argument: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        parsed([argument])


class Service:
    """A service that applies every second post, answers by the first word of a question, and has lost the edit `b`."""

    def __init__(self) -> None:
        self.num_posts, self.says = 0, {"a": "x", "b": "y", "c": "y"}

    def edit(self, edits: list[dict[str, Any]]) -> dict[str, Any]:
        self.num_posts += 1
        if self.num_posts % 2 == 0:
            raise ErrataError(422, "it is refused", {"edits": [{"id": "r", "state": "rejected"}]})
        return {"edits": [{"id": edits[0]["question"], "state": "queued"}]}

    def edit_status(self, id: str) -> dict[str, Any]:
        return {"id": id, "state": "applied", "answered": id != "b"}

    def ask(self, prompts: list[str], max_tokens: int) -> dict[str, Any]:
        return {"answers": [self.says[prompt] for prompt in prompts]}


def test_an_answer_that_is_not_right_is_a_violation_unless_the_service_says_that_it_is_lost() -> None:
    play = Play(cast(Client, Service()))
    for name in ("a", "-", "b", "-", "c"):
        play.post({"question": name}, Question(name, "x", ("x",)))
    assert list(play.owed) == ["a", "b", "c"] and play.rejected == ["r", "r"] and len(play.applied_ms) == 3
    for id in play.owed:
        play.check(id)
    assert play.num_checked == 3 and play.lost == {"b"} and play.violations == [{"id": "c", "says": "y"}]
    thread = threading.Thread(target=play.check_on, args=(0,))
    thread.start()
    while play.num_checked < 6:
        pass
    play.is_over.set()
    thread.join()


def test_costs_are_those_of_the_answers_between_two_looks() -> None:
    costs = [(0.0, {"tokens": 0.0}, 0.0), (1.0, {"tokens": 30.0}, 10.0), (2.0, {"tokens": 30.0}, 10.0)]
    assert over_time(costs, "tokens", 1.0) == [3.0, 0.0]
