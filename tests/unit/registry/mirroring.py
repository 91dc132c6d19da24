"""A small ledger, the registry that mirrors it into a fake MLflow, and the check that the mirror is complete."""

from __future__ import annotations

import torch

from errata.delta.parts import LowRank
from errata.delta.weight_delta import WeightDelta
from errata.edit import Code, Edit, EditRejected
from errata.editors.state import EditorState
from errata.ledger import Ledger
from errata.registry import Registry, version_card
from tests.fakes.mlflow_client import FakeMlflow

MATRIX = "model.layers.0.mlp.down_proj"


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


def served(fake: FakeMlflow) -> int:
    """Return the ledger's number of the version with the alias; 0, the unedited model, if there is no alias."""
    at = fake.registered["facts"].aliases.get("serving")
    return next((int(v.tags["errata.version"]) for v in fake.versions if v.version == at), 0)


def assert_mirrored(fake: FakeMlflow, ledger: Ledger) -> None:
    """Check that MLflow holds exactly one whole version for each of the ledger's, in order, and nothing else."""
    versions = ledger.versions()[1:]
    assert [v.tags["errata.fingerprint"] for v in fake.versions] == [version.fingerprint for version in versions]
    assert [int(v.tags["errata.version"]) for v in fake.versions] == [version.number for version in versions]
    models = [fake.models[v.source.removeprefix("models:/")] for v in fake.versions]
    assert {model.status for model in models} == {"READY"}
    assert all(model.files >= {"entry.json", "delta.safetensors", "edits.csv"} for model in models)
    assert len(fake.models) == len(models)
    assert [v.description for v in fake.versions] == [version_card.description(version) for version in versions]
    assert served(fake) == ledger.head
    assert fake.registered["facts"].tags == {"errata.live_version": str(ledger.head), "errata.behind": "0"}
    scored = [step for key, _, _, step in fake.metrics if key == "efficacy"]
    assert sorted(scored) == [version.number for version in versions]
    assert len([1 for key, *_ in fake.metrics if key == "live_version"]) == len(versions) + len(list(ledger.head_log()))
    assert sum(table.count("bad prompt") for table in fake.tables.values()) == len(list(ledger.refusals()))
    assert [run.info.status for run in fake.runs] == ["FINISHED"]
