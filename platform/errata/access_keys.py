"""Access keys of the HTTP interface, in a file that holds only their hashes.

A key is a random bearer token with a name, which ledger and logs show, and a role: `read` completes and reads, `propose` also
tries corrections and proposes them, `edit` also corrects and decides on proposals, `admin` also rolls back and reverts. The
file is JSON and is read again when it changes, so that keys can be added and removed while the service runs.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import logging
import math
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from errata.durable import replaced
from errata.locks import hold

logger = logging.getLogger("errata")

ROLES = ("read", "propose", "edit", "admin")  # each includes those before it
LOOK_PERIOD_S = 1.0
NUM_KEY_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_FIELDS = {"name", "role", "sha256", "created", "expires", "rate"}
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True)
class Key:
    """One key's name, role and hash; `rate` is in requests per minute (None: no limit), `expires` None means never."""

    name: str
    role: str
    sha256: str = field(repr=False)
    created: datetime
    expires: datetime | None = None
    rate: int | None = None

    def may(self, role: str) -> bool:
        return ROLES.index(self.role) >= ROLES.index(role)

    def is_expired(self, now: datetime) -> bool:
        return self.expires is not None and self.expires <= now

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {"name": self.name, "role": self.role, "sha256": self.sha256}
        data["created"] = self.created.isoformat(timespec="seconds")
        if self.expires is not None:
            data["expires"] = self.expires.isoformat(timespec="seconds")
        return data | ({"rate": self.rate} if self.rate is not None else {})

    @classmethod
    def from_json(cls, data: Any) -> Key:
        """Read an entry of the file. Raises `ValueError` with the field at fault, and never with a hash."""
        if not isinstance(data, Mapping) or not {"name", "role", "sha256", "created"} <= set(data) <= _FIELDS:
            raise ValueError("must be {name, role, sha256, created, expires?, rate?}")
        _check(data["name"], data["role"], data.get("rate"))
        if not isinstance(data["sha256"], str) or not re.fullmatch("[0-9a-f]{64}", data["sha256"]):
            raise ValueError("sha256 must be the key's SHA-256 in 64 lower-case hexadecimal digits")
        expires = None if data.get("expires") is None else _moment(data["expires"], "expires")
        created = _moment(data["created"], "created")
        return cls(data["name"], data["role"], data["sha256"], created, expires, data.get("rate"))


class Keys:
    """The current keys of a file. `find` reads the file again after a change, which it checks at most once a second."""

    def __init__(self, path: Path, entries: tuple[Key, ...], mark: tuple[int, int, int]) -> None:
        self.path, self.entries = path, entries
        self._mark, self._looked_at, self._is_troubled = mark, time.monotonic(), False

    @classmethod
    def load(cls, path: str | Path) -> Keys:
        """Read a file. Raises `ValueError` with the entry at fault, or the reason why the file cannot be used."""
        path = Path(path).absolute()
        return cls(path, *_read(path))

    def find(self, bearer: str, now: datetime) -> Key | None:
        """Find the key of this bearer token, unless it has expired. The time taken does not depend on the token."""
        self._look()
        digest = _digest(bearer)
        found = None
        for key in self.entries:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return None if found is None or found.is_expired(now) else found

    def _look(self) -> None:
        """Read the file again if it has changed. If it is unusable, the keys stay in force, and one line is logged."""
        if time.monotonic() - self._looked_at < LOOK_PERIOD_S:
            return
        self._looked_at = time.monotonic()
        try:
            if _mark(self.path.stat()) != self._mark:
                self.entries, self._mark = _read(self.path)
                logger.info("%d keys are in force, read from %s", len(self.entries), self.path)
        except (OSError, ValueError) as fault:
            if not self._is_troubled:
                logger.error("the earlier keys stay in force, since the file of keys cannot be used now: %s", fault)
            self._is_troubled = True
        else:
            self._is_troubled = False


def add_key(
    path: str | Path,
    name: str,
    role: str,
    lifetime: timedelta | None = None,
    rate: int | None = None,
) -> str:
    """Make a key, store its hash, and return the key, which is stored nowhere. A missing file is created.

    Raises `ValueError` if the name is taken or the file cannot be used.
    """
    _check(name, role, rate)
    created = datetime.now(UTC).replace(microsecond=0)
    bearer = secrets.token_urlsafe(NUM_KEY_BYTES)
    key = Key(name, role, _digest(bearer), created, None if lifetime is None else created + lifetime, rate)
    with _changed(path) as keys:
        if any(known.name == name for known in keys):
            raise ValueError(f"there is a key named {name!r} already; remove it first, or take another name")
        keys.append(key)
    return bearer


def remove_key(path: str | Path, name: str) -> None:
    """Remove a key. Raises `ValueError` if it does not exist or the file cannot be used."""
    with _changed(path) as keys:
        left = [key for key in keys if key.name != name]
        if len(left) == len(keys):
            raise ValueError(f"there is no key named {name!r} in {path}; `errata keys list` shows all")
        keys[:] = left


def lifetime_of(text: str) -> timedelta:
    """Parse `90m`, `12h`, `30d` or `8w`. Raises `ValueError`."""
    amount, unit = text[:-1], text[-1:]
    if unit not in _UNITS or not amount.isascii() or not amount.isdigit() or not 1 <= len(amount) <= 5 or not int(amount):
        raise ValueError(f"{text!r} is not a lifetime; write a number and m, h, d or w, such as 30d")
    return timedelta(**{_UNITS[unit]: int(amount)})


def is_loopback(host: str) -> bool:
    """Only this machine can connect to this address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:  # a name, which may resolve to any address
        return False


def check_binding(host: str | None, keys_path: str | Path | None) -> None:
    """Raise `ValueError` if a stranger who connects to `host` could change the model, or the file of keys is unusable.

    `host` is None if no HTTP server listens.
    """
    if keys_path:
        if not Keys.load(keys_path).entries:
            raise ValueError(f"{keys_path} holds no key yet: `errata keys add NAME --role admin --file {keys_path}` makes one")
    elif host is not None and not is_loopback(host):
        raise ValueError(
            f"without keys the service listens only on this machine (127.0.0.1): on {host!r} any caller could change the "
            "model. Make a key with `errata keys add NAME --role admin --file FILE`, and start the service with --keys FILE"
        )


# -- the file ---------------------------------------------------------------------------------------------------------


def _digest(bearer: str) -> str:
    return hashlib.sha256(bearer.encode("utf-8", "surrogatepass")).hexdigest()


def _mark(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_mtime_ns, found.st_size, found.st_ino


def _check(name: Any, role: Any, rate: Any) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError("name must be letters, digits and . _ @ -, at most 64 of them, a letter or digit first")
    if role not in ROLES:
        raise ValueError(f"role must be one of {', '.join(ROLES)}")
    if rate is not None and (type(rate) is not int or not 1 <= rate <= 1_000_000):
        raise ValueError("rate must be a whole number of requests a minute, 1 to 1,000,000")


def _moment(text: Any, name: str) -> datetime:
    wrong = f"{name} must be a time with its zone, such as 2026-01-31T12:00:00+00:00"
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise ValueError(wrong) from None
    if moment.tzinfo is None:
        raise ValueError(wrong)
    return moment


def _read(path: Path) -> tuple[tuple[Key, ...], tuple[int, int, int]]:
    """Read the keys, and the mark of the file that was read. Raises `ValueError`."""
    try:
        with path.open("rb") as file:
            found, content = os.fstat(file.fileno()), file.read()
    except OSError as fault:
        raise ValueError(f"the file of keys {path} cannot be read: {fault.strerror}") from None
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ValueError(f"users other than its owner may write to {path}, and could add keys: chmod 600 {path}")
    return _parsed(path, content), _mark(found)


def _parsed(path: Path, content: bytes) -> tuple[Key, ...]:
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is not a file of keys: it is not JSON") from None
    if not isinstance(data, dict) or set(data) != {"keys"} or not isinstance(data["keys"], list):
        raise ValueError(f'{path} is not a file of keys: it must be {{"keys": [...]}}')
    keys: list[Key] = []
    for number, entry in enumerate(data["keys"], 1):
        name = entry.get("name") if isinstance(entry, dict) else None
        try:
            keys.append(Key.from_json(entry))
        except ValueError as fault:
            raise ValueError(f"{path}, key {number} ({name!r}): {fault}") from None
        for earlier in keys[:-1]:
            if earlier.name == keys[-1].name or earlier.sha256 == keys[-1].sha256:
                raise ValueError(f"{path}, key {number} ({name!r}): is the same key as {earlier.name!r}, or has its name")
    return tuple(keys)


@contextmanager
def _changed(path: str | Path) -> Iterator[list[Key]]:
    """Yield the keys, to be changed in place, and write them at the end of the block. One process at a time."""
    path = Path(path).resolve()  # a link is followed: its target is replaced
    path.parent.mkdir(parents=True, exist_ok=True)
    with hold(path.with_name(f".{path.name}.lock"), wait_s=math.inf):
        keys = list(_read(path)[0]) if path.exists() else []
        yield keys
        _write(path, keys)


def _write(path: Path, keys: Sequence[Key]) -> None:
    """Replace the file of keys atomically; only its owner may read it."""
    with replaced(path) as file:
        file.touch(mode=0o600, exist_ok=False)  # The mode is set before the first key hash is in the file.
        file.write_text(json.dumps({"keys": [key.to_json() for key in keys]}, indent=1) + "\n")
