"""How far the mirror has come."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from errata.durable import replaced
from errata.ledger import Ledger
from errata.locks import Held, hold


class RegistryUnavailable(ConnectionError):
    """MLflow cannot be reached, or refused; what was mirrored stays mirrored."""


class RegistryConflict(RegistryUnavailable):
    """MLflow has, under this name, versions of another ledger: nothing is added to them."""


@dataclass(frozen=True)
class Registered:
    """A version as MLflow has it: our number, MLflow's own, and whether its description is written."""

    version: int
    fingerprint: str
    mlflow_version: int
    is_described: bool


@dataclass(frozen=True)
class Mirrored:
    """What a call of `mirror` came to: versions `added`, versions `left`, the ledger's head, where the alias `serving` is."""

    added: int
    left: int
    live: int
    serving: int | None


@dataclass(frozen=True)
class Cursor:
    """Every version up to `version` is registered, the last as MLflow's `mlflow_version`; -1 is none yet.

    `refusals` and `moves` (of the head) are counts of what is in the run `run_id`.
    """

    version: int = -1
    fingerprint: str = ""
    mlflow_version: int = 0
    run_id: str = ""
    refusals: int = 0
    moves: int = 0


class CursorFile:
    """The cursors of one ledger, by the name that it is mirrored under, in a small JSON file beside it.

    Not by address: a server that is started again may have another port. Whether it is the same is seen by what it has.
    """

    def __init__(self, ledger: Ledger, name: str) -> None:
        directory = ledger.directory.resolve()
        self.path, self.name = directory.with_name(f"{directory.name}.mlflow.json"), name

    def _all(self) -> dict[str, Any]:
        try:
            found = json.loads(self.path.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def read(self) -> Cursor:
        """The start, if there is none or none that can be read."""
        try:
            return Cursor(**self._all().get(self.name, {}))
        except TypeError:
            return Cursor()

    def write(self, cursor: Cursor) -> None:
        """Durable on return. Raises `RegistryUnavailable` if the disk refuses."""
        try:
            with replaced(self.path) as file:
                file.write_text(json.dumps({**self._all(), self.name: asdict(cursor)}, indent=1))
        except OSError as error:
            raise RegistryUnavailable(f"how far MLflow has the ledger cannot be noted in {self.path}: {error}") from error

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Raises `RegistryUnavailable` if another process is mirroring this ledger."""
        path = self.path.with_suffix(".lock")
        try:
            lock = hold(path)
        except OSError as error:
            raise RegistryUnavailable(f"{path} cannot be opened: {error}") from error
        except Held as held:
            raise RegistryUnavailable(f"another process is mirroring this ledger: {held}") from None
        with lock:
            yield
