import json
from pathlib import Path

import pytest

from errata.edit import Edit, EditRejected, batches_of
from errata.stream import read_edits, write_parquet
from errata.testbed.world import World


def test_parquet_gives_back_what_was_written(tmp_path: Path) -> None:
    edits = [*World(20).edits("train", 10), Edit("a b", "c")]
    write_parquet(edits, tmp_path / "edits.parquet")
    assert list(read_edits(tmp_path / "edits.parquet")) == edits


def test_json_lines_and_json(tmp_path: Path) -> None:
    records = [{"prompt": "a b", "target": "c"}, {"prompt": "d", "target": "e", "rephrasings": ["f"]}]
    (tmp_path / "edits.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n\n")
    (tmp_path / "edits.json").write_text(json.dumps(records))
    assert list(read_edits(tmp_path / "edits.jsonl")) == list(read_edits(tmp_path / "edits.json"))


@pytest.mark.parametrize(
    ("record", "field"),
    [({"prompt": "a"}, "target"), ({"prompt": "", "target": "b"}, "prompt"), ({"prompt": "a", "target": "b", "x": 1}, "x")],
)
def test_a_bad_record_is_named_with_its_field(tmp_path: Path, record: dict, field: str) -> None:
    good = {"prompt": "a", "target": "b"}
    (tmp_path / "edits.jsonl").write_text(json.dumps(good) + "\n" + json.dumps(record))
    with pytest.raises(EditRejected) as rejected:
        list(read_edits(tmp_path / "edits.jsonl"))
    assert (rejected.value.edit, rejected.value.field) == (1, field)


def test_batches_keep_the_order_and_the_rest() -> None:
    edits = World(20).edits("train", 7)
    batches = list(batches_of(edits, 3))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert [edit for batch in batches for edit in batch] == edits
