"""Edits and versions in the browser: many of them, a file with faults, an export, and two windows that race for a rollback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.backend import UNMADE
from tests.fakes.console_service import BATCH, ConsoleService
from tests.unit.serving.console.browser.conftest import NUM_EDITS, NUM_VERSIONS, OpenPage, expect, post, sync_api


def test_ten_thousand_edits_are_pages_and_few_elements(large: ConsoleService, open_page: OpenPage) -> None:
    service = large
    asked: list[str] = []
    page = open_page(service, "#/now")
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{service.console}#/edits")
    rows = page.locator(".edits .rows-inner .row")
    expect(rows.first).to_contain_text(f"company {NUM_EDITS - 1}?")
    assert rows.count() < 60
    assert next(url for url in asked if "/v1/edits?" in url).endswith("limit=100")
    page.get_by_label("Search").fill("company 1234?")
    expect(rows).to_have_count(1)
    expect(rows.first).to_contain_text("Person 1234")
    expect(page.locator(".count")).to_have_text("1 edit")  # The search has read all pages.
    page.get_by_label("Search").fill("")
    page.locator(".rows").evaluate("element => (element.scrollTop = element.scrollHeight)")
    expect(rows.last).to_contain_text("company 0?")
    assert rows.count() < 60
    page.goto(f"{service.console}#/versions")
    versions = page.locator(".versions .rows-inner .row")
    expect(versions.first).to_contain_text(f"v{NUM_VERSIONS}")
    expect(page.locator(".chart .plot")).to_be_visible()
    assert versions.count() < 60


def test_an_edit_shows_its_time_its_source_and_the_history_of_its_subject(service: ConsoleService, open_page: OpenPage) -> None:
    page = open_page(service, "#/edits")
    about = {"subject": "ACME", "question": "Who leads ACME?"}
    first = {**about, "target": "Ada Byron", "valid_from": "2020-03-01", "source": "https://acme.example/board"}
    later = {**about, "target": "Bo Li", "valid_from": "2024-05-01", "valid_to": "2026-01-01", "reason": "new board"}
    ids = post(page, [first]) + post(page, [later]) + post(page, [{"question": "Who leads it?", "target": "Bo Li"}])
    row = page.locator(".rows-inner .row", has_text="2024-05-01 to 2026-01-01")
    expect(row).to_have_count(1)
    page.goto(f"{service.console}#/edits/{ids[1]}")
    facts = page.locator(".detail .facts")
    for text in ("2024-05-01", "2026-01-01", "new board"):
        expect(facts).to_contain_text(text)
    expect(page.locator(".history li")).to_have_count(1)
    expect(page.locator(".history")).to_contain_text("since 2020-03-01 · https://acme.example/board")


def test_a_file_with_faults_is_imported_without_them(service: ConsoleService, open_page: OpenPage, tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [{"question": f"Who leads company {i}?", "target": f"Person {i}"} for i in range(2 * BATCH)]
    records += [{"question": "Who?", "targt": "x"}, {"question": "Who?", "target": "bell \a"}]
    records += [{"question": "Who leads nothing?", "target": UNMADE}]
    file = tmp_path / "edits.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records) + "{broken\n")
    page = open_page(service, "#/edits")
    page.get_by_role("button", name="Import a file").click()
    box = page.get_by_role("dialog")
    box.locator("input[type=file]").set_input_files(file)
    expect(box).to_contain_text("36 records, 2 faults")
    expect(box).to_contain_text("targt is not a field of an edit")
    expect(box).to_contain_text("is not JSON")
    assert service.backend.head == 0
    box.get_by_role("button", name="Import 34 edits").click()
    expect(box).to_contain_text(f"{2 * BATCH} edits applied, 1 not")
    expect(box).to_contain_text("the edited model answers something else")
    expect(box).to_contain_text("control character")
    box.get_by_role("button", name="Close").click()
    expect(page.locator(".count")).to_contain_text("33 edits")
    assert len(service.backend.edits_at(service.backend.head)) == 2 * BATCH


def test_an_export_can_be_imported(service: ConsoleService, open_page: OpenPage) -> None:
    page = open_page(service, "#/edits")
    post(page, [{"question": "Who leads A?", "target": "Ada", "subject": "A"}, {"question": "Who leads B?", "target": "Bo"}])
    expect(page.locator(".count")).to_contain_text("2 edits")
    with page.expect_download() as found:
        page.get_by_role("button", name="Export").click()
    text = Path(found.value.path()).read_text()
    assert [json.loads(line)["target"] for line in text.splitlines()] == ["Ada", "Bo"]
    read = page.evaluate(
        """async (text) => {
          const { readRecords } = await import("/console/records.js");
          const { session } = await import("/console/session.js");
          return readRecords(text, session.fields).records.map((one) => one.faults.length);
        }""",
        text,
    )
    assert read == [0, 0]


def test_the_state_of_an_edit_follows_the_events(service: ConsoleService, open_page: OpenPage) -> None:
    page = open_page(service, "#/edits")
    post(page, [{"question": "Who leads A?", "target": "Ada"}, {"question": "Who leads nothing?", "target": UNMADE}])
    rejected = page.locator(".row", has_text="nothing")
    expect(rejected).to_contain_text("rejected")
    rejected.get_by_role("link").click()
    expect(page.locator(".detail")).to_contain_text("The model says instead: I do not know that.")
    page.get_by_label("State").select_option("applied")
    expect(page.locator(".rows-inner .row")).to_have_count(1)


def test_edits_that_come_before_the_page_listens_are_shown(service: ConsoleService, open_page: OpenPage) -> None:
    """The list is read before the stream of events begins; what happens in between is in no event that the page hears."""
    page = open_page(service)
    held: list[Any] = []
    page.route("**/v1/events", lambda route: held.append(route))
    page.goto(f"{service.console}#/edits")
    page.reload()
    expect(page.locator(".count")).to_have_text("0 edits")
    post(page, [{"question": "Who leads A?", "target": "Ada"}])
    expect(page.locator("#live")).to_contain_text("not connected")
    held[-1].continue_()
    expect(page.locator(".count")).to_have_text("1 edit")
    expect(page.locator("#live")).to_contain_text("v1 live")


def test_an_answer_older_than_an_event_does_not_last(service: ConsoleService, open_page: OpenPage) -> None:
    backend = service.backend
    backend.delay_s = 4
    page = open_page(service, "#/edits")
    expect(page.locator("#live")).to_contain_text("v0 live")
    page.wait_for_timeout(1_000)  # The list is read again when the page listens.
    held: list[Any] = []
    page.route("**/v1/edits?limit=100", lambda route: route.continue_() if held else held.append((route, route.fetch())))
    page.evaluate(
        """async () => {
          const { post } = await import("/console/api.js");
          await post("v1/edits", { edits: [{ question: "Who leads A?", target: "Ada" }] });
        }"""
    )
    while not held or backend.head == 0:
        page.wait_for_timeout(50)
    (route, old) = held[0]
    assert old.json()["edits"][0]["state"] == "applying"
    expect(page.locator("#live")).to_contain_text("v1")
    page.wait_for_timeout(1_000)  # A second reading would be answered now, before the first.
    route.fulfill(response=old)
    page.wait_for_timeout(500)
    expect(page.locator(".rows-inner .row")).to_contain_text("applied")


def test_two_windows_race_for_a_rollback(service: ConsoleService, open_page: OpenPage) -> None:
    pages = [open_page(service, "#/versions") for _ in range(2)]
    for i in range(3):
        post(pages[0], [{"question": f"Who leads company {i}?", "target": f"Person {i}"}])
    for page, number in zip(pages, (1, 2), strict=True):
        page.goto(f"{service.console}#/versions/{number}")
        page.get_by_role("button", name="Serve this version").click()
        expect(page.get_by_role("dialog")).to_contain_text("Live now: version 3")
    expect(pages[0].get_by_role("dialog")).to_contain_text("2 edits will no longer hold")
    for page, number in zip(pages, (1, 2), strict=True):
        page.get_by_role("button", name=f"Serve version {number}").click()
        expect(page.get_by_role("dialog") if number == 2 else page.locator("#notes")).to_contain_text(
            "Nothing was changed" if number == 2 else "Version 1 is served"
        )
    assert service.backend.head == 1
    pages[1].get_by_role("button", name="Look again").click()
    expect(pages[1].get_by_role("dialog")).to_contain_text("Live now: version 1")
    expect(pages[1].get_by_role("dialog")).to_contain_text("1 edit will hold again")
    pages[1].get_by_role("button", name="Serve version 2").click()
    expect(pages[0].locator("#live")).to_contain_text("v2")


def test_the_comparison_of_two_versions_shows_the_answers_that_change(service: ConsoleService, open_page: OpenPage) -> None:
    page = open_page(service, "#/versions")
    post(page, [{"question": "Who leads A?", "target": "Ada"}])
    post(page, [{"question": "Who leads A?", "target": "Bo"}])
    page.goto(f"{service.console}#/versions/compare/1/2")
    changed = page.locator(".changes .pair")
    expect(changed).to_have_count(1)
    expect(changed.locator("del")).to_contain_text("Ada")
    expect(changed.locator("ins")).to_contain_text("Bo")


BOTH = {"prompt": "p", "question": "q", "target": "t"}
ABSENT = {"question": "q", "target": "t", "subject": "x"}
RECORDS = [
    ('[{"prompt": "a {} b", "subject": "S", "target": 1.5}]', [[{"prompt": "a S b", "subject": "S", "target": "1.5"}, []]]),
    ('{"data": [{"question": "q", "target": "t"}]}', [[{"question": "q", "target": "t"}, []]]),
    ('prompt,target,aliases\r\n"a ""b"",\nc",t,"[""u""]"\n', [[{"prompt": 'a "b",\nc', "target": "t", "aliases": ["u"]}, []]]),
    ("question;target\nq;t\nq\n", [[{"question": "q", "target": "t"}, []], [None, ["has 1 cells, and the header 2"]]]),
    (json.dumps(BOTH), [[BOTH, ["give one of prompt and question"]]]),
    (json.dumps(ABSENT), [[ABSENT, ["the subject does not occur in the question, letter by letter"]]]),
]


def test_records_are_read_and_checked(service: ConsoleService, open_page: OpenPage) -> None:
    page = open_page(service)
    for text, wanted in RECORDS:
        found = page.evaluate(
            """async (text) => {
              const { readRecords } = await import("/console/records.js");
              const fields = new Set(["prompt", "question", "messages", "target", "subject", "aliases", "rephrasings"]);
              return readRecords(text, fields).records.map((one) => [one.edit, one.faults]);
            }""",
            text,
        )
        assert found == wanted, text
    with pytest.raises(sync_api.Error, match="a quote is left open in the row that begins in line 2"):
        page.evaluate('async () => (await import("/console/records.js")).readRecords(`prompt,target\\n"a,b`, new Set())')


HISTOGRAM = 'x_bucket{{le="1",r="a"}} 10\nx_bucket{{le="2",r="a"}} {0}\nx_bucket{{le="+Inf",r="a"}} {0}\n'
COUNTER = '# HELP n\nn{code="200"} 3\nn{code="503"} 4\n'


def test_quantiles_and_sums_of_metrics(service: ConsoleService, open_page: OpenPage) -> None:
    found = open_page(service).evaluate(
        """async ([before, after]) => {
          const { parsed, quantile, sum } = await import("/console/metrics.js");
          const [early, late] = [parsed(before), parsed(after)];
          const of503 = sum(late, "n", ({ code }) => code === "503");
          return [quantile(late, "x", 0.5), quantile(late, "x", 0.5, early), of503, quantile(late, "y", 0.5)];
        }""",
        [HISTOGRAM.format(10), HISTOGRAM.format(20) + COUNTER],
    )
    assert found == [1, 1.5, 4, None]


def test_a_difference_marks_words(service: ConsoleService, open_page: OpenPage) -> None:
    found = open_page(service).evaluate(
        """async ([before, after]) => {
          const { difference } = await import("/console/format.js");
          return difference(before, after).map((part) => [part.localName ?? "", part.textContent ?? part]);
        }""",
        ["It is in Lagos now.", "It is in Abuja now."],
    )
    assert found == [["", "It is in "], ["del", "Lagos "], ["ins", "Abuja "], ["", "now."]]
