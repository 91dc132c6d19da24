"""Suites: wrong arguments are named, every editor has enough settings, and settings are varied by the path of a field."""

from __future__ import annotations

import re

import pytest

from errata.overrides import with_fields
from jobs.editor_settings import EditorSetting, rledit
from jobs.plans import demo
from jobs.suites import SUITES, from_arguments


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["suite=huge"], "no suite is named 'huge'; there are lifelong, counterfact, ablation, reedits, tiny"),
        (["suite=tiny", "editors=ROMEO"], "suite tiny has no ROMEO; it has RLEdit, LocFT, AlphaEdit, state"),
        (["suite=tiny", "budget=9"], "more settings than these have: RLEdit, LocFT, AlphaEdit, state"),
        (["suite=tiny", "num_edits=900"], "fewer than 900"),
        (["suite=tiny", "num_edit=9"], "has no field 'num_edit'"),
        (["suite=tiny", "grids=1"], "has no field 'grids'"),
        (["suite=tiny", "full"], "field=value, or FULL"),
        (["suite=tiny", "batch_size=0"], "at least 1: batch_size"),
        (["suite=tiny", "transformations=negated,louder"], "no transformation is named louder; there are in_chat"),
        (["suite=tiny", "rounds=-1"], "rounds is a number of re-edits of every fact"),
        (["suite=reedits", "re_edits=0.1"], "without re_edits beside it, not 3"),
        (["suite=tiny", "checkpoints=1,0"], "at least 1: checkpoints 0"),
        (["suite=tiny", "seeds=0,x"], "seeds: 'x' in '0,x' is not of type int"),
        (["FULL", "corpus.num_subjects=200", "num_edits=300"], "fewer than 300"),
        (["suite=counterfact", "corpus.directory=/none"], "no file /none/counterfact_edit.json"),
    ],
)
def test_a_wrong_argument_is_named(arguments: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        from_arguments(arguments)


@pytest.mark.parametrize("name", SUITES)
@pytest.mark.parametrize("full", [False, True])
def test_every_editor_of_a_suite_has_enough_settings(name: str, full: bool) -> None:
    suite = SUITES[name](full)
    assert all(len(grid.settings) >= suite.budget for grid in suite.grids)
    assert len({grid.name for grid in suite.grids}) == len(suite.grids)
    plans = [suite.plan(setting, 0) for grid in suite.grids for setting in grid.settings if setting.schedule]
    assert len({plan.artifact_dir for plan in plans}) == len(plans)


def test_a_setting_is_varied_by_the_path_of_a_field() -> None:
    setting = EditorSetting(rledit(("layers.3.mlp.down_proj",)), demo().schedule)
    fields = {"editor.reward.discount": 0.85, "editor.memory": 2.0, "schedule.burn_in": 1, "metric_part": "train"}
    varied = with_fields(setting, fields)
    assert varied.metric_part == "train" and varied.schedule is not None and varied.schedule.burn_in == 1
    with pytest.raises(ValueError, match=r"discount: EditorSetting has no field 'discount'"):
        with_fields(setting, {"discount": 0.85})


def test_a_schedule_belongs_to_a_hypernetwork() -> None:
    with pytest.raises(ValueError, match="RLEdit: a trained editor needs a training schedule"):
        EditorSetting(demo().editor)
