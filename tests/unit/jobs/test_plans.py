"""The named plans, and overrides of their fields."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from errata.editors.hypernet.rledit import RLEdit
from errata.editors.hypernet.training import Schedule
from errata.testbed import smollm2
from errata.testbed.world import World
from errata.testbed.world_facts import WorldFacts
from jobs import arguments, plans, pretrain
from jobs.plan import NUM_TEXTS
from jobs.plan_json import write_plan


def test_cross_fitting_needs_a_corpus() -> None:
    with pytest.raises(ValueError, match="cross_fit splits the plan's corpus into folds"):
        arguments.from_arguments(["plan=tiny", "cross_fit=True", "edits=a.jsonl"])


@pytest.mark.parametrize("name", plans.PLANS)
def test_every_plan_is_named_after_its_function(name: str) -> None:
    assert arguments.from_arguments([f"plan={name}"]).name == name


def test_overrides_reach_nested_fields_and_change_the_artifact() -> None:
    plan = arguments.from_arguments(["plan=tiny", "editor.reward.discount=0.5", "schedule.batches=2", "editor.modules=a,b"])
    assert plan.editor.reward.discount == 0.5 and plan.editor.modules == ("a", "b")
    assert plan.schedule == Schedule(train_steps=4, batches=2, batch_size=4)
    assert plan.digest() != plans.tiny().digest()
    assert arguments.from_arguments(["plan=tiny", "mlflow=http://127.0.0.1:1"]).digest() == plans.tiny().digest()


@pytest.mark.parametrize(
    ("name", "digest"), [("tiny", "caa8d7b3d10c"), ("demo", "e46293ce9cd1"), ("rledit_llama3_8b_zsre", "864f0f0f9b9e")]
)
def test_artifacts_of_earlier_releases_are_found(name: str, digest: str) -> None:
    """A new field of a plan must not change the digests of plans that do not use it."""
    assert plans.PLANS[name]().digest() == digest


def test_world_is_another_name_of_the_demo_on_the_invented_world() -> None:
    plan = arguments.from_arguments(["plan=world", "seed=3"])
    assert plan == replace(plans.demo(), seed=3) and plan.name == "demo" and isinstance(plan.corpus, World)


def test_the_default_models_plan_reads_facts_of_the_world(home: Path) -> None:
    plan = arguments.from_arguments(["plan=smollm2"])
    assert plan.model_dir == home / "models" / smollm2.NAME and not plan.model_dir.exists()
    assert (plan.corpus, plan.metric_part, plan.num_texts) == (WorldFacts(), "train", smollm2.NUM_TEXTS)
    assert plan.artifact_dir.parent == home / "hypernets" and plan.artifact_dir.name.startswith("smollm2-")
    others = [replace(plan, num_texts=NUM_TEXTS), replace(plan, corpus=WorldFacts(seed=1)), replace(plan, model="other")]
    assert len({one.digest() for one in (plan, *others)}) == 4


def test_the_default_models_plan_can_be_swept(tmp_path: Path) -> None:
    plan = arguments.from_arguments(["plan=smollm2", "corpus.seed=1"])
    write_plan(plan, tmp_path / "plan.json")
    again = arguments.from_arguments([f"plan={tmp_path / 'plan.json'}"])
    assert again == plan and again.corpus == WorldFacts(seed=1) and again.digest() == plan.digest()


def test_the_default_model_is_checked_before_ray_starts(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    plan = plans.smollm2()
    monkeypatch.setattr(smollm2, "PACKAGE", "no-such-package")
    with pytest.raises(ValueError, match=r"^model: the default model is not installed: pip install"):
        arguments.check_model(plan, plan.editor.modules)
    plan.model_dir.mkdir(parents=True)
    save_file({f"model.{name}.weight": torch.zeros(2, 3) for name in plan.editor.modules}, plan.model_dir / "model.safetensors")
    arguments.check_model(plan, plan.editor.modules)
    with pytest.raises(ValueError, match=r"^editor.modules: no linear module of the model is named layers.1.mlp.down_prj"):
        arguments.check_model(plan, [*plan.editor.modules, "layers.1.mlp.down_prj"])


def test_the_default_model_is_not_trained_but_fetched(
    monkeypatch: pytest.MonkeyPatch, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(smollm2, "fetched", smollm2.folder)
    pretrain.run(plans.smollm2())
    assert capsys.readouterr().out == f"pretrain: nothing to do, because the plan's model is {smollm2.folder()}\n"


@pytest.mark.skipif(not smollm2.POLICY.exists(), reason="no policy is shipped yet")
def test_the_shipped_policy_edits_the_matrices_of_its_plan() -> None:
    policy, plan = RLEdit.load(smollm2.POLICY), plans.smollm2()
    assert policy.modules == plan.editor.modules and policy.metric_strength == plan.editor.metric_strength
