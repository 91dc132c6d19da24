"""The console in a real browser over the running application: ask, try, publish, see the new answer, take it back."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.serving.application import FACTS, App
from tests.fakes.chromium import chromium

pytestmark = pytest.mark.e2e

TIMEOUT_MS = 60_000
QUESTION = FACTS[62][0]


def asked(page: Any) -> Any:
    """Ask the question and return its turn, once the answer has ended."""
    page.get_by_label("Question", exact=True).fill(QUESTION)
    page.get_by_role("button", name="Ask", exact=True).click()
    turn = page.locator(".turn").last
    turn.locator(".by").wait_for()
    return turn


def test_a_person_corrects_an_answer_and_takes_it_back_in_a_browser(app: App) -> None:
    with chromium() as browser:
        context = browser.new_context()
        context.set_default_timeout(TIMEOUT_MS)
        page = context.new_page()
        page.goto(f"{app.http.base_url}/console")
        turn = asked(page)
        first, head = turn.locator(".answer").inner_text(), app.ledger.head
        turn.get_by_role("button", name="This is wrong").click()
        form = page.get_by_role("form", name="Correction")
        form.get_by_label("Right answer").fill("dog")
        form.get_by_role("button", name="Try it").click()
        form.locator(".beside").wait_for()
        assert form.locator(".beside h4").all_inner_texts() == ["Unedited", "Now", "After"]
        assert "dog" in form.locator(".beside").inner_text() and app.ledger.head == head
        form.get_by_role("button", name="Publish").click()
        turn.locator(".answer", has_text="dog").wait_for()
        assert app.ledger.head == head + 1
        turn.get_by_role("button", name="Take it back").click()
        box = page.get_by_role("dialog")
        box.get_by_role("button", name="Take out").click()
        box.get_by_text("Taken out in version").first.wait_for()
        box.get_by_role("button", name="Close").click()
        assert asked(page).locator(".answer").inner_text() == first
        context.close()
