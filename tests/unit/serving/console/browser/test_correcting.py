"""A person asks, corrects, tries, publishes, sees the new answer and takes it back."""

from __future__ import annotations

from typing import Any

from tests.fakes.backend import UNMADE
from tests.fakes.console_service import CONTEXT, ConsoleService, serving_console
from tests.unit.serving.console.browser.conftest import KNOWN, OpenPage, expect, post

CAPITAL = "What is the capital of Nigeria?"


def asked(page: Any, question: str) -> Any:
    """Ask a question and return its answer's element."""
    page.get_by_label("Question", exact=True).fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()
    turn = page.locator(".turn").last
    expect(turn.locator(".by")).to_be_visible()
    return turn


def test_ask_correct_try_publish_and_take_back(service: ConsoleService, open_page: OpenPage) -> None:
    page = open_page(service)
    turn = asked(page, CAPITAL)
    expect(turn.locator(".answer")).to_contain_text("Lagos")
    expect(turn.locator(".by")).to_have_text("version v0")
    turn.get_by_role("button", name="This is wrong").click()
    form = page.get_by_role("form", name="Correction")
    assert form.get_by_label("Question", exact=True).input_value() == CAPITAL
    assert form.get_by_label("Subject").input_value() == "Nigeria"
    form.get_by_label("Right answer").fill("Abuja")
    form.get_by_role("button", name="Try it").click()
    trial = form.locator(".trial")
    expect(trial.locator(".beside h4")).to_have_text(["Unedited", "Now", "After"])
    expect(trial.locator(".beside")).to_contain_text("It is Abuja.")
    expect(trial).to_contain_text("1 other answer would change")
    assert service.backend.head == 0 and service.backend.journal.newest(10) == []
    form.get_by_role("button", name="Publish").click()
    expect(turn.locator(".by")).to_have_text("version v1")
    expect(turn.locator(".answer ins").last).to_contain_text("Abuja.")
    expect(form.locator(".beside h4")).to_have_text(["Unedited", "Before", "Now"])
    turn.get_by_role("button", name="Take it back").click()
    box = page.get_by_role("dialog")
    expect(box).to_contain_text("Live now: version 1")
    expect(box.locator(".changes")).to_contain_text("Lagos")
    box.get_by_role("button", name="Try it").click()
    expect(box.locator(".trial")).to_contain_text("Tried on version 1; nothing was published")
    expect(box.locator(".trial table")).to_contain_text("Abuja")
    expect(box.locator(".trial table")).to_contain_text("Lagos")
    assert service.backend.head == 1
    box.get_by_role("button", name="Take out").click()
    expect(box).to_contain_text("Taken out in version 2")
    box.get_by_role("button", name="Close").click()
    expect(asked(page, CAPITAL).locator(".answer")).to_contain_text("Lagos")
    assert service.backend.head == 2


def test_an_edit_that_cannot_be_made_says_what_the_model_says(service: ConsoleService, open_page: OpenPage) -> None:
    page = open_page(service)
    turn = asked(page, CAPITAL)
    turn.get_by_role("button", name="This is wrong").click()
    form = page.get_by_role("form", name="Correction")
    form.get_by_label("Right answer").fill(UNMADE)
    form.get_by_label("Subject").fill("Ghana")
    form.get_by_role("button", name="Publish").click()
    expect(form.get_by_role("alert")).to_contain_text("subject: does not occur in the prompt")
    expect(form.get_by_label("Subject")).to_have_attribute("aria-invalid", "true")
    form.get_by_label("Subject").fill("Nigeria")
    form.get_by_role("button", name="Publish").click()
    expect(form.get_by_role("alert")).to_contain_text("The model says: ")
    expect(form.get_by_role("alert")).to_contain_text(KNOWN[CAPITAL])
    assert service.backend.head == 0


def test_the_keyboard_is_enough(service: ConsoleService, open_page: OpenPage) -> None:
    page = open_page(service)
    expect(page.get_by_label("Question", exact=True)).to_be_focused()
    page.keyboard.type("What is the atomic number of zinc?")
    page.keyboard.press("Enter")
    wrong = page.get_by_role("button", name="This is wrong")
    expect(wrong).to_be_visible()
    for _ in range(30):
        if wrong.evaluate("element => element === document.activeElement"):
            break
        page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Right answer")).to_be_focused()
    page.keyboard.type("30")
    page.keyboard.press("Enter")
    expect(page.locator(".turn .answer ins").last).to_contain_text("30.")
    assert service.backend.head == 1


def test_an_answer_leaves_room_for_its_question_in_a_small_context(service: ConsoleService, open_page: OpenPage) -> None:
    page = open_page(service)
    with page.expect_request("**/v1/chat/completions") as sent:
        asked(page, CAPITAL)
    assert sent.value.post_data_json["max_tokens"] == CONTEXT // 2


def test_the_version_behind_an_answer_is_found(service: ConsoleService, open_page: OpenPage) -> None:
    page = open_page(service)
    post(page, [{"question": CAPITAL, "target": "Abuja"}])
    turn = asked(page, CAPITAL)
    turn.get_by_role("button", name="Which version says so?").click()
    expect(turn.locator(".more")).to_contain_text("Since version v1")
    expect(turn.locator(".more ul")).to_contain_text("Abuja")


HOSTILE = '<img src=x onerror="alert(1)"><script>alert(2)</script>{{7*7}}"\'><b>&lt;'


def test_texts_of_users_are_never_markup(service: ConsoleService, open_page: OpenPage) -> None:
    page = open_page(service)
    service.backend.known[HOSTILE] = HOSTILE
    ids = post(
        page, [{"question": HOSTILE, "target": HOSTILE, "subject": HOSTILE, "rephrasings": [HOSTILE], "aliases": [HOSTILE]}]
    )
    turn = asked(page, HOSTILE)
    expect(turn.locator(".question")).to_have_text(HOSTILE)
    expect(turn.locator(".answer")).to_contain_text(HOSTILE)
    (proposed,) = service.backend.proposal_book.add([{"prompt": HOSTILE, "target": HOSTILE, "form": "chat"}], author="ann")
    (refused,) = service.backend.proposal_book.add([{"prompt": "p", "target": "t", "form": "chat"}])
    service.backend.proposal_book.refuse(refused.id, None, HOSTILE)
    for path in (
        f"#/review/{proposed.id}",
        f"#/review/{refused.id}",
        f"#/edits/{ids[0]}",
        "#/versions/1",
        "#/versions/compare/0/1",
        "#/now",
    ):
        page.goto(f"{service.console}{path}")
        page.reload()
        expect(page.locator("main")).to_contain_text(HOSTILE if path != "#/now" else "Ready")
        assert page.locator("main img, main script, main b").count() == 0


def test_a_key_signs_in_and_its_role_decides_what_is_shown(
    browser: Any, keys: dict[str, str], open_page: OpenPage, tmp_path: Any
) -> None:
    with serving_console(tmp_path / "served", KNOWN, keys["file"]) as service:
        page = open_page(service)
        page.get_by_label("Key").fill("x" * 43)
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_contain_text("unknown or has expired")
        for role, can_edit in (("read", False), ("propose", False), ("edit", True)):
            page.get_by_label("Key").fill(keys[role])
            page.get_by_role("button", name="Sign in").click()
            expect(page.locator(".who")).to_have_text(f"{role} · {role}")
            page.get_by_role("link", name="Ask").click()
            turn = asked(page, CAPITAL)
            assert (turn.get_by_role("button", name="This is wrong").count() == 1) is (role != "read")
            assert (page.get_by_role("link", name="Review").count() == 1) is (role != "read")
            page.get_by_role("link", name="Edits").click()
            expect(page.get_by_role("button", name="Export")).to_be_visible()
            assert (page.get_by_role("button", name="Import a file").count() == 1) is can_edit
            page.goto(f"{service.console}#/versions/0")
            expect(page.get_by_role("heading", name="Version 0")).to_be_visible()
            assert page.get_by_role("button", name="Serve this version").count() == 0
            assert keys[role] not in str(page.context.storage_state())
            page.get_by_role("button", name="Sign out").click()
            expect(page.get_by_label("Key")).to_be_visible()
            assert page.evaluate("sessionStorage.length") == 0
