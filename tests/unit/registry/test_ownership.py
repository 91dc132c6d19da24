"""The mirror writes only to a registered model that is its own, whatever others left or did in MLflow."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest

from errata.ledger import Ledger
from errata.registry import Registry, RegistryConflict, RegistryUnavailable, version_card
from tests.fakes.mlflow_client import FakeMlflow, registered_model
from tests.unit.registry.mirroring import append, assert_mirrored, lose_cursor, refuse, registry, served

OWN, BEHIND = "errata.live_version", "errata.behind"


def contents(fake: FakeMlflow) -> Any:
    models = {name: vars(model) for name, model in fake.registered.items()}
    versions = [vars(version) for version in fake.versions]
    return copy.deepcopy((models, versions, fake.experiments, sorted(fake.models), fake.metrics, fake.tables, len(fake.runs)))


def foreign(number: int, **changed: Any) -> Any:
    there = {"version": str(number), "source": "models:/m-other", "tags": {}, "description": "x", "status": "READY"}
    return SimpleNamespace(**{**there, **changed})


def of_another_team(fake: FakeMlflow, what: str) -> None:
    fake.registered["facts"] = registered_model({"team": "fraud"} if what == "tags" else {}, is_prompt=what == "a prompt")
    if what in ("versions", "versions and the alias", "an archived version"):
        fake.versions = [foreign(1, current_stage="Archived" if "archived" in what else "None")]
    if what == "versions and the alias":
        fake.registered["facts"].aliases["serving"] = "1"


@pytest.mark.parametrize("what", ["versions", "versions and the alias", "an archived version", "tags", "a prompt"])
def test_nothing_of_another_team_is_written_to_until_its_owner_says_so(ledger, what):
    mirror = registry(fake := FakeMlflow())
    append(ledger)
    refuse(ledger)
    of_another_team(fake, what)
    before = contents(fake)
    for _ in range(2):
        with pytest.raises(RegistryConflict, match=r"'facts' in MLflow .* another's .* another name.* edits go on"):
            mirror.mirror(ledger)
    assert contents(fake) == before
    assert not (ledger.directory.parent / "ledger.mlflow.json").exists()
    if what == "a prompt":
        del fake.registered["facts"]
    else:
        fake.registered["facts"].tags[OWN] = "set by hand"
    assert mirror.mirror(ledger).serving == 1
    assert [v.tags["errata.version"] for v in fake.versions if v.tags] == ["1"]


def test_an_empty_registered_model_without_tags_is_taken_and_claimed_before_anything_else(ledger):
    fake = FakeMlflow()
    append(ledger)
    fake.registered["facts"] = registered_model({}, "made by an administrator")
    fake.fails = lambda call: fake.calls[-1] == "create_model_version"
    fake.late = True  # A version is there, but neither the answer nor the cursor.
    with pytest.raises(RegistryUnavailable):
        registry(fake).mirror(ledger)
    fake.fails = lambda call: False
    registry(fake).mirror(ledger)
    assert_mirrored(fake, ledger)
    assert fake.registered["facts"].description == "made by an administrator"


def test_a_model_that_holds_copies_of_versions_is_another_s(ledger):
    fake = FakeMlflow()
    append(ledger)
    fake.registered["facts"] = registered_model({})
    fake.versions = [foreign(1, tags=version_card.tags(ledger.version(1)), source="models:/errata/1")]
    with pytest.raises(RegistryConflict, match="has versions or aliases and no tag errata"):
        registry(fake).mirror(ledger)


def test_a_copy_of_a_version_in_the_mirror_is_a_person_s_and_stays(ledger):
    mirror = registry(fake := FakeMlflow())
    append(ledger)
    mirror.mirror(ledger)
    fake.versions.append(foreign(2, tags=dict(fake.versions[0].tags), source="models:/facts/1"))
    append(ledger)
    assert mirror.mirror(ledger).added == 1
    assert [(v.version, v.source) for v in fake.versions][1] == ("2", "models:/facts/1")
    lose_cursor(ledger)
    assert registry(fake).mirror(ledger).added == 0
    assert len(fake.versions) == 3


def test_nothing_is_removed_before_all_versions_are_known_to_be_this_ledger_s(ledger):
    fake = FakeMlflow()
    append(ledger)
    registry(fake).mirror(ledger)
    twice = {**vars(fake.versions[0]), "version": "2"}
    strange = {**twice, "version": "3", "tags": {**twice["tags"], "errata.fingerprint": "another"}}
    fake.versions += [SimpleNamespace(**twice), SimpleNamespace(**strange)]
    before = contents(fake)
    append(ledger)
    with pytest.raises(RegistryConflict, match="version 3 of 'facts' in MLflow is number 1 with fingerprint another"):
        registry(fake).mirror(ledger)
    assert contents(fake) == before


@pytest.mark.parametrize("tags", [{}, {"errata.version": "x", "errata.fingerprint": "y"}, {"errata.version": "1"}])
def test_versions_that_people_add_to_the_mirror_are_passed_over(ledger, tags):
    mirror = registry(fake := FakeMlflow())
    append(ledger)
    mirror.mirror(ledger)
    fake.versions.append(foreign(2, tags=tags))
    append(ledger)
    assert mirror.mirror(ledger).added == 1
    assert registry(fake).mirror(ledger).added == 0
    assert [v.version for v in fake.versions] == ["1", "2", "3"]


@pytest.mark.parametrize("moved_to", ["1", "3", None])
def test_the_alias_moved_by_hand_comes_back_with_the_next_version(ledger, moved_to, caplog):
    mirror = registry(fake := FakeMlflow())
    append(ledger)
    append(ledger)
    mirror.mirror(ledger)
    fake.versions.append(foreign(3))
    aliases = fake.registered["facts"].aliases
    aliases.update({"serving": moved_to, "champion": "1"})
    if moved_to is None:
        del aliases["serving"]
    append(ledger)
    assert mirror.mirror(ledger).serving == 3
    assert (served(fake), aliases["champion"]) == (3, "1")
    assert f"the alias 'serving' of 'facts' was moved in MLflow from version 2 to {moved_to}" in caplog.text
    aliases["serving"] = "1"
    assert registry(fake).mirror(ledger).serving == 3
    assert served(fake) == 3


def test_tags_deleted_by_hand_are_set_again(ledger):
    mirror = registry(fake := FakeMlflow())
    append(ledger)
    mirror.mirror(ledger)
    fake.registered["facts"].tags.clear()
    append(ledger)
    mirror.mirror(ledger)
    assert_mirrored(fake, ledger)
    fake.registered["facts"].tags.clear()
    registry(fake).mirror(ledger)
    assert_mirrored(fake, ledger)
    fake.registered["facts"].tags.clear()
    lose_cursor(ledger)
    with pytest.raises(RegistryConflict, match=f"no tag {OWN}.* set that tag"):
        registry(fake).mirror(ledger)


def test_a_live_version_deleted_in_mlflow_leaves_the_alias_on_the_one_before_it(ledger, caplog):
    mirror = registry(fake := FakeMlflow())
    for _ in range(3):
        append(ledger)
    mirror.mirror(ledger)
    fake.versions = [v for v in fake.versions if v.version != "2"]
    ledger.move_head(2)
    for _ in range(2):
        found = mirror.mirror(ledger)
        assert (found.live, found.serving, served(fake)) == (2, 1, 1)
    assert caplog.text.count("version 2, which is live or came before the live one, was deleted in 'facts'") == 1
    lose_cursor(ledger)
    assert mirror.mirror(ledger).serving == 2
    assert served(fake) == 2


@pytest.mark.parametrize("is_newest", [True, False])
def test_a_version_that_mlflow_failed_to_register_is_registered_again(ledger, is_newest):
    fake = FakeMlflow()
    append(ledger)
    append(ledger)
    registry(fake).mirror(ledger)
    fake.versions[1 if is_newest else 0].status = "FAILED_REGISTRATION"
    if not is_newest:
        lose_cursor(ledger)
    assert registry(fake).mirror(ledger).added == 1
    assert registry(fake).mirror(ledger).added == 0
    assert {v.status for v in fake.versions} == {"READY"}
    assert sorted(v.tags["errata.version"] for v in fake.versions) == ["1", "2"]


def test_a_version_whose_registration_is_pending_is_taken_as_it_is(ledger):
    fake = FakeMlflow()
    append(ledger)
    registry(fake).mirror(ledger)
    fake.versions[0].status = "PENDING_REGISTRATION"
    append(ledger)
    assert registry(fake).mirror(ledger).added == 1
    assert [v.version for v in fake.versions] == ["1", "2"]


def test_a_deleted_experiment_is_named_with_what_to_do_and_nothing_is_written(ledger):
    mirror = registry(fake := FakeMlflow())
    append(ledger)
    fake.experiments["errata"] = "7"
    fake.deleted_experiments.add("errata")
    before = contents(fake)
    with pytest.raises(RegistryConflict, match=r"experiment 'errata' in MLflow is deleted.* restore --experiment-id 7"):
        mirror.mirror(ledger)
    assert contents(fake) == before
    fake.deleted_experiments.clear()
    mirror.mirror(ledger)
    assert_mirrored(fake, ledger)


def test_a_logged_model_of_another_of_the_same_name_stays(ledger):
    fake = FakeMlflow()
    append(ledger)
    for status in ("PENDING", "READY"):
        other = fake.create_logged_model("1", "facts-1", "run", {"errata.fingerprint": "another"}, {}, "model")
        other.status = status
    registry(fake).mirror(ledger)
    assert len(fake.models) == 3
    assert fake.models[fake.versions[0].source.removeprefix("models:/")].tags["errata.fingerprint"] != "another"


@pytest.mark.parametrize("when", ["between two calls", "between two versions"])
def test_a_model_that_another_team_made_after_the_mirror_was_deleted_stays_as_it_is(ledger, when):
    mirror = registry(fake := FakeMlflow())
    append(ledger)
    mirror.mirror(ledger)
    append(ledger)
    append(ledger)

    def replace(call: int) -> bool:
        if fake.calls[-1] == "create_model_version" and fake.calls.count("create_model_version") == 3:
            fake.registered, fake.versions = {"facts": registered_model({})}, [foreign(1)]
        return False

    if when == "between two versions":
        fake.fails = replace
    else:
        fake.registered, fake.versions = {"facts": registered_model({})}, [foreign(1)]
    with pytest.raises(RegistryConflict, match="has versions or aliases and no tag"):
        mirror.mirror(ledger)
    assert [v.source for v in fake.versions] == ["models:/m-other"]
    assert (fake.registered["facts"].tags, fake.registered["facts"].aliases) == ({}, {})
    del fake.registered["facts"]
    fake.versions, fake.fails = [], lambda call: False
    assert mirror.mirror(ledger).added == 3
    assert served(fake) == 3


def test_numbers_in_mlflow_are_the_ledger_s_and_the_unedited_model_has_no_version(ledger):
    mirror = registry(fake := FakeMlflow())
    found = mirror.mirror(ledger)
    assert (found.added, found.left, found.live, found.serving) == (0, 0, 0, None)
    assert (fake.registered["facts"].tags, fake.versions) == ({OWN: "0", BEHIND: "0"}, [])
    for _ in range(3):
        append(ledger)
        mirror.mirror(ledger)
    assert [v.version for v in fake.versions] == [v.tags["errata.version"] for v in fake.versions] == ["1", "2", "3"]
    ledger.move_head(0)
    assert mirror.mirror(ledger).serving is None
    assert (served(fake), fake.registered["facts"].tags[OWN]) == (0, "0")
    assert_mirrored(fake, ledger)
    calls = len(fake.calls)
    mirror.mirror(ledger)
    assert len(fake.calls) == calls


@pytest.mark.parametrize("lost", [False, True])
def test_a_mirror_that_an_earlier_release_began_goes_on_with_its_numbers(ledger, lost):
    fake = FakeMlflow()
    append(ledger)
    began_by_an_earlier_release(fake, ledger)
    if lost:
        lose_cursor(ledger)
    append(ledger)
    mirror = registry(fake)
    assert mirror.mirror(ledger).added == 1
    assert [(v.version, v.tags["errata.version"]) for v in fake.versions] == [("1", "0"), ("2", "1"), ("3", "2")]
    ledger.move_head(0)
    found = mirror.mirror(ledger)
    assert (found.serving, fake.registered["facts"].aliases) == (0, {"serving": "1"})
    assert [row["version"] for row in mirror.versions()] == [0, 1, 2]


def began_by_an_earlier_release(fake: FakeMlflow, ledger: Ledger) -> None:
    """Register version 0, too, as MLflow's version 1."""
    registry(fake).mirror(ledger)
    base = foreign(1, tags=version_card.tags(ledger.version(0)), source="models:/m-base")
    for there in fake.versions:
        there.version = str(int(there.version) + 1)
    fake.versions.insert(0, base)
    fake.registered["facts"].aliases["serving"] = "2"
    path = ledger.directory.parent / "ledger.mlflow.json"
    path.write_text(path.read_text().replace('"mlflow_version": 1', '"mlflow_version": 2'))


@pytest.mark.parametrize("uri", ["sqlite:///mlflow.db", "/tmp/mlruns", "file:///tmp/mlruns", "postgresql://u:secret@host/db"])
def test_a_database_or_folder_is_refused_without_a_request(ledger, uri):
    fake = FakeMlflow()
    with pytest.raises(ValueError, match="takes the http address of an MLflow server") as raised:
        Registry(uri, "facts", client=fake).mirror(ledger)
    assert "secret" not in str(raised.value)
    assert not fake.calls
