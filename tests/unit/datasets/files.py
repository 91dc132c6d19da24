"""Files of edits for the tests, and the refusal that reading one ends in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from errata.datasets.reader import read_edits
from errata.edit import Edit, EditRejected

GOOD = [{"prompt": "a b", "target": "c"}, {"prompt": "d", "target": "e", "rephrasings": ["f"]}, {"prompt": "g", "target": "h"}]
EDITS = [Edit("a b", "c"), Edit("d", "e", rephrasings=("f",)), Edit("g", "h")]


def lines(records: list[Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rejection(path: Path, **how: Any) -> EditRejected:
    with pytest.raises(EditRejected) as rejected:
        list(read_edits(path, **how))
    assert f"({path.name})" in str(rejected.value), "the file is named"
    return rejected.value
