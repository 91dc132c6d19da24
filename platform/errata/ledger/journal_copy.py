"""Copies of the journal beside a ledger: the edits that a service accepted, and the Idempotency-Keys, in a SQLite database.

The edit worker has its journal exclusively, since only then SQLite's write-ahead log works on a network share. A copy is
therefore requested: a file in `<journal>.copies` names it, and the worker, which looks there, makes it with SQLite's online
backup while edits go on. Where no worker runs, the copy is made here, under the worker's lock.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from errata.durable import replaced
from errata.locks import Held, hold

WANTED, COPY = ".wanted", ".sqlite"
WAIT_S = 60.0
POLL_S = 0.1
STALE_S = 3600.0  # A copy that its requester, who was killed, did not remove.
_NAME = re.compile(r"[0-9a-f]{32}")


def journal_of(ledger: str | Path) -> Path:
    """Return the journal that a service keeps beside a ledger, unless it is given another one."""
    return Path(f"{str(ledger).rstrip('/')}.journal")


def lock_of(journal: Path) -> Path:
    """Return the file whose lock the one writer of a journal holds."""
    return journal.with_name(f"{journal.name}.lock")


@contextmanager
def copied(journal: Path, wait_s: float = WAIT_S) -> Iterator[Path | None]:
    """Yield a file with a copy of a point in time, which is removed afterwards; None if there is no journal.

    Raises `ValueError` if the journal is damaged, or if a process has it and makes no copy within `wait_s`.
    """
    if not journal.exists():
        yield None
        return
    copy = _copies(journal) / f"{uuid.uuid4().hex}{COPY}"
    copy.parent.mkdir(exist_ok=True)
    try:
        deadline = time.monotonic() + wait_s
        while not copy.exists():
            _copy_or_ask(journal, copy, deadline)
        yield copy
    finally:
        copy.with_suffix(WANTED).unlink(missing_ok=True)
        copy.unlink(missing_ok=True)


def _copies(journal: Path) -> Path:
    return journal.with_name(f"{journal.name}.copies")


def _copy_or_ask(journal: Path, copy: Path, deadline: float) -> None:
    """Copy the journal, or ask the process that has it and wait a moment."""
    try:
        with hold(lock_of(journal)):
            _back_up(journal, copy)
    except Held as held:
        if time.monotonic() > deadline:
            raise ValueError(f"{held}, and made no copy of the journal: see its log, or end it and push again") from None
        copy.with_suffix(WANTED).touch()
        time.sleep(POLL_S)


def _back_up(journal: Path, copy: Path) -> None:
    try:
        with replaced(copy) as file, closing(_opened(journal)) as source, closing(sqlite3.connect(file)) as target:
            source.backup(target)
            target.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.Error as fault:
        raise ValueError(f"the journal {journal} cannot be copied: {fault}") from fault


def _opened(journal: Path) -> sqlite3.Connection:
    """Open a journal as its worker does, without an index in shared memory."""
    connection = sqlite3.connect(journal, isolation_level=None)
    connection.execute("PRAGMA locking_mode=EXCLUSIVE")
    return connection


def make_wanted(journal: Path, back_up: Callable[[Path], None]) -> int:
    """Make the copies that are wanted, by `back_up`, and remove stale ones; called by the process that has the journal.

    Returns the number of copies made.
    """
    for copy in _copies(journal).glob(f"*{COPY}"):
        if time.time() - copy.stat().st_mtime > STALE_S:
            copy.unlink(missing_ok=True)
    wanted = [file for file in _copies(journal).glob(f"*{WANTED}") if _NAME.fullmatch(file.stem)]
    for file in wanted:
        with replaced(file.with_suffix(COPY)) as copy:
            back_up(copy)
        file.unlink(missing_ok=True)
    return len(wanted)


def put_back(copy: Path, journal: Path) -> None:
    """Replace a journal by a copy. No service may use it meanwhile.

    Raises `ValueError` if a service does, if the copy is damaged, if the journal has edits that the copy lacks, or if a
    write-ahead log without its journal is left there: SQLite would apply it to the copy.
    """
    journal.parent.mkdir(parents=True, exist_ok=True)
    try:
        with hold(lock_of(journal)):
            _check(copy)
            if journal.exists():
                _check_earlier(journal, copy)
            elif (log := journal.with_name(f"{journal.name}-wal")).exists():
                raise ValueError(f"{log} belongs to a journal that is not there: move it away, beside that journal")
            with replaced(journal) as file:
                shutil.copyfile(copy, file)
    except Held as held:
        raise ValueError(f"the journal of the ledger is in use, {held}: end that service first") from None
    except sqlite3.Error as fault:
        raise ValueError(f"the journal {journal} or its copy cannot be read: {fault}") from fault


def _check(copy: Path) -> None:
    with closing(sqlite3.connect(copy)) as db:
        if (found := db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise ValueError(f"the copy of the journal is damaged: {found}")


def _check_earlier(journal: Path, copy: Path) -> None:
    """Raise `ValueError` if a journal has edits that the copy lacks; its write-ahead log is merged into it."""
    with closing(_opened(journal)) as db:
        db.execute("PRAGMA journal_mode=DELETE")  # So that no log of it remains beside what takes its place.
        db.execute("ATTACH DATABASE ? AS copy", (str(copy),))
        query = "SELECT COUNT(*) FROM main.edits WHERE id NOT IN (SELECT id FROM copy.edits)"
        if num_edits := db.execute(query).fetchone()[0]:
            raise ValueError(
                f"the journal {journal} has {num_edits} edits that the copy lacks: move it away, if they may be lost"
            )
