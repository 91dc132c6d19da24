"""The named plans, and overrides of their fields."""

import pytest

from errata.editors.hypernet.training import Schedule
from jobs import arguments, plans


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
