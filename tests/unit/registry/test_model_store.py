"""The versions in MLflow after users or lost responses changed them, and the tables of refusals."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from errata.registry import Registry
from tests.fakes.mlflow_client import FakeMlflow
from tests.unit.registry.mirroring import append, assert_mirrored, lose_cursor, refuse, registry


def test_an_emptied_mlflow_receives_every_version_again(ledger):
    fake, emptied = FakeMlflow(), FakeMlflow()
    append(ledger)
    refuse(ledger)
    ledger.move_head(0)
    registry(fake).mirror(ledger)
    assert registry(emptied).mirror(ledger).added == 1
    assert_mirrored(emptied, ledger)


def test_a_model_deleted_in_mlflow_is_registered_again_whole(ledger):
    fake = FakeMlflow()
    mirror = registry(fake)
    append(ledger)
    mirror.mirror(ledger)
    fake.versions, fake.registered = [], {}  # The LoggedModels stay.
    append(ledger)
    assert mirror.mirror(ledger).added == 2
    assert_mirrored(fake, ledger)


@pytest.mark.parametrize("gone", [0, 2, 3])
def test_a_version_deleted_in_mlflow_is_registered_again_after_the_cursor_is_lost(ledger, gone):
    fake = FakeMlflow()
    for _ in range(4):
        append(ledger)
    registry(fake).mirror(ledger)
    del fake.versions[gone]
    lose_cursor(ledger)
    mirror = registry(fake)
    assert mirror.mirror(ledger, limit=1).added == 1
    assert registry(fake).mirror(ledger).added == 0
    assert sorted(int(v.tags["errata.version"]) for v in fake.versions) == [1, 2, 3, 4]
    append(ledger)
    assert mirror.mirror(ledger).added == 1
    assert registry(fake).mirror(ledger).added == 0
    assert sorted(int(v.tags["errata.version"]) for v in fake.versions) == [1, 2, 3, 4, 5]


def test_a_request_that_timed_out_and_was_carried_out_is_undone(ledger):
    fake = FakeMlflow()
    mirror = registry(fake)
    append(ledger)
    mirror.mirror(ledger)
    twice = SimpleNamespace(**{**vars(fake.versions[-1]), "version": "2"})
    fake.versions.append(twice)
    append(ledger)
    assert mirror.mirror(ledger).added == 1
    assert [(v.version, v.tags["errata.version"]) for v in fake.versions] == [("1", "1"), ("3", "2")]
    assert_mirrored(fake, ledger)


def test_refusals_are_written_in_files_of_a_thousand(ledger, monkeypatch):
    monkeypatch.setattr("errata.registry.mirror.REFUSALS_A_FILE", 3)
    fake = FakeMlflow()
    mirror = registry(fake)
    for _ in range(4):
        refuse(ledger)
    mirror.mirror(ledger)
    assert {name: table.count("bad prompt") for name, table in fake.tables.items()} == {
        "refusals-000000.csv": 3,
        "refusals-000003.csv": 1,
    }
    refuse(ledger)
    fake.tables.clear()
    mirror.mirror(ledger)
    assert {name: table.count("bad prompt") for name, table in fake.tables.items()} == {"refusals-000003.csv": 2}


def test_refusals_are_read_from_the_last_table_on(ledger, monkeypatch):
    monkeypatch.setattr("errata.registry.mirror.REFUSALS_A_FILE", 3)
    fake, offsets, read = FakeMlflow(), [], ledger.refusals_from
    monkeypatch.setattr(ledger, "refusals_from", lambda offset: (offsets.append(offset), read(offset))[1])
    mirror = registry(fake)
    for _ in range(7):
        refuse(ledger)
        mirror.mirror(ledger)
    assert offsets[:3] == [0, 0, 0] and offsets[3] == offsets[5] > 0 and offsets[6] > offsets[5]
    cursor = ledger.directory.parent / "ledger.mlflow.json"
    before = json.loads(cursor.read_text())
    del before["facts"]["refusals_at"]  # As an earlier release wrote it.
    cursor.write_text(json.dumps(before))
    refuse(ledger)
    fake.tables.clear()
    registry(fake).mirror(ledger)
    assert {name: table.count("bad prompt") for name, table in fake.tables.items()} == {"refusals-000006.csv": 2}
    (ledger.directory / "refusals.jsonl").write_bytes(b"")  # As after a restore from an older copy.
    refuse(ledger)
    registry(fake).mirror(ledger)
    assert json.loads(cursor.read_text())["facts"]["refusals"] == 1


@pytest.mark.parametrize("name", ["a/b", "a:b", "a.b", 'a"b', "a'b", "a%b", " ", "", "a\nb", "a" * 241])
def test_a_name_that_mlflow_does_not_take_is_refused(name):
    with pytest.raises(ValueError, match="cannot be the name of a registered model"):
        Registry("http://fake", name)
