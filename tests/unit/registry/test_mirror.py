"""The mirror registers every version in order, once, against a fake MLflow that fails at any call, before or after it acts."""

from __future__ import annotations

import random

import pytest

from errata.ledger import Ledger
from errata.registry import RegistryConflict, RegistryUnavailable
from tests.fakes.mlflow_client import FakeMlflow
from tests.unit.registry.mirroring import append, assert_mirrored, lose_cursor, refuse, registry

FAILURES = [(late, again) for late in (False, True) for again in ("the same process", "a new process")]


@pytest.mark.parametrize(("late", "again"), FAILURES)
def test_wherever_a_call_fails_the_next_one_completes_it(ledger, late, again):
    append(ledger)
    refuse(ledger)
    append(ledger)
    ledger.move_head(1)
    whole = FakeMlflow()
    registry(whole).mirror(ledger)
    assert len(whole.calls) > 25
    for fails_at in range(1, len(whole.calls) + 1):
        lose_cursor(ledger)
        fake = FakeMlflow()
        fake.late, fake.fails = late, fails_at.__eq__
        first = registry(fake)
        with pytest.raises(RegistryUnavailable, match=f"call {fails_at} "):
            first.mirror(ledger)
        second = first if again == "the same process" else registry(fake)
        second.mirror(ledger)
        assert_mirrored(fake, ledger)


@pytest.mark.parametrize("seed", range(8))
def test_after_many_failures_every_version_is_registered_once(ledger, seed):
    chance, fake = random.Random(seed), FakeMlflow()
    fake.fails = lambda call: chance.random() < 0.1
    mirror = registry(fake)
    for _ in range(60):
        fake.late = chance.random() < 0.5
        chance.choice([append, append, refuse, lambda ledger: ledger.move_head(chance.randint(0, ledger.newest))])(ledger)
        if chance.random() < 0.2:
            mirror = registry(fake)
        try:
            mirror.mirror(ledger, limit=chance.choice([1, 3, None]))
        except RegistryUnavailable:
            continue
    fake.fails = lambda call: False
    mirror.mirror(ledger)
    assert_mirrored(fake, ledger)


def test_a_complete_mirror_needs_no_call_and_a_new_process_few(ledger):
    for _ in range(20):
        append(ledger)
    fake = FakeMlflow()
    first = registry(fake)
    assert first.mirror(ledger).added == 20
    fake.calls.clear()
    assert first.mirror(ledger).added == 0
    assert fake.calls == []
    registry(fake).mirror(ledger)
    # Find the model, confirm the cursor, look beyond it, find the head. Nothing is listed.
    assert len(fake.calls) == 4


@pytest.mark.parametrize("change", [append, refuse, lambda ledger: ledger.move_head(0)])
def test_what_happens_to_the_ledger_while_it_is_mirrored_is_mirrored_by_the_next_call(ledger, change):
    fake = FakeMlflow()
    mirror = registry(fake)
    append(ledger)

    def fails(call: int) -> bool:
        if fake.calls[-1] == "set_registered_model_tag":  # The last request.
            fake.fails = lambda call: False
            change(ledger)
        return False

    mirror.mirror(ledger)
    append(ledger)
    fake.fails = fails
    mirror.mirror(ledger)
    mirror.mirror(ledger)
    assert_mirrored(fake, ledger)


def test_a_limit_splits_a_backlog_and_the_alias_is_as_near_to_the_head_as_possible(ledger):
    fake = FakeMlflow()
    mirror = registry(fake)
    append(ledger)
    mirror.mirror(ledger)
    for _ in range(4):
        append(ledger)
    found = mirror.mirror(ledger, limit=3)
    assert (found.added, found.left, found.live, found.serving) == (3, 1, 5, 4)
    assert fake.registered["facts"].tags == {"errata.live_version": "5", "errata.behind": "1"}
    found = mirror.mirror(ledger, limit=3)
    assert (found.added, found.left, found.live, found.serving) == (1, 0, 5, 5)
    assert_mirrored(fake, ledger)
    with pytest.raises(ValueError, match="1 or more"):
        mirror.mirror(ledger, limit=0)


def test_a_rollback_does_not_wait_for_the_backlog(ledger):
    fake = FakeMlflow()
    mirror = registry(fake)
    append(ledger)
    mirror.mirror(ledger)
    append(ledger)
    ledger.move_head(0)
    before = len(fake.calls)
    mirror.mirror(ledger)
    assert fake.calls[before:].index("delete_registered_model_alias") < fake.calls[before:].index("create_logged_model")
    assert_mirrored(fake, ledger)


def test_the_alias_of_a_version_on_another_branch_falls_to_a_version_before_it(ledger):
    fake = FakeMlflow()
    append(ledger)
    append(ledger)
    ledger.move_head(1)
    append(ledger)
    append(ledger)  # Version 4 follows 3, which follows 1.
    found = registry(fake).mirror(ledger, limit=2)
    assert (found.live, found.serving) == (4, 1)


def test_a_server_at_another_address_is_recognised_by_its_content(ledger):
    fake = FakeMlflow()
    append(ledger)
    registry(fake).mirror(ledger)
    fake.calls.clear()
    assert registry(fake, "http://moved").mirror(ledger).added == 0
    assert len(fake.calls) == 4


def test_two_servers_in_turn_each_receive_every_version_once(ledger):
    one, other = FakeMlflow(), FakeMlflow()
    mirrors = [registry(one, "http://one"), registry(other, "http://other")]
    for _ in range(3):
        append(ledger)
        refuse(ledger)
        for mirror in mirrors:
            mirror.mirror(ledger)
    assert_mirrored(one, ledger)
    assert_mirrored(other, ledger)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"facts": {"version": 1, "nonsense": 2}}'])
def test_a_lost_or_damaged_cursor_costs_one_listing(ledger, text):
    fake = FakeMlflow()
    append(ledger)
    registry(fake).mirror(ledger)
    cursor = ledger.directory.parent / "ledger.mlflow.json"
    cursor.write_text(text)
    append(ledger)
    assert registry(fake).mirror(ledger).added == 1
    assert_mirrored(fake, ledger)


def test_versions_of_another_ledger_are_refused(tmp_path, ledger):
    fake, mirror = FakeMlflow(), {}
    other = Ledger.create(tmp_path / "other", ledger.base)
    for one, seed in ((ledger, 0.0), (other, 0.5)):
        append(one, seed)
        mirror[one] = registry(fake)
    mirror[ledger].mirror(ledger)
    for _ in range(2):
        with pytest.raises(
            RegistryConflict, match=r"version 1 of 'facts' in MLflow is number 1 with fingerprint .* another name"
        ):
            mirror[other].mirror(other)
    assert_mirrored(fake, ledger)
    append(ledger)
    assert mirror[ledger].mirror(ledger).added == 1


def test_a_ledger_restored_from_an_older_backup_is_refused(tmp_path, ledger):
    fake = FakeMlflow()
    append(ledger)
    registry(fake).mirror(ledger)
    for folder in (ledger.directory / "versions").glob("00000001"):
        folder.rename(tmp_path / "lost")
    with pytest.raises(RegistryConflict, match="is number 1, which the ledger does not have"):
        registry(fake).mirror(Ledger.open(ledger.directory))


@pytest.mark.parametrize("when", ["before it is mirrored", "after"])
def test_a_quarantined_version_is_skipped(ledger, when):
    fake = FakeMlflow()
    append(ledger)
    append(ledger)
    if when == "after":
        registry(fake).mirror(ledger)
    ledger.folders.path(2).rename(ledger.folders.quarantine_path(2))
    ledger = Ledger.open(ledger.directory)
    assert registry(fake).mirror(ledger).serving == 1
    append(ledger)
    found = registry(fake).mirror(ledger)
    assert (found.added, found.live, found.serving) == (1, 3, 3)
    expected = [1, 2, 3] if when == "after" else [1, 3]
    assert [int(v.tags["errata.version"]) for v in fake.versions] == expected
    lose_cursor(ledger)
    assert registry(fake).mirror(ledger).added == 0


def test_one_process_mirrors_a_ledger_at_a_time(ledger):
    fake = FakeMlflow()
    mirror = registry(fake)

    def intrude(call: int) -> bool:
        with pytest.raises(RegistryUnavailable, match="another process is mirroring"):
            registry(FakeMlflow()).mirror(ledger)
        return False

    fake.fails = intrude
    mirror.mirror(ledger)
    assert fake.calls


def test_a_mirror_sees_what_another_process_registered(ledger):
    fake = FakeMlflow()
    first, second = registry(fake), registry(fake)
    first.mirror(ledger)
    append(ledger)
    assert second.mirror(ledger).added == 1
    append(ledger)
    assert first.mirror(ledger).added == 1
    assert_mirrored(fake, ledger)


def test_a_full_disk_stops_the_mirror_only(ledger, monkeypatch):
    fake = FakeMlflow()
    append(ledger)

    def fail(*_):
        raise OSError("no space")

    with monkeypatch.context() as patched, pytest.raises(RegistryUnavailable, match="progress cannot be written"):
        patched.setattr("errata.durable.os.replace", fail)
        registry(fake).mirror(ledger)
    append(ledger)
    registry(fake).mirror(ledger)
    assert_mirrored(fake, ledger)


def test_a_damaged_version_stops_the_mirror_only(ledger):
    append(ledger)
    (ledger.folders.path(1) / "entry.json").write_text("{")
    ledger.index.path.unlink(missing_ok=True)
    with pytest.raises(RegistryUnavailable, match="cannot be mirrored"):
        registry(FakeMlflow()).mirror(Ledger.open(ledger.directory))


@pytest.mark.parametrize("when", ["before it is mirrored", "after"])
def test_a_damaged_version_that_is_not_live_is_skipped_and_logged_once(ledger, when, caplog):
    fake = FakeMlflow()
    append(ledger)
    append(ledger)
    if when == "after":
        registry(fake).mirror(ledger)
    ledger.move_head(1)
    append(ledger, seed=0.5)
    (ledger.folders.path(2) / "entry.json").write_text("{")
    ledger.index.path.unlink(missing_ok=True)
    ledger, mirror = Ledger.open(ledger.directory), registry(fake)
    for _ in range(2):
        found = mirror.mirror(ledger)
        assert (found.left, found.live, found.serving) == (0, 3, 3)
    lose_cursor(ledger)
    mirror = registry(fake)
    assert mirror.mirror(ledger).added == 0
    fake.calls.clear()
    assert mirror.mirror(ledger).left == 0 and not fake.calls
    numbers = [int(version.tags["errata.version"]) for version in fake.versions]
    assert numbers == ([1, 2, 3] if when == "after" else [1, 3])
    logged = [record for record in caplog.records if "skips version 2, which is not live" in record.message]
    assert len(logged) == (1 if when == "after" else 2)  # Once by each process that came to it.
