"""The logs of a session, searched for texts that none may hold: prompts, targets, and keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

SUFFIXES = (".log", ".out", ".err")


def log_files(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder that are logs, each once."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.suffix in SUFFIXES:
            yield path


def leaks(folders: Iterable[Path], texts: Sequence[str]) -> list[str]:
    """Return the lines of logs that hold any of the texts, each with its file, as far as they are cut."""
    found: list[str] = []
    for path in (path for folder in folders for path in log_files(folder)):
        with path.open("rb") as log:
            for line in log:
                if hit := next((text for text in texts if text.encode() in line), None):
                    found.append(f"{path.name}: {hit!r} in {line[:300]!r}")
    return found
