"""Plans from the presets of hypernetwork editors, on the real architectures at full depth."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from errata.datasets.reader import read_edits, write_parquet
from errata.edit import batches_of
from errata.editors import EDITORS
from errata.editors.hypernet.rledit import RLEdit
from errata.editors.hypernet.training import Schedule, Trainer
from errata.editors.presets import MODELS
from errata.model.matrices import find_matrices
from errata.testbed.world import World
from jobs import arguments, moments, plans, train
from tests.unit.jobs.commands import Commands
from tests.unit.published_models import (
    CONFIGS,
    HYPERNETWORKS,
    PUBLISHED_LAYERS,
    architecture,
    check_matrices,
    model_of,
    narrow,
)

ROOT = Path(__file__).parents[3]
(ZSRE,), (FEVER,) = (list((ROOT / "tests" / "data" / "formats").glob(f"{name}.json*")) for name in ("zsre-mend", "fever"))


@pytest.mark.parametrize(("editor", "name"), HYPERNETWORKS)
def test_a_plan_is_its_row(editor: str, name: str) -> None:
    plan = plans.PLANS[f"{editor.lower()}_{name}"]()
    model = model_of(name)
    chosen: Any = EDITORS[editor]
    assert plan.editor == chosen.preset(name)
    assert (plan.model, plan.use_gpu, plan.dtype) == (MODELS[model].hub, True, "float32" if model == "gpt2_xl" else "bfloat16")
    assert plan.dataset == (name.removeprefix(model).removeprefix("_") or "any")
    schedules = {
        "RLEdit": Schedule(train_steps=400, batches=20, batch_size=20),
        "MEND": Schedule(train_steps=10_000, episodes=10, batches=1, batch_size=1),
        "MALMEN": Schedule(train_steps=318, episodes=1, batches=1, batch_size=512),
    }
    fever = Schedule(train_steps=102, episodes=1, batches=1, batch_size=1024)
    assert plan.schedule == (fever if name == "gpt_j_fever" else schedules[editor])


@pytest.mark.parametrize("model", CONFIGS)
def test_the_plan_of_a_model_has_rledits_matrices_and_our_settings(model: str) -> None:
    plan = plans.PLANS[model]()
    check_matrices(find_matrices(architecture(model), plan.editor.modules), model, PUBLISHED_LAYERS["RLEdit"][model])
    ours = RLEdit(plan.editor.modules, rank=1024, num_blocks=4, learning_rate=1e-4)
    assert plan.editor == ours and plan.editor.metric_strength == 1000.0
    assert plan.dataset == "any" and plan.model == MODELS[model].hub


def refusal(*given: str) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as refused:
        train.check(arguments.from_arguments(given))
    return str(refused.value)


def test_a_plan_of_a_dataset_needs_a_file_of_it(tmp_path: Path) -> None:
    plain = tmp_path / "edits.parquet"
    write_parquet(read_edits(FEVER), plain)
    plan = "plan=rledit_llama3_8b_zsre"
    assert "trains on edits of zsre: name a file, edits=PATH" in refusal(plan)
    assert "has the layers for zsre" in (said := refusal(plan, f"edits={FEVER}")) and "of the format fever" in said
    assert "nowhere.json" in refusal(plan, f"edits={tmp_path / 'nowhere.json'}")
    for accepted in ([f"edits={ZSRE}"], [f"edits={plain}"], [f"edits={FEVER}", "dataset=any"]):
        train.check(arguments.from_arguments([plan, *accepted]))
    train.check(arguments.from_arguments(["plan=rledit_llama3_8b_fever", f"edits={FEVER}"]))


@pytest.mark.parametrize(("size", "batches"), [(1, 100), (4, 25), (10, 10), (20, 10)])
def test_a_normaliser_sees_enough_edits(size: int, batches: int) -> None:
    plan = replace(plans.PLANS["mend_llama3_8b"](), schedule=Schedule(batches=1, batch_size=size))
    found = train.first_batches(plan, World(300).edits("train", 300))
    assert [len(batch) for batch in found] == [size] * batches


def test_the_plan_of_a_model_needs_edits_and_text() -> None:
    edits = f"edits={ZSRE}"
    assert "plan qwen3_8b trains on edits: name a file" in refusal("plan=qwen3_8b")
    assert "text=PATH" in refusal("plan=qwen3_8b", edits)
    train.check(arguments.from_arguments(["plan=qwen3_8b", edits, "text=sentences.txt"]))
    train.check(arguments.from_arguments(["plan=qwen3_8b", edits, "editor.metric_strength=0"]))


def test_the_dataset_does_not_change_a_policys_digest() -> None:
    plan = plans.PLANS["rledit_gemma2_9b_zsre"]()
    assert plan.digest() == replace(plan, dataset="any").digest() == plans.PLANS["rledit_gemma2_9b_fever"]().digest()


def test_the_error_for_an_unknown_plan_lists_the_plans() -> None:
    with pytest.raises(ValueError, match="did you mean rledit_llama3_8b_zsre") as refused:
        arguments.from_arguments(["plan=rledit_llama_8b_zsre"])
    assert all(name in str(refused.value) for name in plans.PLANS)
    assert max(map(len, str(refused.value).splitlines())) <= 128


def test_plans_are_listed(command: Commands) -> None:
    done = command.run(["jobs/train.py", "plans"], os.environ)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(plans.PLANS)
    line = next(line for line in lines if line.startswith("rledit_qwen3_8b "))
    assert "Qwen/Qwen3-8B" in line and "gate_proj + up_proj 26-34" in line and "extrapolated: the nine blocks" in line


def test_moments_are_measured_on_the_matrices_of_a_preset() -> None:
    measured = moments.from_command_line(["plan=llama3_8b", "text=a.txt", "preset=AlphaEdit:llama3_8b"])
    assert measured.modules == tuple(f"layers.{layer}.mlp.down_proj" for layer in range(4, 9))
    with pytest.raises(ValueError, match="give one of them"):
        moments.from_command_line(["plan=tiny", "preset=AlphaEdit:llama3_8b", "modules=a"])
    with pytest.raises(ValueError, match="AlphaEdit has no preset ''; there are"):
        moments.from_command_line(["plan=tiny", "preset=AlphaEdit"])
    with pytest.raises(ValueError, match="text=PATH"):
        moments.from_command_line(["plan=llama3_8b", "modules=a"])


@pytest.mark.parametrize("name", ["rledit_llama3_8b_zsre", "mend_llama3_8b", "malmen_gpt2_xl", "rledit_gpt2_xl"])
def test_a_plan_trains(name: str, tmp_path: Path) -> None:
    write_parquet(World(20).edits("train", 8), tmp_path / "edits.parquet")
    few = ["schedule.batch_size=2", "schedule.episodes=1", "schedule.train_steps=2", "editor.rank=4", "use_gpu=False"]
    few += ["schedule.batches=2"] if name.startswith("rledit") else []  # The others are trained on single batches.
    plan = arguments.from_arguments([f"plan={name}", f"edits={tmp_path / 'edits.parquet'}", *few])
    train.check(plan)
    model = narrow(plans.ROWS[name][2].model)
    editor, folds = train.begin(plan, model)
    trainer = Trainer(editor, model, folds, plan.schedule, plan.seed)
    losses = trainer.step()
    assert all(torch.isfinite(torch.tensor(list(losses.values()))))
    batch = next(iter(batches_of(World(20).edits("test", 2), 2)))
    delta, state = editor.edit(model, batch, editor.start(model, find_matrices(model.module, editor.modules)))
    assert set(delta.parts) == set(find_matrices(model.module, plan.editor.modules).names) and state.num_edits == 2
