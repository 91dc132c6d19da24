"""The head: the file `HEAD` with its last move, and the head log with all moves.

The newest version is the head without a move. A move is a rollback, a recovery, or the retraction of a version.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from errata.durable import append_record, records, replaced, sync, with_checksum, without_checksum
from errata.ledger.entry import utc_now

HEAD, MOVES = "HEAD", "moves.jsonl"
NEVER = {"version": 0, "after": -1, "moves": 0}


class Head:
    """The moves of the head of one ledger."""

    def __init__(self, directory: Path) -> None:
        self.file, self.log = directory / HEAD, directory / MOVES
        self._retracted: tuple[int, frozenset[int]] = 0, frozenset()  # with the log's size when it was read

    def read(self) -> dict[str, int] | None:
        """Read the last move, {"version", "after": the newest version then, "moves": their count}; None if there was none.

        Raises `ValueError` if `HEAD` cannot be read.
        """
        if not self.file.exists():
            return None
        move = without_checksum(self.file.read_bytes())
        if set(move) | {"moves"} != set(NEVER) or not all(isinstance(value, int) for value in move.values()):
            raise ValueError(f"it must hold the numbers `version`, `after` and `moves`, not {move}")
        return move if "moves" in move else {**move, "moves": self.count()}  # Earlier releases did not write the count.

    def count(self) -> int:
        """Count the moves in the log."""
        return sum(1 for _ in self.entries())

    def last(self) -> dict[str, int]:
        """Return the last move: of `HEAD`, otherwise of the log, otherwise `NEVER`."""
        try:
            move = self.read()
        except ValueError:
            move = None
        if move is None:
            logged = self.logged()
            moves = logged["moves"] if isinstance(logged.get("moves"), int) else self.count()
            move = {"version": int(logged["version"]), "after": int(logged["after"]), "moves": moves}
        return move

    def logged(self) -> dict[str, Any]:
        """Return the last move in the log, or `NEVER`."""
        return ([NEVER, *self.entries()])[-1]

    def entries(self) -> Iterator[dict[str, Any]]:
        """Iterate over the log, oldest first: {"version", "after", "before", "time", "by"}, of a retraction also "withdrawn".

        A torn line, as a crash leaves it, is skipped.
        """
        for move in records(self.log):
            if all(isinstance(move.get(key), int) for key in ("version", "after", "before")):
                yield {"time": "", "by": "", **move}

    def retracted(self) -> frozenset[int]:
        """Return the versions that were retracted because no replica could load them."""
        size = self.log.stat().st_size if self.log.exists() else 0
        if size != self._retracted[0]:
            found = (move.get("withdrawn") for move in self.entries())
            self._retracted = size, frozenset(number for number in found if isinstance(number, int))
        return self._retracted[1]

    def move(self, version: int, after: int, before: int, by: str, retracted: int | None = None) -> None:
        """Move the head from `before` to `version`; `after` is the newest version.

        The log is written before `HEAD`, so that every move is logged; a failure leaves both files unchanged.
        """
        move = {"version": version, "after": after, "moves": self.last()["moves"] + 1}
        why = {} if retracted is None else {"withdrawn": retracted}
        with replaced(self.file) as file:
            file.write_text(json.dumps(with_checksum(move)))
            sync(file)
            append_record(self.log, {**move, "before": before, "time": utc_now(), "by": by, **why})
