"""Access keys: the file of hashes, expiry, reloading, and addresses that require keys."""

from __future__ import annotations

import json
import logging
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from errata import access_keys
from errata.access_keys import Keys, add_key, check_binding, is_loopback, lifetime_of, remove_key

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ENTRY = {"name": "a", "role": "read", "sha256": "0" * 64, "created": "2026-01-01T00:00:00+00:00"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def checks_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_keys, "LOOK_PERIOD_S", 0.0)


def written(file: Path, *entries: Any) -> Path:
    file.write_text(json.dumps({"keys": list(entries)}))
    file.chmod(0o600)
    return file


def test_only_the_right_token_finds_a_key(file: Path) -> None:
    bearers = {name: add_key(file, name, role) for name, role in zip("rpea", access_keys.ROLES, strict=True)}
    found = Keys.load(file)
    roles = {name: found.find(bearer, NOW).role for name, bearer in bearers.items()}
    assert roles == {"r": "read", "p": "propose", "e": "edit", "a": "admin"}
    for wrong in ("", bearers["r"][:-1], bearers["r"] + " ", bearers["r"].swapcase(), "\ud800", found.entries[0].sha256):
        assert found.find(wrong, NOW) is None
    assert [[key.may(role) for role in access_keys.ROLES] for key in found.entries] == [
        [True, False, False, False],
        [True, True, False, False],
        [True, True, True, False],
        [True, True, True, True],
    ]


def test_the_file_contains_no_key_and_only_its_owner_reads_it(file: Path) -> None:
    bearer = add_key(file, "a", "admin")
    assert len(bearer) >= 43
    assert bearer not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    remove_key(file, "a")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert sorted(path.name for path in file.parent.iterdir()) == [".keys.json.lock", "keys.json"]


def test_a_key_expires(file: Path) -> None:
    bearer = add_key(file, "a", "read", timedelta(days=30))
    found = Keys.load(file)
    ends = found.entries[0].expires
    assert ends is not None
    assert abs(ends - datetime.now(UTC) - timedelta(days=30)) < timedelta(minutes=1)
    assert found.find(bearer, ends - timedelta(seconds=1)) is not None
    assert found.find(bearer, ends) is None


def test_every_entry_is_compared_for_every_token(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bearers = [add_key(file, f"k{i}", "read") for i in range(5)]
    found, compared = Keys.load(file), []
    compare = access_keys.hmac.compare_digest
    monkeypatch.setattr(access_keys.hmac, "compare_digest", lambda a, b: compared.append(a) or compare(a, b))
    for bearer in (bearers[0], bearers[4], "none"):
        compared.clear()
        found.find(bearer, NOW)
        assert len(compared) == 5


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ("text", "must be {name"),
        ({**ENTRY, "more": 1}, "must be {name"),
        ({k: v for k, v in ENTRY.items() if k != "created"}, "must be {name"),
        ({**ENTRY, "name": "../a"}, "name must be"),
        ({**ENTRY, "name": 5}, "name must be"),
        ({**ENTRY, "name": "a\nb"}, "name must be"),
        ({**ENTRY, "role": "root"}, "role must be"),
        ({**ENTRY, "role": ["admin"]}, "role must be"),
        ({**ENTRY, "sha256": "the-key-itself"}, "sha256 must be"),
        ({**ENTRY, "sha256": 5}, "sha256 must be"),
        ({**ENTRY, "created": 5}, "created must be"),
        ({**ENTRY, "expires": "soon"}, "expires must be"),
        ({**ENTRY, "expires": "2026-01-01T00:00:00"}, "expires must be"),
        ({**ENTRY, "rate": 0}, "rate must be"),
        ({**ENTRY, "rate": True}, "rate must be"),
        ({**ENTRY, "rate": "60"}, "rate must be"),
    ],
)
def test_an_entry_that_is_wrong_is_named(file: Path, entry: Any, why: str) -> None:
    good = {**ENTRY, "name": "first", "sha256": "1" * 64}
    with pytest.raises(ValueError, match=r"key 2 \(") as raised:
        Keys.load(written(file, good, entry))
    assert why in str(raised.value)
    assert "the-key-itself" not in str(raised.value)


def test_other_files_are_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        Keys.load(file)
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        Keys.load(tmp_path)
    for content in (b"", b"{", b"[]", b'{"keys": {}}', b'{"keys": [], "more": 1}', b"\xff", b"[" * 100_000):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="is not a file of keys"):
            Keys.load(file)
    with pytest.raises(ValueError, match="same key as 'a', or has its name"):
        Keys.load(written(file, ENTRY, {**ENTRY, "sha256": "1" * 64}))
    with pytest.raises(ValueError, match="same key as 'a', or has its name"):
        Keys.load(written(file, ENTRY, {**ENTRY, "name": "b"}))


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_file_that_others_may_write_to_is_refused(file: Path, mode: int) -> None:
    written(file, ENTRY).chmod(mode)
    with pytest.raises(ValueError, match="chmod 600"):
        Keys.load(file)


def test_a_changed_file_is_read_again(file: Path, checks_each_time: None) -> None:
    first = add_key(file, "first", "read")
    found = Keys.load(file)
    second = add_key(file, "second", "admin")
    assert found.find(second, NOW) is not None
    remove_key(file, "first")
    assert found.find(first, NOW) is None


def test_the_file_is_checked_at_most_once_a_second(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_key(file, "first", "read")
    found, now = Keys.load(file), access_keys.time.monotonic()
    second = add_key(file, "second", "read")
    monkeypatch.setattr(access_keys.time, "monotonic", lambda: now + 0.5)
    assert found.find(second, NOW) is None
    monkeypatch.setattr(access_keys.time, "monotonic", lambda: now + 1.5)
    assert found.find(second, NOW) is not None


def test_a_damaged_file_keeps_the_earlier_keys_and_is_logged_once(
    file: Path, checks_each_time: None, caplog: pytest.LogCaptureFixture
) -> None:
    bearer = add_key(file, "a", "read")
    found, kept = Keys.load(file), file.read_bytes()

    def errors() -> int:
        return len([record for record in caplog.records if record.levelno == logging.ERROR])

    for number, broken in enumerate((b"{", b"", None), 1):
        caplog.clear()
        file.unlink() if broken is None else file.write_bytes(broken)
        assert all(found.find(bearer, NOW) is not None for _ in range(3)), number
        assert errors() == 1
        file.write_bytes(kept)
        file.chmod(0o600)
        assert found.find(bearer, NOW) is not None
    assert errors() == 1


def test_keys_made_concurrently_are_all_stored(file: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        bearers = list(pool.map(lambda number: add_key(file, f"k{number}", "read"), range(16)))
    found = Keys.load(file)
    assert sorted(found.find(bearer, NOW).name for bearer in bearers) == sorted(f"k{i}" for i in range(16))


def test_a_full_disk_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bearer = add_key(file, "a", "read")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        add_key(file, "b", "read")
    assert sorted(path.name for path in file.parent.iterdir()) == [".keys.json.lock", "keys.json"]
    assert Keys.load(file).find(bearer, NOW) is not None


def test_a_link_is_followed(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.json"
    add_key(file, "a", "read")
    link.symlink_to(file)
    add_key(link, "b", "read")
    assert link.is_symlink()
    assert len(Keys.load(file).entries) == 2


@pytest.mark.parametrize(("text", "seconds"), [("90m", 5400), ("12h", 43200), ("30d", 2592000), ("8w", 4838400)])
def test_a_lifetime_is_a_number_and_a_unit(text: str, seconds: int) -> None:
    assert lifetime_of(text).total_seconds() == seconds


@pytest.mark.parametrize("text", ["", "d", "30", "0d", "-1d", "1.5d", "30 d", "30y", "²d", "999999d"])
def test_an_invalid_lifetime_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a lifetime"):
        lifetime_of(text)


def test_only_addresses_of_this_machine_are_loopback() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.1.2.3", "::1", "[::1]")))
    assert not any(
        map(is_loopback, ("0.0.0.0", "::", "", "10.0.0.1", "example.org", "localhost.example.org", "127.0.0.1.nip.io"))
    )


def test_another_address_requires_keys(file: Path) -> None:
    for host in ("127.0.0.1", "localhost", "::1", None):
        check_binding(host, None)
        check_binding(host, "")
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", ""):
        with pytest.raises(ValueError, match=r"without keys .* `errata keys add"):
            check_binding(host, None)
    with pytest.raises(ValueError, match="cannot be read"):
        check_binding("127.0.0.1", file)
    with pytest.raises(ValueError, match="holds no key yet"):
        check_binding("0.0.0.0", written(file))
    check_binding("0.0.0.0", written(file, ENTRY))
