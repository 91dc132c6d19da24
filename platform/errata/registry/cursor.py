"""The cursor: how far the mirror in MLflow has come, in a small file beside the ledger."""

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
    """MLflow cannot be reached or answered with an error. Versions that were mirrored stay mirrored."""


class RegistryConflict(RegistryUnavailable):
    """MLflow holds what is another's under this name, or is in a state that only a person can settle. Nothing is written."""


@dataclass(frozen=True)
class Registered:
    """A version in MLflow: the ledger's number, MLflow's, and whether it is described and MLflow failed to register it."""

    version: int
    fingerprint: str
    mlflow_version: int
    is_described: bool
    has_failed: bool = False


@dataclass(frozen=True)
class RegisteredModel:
    """The tags of a registered model in MLflow, and MLflow's version number by alias."""

    tags: dict[str, str]
    aliases: dict[str, int]
    is_prompt: bool = False


@dataclass(frozen=True)
class Mirrored:
    """The result of a mirror call: versions added and left, the ledger's head, the version with the alias `serving`.

    `mlflow_version` is MLflow's number of that version.
    """

    added: int
    left: int
    live: int
    serving: int | None
    mlflow_version: int | None = None


@dataclass(frozen=True)
class Cursor:
    """Progress of the mirror: every version up to `version` is registered, the last as MLflow's `mlflow_version`.

    -1 means that none is. `refusals` and `moves` (of the head) count the records in the run `run_id`, and `refusals_at` is the
    byte of the refusals' log at which the last table of refusals begins, 0 if it is not known. Version 0, the unedited model,
    is not registered; mirrors that an earlier release began have it.
    """

    version: int = -1
    fingerprint: str = ""
    mlflow_version: int = 0
    run_id: str = ""
    refusals: int = 0
    moves: int = 0
    refusals_at: int = 0


class CursorFile:
    """The cursors of one ledger, by the name of the registered model, in a JSON file beside the ledger.

    The server's address is not part of it, because a restarted server may have another port; the mirror compares contents.
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
        """Read the cursor; the start, if there is none or it cannot be read."""
        try:
            return Cursor(**self._all().get(self.name, {}))
        except TypeError:
            return Cursor()

    def write(self, cursor: Cursor) -> None:
        """Write the cursor atomically. Raises `RegistryUnavailable` if the disk fails."""
        try:
            with replaced(self.path) as file:
                file.write_text(json.dumps({**self._all(), self.name: asdict(cursor)}, indent=1))
        except OSError as error:
            raise RegistryUnavailable(f"the mirror's progress cannot be written to {self.path}: {error}") from error

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the mirror's lock. Raises `RegistryUnavailable` if another process is mirroring this ledger."""
        path = self.path.with_suffix(".lock")
        try:
            lock = hold(path)
        except OSError as error:
            raise RegistryUnavailable(f"{path} cannot be opened: {error}") from error
        except Held as held:
            raise RegistryUnavailable(f"another process is mirroring this ledger: {held}") from None
        with lock:
            yield
