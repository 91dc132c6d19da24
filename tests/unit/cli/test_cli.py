"""The commands against the service's own routes on a real port; `serve` and `stop` with processes that only wait."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from errata.access_keys import add_key
from errata.cli import console, edits, import_file
from errata.cli.main import app
from errata.client import bulk_import
from errata.client import client as client_module
from errata.ledger import Ledger
from errata.local import pidfile
from errata.local.services import LocalServices, free_port
from tests.unit.served import UNDOOR, UNMADE, Answer, Cut, Service, serving, version

PROMPT = "The capital of France is"


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "PAUSE_S", 0.05)
    for module in (console, import_file):
        monkeypatch.setattr(module, "RETRY_S", 0.5)
    for name in ("ERRATA_KEY", "ERRATA_KEYS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    with serving(tmp_path) as pidfile:
        monkeypatch.setenv("ERRATA_URL", pidfile.url)
        yield pidfile


@pytest.fixture
def one_version(service: Service) -> str:
    """The address of a service whose live version is 1."""
    service.backend.chain.append(version(1))
    service.backend.head = 1
    return service.url


def errata(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def words(done: Any) -> str:
    """What was printed, without the lines of tables and the breaks of narrow columns."""
    return " ".join("".join(" " if c in "│┃┳┏┓┗┛┡┩└┘┴┬┼├┤─━╇╭╮╰╯" else c for c in done.output).split())


# -- edits --------------------------------------------------------------------------------------------------------------


def test_an_edit_is_made_and_said(service: Service) -> None:
    done = errata("edit", PROMPT, "Lyon", "--subject", "France", "--rephrasing", "France's capital is")
    assert done.exit_code == 0 and "applied in version 1" in done.output
    ((_, edits, wait),) = service.backend.posts
    assert edits == [{"prompt": PROMPT, "target": "Lyon", "subject": "France", "rephrasings": ["France's capital is"]}] and wait


def test_a_rejected_edit_says_why_and_ends_with_one(service: Service) -> None:
    done = errata("edit", PROMPT, UNMADE)
    assert done.exit_code == 1 and "rejected: target: it would break the model" in done.output
    done = errata("edit", PROMPT, UNDOOR)
    assert done.exit_code == 1 and "has 99 tokens (HTTP 422)" in done.output


def test_an_edit_that_is_not_waited_for_can_be_followed(service: Service) -> None:
    service.backend.held = True
    done = errata("edit", PROMPT, "Lyon", "--no-wait")
    assert done.exit_code == 0 and "queued as" in done.output
    edit_id = done.output.split("queued as ")[1].split(";")[0]
    threading.Timer(0.3, service.make).start()
    done = errata("watch", edit_id)
    assert done.exit_code == 0 and "applied (version 1): The capital of France is → Lyon" in done.output


def test_edits_are_listed_by_state_and_page(service: Service) -> None:
    for target in ("Lyon", UNMADE, "[red]Nice[/red]\x1b[2J"):
        errata("edit", PROMPT, target)
    shown = words(errata("edits"))
    assert "[red]Nice[/red]\\x1b[2J" in shown and "it would break the model" in shown and "\x1b" not in shown
    done = errata("edits", "--state", "rejected")
    assert "Lyon" not in done.output and "rejected" in done.output
    first = errata("edits", "--limit", "2")
    cursor = first.output.split("--before ")[1].strip()
    assert "Lyon" not in first.output and "Lyon" in errata("edits", "--before", cursor).output
    assert len(json.loads(errata("edits", "--json").output)["edits"]) == 3
    assert errata("edits", "--state", "lost").exit_code == 2
    done = errata("edits", "--before", "x")
    assert done.exit_code == 1 and "HTTP 422" in done.output


def test_ask_shows_answers_and_their_version(one_version: str) -> None:
    done = errata("ask", "hello", "[b]you[/b]")
    assert done.output.splitlines() == ["hello hello!", "[b]you[/b] [b]you[/b]!", "version 1"]
    assert json.loads(errata("ask", "hello", "--json").output)["errata"]["version_max"] == 1


def test_watching_prints_a_line_an_event(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    service.troubles.path = "/v1/events"
    service.troubles.coming.append(Cut(9))
    lines: list[str] = []

    def stop_after(message: str, style: str = "") -> None:
        lines.append(message)
        if "connected again" in message:
            raise KeyboardInterrupt

    monkeypatch.setattr(edits, "say", stop_after)
    command = threading.Thread(target=errata, args=("watch",), daemon=True)
    command.start()
    while not service.backend.feed.is_heard:
        time.sleep(0.02)
    for target in ("Lyon", UNMADE, "Nice"):
        errata("edit", PROMPT, target)
    command.join(timeout=20)
    text = "\n".join(lines)
    assert not command.is_alive()
    for part in ("queued: The capital", "version 1: 1 edits on version 0, 4,096 bytes", "live: version 1 (before: 0)"):
        assert part in text
    assert "rejected: The capital of France is → unlearnable: it would break the model" in text


def test_watching_what_is_not_there_says_so(service: Service) -> None:
    done = errata("watch", "abc")
    assert done.exit_code == 1 and "errata edits" in done.output
    done = errata("watch", "../status")
    assert done.exit_code == 1 and "no id of an edit" in done.output


# -- import -------------------------------------------------------------------------------------------------------------


def file_of(folder: Path, targets: list[str], name: str = "edits.jsonl") -> str:
    edits = [
        {"prompt": f"{PROMPT} {i}", "target": t, "locality": [{"prompt": "a", "target": "b"}]} for i, t in enumerate(targets)
    ]
    (folder / name).write_text("".join(json.dumps(edit) + "\n" for edit in edits))
    return str(folder / name)


@pytest.fixture
def small_parcels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_import, "NUM_EDITS", 4)
    monkeypatch.setattr(bulk_import, "NUM_OPEN", 2)


@pytest.mark.usefixtures("small_parcels")
def test_a_file_is_posted_in_order_and_a_second_run_posts_nothing(service: Service, tmp_path: Path) -> None:
    source = file_of(tmp_path, [f"t{i}" for i in range(10)])
    done = errata("import", source)
    assert done.exit_code == 0 and "10 of 10 posted: 10 applied" in done.output
    assert [edit["target"] for edit in service.queued] == [f"t{i}" for i in range(10)]
    assert {len(edits) for _, edits, _ in service.backend.posts} == {2, 4}
    assert set(service.queued[0]) == {"prompt", "target", "id"}
    again = errata("import", source)
    assert again.exit_code == 0 and "10 applied" in again.output and len(service.queued) == 10
    other = errata("import", source, "--run", "second", "--limit", "3")
    assert other.exit_code == 0 and "3 of 3" in other.output and len(service.queued) == 13


@pytest.mark.usefixtures("small_parcels")
def test_an_import_that_was_broken_off_goes_on(service: Service, tmp_path: Path) -> None:
    source = file_of(tmp_path, ["same"] * 11)
    service.troubles.path = "/v1/edits"
    gone = Answer(403, {}, json.dumps({"error": {"message": "no"}}))
    service.troubles.coming.extend([Cut(9), Cut(9), Cut(0), Cut(9), gone])  # the listing, two parcels, one of them twice
    done = errata("import", source)
    assert done.exit_code == 1 and "posts nothing twice" in done.output and "HTTP 403" in done.output
    assert len(service.queued) == 8
    done = errata("import", source)
    assert done.exit_code == 0 and "11 of 11 posted: 11 applied" in done.output and len(service.queued) == 11


@pytest.mark.usefixtures("small_parcels")
def test_what_is_rejected_is_listed_and_written_down(service: Service, tmp_path: Path) -> None:
    source = file_of(tmp_path, ["t0", UNDOOR, "t2", UNMADE, UNDOOR, UNDOOR, UNDOOR, UNDOOR, "t8"])
    done = errata("import", source, "--rejected", str(tmp_path / "rejected.jsonl"))
    assert done.exit_code == 1 and "4 of 9 posted: 3 applied, 6 rejected" in done.output
    rows = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert sorted((row["number"], row["reason"]) for row in rows) == [
        (1, "target: has 99 tokens"),
        (3, "it would break the model"),
        *((number, "target: has 99 tokens") for number in (4, 5, 6, 7)),
    ]
    assert "it would break the model" in words(done) and [edit["target"] for edit in service.queued] == [
        "t0",
        "t2",
        UNMADE,
        "t8",
    ]


@pytest.mark.usefixtures("small_parcels")
def test_what_is_beyond_the_limits_of_a_post_is_left_out_alone(service: Service, tmp_path: Path) -> None:
    edits = [{"prompt": f"{PROMPT} {i}", "target": "t"} for i in range(6)]
    edits[1] |= {"rephrasings": ["r"] * 65}
    edits[2] |= {"target": "t" * 16_385}
    source = tmp_path / "edits.jsonl"
    source.write_text("".join(json.dumps(edit) + "\n" for edit in edits))
    done = errata("import", str(source), "--rejected", str(tmp_path / "rejected.jsonl"))
    assert done.exit_code == 1 and "4 of 6 posted: 4 applied, 2 rejected" in done.output
    rows = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert [row["number"] for row in rows] == [1, 2]
    assert "at most 64 items" in rows[0]["reason"] and "at most 16384 characters" in rows[1]["reason"]
    assert [edit["prompt"] for edit in service.queued] == [f"{PROMPT} {i}" for i in (0, 3, 4, 5)]


@pytest.mark.usefixtures("small_parcels")
def test_a_full_queue_and_too_large_a_post_are_obeyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path, max_queue=3) as service:
        source = file_of(tmp_path, ["same"] * 9)
        done = errata("import", source, "--url", service.url)
        assert done.exit_code == 0 and "9 of 9 posted: 9 applied" in done.output and len(service.queued) == 9
        service.backend.held = True

        def make_once_there_is_no_room() -> None:
            while service.backend.journal.depth < 2:
                time.sleep(0.01)
            time.sleep(0.5)
            service.make()

        monitor = threading.Thread(target=make_once_there_is_no_room)
        monitor.start()
        monkeypatch.setattr(import_file, "RETRY_S", 20.0)
        done = errata("import", source, "--url", service.url, "--run", "2", "--no-wait")
        monitor.join()
        assert done.exit_code == 0 and "trying again" in done.output and len(service.queued) == 18


def test_an_import_without_wait_returns_before_edits_are_made(service: Service, tmp_path: Path) -> None:
    service.backend.held = True
    done = errata("import", file_of(tmp_path, ["a", "b"]), "--no-wait")
    assert done.exit_code == 0 and "2 of 2 posted: 0 applied, 2 queued" in done.output


def test_a_file_at_fault_is_seen_before_anything_is_posted(service: Service, tmp_path: Path) -> None:
    source = file_of(tmp_path, ["a", "", "c"])
    done = errata("import", source)
    assert done.exit_code == 1 and "edit 1, target: is empty" in done.output and service.queued == []
    done = errata("import", source, "--on-fault", "skip")
    assert done.exit_code == 0 and "2 of 2 posted" in done.output
    for wrong, says in (("none.jsonl", "no file"), (str(tmp_path), "Parquet")):
        done = errata("import", wrong)
        assert done.exit_code == 1 and says in done.output
    assert errata("import", source, "--on-fault", "ask").exit_code == 2


def test_an_interrupted_import_says_how_it_goes_on(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: Any) -> None:
        raise KeyboardInterrupt

    service.backend.held = True
    monkeypatch.setattr(bulk_import.Import, "_settle", interrupt)
    done = errata("import", file_of(tmp_path, ["a"]))
    assert done.exit_code == 1 and "broken off" in done.output and len(service.queued) == 1


# -- versions -----------------------------------------------------------------------------------------------------------


def test_versions_are_listed_and_shown(service: Service) -> None:
    errata("edit", PROMPT, "Lyon")
    errata("rollback", "0")
    shown = errata("versions").output
    rows = [line for line in shown.splitlines() if "4,096" in line]
    assert len(rows) == 2 and "●" in rows[0] and "●" not in rows[1]
    one = words(errata("versions", "1"))
    assert "version 1, on version 0" in one and "Lyon" in one and "efficacy 0.5" in one
    assert [v["version"] for v in json.loads(errata("versions", "--limit", "1", "--json").output)["versions"]] == [1]
    done = errata("versions", "7")
    assert done.exit_code == 1 and "there is no version 7" in done.output


def test_rollback_says_what_is_live(service: Service) -> None:
    errata("edit", PROMPT, "Lyon")
    done = errata("rollback", "0")
    assert done.exit_code == 0 and "version 0 is live; the swap took 12 ms" in done.output and service.backend.head == 0
    done = errata("rollback", "5")
    assert done.exit_code == 1 and "there is no version 5" in done.output


def test_rollback_and_revert_say_which_replicas_are_late(service: Service) -> None:
    errata("edit", PROMPT, "Lyon")
    service.backend.late = {"swap_error": "version 2 is not served by b: TimeoutError"}
    for done in (errata("revert", service.queued[0]["id"]), errata("rollback", "0")):
        assert done.exit_code == 0 and "not everywhere yet: version 2 is not served by b: TimeoutError" in done.output


def test_diff_shows_edits_norms_and_scores(service: Service) -> None:
    errata("edit", PROMPT, "Lyon")
    done = errata("diff", "0", "1")
    assert done.exit_code == 0
    for part in ("only in 1 (1)", "Lyon", "layers.3.down_proj 1.25", "efficacy 0.5"):
        assert part in words(done)
    assert json.loads(errata("diff", "0", "1", "--json").output)["common"] == 0
    assert errata("diff", "0", "9").exit_code == 1


def test_revert_shows_its_effect(service: Service) -> None:
    errata("edit", PROMPT, "Lyon")
    edit_id = service.queued[0]["id"]
    done = errata("revert", edit_id, "--mode", "subtract")
    assert done.exit_code == 0 and "version 2 is live, without 1 edits (subtract)" in done.output
    assert "p first second third" in words(done) and "retention 0.75" in words(done)
    assert json.loads(errata("revert", "--version", "1", "--json").output)["reverted"] == [edit_id]
    assert "reverted" in errata("edits").output
    done = errata("revert", "abc")
    assert done.exit_code == 1 and "HTTP 404" in done.output
    assert errata("revert").exit_code == 2 and errata("revert", "a", "--mode", "x").exit_code == 2


def test_blame_names_the_version(service: Service) -> None:
    errata("edit", PROMPT, "Lyon")
    done = errata("blame", PROMPT)
    assert done.exit_code == 0 and "version 1 changed it (3 versions asked)" in done.output and "Lyon" in done.output
    assert "before: cat" in done.output and "since: dog" in words(done)
    assert "no version changed it" in errata("blame", "unchanged").output
    assert json.loads(errata("blame", PROMPT, "--json").output)["after"] == "dog"
    done = errata("blame", "")
    assert done.exit_code == 1 and "HTTP 422" in done.output


# -- status, and what goes wrong ------------------------------------------------------------------------------------------


def test_status_reads_well(service: Service) -> None:
    errata("edit", PROMPT, "Lyon")
    shown = words(errata("status"))
    for part in (
        "ready",
        "head version 1",
        "0 of at most 10,000 edits wait",
        "a 0 intact, behind 7",
        "b 0 damaged, behind 7",
        "61.2",
    ):
        assert part in shown
    assert json.loads(errata("status", "--json").output)["worker"]["pid"] == 8
    service.backend.reasons = ["replica b has version 0"]
    service.backend.held = True
    errata("edit", PROMPT, "Nice", "--no-wait")
    shown = words(errata("status"))
    assert "not ready: replica b has version 0" in shown and "1 of at most 10,000 edits wait, the oldest for" in shown


COMMANDS = [
    ("edit", "p", "t"), ("edits",), ("ask", "p"), ("versions",), ("versions", "1"), ("diff", "0", "1"), ("rollback", "0"),
    ("revert", "a"), ("blame", "p"), ("status",), ("watch",), ("watch", "a"), ("import", "FILE"), ("score", "FILE"),
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_service_is_said_plainly(command: tuple[str, ...], tmp_path: Path) -> None:
    given = [file_of(tmp_path, ["a"]) if part == "FILE" else part for part in command]
    done = errata(*given, "--url", f"http://127.0.0.1:{free_port()}")
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit)
    assert "does not answer" in done.output and "errata serve" in done.output and "make serve" in done.output


@pytest.mark.parametrize(
    ("code", "headers", "says"),
    [
        (401, {}, "ERRATA_KEY is not set: it must hold a key of the role admin"),
        (403, {}, "takes one of the role admin"),
        (404, {}, "`errata versions` the versions"),
        (409, {}, "ask again"),
        (413, {}, "post less"),
        (422, {}, "nothing was changed"),
        (429, {"Retry-After": "90"}, "tried again in 90 s"),
        (503, {"Retry-After": "90"}, "tried again in 90 s; `errata status`"),
        (500, {}, "HTTP 500"),
    ],
)
def test_a_refusal_is_one_line_that_says_what_to_do(service: Service, code: int, headers: dict[str, str], says: str) -> None:
    body = json.dumps({"error": {"message": "so\nit [b]is[/b]", "field": None, "edit": None}})
    service.troubles.coming.append(Answer(code, headers, body))
    done = errata("rollback", "0")
    assert done.exit_code == 1 and len(done.output.splitlines()) == 1
    assert f"so it [b]is[/b] (HTTP {code})" in done.output and says in done.output


def test_a_service_without_the_route_says_so(service: Service) -> None:
    service.troubles.coming.append(Answer(404, {}, json.dumps({"detail": "Not Found"})))
    assert "no such route" in errata("status").output


def test_a_short_outage_is_waited_out(service: Service) -> None:
    service.troubles.coming.extend([Answer(503, {"Retry-After": "0"}), Cut(0)])
    done = errata("edit", PROMPT, "Lyon")
    assert done.exit_code == 0 and "trying again" in done.output and len(service.queued) == 1


def test_keys_and_roles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys.json"
    readers, editors = add_key(file, "rob", "read"), add_key(file, "eve", "edit")
    with serving(tmp_path, file) as service:
        monkeypatch.setenv("ERRATA_URL", service.url)
        done = errata("status")
        assert done.exit_code == 1 and "ERRATA_KEY is not set" in done.output and "role read" in done.output
        monkeypatch.setenv("ERRATA_KEY", "wrong-key")
        done = errata("status")
        assert done.exit_code == 1 and "unknown or has expired" in done.output and "wrong-key" not in done.output
        monkeypatch.setenv("ERRATA_KEY", readers)
        assert errata("status").exit_code == 0
        done = errata("edit", PROMPT, "Lyon")
        assert done.exit_code == 1 and "role edit" in done.output and readers not in done.output
        monkeypatch.setenv("ERRATA_KEY", editors)
        assert errata("edit", PROMPT, "Lyon").exit_code == 0 and "eve" in errata("edits").output
        done = errata("rollback", "0")
        assert done.exit_code == 1 and "role admin" in done.output and editors not in done.output
        monkeypatch.setenv("ERRATA_KEY", f"{editors}\n")
        done = errata("status")
        assert done.exit_code == 1 and "line ends" in done.output and editors not in done.output


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    code = "import sys, errata.cli; print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert not {"torch", "transformers", "httpx", "ray", "psutil", "pyarrow", "numpy"} & loaded
    shown = errata("--help").output
    assert "convert" in errata("data", "--help").output
    for name in ("serve", "stop", "import", "watch", "diff", "revert", "blame", "report", "score", "bench", "data", "keys"):
        assert f" {name} " in shown


# -- score --------------------------------------------------------------------------------------------------------------


def edits_file(folder: Path) -> Path:
    probes = {
        "locality": [{"prompt": "river", "target": "Seine"}],
        "portability": [{"prompt": "x", "target": "x!", "kind": "alias"}],
    }
    edits = [{"prompt": "a", "target": "a!", "rephrasings": ["b", "c"], **probes}, {"prompt": "d", "target": "e"}]
    (folder / "edits.jsonl").write_text("".join(json.dumps(edit) + "\n" for edit in edits))
    return folder / "edits.jsonl"


def test_the_served_model_is_scored_by_what_it_generates(one_version: str, tmp_path: Path) -> None:
    edits, saved = str(edits_file(tmp_path)), tmp_path / "answers.json"
    shown = errata("score", edits, "--url", one_version, "--save", str(saved)).output
    assert "2 edits, answered by version 1" in shown
    rows = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in shown.splitlines() if line.count("│") > 2}
    assert rows == {
        "efficacy": "0.500",
        "generalisation": "0.000",
        "locality_gold": "0.000",
        "portability": "1.000",
        "harmonic_mean": "0.000",
        "portability/alias": "1.000",
    }
    found = json.loads(saved.read_text())
    assert (found["version_max"], found["answers"]["river"]) == (1, " river!")
    again = errata("score", edits, "--url", one_version, "--base", str(saved), "--limit", "1").output
    assert "1 edits, answered by version 1" in again and "locality " in again
    (locality,) = [line for line in again.splitlines() if "locality " in line]
    assert "1.000" in locality


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "holds no answers"),
        ('{"answers": [1], "max_tokens": 16}', "holds no answers"),
        ('{"answers": {}, "max_tokens": 16}', "no answer was given to 1 prompts"),
        ('{"answers": {}, "max_tokens": 8}', "have at most 8 tokens, not 16: give --max-tokens 8"),
        (None, "No such file"),
    ],
)
def test_scoring_against_what_is_no_answers_says_so(one_version: str, tmp_path: Path, content: str | None, says: str) -> None:
    base = tmp_path / "base.json"
    if content is not None:
        base.write_text(content)
    done = errata("score", str(edits_file(tmp_path)), "--url", one_version, "--base", str(base))
    assert done.exit_code == 1 and says in done.output.replace("\n", " ")
    done = errata("score", str(edits_file(tmp_path)), "--url", f"http://127.0.0.1:{free_port()}")
    assert done.exit_code == 1 and "make serve" in done.output


# -- without a service ----------------------------------------------------------------------------------------------------


def test_exporting_what_is_not_there_says_so(tmp_path: Path) -> None:
    Ledger.create(tmp_path / "ledger", {"model": "m", "fingerprint": "f", "matrices": ["a"]})
    for ledger, says in ((tmp_path / "ledger", "there is no version 3"), (tmp_path / "none", "none")):
        done = errata("export", "3", str(tmp_path / "out"), "--ledger", str(ledger))
        assert done.exit_code == 1 and says in done.output.replace("\n", "") and not (tmp_path / "out").exists()


def test_serving_before_anything_was_made_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    for editor, says in (
        ("RLEdit", "make demo"),
        ("RECT/AlphaEdit", "jobs/moments.py"),
        ("LocFT", "--model"),
        ("ROMEO", "R-ROME"),
    ):
        done = errata("serve", "--editor", editor)
        assert done.exit_code == 2 and says in done.output.replace("│", "").replace("\n", ""), done.output


def test_a_preset_is_looked_up_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    for editor, preset, says in (
        ("UltraEdit", "llama4", "UltraEdit has no preset 'llama4'; there are llama3_8b"),
        ("RECT/MEMIT", "gemma2_9b", "MEMIT has no preset 'gemma2_9b'; there are gpt2_xl"),
        ("LocFT", "gpt_j", "it has none: set its fields"),
        ("RLEdit", "llama3_8b", "RLEdit is trained, and takes no preset"),
    ):
        done = errata("serve", "--editor", editor, "--preset", preset, "--model", "m")
        assert done.exit_code == 2 and says in words(done), done.output
    assert not (tmp_path / "serve").exists()


# -- serve and stop -------------------------------------------------------------------------------------------------------

WAITING = """
import json, errata.stack
class Waiting(errata.stack.Stack):
    def start_mlflow(self): self.start("mlflow", "sleep", "1000")
    def start_ray(self): self.start("ray", "sleep", "1000")
    def wait_mlflow(self): pass
    def wait_serve(self): pass
    def start_serve(self, **arguments):
        self.start("serve", "sleep", "1000")
        (self.directory / "arguments.json").write_text(json.dumps({"host": self.http_host, **arguments}, default=str))
errata.stack.Stack = Waiting
from errata.cli import app
app()
"""


def serve(home: Path, *options: str) -> subprocess.Popen[str]:
    """`errata serve`, once it says that it is ready, with processes that only wait."""
    command = [sys.executable, "-c", WAITING, "serve", "--editor", "FT-L", "--model", "m", *options]
    environment = {**os.environ, "ERRATA_HOME": str(home)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    seen = ""
    while "ready:" not in seen:
        line = process.stdout.readline()
        assert line, seen
        seen += line
    return process


def test_serve_runs_until_it_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    keys = tmp_path / "keys.json"
    add_key(keys, "ann", "admin")
    options = [
        "--host",
        "0.0.0.0",
        "--keys",
        str(keys),
        "--replicas",
        "2",
        "--max-queue",
        "50",
        "--pause",
        "wait",
        "--port",
        "8123",
    ]
    process = serve(tmp_path, *options)
    children = psutil.Process(process.pid).children()
    arguments = json.loads((tmp_path / "serve" / "arguments.json").read_text())
    expected = {"host": "0.0.0.0", "keys": str(keys), "replicas": 2, "max_queue": "50", "pause": "wait", "editor": "FT-L"}
    assert expected.items() <= arguments.items()
    done = errata("serve", "--editor", "FT-L", "--model", "m")
    assert done.exit_code == 1 and f"process {process.pid} serves" in done.output and "errata stop" in done.output
    done = errata("stop")
    assert done.exit_code == 0 and "http://127.0.0.1:8123" in done.output and "stopped" in done.output
    assert process.wait(timeout=10) == 0 and len(children) == 3
    assert not any(child.is_running() for child in children) and not (tmp_path / "serve" / pidfile.NAME).exists()
    done = errata("stop")
    assert done.exit_code == 0 and "nothing serves" in done.output


def test_serve_ends_with_ray(tmp_path: Path) -> None:
    process = serve(tmp_path)
    children = psutil.Process(process.pid).children()
    os.kill(children[1].pid, signal.SIGKILL)
    assert process.stdout is not None
    assert "ray has ended" in process.stdout.read() and process.wait(timeout=10) == 1
    assert not any(child.is_running() for child in children)


def test_stop_leaves_other_processes_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    record = tmp_path / "serve" / pidfile.NAME
    record.parent.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", "import signal; signal.signal(15, signal.SIG_IGN); print(1, flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None and other.stdout.readline()
        started = psutil.Process(other.pid).create_time()
        record.write_text(json.dumps({"pid": other.pid, "started": started - 60, "url": "u"}))
        assert "nothing serves" in errata("stop").output
        record.write_text(json.dumps({"pid": other.pid, "started": started, "url": "u"}))
        done = errata("stop", "--timeout", "0.3")
        assert done.exit_code == 1 and f"process {other.pid} has been asked to stop" in done.output
        other.communicate(b"\n")
        assert other.returncode == 0
    record.write_text("{")
    done = errata("stop")
    assert done.exit_code == 1 and "does not say which process" in done.output


def test_serving_others_takes_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    for options, says in (
        (["--host", "0.0.0.0"], "errata keys add"),
        (["--keys", str(tmp_path / "none")], "none cannot be read"),
    ):
        done = errata("serve", "--editor", "FT-L", "--model", "m", *options)
        assert done.exit_code == 2 and says in words(done)
    assert errata("serve", "--pause", "never").exit_code == 2 and not (tmp_path / "serve").exists()


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:1"), ("0.0.0.0", "http://127.0.0.1:1"), ("::", "http://[::1]:1"), ("h", "http://h:1")],
)
def test_the_address_for_clients_of_this_machine(tmp_path: Path, host: str, url: str) -> None:
    assert LocalServices(tmp_path, http_port=1, http_host=host).url == url
