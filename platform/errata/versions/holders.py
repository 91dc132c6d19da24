"""Which versions hold an edit: looked up by its id, since the edits of versions are in their files by version."""

from __future__ import annotations

from collections.abc import Callable

from errata.versions.entry import Version


class Holders:
    """Versions are looked through once each, when somebody asks."""

    def __init__(self) -> None:
        self._by_id: dict[str, list[int]] = {}
        self._num_seen = 0

    def of(self, edit_id: str, newest: int, readable: Callable[[int], Version | None]) -> list[int]:
        """The versions up to `newest` that hold the edit, the oldest first; `readable` gives one, or None if there is none."""
        for number in range(self._num_seen, newest + 1):
            version = readable(number)
            for edit in version.edits if version else ():
                if edit.id is not None:
                    self._by_id.setdefault(edit.id, []).append(number)
        self._num_seen = max(self._num_seen, newest + 1)
        return self._by_id.get(edit_id, [])
