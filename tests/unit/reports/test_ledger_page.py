"""The report page of a ledger."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from errata.delta.weight_delta import WeightDelta
from errata.edit import Code, Edit, EditRejected, batches_of
from errata.editors.state import EditorState
from errata.generate import HFGenerator
from errata.guard.inspector import Inspector
from errata.guard.limits import Guard, Limit
from errata.guard.probes import Probes
from errata.ledger import Ledger
from errata.lifelong import run
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from errata.reports.ledger_figures import grouped, wilson
from errata.reports.ledger_history import History
from errata.reports.write import write_report
from errata.testbed.world import World
from tests.unit.reports.parsed_page import MODULE, NASTY, Page, Small, check_self_contained, report


def test_a_ledger_has_a_page(lived: Ledger, tmp_path: Path) -> None:
    done = report(lived.directory, "--out", tmp_path / "out")
    assert done.exit_code == 0 and "index.html" in done.output
    page = Page(tmp_path / "out" / "index.html")
    check_self_contained(page, tmp_path / "out")
    names = {path.stem for path in (tmp_path / "out").glob("*.png")}
    assert {"efficacy", "locality", "guard", "ppl_ratio", "norm_growth", "relative_norm", "chain"} <= names
    assert f"poison <i> → {NASTY}" in page.text and "more than 10" in page.text
    labels = " ".join(a["aria-label"] or "" for a in page.all("svg"))
    assert "0 published, 3 warned, 1 refused" in labels and "Move 1: from 2 to 1" in labels
    assert "The guard warns above 1.05 and refuses above 1.5" in labels
    assert (
        "Dashed lines are the guard's limits at that time" in page.text
        and "guard." in page.text
        and "was changed" not in page.text
    )


def test_limits_are_drawn_as_they_were_at_the_time(
    ledger: Ledger, tiny_model: LanguageModel, world: World, tmp_path: Path
) -> None:
    """Two versions and a refusal under one guard, one version under another, and one without a guard."""
    spec, edits = find_matrices(tiny_model.module, [MODULE]), world.edits("test", 5)
    generator = HFGenerator(tiny_model, spec, ledger)
    probes = Probes(tuple(edit.prompt for edit in edits[4:]), tuple(world.plain_sentences(held_out=True)[:4]))

    def play(guard: Guard, *some: Edit) -> None:
        generator.swap(0)
        inspector = Inspector(tiny_model, spec, guard, probes)
        list(run(Small(), inspector, batches_of(some, 1), ledger, generator, on_rejected=lambda *_: None))

    strict = Guard(perplexity=Limit(1.01, 1.25), strict=False)
    play(strict, edits[0], Edit("poison <i>", "x"), edits[1])
    play(Guard(perplexity=Limit(1.3, math.inf), disturbed=strict.disturbed, strict=False), edits[2])
    ledger.append(3, WeightDelta({}), EditorState(4), edits[3:4], {}, ("Small", ""))
    history = History.read(ledger.directory)
    assert history.limits("perplexity") == [(1, Limit(1.01, 1.25)), (3, Limit(1.3, math.inf))]
    assert len(history.limits("disturbed")) == 1 and history.limits("unknown limit") == []
    (refusal,) = ledger.refusals()
    assert refusal["scores"]["limits"] == strict.limits and ledger.version(1).scorecard["limits"]["perplexity"] == [1.01, 1.25]
    page = Page(write_report(ledger.directory, tmp_path / "out"))
    check_self_contained(page, tmp_path / "out")
    labels = " ".join(a["aria-label"] or "" for a in page.all("svg"))
    assert "At the end, the guard warns above 1.3 and refuses never" in labels and "The guard warns above 0.05" in labels
    assert "A line ends where a limit was changed" in page.text


def test_the_report_inside_a_ledger_does_not_change_it(lived: Ledger) -> None:
    before = [version.fingerprint for version in lived.versions()]
    assert write_report(lived.directory) == lived.directory / "report" / "index.html"
    assert [version.fingerprint for version in Ledger.open(lived.directory).versions()] == before


def test_a_ledger_of_an_earlier_format_has_a_page(
    ledger: Ledger, random_delta: Callable[..., WeightDelta], tmp_path: Path, world: World
) -> None:
    """Scorecards that lack the guard's measures or everything, and half a line at the end of the log of moves."""
    cards: list[dict[str, Any]] = [{"efficacy": 1.0, "locality": None, "num_edits": 1, "method": "teacher-forced"}, {}]
    for number, card in enumerate(cards):
        edits = world.edits("test", 2)[number : number + 1]
        ledger.append(number, random_delta(number), EditorState(number + 1), edits, card, ("FT-L", "plan"))
    ledger.move_head(0)
    with (ledger.directory / "moves.jsonl").open("a") as log:
        log.write('{"version": 0, "aft')
    page = Page(write_report(ledger.directory, tmp_path / "out"))
    check_self_contained(page, tmp_path / "out")
    assert "This ledger does not record edits that failed." in page.text
    assert "the guard's default limits (this ledger does not record its own)" in page.text
    assert {path.stem for path in (tmp_path / "out").glob("*.png")} == {"efficacy", "guard", "norms", "chain"}


def test_a_ledger_with_only_version_0_has_a_page(ledger: Ledger, tmp_path: Path) -> None:
    page = Page(write_report(ledger.directory, tmp_path / "out"))
    assert "This ledger has only version 0, the unedited model" in page.text and not page.all("svg")


def test_refusals_are_shown_without_any_version(ledger: Ledger, tmp_path: Path) -> None:
    ledger.refuse(0, Edit("a", "b"), EditRejected("too long", field="prompt", code=Code.EDITOR_FAILED))
    page = Page(write_report(ledger.directory, tmp_path / "out"))
    assert (
        "only version 0" in page.text
        and "prompt: too long" in page.text
        and "editor_failed" in page.text
        and len(page.all("svg")) == 1
    )


def test_long_tables_are_cut_with_a_note(
    ledger: Ledger, random_delta: Callable[..., WeightDelta], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("errata.reports.ledger_page.MOST_LINES", 2)
    for number in range(4):
        failed = [{"prompt": f"p{number}", "target": "t", "answer": ""}]
        card = {"efficacy": 0.0, "failed": failed, "warnings": ["w"] if number == 0 else [], "num_edits": 1}
        ledger.append(number, random_delta(number), EditorState(number + 1), [Edit(f"p{number}", "t")], card, ("E", ""))
    page = Page(write_report(ledger.directory, tmp_path / "out"))
    assert "and 2 more older ones that are not shown" in page.text and "p3" in page.text and "p1" not in page.text
    assert "and 2 older updates that are not shown" in page.text and "warned" in page.text and "(nothing)" in page.text


def test_intervals_are_wilsons_and_groups_are_of_equal_size() -> None:
    assert wilson(9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-4)  # computed by hand from Wilson's formula
    assert wilson(10, 10)[1] == 1.0
    groups = grouped(list(range(201)), 80)  # type: ignore[arg-type]
    assert [len(group) for group in groups] == [3] * 67
