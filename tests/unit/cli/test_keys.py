"""The commands `errata keys`: what they print, and what they leave in the file."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from errata.access_keys import Keys, add_key
from tests.unit.cli.invoke import errata


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(tmp_path / "keys.json")


def test_a_key_is_made_listed_and_removed(file: str) -> None:
    made = errata("keys", "add", "ann", "--role", "edit", "--expires", "30d", "--rate", "600", "--file", file)
    assert made.exit_code == 0
    assert "not shown again" in made.stderr
    bearer = made.stdout.strip()
    key = Keys.load(file).find(bearer, datetime.now(UTC))
    assert key is not None
    assert (key.name, key.role, key.rate) == ("ann", "edit", 600)
    listed = errata("keys", "list", "--file", file)
    assert all(word in listed.stdout for word in ("ann", "edit", "600", "UTC"))
    assert bearer not in listed.stdout and key.sha256 not in listed.stdout
    assert errata("keys", "remove", "ann", "--file", file).exit_code == 0
    assert Keys.load(file).entries == ()


def test_an_expired_key_is_listed_as_such(file: str) -> None:
    add_key(file, "a", "read", timedelta(days=30))
    [key] = json.loads(Path(file).read_text())["keys"]
    Path(file).write_text(json.dumps({"keys": [{**key, "expires": "2026-01-01T02:00:00+02:00"}]}))
    listed = errata("keys", "list", "--file", file)
    assert "2026-01-01 00:00 UTC (expired)" in listed.stdout


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("add", "a", "--role", "root"), "role must be one of read, propose, edit, admin"),
        (("add", "a b"), "name must be"),
        (("add", "a", "--expires", "soon"), "is not a lifetime"),
        (("add", "a", "--rate", "0"), "rate must be"),
        (("add", "taken"), "there is a key named 'taken' already"),
        (("remove", "b"), "there is no key named 'b'"),
    ],
)
def test_commands_that_fail(file: str, arguments: tuple[str, ...], why: str) -> None:
    add_key(file, "taken", "read")
    before = Path(file).read_bytes()
    done = errata("keys", *arguments, "--file", file)
    assert (done.exit_code, done.stdout) == (1, "")
    assert why in done.stderr
    assert Path(file).read_bytes() == before


def test_the_list_of_a_missing_file(file: str) -> None:
    done = errata("keys", "list", "--file", file)
    assert done.exit_code == 1
    assert "cannot be read" in done.stderr
