"""Where the head was moved to, how often, and by whom: `HEAD`, which counts, and the log of all moves.

The newest version is the head by itself; a move is by hand, by a recovery, or of a version that is withdrawn.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from errata.durable import append_record, records, replaced, sync, with_checksum, without_checksum
from errata.ledger.entry import utc_now

HEAD, MOVES = "HEAD", "moves.jsonl"
NEVER = {"version": 0, "after": -1}


class Head:
    def __init__(self, directory: Path) -> None:
        self.file, self.log = directory / HEAD, directory / MOVES
        self._retracted: tuple[int, frozenset[int]] = 0, frozenset()  # with the log's size when it was read

    def read(self) -> dict[str, int] | None:
        """{"version", "after": the newest then}; None if the head was never moved. Raises `ValueError` if it cannot be read."""
        if not self.file.exists():
            return None
        move = without_checksum(self.file.read_bytes())
        if set(move) != {"version", "after"} or not all(isinstance(value, int) for value in move.values()):
            raise ValueError(f"it has no version and number, but {move}")
        return move

    def last(self) -> dict[str, int]:
        """What `read` gives, or where it gives nothing what the log says; version 0, before all, if that is silent too."""
        try:
            move = self.read()
        except ValueError:
            move = None
        if move is None:
            move = {key: int(self.logged()[key]) for key in NEVER}
        return move

    def logged(self) -> dict[str, Any]:
        return ([NEVER, *self.entries()])[-1]

    def entries(self) -> Iterator[dict[str, Any]]:
        """{"version", "after", "before", "time", "by", "withdrawn" where one was}, oldest first.

        Half a line, as a crash leaves it, is passed over.
        """
        for move in records(self.log):
            if all(isinstance(move.get(key), int) for key in ("version", "after", "before")):
                yield {"time": "", "by": "", **move}

    def retracted(self) -> frozenset[int]:
        """The versions that were taken back because nobody could serve them."""
        size = self.log.stat().st_size if self.log.exists() else 0
        if size != self._retracted[0]:
            found = (move.get("withdrawn") for move in self.entries())
            self._retracted = size, frozenset(number for number in found if isinstance(number, int))
        return self._retracted[1]

    def move(self, version: int, after: int, before: int, by: str, withdrawn: int | None = None) -> None:
        """Logged first: no move is unlogged, and a failure leaves both files as they were."""
        move = {"version": version, "after": after}
        why = {} if withdrawn is None else {"withdrawn": withdrawn}
        with replaced(self.file) as file:
            file.write_text(json.dumps(with_checksum(move)))
            sync(file)
            append_record(self.log, {**move, "before": before, "time": utc_now(), "by": by, **why})
