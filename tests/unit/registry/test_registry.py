"""The mirror's order and exactly-once, against a fake MLflow that fails at any call, before or after it has done it."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mlflow.exceptions import MlflowException

from errata.delta.parts import LowRank
from errata.delta.weight_delta import WeightDelta
from errata.edit import Code, Edit, EditRejected
from errata.editors.state import EditorState
from errata.ledger import Ledger
from errata.registry import Registry, RegistryConflict, RegistryUnavailable, version_card

IDS = count(1)  # no two servers give the same
MATRIX = "model.layers.0.mlp.down_proj"
FAILURES = [(late, again) for late in (False, True) for again in ("the same process", "a new process")]


class FakeMlflow:
    """What an MLflow server holds, and the client's methods. Call number `fails_at` raises: before it is done, or `late`."""

    def __init__(self) -> None:
        self.experiments: dict[str, str] = {}
        self.runs: list[Any] = []
        self.models: dict[str, Any] = {}
        self.registered: dict[str, Any] = {}
        self.versions: list[Any] = []
        self.metrics: set[tuple[Any, ...]] = set()  # MLflow, too, keeps what is logged twice once
        self.tables: dict[str, str] = {}
        self.calls: list[str] = []
        self.fails: Callable[[int], bool] = lambda call: False
        self.late = False

    def __getattribute__(self, name: str) -> Any:
        found = object.__getattribute__(self, name)
        if name.startswith("_") or name not in CALLS:
            return found

        def call(*arguments: Any, **named: Any) -> Any:
            self.calls.append(name)
            fails = self.fails(len(self.calls))
            if fails and not self.late:
                raise MlflowException(f"call {len(self.calls)} has failed")
            result = found(*arguments, **named)
            if fails:
                raise MlflowException(f"the answer to call {len(self.calls)} was lost")
            return result

        return call

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name: str) -> str:
        assert name not in self.experiments
        return self.experiments.setdefault(name, str(next(IDS)))

    def search_runs(self, experiments: list[str], condition: str, max_results: int) -> list[Any]:
        return [run for run in self.runs if condition == f"tags.`errata.mirror` = '{run.tags['errata.mirror']}'"]

    def create_run(self, experiment: str, tags: dict[str, str], run_name: str) -> Any:
        run = SimpleNamespace(info=SimpleNamespace(run_id=f"run-{next(IDS)}", status="RUNNING"), tags=tags)
        self.runs.append(run)
        return run

    def set_terminated(self, run_id: str) -> None:
        for run in self.runs:
            run.info.status = "FINISHED" if run.info.run_id == run_id else run.info.status

    def create_logged_model(self, experiment: str, name: str, run: str, tags: Any, params: Any, kind: str) -> Any:
        model_id = f"m-{next(IDS)}"
        found = {"model_id": model_id, "name": name, "tags": tags, "params": params, "status": "PENDING", "files": set()}
        self.models[model_id] = SimpleNamespace(**found)
        return self.models[model_id]

    def search_logged_models(self, experiments: list[str], condition: str) -> list[Any]:
        return [model for model in self.models.values() if condition == f"name = '{model.name}'"]

    def delete_logged_model(self, model_id: str) -> None:
        del self.models[model_id]

    def log_model_artifacts(self, model_id: str, folder: str) -> None:
        self.models[model_id].files |= {path.name for path in Path(folder).iterdir()}

    def log_batch(self, run_id: str, metrics: list[Any]) -> None:
        assert len(metrics) <= 1000
        self.metrics |= {(m.key, m.value, m.timestamp, m.step) for m in metrics}

    def finalize_logged_model(self, model_id: str, status: str) -> None:
        self.models[model_id].status = status

    def search_registered_models(self, condition: str, max_results: int) -> list[Any]:
        return [model for name, model in self.registered.items() if condition == f"name = '{name}'"]

    def create_registered_model(self, name: str, description: str) -> None:
        assert name not in self.registered
        self.registered[name] = SimpleNamespace(aliases={}, tags={}, description=description)

    def create_model_version(self, name: str, source: str, run_id: str, tags: Any, **_: Any) -> Any:
        if name not in self.registered:
            raise MlflowException(f"there is no model {name}")
        assert self.models[source.removeprefix("models:/")].status == "READY"
        number = max((int(v.version) for v in self.versions), default=0) + 1
        self.versions.append(SimpleNamespace(version=str(number), source=source, tags=tags, description=None))
        return self.versions[-1]

    def update_model_version(self, name: str, version: str, description: str) -> None:
        next(v for v in self.versions if v.version == version).description = description

    def delete_model_version(self, name: str, version: str) -> None:
        self.versions = [v for v in self.versions if v.version != version]

    def search_model_versions(self, condition: str, max_results: int, order_by: list[str], page_token: str | None) -> Any:
        assert order_by == ["version_number ASC"]
        left, _, wanted = condition.partition(" AND ")[2].rpartition(" ")
        tests = {
            "version_number >": lambda v: int(v.version) > int(wanted),
            "version_number =": lambda v: v.version == wanted,
            "tags.`errata.version` =": lambda v: v.tags.get("errata.version") == wanted.strip("'"),
        }
        found = [v for v in self.versions if tests[left](v)]
        start = int(page_token or 0)
        page = Page(found[start : start + 2])  # small pages, so that there are several
        page.token = str(start + 2) if start + 2 < len(found) else None
        return page

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        assert version in {v.version for v in self.versions}
        self.registered[name].aliases[alias] = version

    def set_registered_model_tag(self, name: str, key: str, value: str) -> None:
        self.registered[name].tags[key] = value

    def log_artifacts(self, run_id: str, folder: str, under: str) -> None:
        self.tables |= {path.name: path.read_text() for path in Path(folder).iterdir()}


CALLS = {name for name in vars(FakeMlflow) if not name.startswith("_")}


class Page(list[Any]):
    token: str | None = None


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.create(tmp_path / "ledger", {"model": "m", "fingerprint": "base", "matrices": [MATRIX]})


def append(ledger: Ledger, seed: float = 0.0) -> None:
    number = ledger.newest + 1
    delta = WeightDelta({MATRIX: LowRank(torch.full((3, 1), number + seed), torch.ones(2, 1))})
    card = {"efficacy": 0.5, "locality": None, "num_edits": 1, "method": "free"}
    ledger.append(ledger.head, delta, EditorState(number), [Edit("p", "t", id=str(number))], card, ("RLEdit", "plan"))


def refuse(ledger: Ledger) -> None:
    ledger.refuse(ledger.head, Edit("bad prompt", "t"), EditRejected("too large", code=Code.EDITOR_FAILED))


def registry(fake: FakeMlflow, uri: str = "http://fake") -> Registry:
    return Registry(uri, "facts", client=fake)


def lose_cursor(ledger: Ledger) -> None:
    (ledger.directory.parent / "ledger.mlflow.json").unlink()


def assert_mirrored(fake: FakeMlflow, ledger: Ledger) -> None:
    """Exactly one registered version for each of the ledger's, in order, whole; and nothing else."""
    versions = ledger.versions()
    assert [v.tags["errata.fingerprint"] for v in fake.versions] == [version.fingerprint for version in versions]
    assert [int(v.tags["errata.version"]) for v in fake.versions] == [version.number for version in versions]
    models = [fake.models[v.source.removeprefix("models:/")] for v in fake.versions]
    assert {model.status for model in models} == {"READY"}
    assert all(model.files >= {"entry.json", "delta.safetensors", "edits.csv"} for model in models[1:])
    assert len(fake.models) == len(models)
    assert [v.description for v in fake.versions] == [version_card.description(version) for version in versions]
    served = next(v for v in fake.versions if v.version == fake.registered["facts"].aliases["serving"])
    assert int(served.tags["errata.version"]) == ledger.head
    assert fake.registered["facts"].tags == {"errata.live_version": str(ledger.head), "errata.behind": "0"}
    scored = [step for key, _, _, step in fake.metrics if key == "efficacy"]
    assert sorted(scored) == [version.number for version in versions[1:]]
    assert len([1 for key, *_ in fake.metrics if key == "live_version"]) == len(versions) + len(list(ledger.head_log()))
    assert sum(table.count("bad prompt") for table in fake.tables.values()) == len(list(ledger.refusals()))
    assert [run.info.status for run in fake.runs] == ["FINISHED"]


@pytest.mark.parametrize(("late", "again"), FAILURES)
def test_wherever_a_call_fails_the_next_completes_it(ledger, late, again):
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
def test_after_many_failures_every_version_is_there_once(ledger, seed):
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


def test_what_is_mirrored_costs_no_call_and_a_new_process_few(ledger):
    for _ in range(20):
        append(ledger)
    fake = FakeMlflow()
    first = registry(fake)
    assert first.mirror(ledger).added == 21
    fake.calls.clear()
    assert first.mirror(ledger).added == 0
    assert fake.calls == []
    registry(fake).mirror(ledger)
    # Is the cursor true, what is beyond it, where is the head; the alias, two tags. Nothing is listed.
    assert len(fake.calls) == 6


def test_a_backlog_comes_in_pieces_and_the_alias_follows_as_near_as_it_can(ledger):
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
    assert fake.calls[before:].index("set_registered_model_alias") < fake.calls[before:].index("create_logged_model")
    assert_mirrored(fake, ledger)


def test_the_alias_of_a_version_on_another_branch_falls_to_a_version_before_it(ledger):
    fake = FakeMlflow()
    append(ledger)
    append(ledger)
    ledger.move_head(1)
    append(ledger)
    append(ledger)  # 4 follows 3, which follows 1
    found = registry(fake).mirror(ledger, limit=3)
    assert (found.live, found.serving) == (4, 1)


def test_an_emptied_mlflow_gets_everything_anew(ledger):
    fake, emptied = FakeMlflow(), FakeMlflow()
    append(ledger)
    refuse(ledger)
    ledger.move_head(0)
    registry(fake).mirror(ledger)
    assert registry(emptied).mirror(ledger).added == 2
    assert_mirrored(emptied, ledger)


def test_a_server_at_another_address_is_known_by_what_it_has(ledger):
    fake = FakeMlflow()
    append(ledger)
    registry(fake).mirror(ledger)
    fake.calls.clear()
    assert registry(fake, "http://moved").mirror(ledger).added == 0
    assert len(fake.calls) == 6


def test_two_servers_by_turns_each_get_every_version_once(ledger):
    one, other = FakeMlflow(), FakeMlflow()
    mirrors = [registry(one, "http://one"), registry(other, "http://other")]
    for _ in range(3):
        append(ledger)
        refuse(ledger)
        for mirror in mirrors:
            mirror.mirror(ledger)
    assert_mirrored(one, ledger)
    assert_mirrored(other, ledger)


def test_a_model_deleted_in_mlflow_while_mirroring_comes_back_whole(ledger):
    fake = FakeMlflow()
    mirror = registry(fake)
    append(ledger)
    mirror.mirror(ledger)
    fake.versions, fake.registered = [], {}  # the LoggedModels stay
    append(ledger)
    with pytest.raises(RegistryUnavailable, match="there is no model facts"):
        mirror.mirror(ledger)
    assert mirror.mirror(ledger).added == 3
    assert_mirrored(fake, ledger)


@pytest.mark.parametrize("gone", [0, 2, 4])
def test_a_version_deleted_in_mlflow_by_hand_is_registered_again_once_the_cursor_is_lost(ledger, gone):
    fake = FakeMlflow()
    for _ in range(4):
        append(ledger)
    registry(fake).mirror(ledger)
    del fake.versions[gone]
    lose_cursor(ledger)
    mirror = registry(fake)
    assert mirror.mirror(ledger, limit=1).added == 1
    assert registry(fake).mirror(ledger).added == 0
    assert sorted(int(v.tags["errata.version"]) for v in fake.versions) == [0, 1, 2, 3, 4]
    append(ledger)
    assert mirror.mirror(ledger).added == 1
    assert registry(fake).mirror(ledger).added == 0
    assert sorted(int(v.tags["errata.version"]) for v in fake.versions) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"facts": {"version": 1, "nonsense": 2}}'])
def test_a_lost_or_damaged_cursor_costs_a_listing_and_nothing_else(ledger, text):
    fake = FakeMlflow()
    append(ledger)
    registry(fake).mirror(ledger)
    cursor = ledger.directory.parent / "ledger.mlflow.json"
    cursor.write_text(text)
    append(ledger)
    assert registry(fake).mirror(ledger).added == 1
    assert_mirrored(fake, ledger)


def test_a_request_that_was_given_up_and_carried_out_late_is_taken_back(ledger):
    fake = FakeMlflow()
    mirror = registry(fake)
    append(ledger)
    mirror.mirror(ledger)
    twice = SimpleNamespace(**{**vars(fake.versions[-1]), "version": "3"})
    fake.versions.append(twice)
    append(ledger)
    assert mirror.mirror(ledger).added == 1
    assert [(v.version, v.tags["errata.version"]) for v in fake.versions] == [("1", "0"), ("2", "1"), ("4", "2")]
    assert_mirrored(fake, ledger)


def test_another_ledger_is_not_mixed_in(tmp_path, ledger):
    fake, mirror = FakeMlflow(), {}
    other = Ledger.create(tmp_path / "other", ledger.base)
    for one, seed in ((ledger, 0.0), (other, 0.5)):
        append(one, seed)
        mirror[one] = registry(fake)
    mirror[ledger].mirror(ledger)
    for _ in range(2):
        with pytest.raises(
            RegistryConflict, match=r"version 2 of 'facts' in MLflow is number 1 with fingerprint .* another name"
        ):
            mirror[other].mirror(other)
    assert_mirrored(fake, ledger)
    append(ledger)
    assert mirror[ledger].mirror(ledger).added == 1


def test_a_ledger_brought_back_from_a_backup_is_told_and_not_taken_for_the_later_one(tmp_path, ledger):
    fake = FakeMlflow()
    append(ledger)
    registry(fake).mirror(ledger)
    for folder in (ledger.directory / "versions").glob("00000001"):
        folder.rename(tmp_path / "lost")
    with pytest.raises(RegistryConflict, match="is number 1, which the ledger does not have"):
        registry(fake).mirror(Ledger.open(ledger.directory))


@pytest.mark.parametrize("when", ["before it is mirrored", "after"])
def test_a_version_that_was_set_aside_is_passed_over(ledger, when):
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
    expected = [0, 1, 2, 3] if when == "after" else [0, 1, 3]
    assert [int(v.tags["errata.version"]) for v in fake.versions] == expected
    lose_cursor(ledger)
    assert registry(fake).mirror(ledger).added == 0


def test_two_processes_do_not_mirror_one_ledger_at_a_time(ledger):
    fake = FakeMlflow()
    mirror = registry(fake)

    def intrude(call: int) -> bool:
        with pytest.raises(RegistryUnavailable, match="another process is mirroring"):
            registry(FakeMlflow()).mirror(ledger)
        return False

    fake.fails = intrude
    mirror.mirror(ledger)
    assert fake.calls


def test_what_another_process_has_mirrored_meanwhile_is_seen(ledger):
    fake = FakeMlflow()
    first, second = registry(fake), registry(fake)
    first.mirror(ledger)
    append(ledger)
    assert second.mirror(ledger).added == 1
    append(ledger)
    assert first.mirror(ledger).added == 1
    assert_mirrored(fake, ledger)


def test_refusals_are_kept_in_files_of_a_thousand(ledger, monkeypatch):
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


def test_a_disk_that_refuses_the_cursor_stops_the_mirror_only(ledger, monkeypatch):
    fake = FakeMlflow()

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
def test_a_damaged_version_that_is_not_live_is_passed_over_and_told_of_once(ledger, when, caplog):
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
    there = [int(version.tags["errata.version"]) for version in fake.versions]
    assert there == ([0, 1, 2, 3] if when == "after" else [0, 1, 3])
    told = [record.message for record in caplog.records if "passes over version 2, which is not live" in record.message]
    assert len(told) == (1 if when == "after" else 2)  # once by each process that had it before it


@pytest.mark.parametrize("name", ["a/b", "a:b", "a.b", 'a"b', "a'b", "a%b", " "])
def test_a_name_that_mlflow_does_not_take_is_refused_at_once(name):
    with pytest.raises(ValueError, match="MLflow takes no model name"):
        Registry("http://fake", name)


def test_a_version_is_described_within_limits_and_without_markdown_of_users(ledger):
    edits = [Edit(f"<b>*{i}* | x\ny" + "[" * 500, "t|u", subject="x") for i in range(40)]
    card = {
        "efficacy": 1.0,
        "by_kind": {"../two hop?": 0.25, "": 1.0},
        "ppl": float("inf"),
        "warnings": ["locality | fell"],
        "num_edits": 40,
    }
    delta = WeightDelta({MATRIX: LowRank(torch.ones(3, 1), torch.ones(2, 1))})
    version = ledger.append(0, delta, EditorState(1), edits, card, ("RLEdit", "plan_a"))
    text = version_card.description(version)
    assert len(text) <= 5000
    assert "follows version 0: 40 edits" in text
    assert "locality \\| fell" in text
    assert "<b>" not in text.replace("\\<b", "")
    assert "| \\<b>\\*0\\* \\| x y" in text
    metrics = version_card.metrics(version)
    assert metrics["by_kind/two hop_"] == 0.25
    assert metrics[f"rank/{MATRIX}"] == 1.0
    assert "ppl" not in metrics
    assert version_card.tags(version)["errata.num_warnings"] == "1"
    assert version_card.params(version) == {"editor": "RLEdit", "plan": "plan_a", "parent": "0", "num_edits": "40"}
    assert len(version_card.edits_csv(version).splitlines()) > 40
