"""Chromium, a service with its console for each test, and a page that may ask no other host and may raise no error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from errata.access_keys import add_key
from tests.fakes.chromium import chromium
from tests.fakes.console_service import ConsoleService, serving_console

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -r requirements/dev.txt")
TIMEOUT_MS = 60_000  # For machines that do much else.
expect = sync_api.expect
expect.set_options(timeout=TIMEOUT_MS)
KNOWN = {
    "What is the capital of Nigeria?": "The capital of Nigeria is Lagos, which is the largest city of the country.",
    "What is the atomic number of zinc?": "The atomic number of zinc is 9.",
}
NUM_EDITS, NUM_VERSIONS = 10_000, 2_000
OpenPage = Callable[..., Any]


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    """Start Chromium; it ends with this package, because its event loop would forbid others in this thread."""
    with chromium() as made:
        yield made


@pytest.fixture
def service(browser: Any, tmp_path: Path) -> Iterator[ConsoleService]:
    with serving_console(tmp_path, KNOWN) as made:
        yield made


@pytest.fixture(scope="package")
def large(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleService]:
    """Serve ten thousand edits in two thousand versions, for tests that change nothing."""
    edits = [{"prompt": f"Who leads company {i}?", "target": f"Person {i}", "form": "chat"} for i in range(NUM_EDITS)]
    size = NUM_EDITS // NUM_VERSIONS
    with serving_console(tmp_path_factory.mktemp("large"), KNOWN) as made:
        ids = made.backend.journal.submit(edits)
        for number in range(1, NUM_VERSIONS + 1):
            some = slice((number - 1) * size, number * size)
            posted = [{**edit, "id": id} for edit, id in zip(edits[some], ids[some], strict=True)]
            made.backend.append(posted, ["?"] * size)
            made.backend.journal.finish(ids[some], number)
        yield made


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, str]:
    """Keys by role, each with the role as its name; `file` is their file."""
    file = tmp_path / "keys.json"
    return {role: add_key(file, role, role) for role in ("read", "propose", "edit", "admin")} | {"file": str(file)}


@pytest.fixture
def open_page(browser: Any) -> Iterator[OpenPage]:
    """Open pages in contexts of their own; afterwards none has asked another host or raised an error."""
    contexts: list[Any] = []
    faults: list[str] = []

    def opened(service: ConsoleService, path: str = "#/ask", width: int = 1200, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, accept_downloads=True)
        contexts.append(context)
        context.set_default_timeout(TIMEOUT_MS)
        page = context.new_page()
        host = urlsplit(service.url).netloc
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: faults.append(f"dialog {dialog.message}"))
        page.on("console", lambda said: faults.append(said.text) if "Content Security Policy" in said.text else None)
        page.on("request", lambda asked: faults.append(asked.url) if urlsplit(asked.url).netloc not in (host, "") else None)
        page.goto(f"{service.console}{path}")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert faults == []


def signed_in(page: Any, key: str) -> Any:
    """Sign in on a page that asks for a key, and return the page."""
    page.get_by_label("Key").fill(key)
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator("#live")).to_be_visible()
    return page


def post(page: Any, edits: list[dict[str, Any]]) -> list[str]:
    """Post edits through the page's own route, wait until they are settled, and return their ids."""
    ids: list[str] = page.evaluate(
        """async (edits) => {
          const { get, post } = await import("/console/api.js");
          const { ids } = await post("v1/edits", { edits });
          const isOpen = async (id) => ["queued", "applying"].includes((await get(`v1/edits/${id}`)).state);
          for (const id of ids) {
            while (await isOpen(id)) await new Promise((done) => setTimeout(done, 20));
          }
          return ids;
        }""",
        edits,
    )
    return ids
