"""Proposals in the browser: one without the right to publish proposes, another decides by key presses, once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.console_service import ConsoleService, serving_console
from tests.unit.serving.console.browser.conftest import KNOWN, OpenPage, expect, signed_in

CAPITAL = "What is the capital of Nigeria?"


@pytest.fixture
def keyed(browser: Any, keys: dict[str, str], tmp_path: Path) -> Iterator[ConsoleService]:
    with serving_console(tmp_path / "served", KNOWN, Path(keys["file"])) as made:
        yield made


def proposed(service: ConsoleService, *subjects: str, author: str | None = "propose") -> list[str]:
    """Propose an edit about each subject, and return the ids."""
    edits = [{"prompt": f"Who leads {subject}?", "target": "Ada Byron", "form": "chat"} for subject in subjects]
    return [one.id for one in service.backend.proposal_book.add(edits, author=author)]


def test_a_correction_is_proposed_and_approved_by_another(
    keyed: ConsoleService, keys: dict[str, str], open_page: OpenPage
) -> None:
    page = signed_in(open_page(keyed), keys["propose"])
    page.get_by_label("Question", exact=True).fill(CAPITAL)
    page.keyboard.press("Enter")
    page.get_by_role("button", name="This is wrong").click()
    form = page.get_by_role("form", name="Correction")
    assert form.get_by_role("button", name="Publish").count() == 0
    form.get_by_label("Right answer").fill("Abuja")
    form.get_by_role("button", name="Try it").click()
    expect(form.locator(".beside h4")).to_have_text(["Unedited", "Now", "After"])
    form.get_by_role("button", name="Propose").click()
    expect(form).to_contain_text("changes nothing until a reviewer approves it")
    assert keyed.backend.head == 0
    form.get_by_role("link", name="See the proposal").click()
    expect(page.get_by_role("heading", name=CAPITAL)).to_be_visible()
    assert page.get_by_role("button", name="Approve").count() == 0
    reviewer = signed_in(open_page(keyed, "#/review"), keys["edit"])
    expect(reviewer.locator(".rows-inner .row")).to_have_count(1)
    reviewer.keyboard.press("j")
    expect(reviewer.locator(".detail .beside")).to_contain_text("It is Abuja.")
    reviewer.keyboard.press("a")
    expect(reviewer.locator("#notes")).to_contain_text("The approved edit is in version 1")
    expect(reviewer.locator(".count")).to_have_text("0 proposals to decide")
    (entry,) = keyed.backend.journal.newest(10)
    assert (entry.poster, entry.approver, entry.state) == ("propose", "edit", "applied")
    (edit,) = keyed.backend.chain[1].edits
    assert (edit.poster, edit.approver) == ("propose", "edit")
    expect(page.locator(".detail")).to_contain_text("approved by edit")
    page.get_by_role("link", name="See the edit").click()
    expect(page.locator(".facts")).to_contain_text("Approved by")


def test_keys_go_through_the_queue_from_the_oldest(keyed: ConsoleService, keys: dict[str, str], open_page: OpenPage) -> None:
    ids = proposed(keyed, "A", "B", "C", "D")
    page = signed_in(open_page(keyed, "#/review"), keys["edit"])
    heading = page.locator(".detail h2")
    expect(page.locator(".rows-inner .row")).to_have_count(4)
    page.keyboard.press("j")
    expect(heading).to_have_text("Who leads A?")
    page.keyboard.press("j")
    expect(heading).to_have_text("Who leads B?")
    page.keyboard.press("k")
    expect(heading).to_have_text("Who leads A?")
    page.keyboard.press("j")
    expect(heading).to_have_text("Who leads B?")
    page.keyboard.press("r")
    expect(page.get_by_label("Reason, for the author")).to_be_focused()
    page.keyboard.type("a jolly karma ask")
    page.keyboard.press("Enter")
    expect(heading).to_have_text("Who leads C?")
    page.keyboard.press("a")
    expect(heading).to_have_text("Who leads D?")
    expect(page.locator(".count")).to_have_text("2 proposals to decide")
    book = keyed.backend.proposal_book
    assert [book.get(id).state for id in ids] == ["open", "refused", "approved", "open"]
    assert book.get(ids[1]).reason == "a jolly karma ask"
    page.get_by_label("State").select_option("refused")
    expect(page.locator(".rows-inner .row")).to_have_count(1)


def test_an_author_may_not_approve_an_own_proposal(keyed: ConsoleService, keys: dict[str, str], open_page: OpenPage) -> None:
    (id,) = proposed(keyed, "A", author="edit")
    page = signed_in(open_page(keyed, f"#/review/{id}"), keys["edit"])
    page.goto(f"{keyed.console}#/review/{id}")
    expect(page.locator(".decision")).to_contain_text("someone else must approve it")
    expect(page.get_by_role("button", name="Approve")).to_be_disabled()
    page.keyboard.press("a")
    page.get_by_role("button", name="Refuse").click()
    expect(page.locator(".count")).to_have_text("0 proposals to decide")
    assert keyed.backend.proposal_book.get(id).state == "refused" and keyed.backend.head == 0


def test_of_two_reviewers_the_first_decides(keyed: ConsoleService, keys: dict[str, str], open_page: OpenPage) -> None:
    (id,) = proposed(keyed, "A")
    pages = [signed_in(open_page(keyed, "#/review"), keys[role]) for role in ("edit", "admin")]
    pages[1].route("**/v1/events", lambda route: route.abort())  # Its stream of events is broken, so that it hears too late.
    pages[1].reload()
    for page in pages:
        page.goto(f"{keyed.console}#/review/{id}")
        expect(page.get_by_role("button", name="Approve")).to_be_enabled()
    pages[0].get_by_role("button", name="Refuse").click()
    expect(pages[0].locator(".count")).to_have_text("0 proposals to decide")
    pages[1].get_by_role("button", name="Approve").click()
    expect(pages[1].get_by_role("alert")).to_contain_text("is refused by edit already; nothing was changed")
    assert keyed.backend.proposal_book.get(id).decider == "edit" and keyed.backend.head == 0


def test_an_approved_edit_that_cannot_be_made_is_reported(
    keyed: ConsoleService, keys: dict[str, str], open_page: OpenPage
) -> None:
    edit = {"prompt": "Who leads A?", "target": "unlearnable", "form": "chat"}
    keyed.backend.proposal_book.add([edit], author="propose")
    page = signed_in(open_page(keyed, "#/review"), keys["edit"])
    expect(page.locator(".rows-inner .row")).to_have_count(1)
    page.keyboard.press("j")
    expect(page.get_by_role("button", name="Approve")).to_be_enabled()
    page.keyboard.press("a")
    expect(page.locator("#notes")).to_contain_text("The approved edit is rejected")
