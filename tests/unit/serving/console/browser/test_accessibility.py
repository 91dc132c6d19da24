"""Each page has no fault of WCAG 2 A or AA that axe-core finds, narrow and wide, light and dark, and no sideways scrolling."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.backend import UNMADE
from tests.fakes.console_service import ConsoleService
from tests.unit.serving.console.browser.conftest import OpenPage, expect, post

axe_playwright = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
OPTIONS = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"], "resultTypes": ["violations"]}


def faults(page: Any) -> list[str]:
    found = axe_playwright.Axe().run(page, options=OPTIONS).response["violations"]
    return [f"{one['id']}: {node['html'][:120]} {node['failureSummary'][:200]}" for one in found for node in one["nodes"]]


def correcting(page: Any) -> None:
    page.get_by_label("Question", exact=True).fill("What is the capital of Nigeria?")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="This is wrong").click()
    page.get_by_label("Right answer").fill("Abuja")
    page.get_by_role("button", name="Try it").click()
    expect(page.locator(".trial .beside")).to_be_visible()


def looking(heading: str) -> Any:
    return lambda page: expect(page.get_by_role("heading", name=heading, exact=True)).to_be_visible()


def going_back(page: Any) -> None:
    page.get_by_role("button", name="Serve this version").click()
    expect(page.get_by_role("dialog").locator("table")).to_be_visible()


PAGES = {
    "#/ask": correcting,
    "#/edits": lambda page: expect(page.locator(".rows-inner .row").first).to_be_visible(),
    "#/edits/ID": looking("Who leads nothing?"),
    "#/versions": lambda page: expect(page.locator(".rows-inner .row").first).to_be_visible(),
    "#/versions/1": going_back,
    "#/versions/compare/0/2": looking("Version 0 and version 2"),
    "#/review": lambda page: expect(page.locator(".rows-inner .row").first).to_be_visible(),
    "#/review/PROPOSAL": lambda page: expect(page.locator(".detail .beside")).to_be_visible(),
    "#/now": lambda page: expect(page.locator(".now-replicas table")).to_be_visible(),
}


@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (1600, "dark")])
def test_pages_have_no_fault(service: ConsoleService, open_page: OpenPage, width: int, scheme: str) -> None:
    page = open_page(service, width=width, scheme=scheme)
    for i in range(2):
        post(page, [{"question": f"Who leads company {i}?", "target": f"Person {i}"}])
    (id,) = post(page, [{"question": "Who leads nothing?", "target": UNMADE}])
    proposed = service.backend.proposal_book.add([{"prompt": "Who leads ACME?", "target": "Ada", "form": "chat"}], author="ann")
    for path, prepare in PAGES.items():
        page.goto(f"{service.console}{path.replace('ID', id).replace('PROPOSAL', proposed[0].id)}")
        page.reload()
        prepare(page)
        assert faults(page) == [], path
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
