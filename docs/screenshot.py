"""The picture of the console in the README: a wrong answer of a running service, and what its correction would change.

`errata serve` starts a service; then `python docs/screenshot.py` asks it, tries the correction without publishing it, and
writes `docs/console.png`. Another address is the first argument. It needs Chromium and requirements/dev.txt.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

PICTURE = Path(__file__).parent / "console.png"
URL = "http://127.0.0.1:8000"
QUESTION, TARGET = "In which country is the city of Nellore?", "India"
SIZE = {"width": 1180, "height": 720}
MAX_BYTES = 300_000
TIMEOUT_MS = 120_000


def take(url: str) -> bytes:
    """Return the picture as PNG. Raises playwright's errors if the service or the browser does not answer."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE, color_scheme="light")
        page.set_default_timeout(TIMEOUT_MS)
        page.goto(f"{url}/console")
        page.get_by_label("Question", exact=True).fill(QUESTION)
        page.keyboard.press("Enter")
        page.get_by_role("button", name="This is wrong").click()
        page.get_by_label("Right answer").fill(TARGET)
        page.get_by_role("button", name="Try it").click()
        page.locator(".trial .beside").wait_for()
        page.locator("summary").click()  # Its other fields are empty.
        page.locator(".trial").scroll_into_view_if_needed()
        taken: bytes = page.screenshot()
        browser.close()
    return taken


def main() -> None:
    picture = take(sys.argv[1].rstrip("/") if len(sys.argv) > 1 else URL)
    if len(picture) > MAX_BYTES:
        raise SystemExit(f"the picture has {len(picture):,} bytes, more than {MAX_BYTES:,}; nothing was written")
    PICTURE.write_bytes(picture)
    print(f"wrote {PICTURE}, {len(picture):,} bytes")


if __name__ == "__main__":
    main()
