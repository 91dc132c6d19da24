"""The checks of a history: a good one passes, and each way to break a promise is found under its letter alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.checks import CHECKS, doubled, lost, violations
from tests.chaos.history import LOST, OUT_OF_USE, Chain, ChainEdit, ChainVersion, History, JournalRow, Move, Operation

A, B, C, D = "a" * 8, "b" * 8, "c" * 8, "d" * 8
WHO, WHERE = "who", "where"


def version(number: int, parent: int, *edits: tuple[str, str], **more: Any) -> ChainVersion:
    return ChainVersion(number, parent, tuple(ChainEdit(*edit) for edit in edits), **more)


def post(at: float, ids: Sequence[str], wait: int | None = None, made: Sequence[str] | None = None, key: str = "") -> Operation:
    """Make an acknowledged post; `wait` is the version that its answer has."""
    answer = {"ids": list(ids), "made": list(ids if made is None else made)} | ({} if wait is None else {"version": wait})
    given = {"edits": [], "wait": wait is not None, "key": key or f"key {at}"}
    return Operation("edit", at, at + 0.5, given, 200 if wait is not None else 202, answer)


def ask(at: float, by: int, text: str = "x", at_least: int = 0, prompt: str = WHO, until: int | None = None) -> Operation:
    answer = {"version": by, "version_min": by, "version_max": by if until is None else until, "text": text}
    return Operation("ask", at, at + 0.5, {"prompt": prompt, "at_least": at_least}, 200, answer)


def rollback(at: float, to: int, expected: int | None = None, answered: bool = True) -> Operation:
    given = {"version": to, "expected_head": expected}
    if not answered:
        return Operation("rollback", at, None, given, 503)
    return Operation("rollback", at, at + 0.5, given, 200, {"version": to})


def revert(at: float, ids: Sequence[str], made: int) -> Operation:
    return Operation("revert", at, at + 0.5, {"edits": list(ids), "mode": "auto"}, 200, {"version": made})


def look(at: float, head: int, **replicas: int) -> Operation:
    return Operation("look", at, at + 0.1, {}, 200, {"head": head, "replicas": replicas})


def page(at: float, *ids: str) -> Operation:
    return Operation("page", at, at + 0.1, {}, 200, {"ids": list(ids)})


def row(seq: int, id: str, prompt: str, state: str, version: int | None = None, **more: Any) -> JournalRow:
    return JournalRow(seq, id, prompt, state, version, **more)


# Two posts to one prompt, a rollback to the first, a third post on top of it, and its revert.
CHAIN = Chain(
    (
        version(1, 0, (A, WHO)),
        version(2, 1, (B, WHO)),
        version(3, 1, (C, WHERE)),
        version(4, 3, reverted={"mode": "subtract", "edits": [C], "versions": [3]}),
    ),
    (Move(1, 2),),
)
OPERATIONS = (
    post(0, [A], wait=1),
    ask(1, 1, "one"),
    look(1.2, 1, r1=1, r2=1),
    post(2, [B], wait=2),
    ask(3, 2, "two", at_least=1),
    look(3.2, 2, r1=2, r2=2),
    rollback(4, 1, expected=2),
    ask(5, 1, "one", at_least=1),
    look(5.2, 1, r1=1, r2=1),
    post(6, [C], wait=3),
    ask(7, 3, "one", at_least=1),
    look(7.2, 3, r1=3, r2=1),
    revert(8, [C], 4),
    page(8.5, C, B, A),
    ask(9, 4, "one", at_least=3),
    look(9.2, 4, r1=4, r2=4),
    Operation("edit", 10, None, {"edits": [], "wait": True, "key": "no answer"}),
)
ROWS = (row(0, A, WHO, "applied", 1), row(1, B, WHO, "applied", 2), row(2, C, WHERE, "reverted", 4))
GOOD = History(OPERATIONS, CHAIN, ROWS)


def found(history: History) -> str:
    """Return the letters of the checks that a history violates."""
    return "".join(letter for letter, sentences in violations(history).items() if sentences)


def plus(*operations: Operation, chain: Chain = CHAIN, rows: tuple[JournalRow, ...] = ROWS) -> History:
    return History((*OPERATIONS, *operations), chain, rows)


def test_a_good_history_violates_nothing() -> None:
    assert violations(GOOD) == {letter: [] for letter in CHECKS}
    assert [step.version for step in CHAIN.heads] == [0, 1, 2, 1, 3, 4]
    assert [edit.id for edit in CHAIN.held(4)] == [A] and GOOD.acknowledged == [A, B, C]


def test_a_history_is_the_same_after_it_was_saved(tmp_path: Path) -> None:
    GOOD.save(tmp_path / "history.json")
    assert violations(History.load(tmp_path / "history.json")) == violations(GOOD)
    assert History.load(tmp_path / "history.json").chain.heads == CHAIN.heads


STATES = {
    "an edit that the journal does not know": (plus(post(20, [D])), "a"),
    "an edit that is open at the end": (plus(post(20, [D]), rows=(*ROWS, row(3, D, WHO, "queued"))), "a"),
    "an edit that is rejected for the service's fault": (plus(post(20, [D]), rows=(*ROWS, row(3, D, WHO, "rejected"))), "a"),
    "an edit that an earlier one supersedes": (plus(post(20, [D]), rows=(*ROWS, row(3, D, WHO, "superseded", 4))), "a"),
    "a walk over the pages that lacks an edit": (plus(page(20, C, A)), "a"),
    "a walk over the pages that shows an edit twice": (plus(page(20, C, B, B, A)), "a"),
    "a key that makes two edits": (plus(post(20, [A], key="k"), post(21, [B], key="k")), "a"),
    "an answer by a lower lineage": (plus(ask(20, 4, "one", at_least=2)), "c"),
    "two answers of one version": (plus(ask(20, 4, "two")), "f"),
    "a replica that goes back": (plus(look(20, 4, r1=2)), "e"),
    "a head that goes back": (plus(look(20, 3)), "e"),
    "a replica at a version that is no head": (plus(look(20, 4, r3=9)), "e"),
    "an answer by a stale version": (plus(post(20, [A], wait=4, made=[]), ask(21, 3, "one")), "d"),
    "a move that expected another head": (
        plus(Operation("rollback", 20, 21, {"version": 1, "expected_head": 3}, 200, {"version": 1})),
        "g",
    ),
    "a revert that the journal does not know": (plus(rows=(*ROWS[:2], row(2, C, WHERE, "applied", 3))), "ag"),
    "a revert that the chain does not know": (plus(revert(20, [A], 4), rows=(row(0, A, WHO, "reverted", 4), *ROWS[1:])), "g"),
    "a refused edit in the head": (plus(rows=(row(0, A, WHO, "rejected", may_be_refused=True), *ROWS[1:])), "g"),
    "an edit in no version": (plus(rows=(*ROWS, row(3, D, WHO, "applied", 9))), "g"),
    "a head with an edit that the journal lost": (plus(rows=ROWS[1:]), "ag"),
}


@pytest.mark.parametrize(("history", "letters"), STATES.values(), ids=STATES)
def test_a_violation_is_found_under_its_letter(history: History, letters: str) -> None:
    assert found(history) == letters


def test_an_edit_that_left_the_head_without_a_request_is_lost() -> None:
    without = tuple(one for one in OPERATIONS if one.kind != "rollback")
    history = History(without, CHAIN, ROWS)
    assert [sentence[:13] for sentence in lost(history)] == [f"edit {B}"]
    assert found(history) == "adg"  # It is not visible any more, and the head's move has no author.


def test_an_edit_whose_revert_was_gone_back_from_is_applied_and_not_live() -> None:
    """C is taken out by version 4, and the head then goes back to before both: the revert does not count any more."""
    rows = (*ROWS[:2], row(2, C, WHERE, "applied", 3))
    back = replace(CHAIN, moves=(*CHAIN.moves, Move(1, 4)))
    assert found(plus(rollback(20, 1), chain=back, rows=rows)) == ""
    assert found(plus(rows=rows)) == "ag", "the head still follows the revert"
    unasked = tuple(one for one in OPERATIONS if one.kind != "revert")
    assert "a" in found(History((*unasked, rollback(20, 1)), back, rows))


def test_a_rollback_without_an_answer_may_have_been_made() -> None:
    asked = tuple(rollback(4, 1, answered=False) if one.kind == "rollback" else one for one in OPERATIONS)
    assert found(History(asked, CHAIN, ROWS)) == ""
    late = tuple(rollback(50, 1, answered=False) if one.kind == "rollback" else one for one in OPERATIONS)
    assert found(History(late, CHAIN, ROWS)) == "d"  # It was asked for after the answers that lack the edit.


def test_an_older_post_on_top_of_a_newer_one_is_found() -> None:
    """The crash between append and settling: the later post of a batch is made, and then the earlier one on top."""
    chain = Chain((version(1, 0, (B, WHO)), version(2, 1, (A, WHO))))
    rows = (row(0, A, WHO, "applied", 2), row(1, B, WHO, "applied", 1))
    assert found(History((post(0, [A, B]),), chain, rows)) == "b"


def test_an_edit_that_is_made_twice_is_found() -> None:
    chain = Chain((version(1, 0, (A, WHO)), version(2, 1, (A, WHO))))
    history = History((post(0, [A]),), chain, (row(0, A, WHO, "applied", 1),))
    assert found(history) == "a" and len(list(doubled(history))) == 1


def test_a_revert_that_no_client_asked_for_is_found() -> None:
    without = tuple(one for one in OPERATIONS if one.kind != "revert")
    assert found(History(without, CHAIN, ROWS)) == "ad"


def test_a_damaged_head_gives_way_and_its_edits_are_made_again() -> None:
    """The replicas go back without a rollback, and the edits are in the next version, which may answer for the damaged one."""
    chain = Chain((version(1, 0, (A, WHO)), version(2, 1, (B, WHO), fate=LOST), version(3, 1, (B, WHO))))
    rows = (row(0, A, WHO, "applied", 1), row(1, B, WHO, "applied", 3))
    operations = (post(0, [A], wait=1), post(1, [B], wait=2), look(2, 2, r1=2), ask(3, 1), look(3, 1, r1=1), look(4, 3, r1=3))
    history = History((*operations, ask(5, 3, at_least=2)), chain, rows)
    assert [step.version for step in chain.heads] == [0, 1, 2, 1, 3] and found(history) == ""
    assert found(History((*history.operations, ask(6, 1, at_least=2)), chain, rows)) == "c"
    again = (*rows[:1], replace(rows[1], state="queued"))
    assert found(History(operations[:-1], Chain(chain.versions[:2]), again)) == "a"


def test_a_version_that_is_damaged_after_a_rollback_takes_nothing_with_it() -> None:
    chain = Chain((version(1, 0, (A, WHO)), version(2, 1, (B, WHO), fate=OUT_OF_USE)), (Move(1, 2),))
    rows = (row(0, A, WHO, "applied", 1), row(1, B, WHO, "applied", 2))
    history = History((post(0, [A], wait=1), post(1, [B], wait=2), rollback(2, 1), ask(3, 1)), chain, rows)
    assert [step.version for step in chain.heads] == [0, 1, 2, 1] and found(history) == ""


def test_a_retracted_version_is_a_loss_and_no_move() -> None:
    chain = Chain((version(1, 0, (A, WHO), fate=LOST), version(2, 0, (A, WHO))), (Move(0, 1, is_requested=False),))
    history = History((post(0, [A], wait=1), ask(1, 0), ask(2, 2)), chain, (row(0, A, WHO, "applied", 2),))
    assert [step.cause for step in chain.heads] == ["append", "append", "loss", "append"] and found(history) == ""


def test_a_replayed_revert_follows_the_head_that_it_was_made_for() -> None:
    reverted = {"mode": "replay", "edits": [A], "versions": [1], "head": 2}
    chain = Chain((version(1, 0, (A, WHO)), version(2, 1, (B, WHERE)), version(3, 0, (B, WHERE), reverted=reverted)))
    rows = (row(0, A, WHO, "reverted", 3), row(1, B, WHERE, "applied", 3))
    operations = (post(0, [A], wait=1), post(1, [B], wait=2), revert(2, [A], 3), ask(3, 3, at_least=2))
    assert found(History(operations, chain, rows)) == ""


def test_an_answer_over_a_swap_names_two_versions_and_counts_for_neither() -> None:
    assert found(plus(ask(20, 4, "other", until=5))) == ""
