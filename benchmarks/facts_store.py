"""Results of the comparison on the default model, kept one by one on the disk, so that an interrupted run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from errata.durable import write_text
from errata.home import home

Result = TypeVar("Result")


class RowStore:
    """Files of `$ERRATA_HOME/NAME/measured`. With `fresh`, what an earlier run left there is measured again."""

    def __init__(self, name: str, fresh: bool = False) -> None:
        self.folder, self.fresh = home() / name / "measured", fresh
        self._own: set[str] = set()

    def kept(self, name: str, key: Mapping[str, Any], make: Callable[[], Result]) -> Result:
        """Return what an earlier run made for the same `key`, all that the result depends on, or make and keep it."""
        path = self.path(name)
        wanted = json.loads(json.dumps(key))
        if path.exists() and (not self.fresh or name in self._own):
            there = json.loads(path.read_text())
            if there["key"] == wanted:
                result: Result = there["result"]
                return result
        made = make()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"key": wanted, "result": made}))
        self._own.add(name)
        return made

    def path(self, name: str) -> Path:
        return self.folder / f"{name.replace(' ', '-')}.json"
