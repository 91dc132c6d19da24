"""The commands against a small HTTP server that answers as the service does."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from errata.cli import app
from errata.client import Client, ErrataError
from errata.ledger import Ledger
from errata.stack import free_port

VERSIONS = [
    {"version": 0, "parent": None, "num_edits": 0, "num_bytes": 0, "created": "2026-01-01"},
    {"version": 1, "parent": 0, "num_edits": 2, "num_bytes": 4096, "created": "2026-01-02"},
]


class Service(BaseHTTPRequestHandler):
    """Refuses an edit without a target, is unavailable once for each key, and applies the rest in version 1."""

    posted: list[tuple[str, Any]] = []  # noqa: RUF012, shared on purpose
    refuse_once = True

    def do_GET(self) -> None:
        answers = {"/v1/models": {"data": [{"id": "errata"}]}, "/v1/versions": {"head": 1, "versions": VERSIONS}}
        self.answer(200, answers.get(self.path, {}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v1/completions":
            choices = [{"text": f" {prompt}!"} for prompt in body["prompt"]]
            return self.answer(200, {"choices": choices, "errata": {"version_min": 1, "version_max": 1}})
        self.posted.append((self.headers["Idempotency-Key"], body))
        if not body["edits"][0]["target"]:
            return self.answer(422, {"error": {"message": "target: is empty", "field": "target"}})
        if type(self).refuse_once:
            type(self).refuse_once = False
            return self.answer(503, {"error": {"message": "is being restarted"}})
        self.answer(200, {"version": 1, "ids": ["a"]})

    def answer(self, code: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    Service.posted, Service.refuse_once = [], True
    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def errata(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_an_edit_is_posted_again_under_one_key_when_the_worker_restarts(url: str) -> None:
    done = errata("edit", "a b", "c", "--subject", "a", "--url", url)
    assert done.exit_code == 0 and "version 1" in done.output
    (first_key, body), (second_key, _) = Service.posted
    assert first_key == second_key
    assert body == {"edits": [{"prompt": "a b", "target": "c", "subject": "a"}], "wait": True}


def test_a_refusal_is_shown_and_ends_with_one(url: str) -> None:
    done = errata("edit", "a b", "", "--url", url)
    assert done.exit_code == 1 and "target: is empty" in done.output and "422" in done.output
    with pytest.raises(ErrataError) as refused:
        Client(url).edit([{"prompt": "a", "target": ""}])
    assert refused.value.status == 422


def test_ask_and_versions(url: str) -> None:
    assert "hello hello!" in errata("ask", "hello", "--url", url).output
    shown = errata("versions", "--url", url).output
    assert "4,096" in shown and "●" in shown


def edits_file(folder: Path) -> Path:
    probes = {
        "locality": [{"prompt": "river", "target": "Seine"}],
        "portability": [{"prompt": "x", "target": "x!", "kind": "alias"}],
    }
    edits = [{"prompt": "a", "target": "a!", "rephrasings": ["b", "c"], **probes}, {"prompt": "d", "target": "e"}]
    (folder / "edits.jsonl").write_text("".join(json.dumps(edit) + "\n" for edit in edits))
    return folder / "edits.jsonl"


def test_the_served_model_is_scored_by_what_it_generates(url: str, tmp_path: Path) -> None:
    edits, saved = str(edits_file(tmp_path)), tmp_path / "answers.json"
    shown = errata("score", edits, "--url", url, "--save", str(saved)).output
    assert "2 edits, answered by version 1" in shown
    rows = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in shown.splitlines() if line.count("│") > 2}
    assert rows == {
        "efficacy": "0.500",
        "generalisation": "0.000",
        "locality_gold": "0.000",
        "portability": "1.000",
        "portability, alias": "1.000",
    }
    found = json.loads(saved.read_text())
    assert (found["version_max"], found["answers"]["river"]) == (1, " river!")
    again = errata("score", edits, "--url", url, "--base", str(saved), "--limit", "1").output
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
def test_scoring_against_what_is_no_answers_says_so(url: str, tmp_path: Path, content: str | None, says: str) -> None:
    base = tmp_path / "base.json"
    if content is not None:
        base.write_text(content)
    done = errata("score", str(edits_file(tmp_path)), "--url", url, "--base", str(base))
    assert done.exit_code == 1 and says in done.output.replace("\n", " ")
    done = errata("score", str(edits_file(tmp_path)), "--url", f"http://127.0.0.1:{free_port()}")
    assert done.exit_code == 1 and "make serve" in done.output


def test_no_service_is_said_plainly() -> None:
    done = errata("status", "--url", f"http://127.0.0.1:{free_port()}")
    assert done.exit_code == 1 and "make serve" in done.output


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
