"""The history of a ledger, read from its files."""

import json
from collections.abc import Callable
from pathlib import Path

from errata.delta.weight_delta import WeightDelta
from errata.edit import Edit
from errata.editors.state import EditorState
from errata.history.lineage import live_edits
from errata.ledger import Ledger
from errata.reports.ledger_history import History
from errata.reports.write import write_report
from tests.unit.reports.parsed_page import NASTY, Page, check_self_contained


def test_a_history_has_points_events_moves_and_failed_edits(lived: Ledger) -> None:
    history = History.read(lived.directory)
    assert [(p.version.number, p.edits, p.is_main) for p in history.points] == [(1, 2, True), (2, 3, False), (3, 3, True)]
    assert [(event.outcome, event.version) for event in history.events] == [
        ("warned", 1),
        ("warned", 2),
        ("refused", 2),
        ("warned", 3),
    ]
    assert [(move.before, move.version, move.after) for move in history.moves] == [(2, 1, 2)]
    assert history.failed[0].target == NASTY and history.failed[0].version == 3
    assert (history.head, history.edits_at(3), history.edits_at(0)) == (3, 3, 0)


def test_a_subtracted_version_no_longer_counts_as_held(
    ledger: Ledger, random_delta: Callable[..., WeightDelta], tmp_path: Path
) -> None:
    """`edits` still counts them, because it is the position of a version in the figures."""
    taken_out = {"reverted": {"edits": ["b"], "versions": [2], "mode": "subtract"}}
    for number, (ids, card) in enumerate([("a", {}), ("bc", {}), ("", taken_out), ("d", {})]):
        edits = [Edit(f"the prompt of {id}", "x", id=id) for id in ids]
        ledger.append(number, random_delta(number), EditorState(), edits, card, ("E", "p"))
    ledger.append(1, random_delta(5), EditorState(), [Edit("e", "x")], {}, ("E", "p"), expected_head=4)
    history = History.read(ledger.directory)
    assert [(point.edits, point.held) for point in history.points] == [(1, 1), (3, 3), (3, 1), (4, 2), (2, 2)]
    assert [history.held_by(number) for number in range(6)] == [len(list(live_edits(ledger, number))) for number in range(6)]
    ledger.move_head(4)
    assert "version 4, 2 edits" in Page(write_report(ledger.directory, tmp_path / "out")).text


def test_a_quarantined_version_is_left_out(lived: Ledger, tmp_path: Path) -> None:
    folder = lived.directory / "versions" / "00000002"
    folder.rename(folder.with_suffix(".corrupt"))
    history = History.read(lived.directory)
    assert [(p.version.number, p.edits, p.is_main) for p in history.points] == [(1, 2, True), (3, 3, True)]
    check_self_contained(Page(write_report(lived.directory, tmp_path / "out")), tmp_path / "out")


def test_refusals_without_a_code_are_shown(ledger: Ledger, tmp_path: Path) -> None:
    """Older ledgers recorded the reason alone."""
    record = {"time": "2025-01-01T00:00:00+00:00", "parent": 0, "edit": {"prompt": "a", "target": "b"}, "reason": "too long"}
    (ledger.directory / "refusals.jsonl").write_text(json.dumps(record) + "\n")
    (event,) = History.read(ledger.directory).events
    assert (event.outcome, event.code, event.reasons) == ("refused", "", ("too long",))
    assert "too long" in Page(write_report(ledger.directory, tmp_path / "out")).text
