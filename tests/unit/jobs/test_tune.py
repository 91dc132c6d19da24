"""Parts of a sweep without Ray's cluster: arguments, data, plan files, plots."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
import torch
from ray.tune.experiment import Trial

from errata.benchmark.stream import BenchmarkStream
from errata.datasets.reader import write_parquet
from errata.edit import Edit, batches_of
from errata.editors.hypernet.episode_batch import EpisodeBatch
from errata.editors.hypernet.rledit import RLEdit
from errata.model.language_model import LanguageModel
from errata.overrides import with_fields
from errata.testbed import smollm2
from errata.testbed.counterfact import CounterFact
from errata.testbed.world import World
from jobs import tune
from jobs.arguments import from_arguments
from jobs.plan_json import read_plan, write_plan
from jobs.plans import PLANS
from jobs.sweep_plots import draw


def test_arguments_set_the_sweep_and_its_plan() -> None:
    sweep = tune.from_command_line(["plan=tiny", "validation=8", "trials=3", "sweep=discount,memory", "schedule.train_steps=2"])
    assert (sweep.trials, sweep.fields) == (3, ("editor.reward.discount", "editor.memory"))
    assert sweep.plan.schedule.train_steps == 2 and sweep.plan.num_workers == 1


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("trials=0", "at least 1"),
        ("text=a.txt", "leave edits= and text= out"),
        ("trials=many", "whole number"),
        ("sweep=colour", "no swept setting is named colour"),
        ("sead=1", "no field"),
        (
            "model=elsewhere",
            "elsewhere has not learned the invented facts of the plan's corpus: leave model= out, or plan=smollm2",
        ),
        ("checkpoint_every=20", "checkpoint_every=20"),
        ("validation=100000", "fewer than 100000"),
        ("num_workers=3", "3 workers cannot share 2 episodes"),
        ("min_workers=1", "leave min_workers= out"),
    ],
)
def test_a_wrong_argument_is_named(argument: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        tune.from_command_line(["plan=tiny", argument])


@pytest.mark.parametrize(
    ("plan", "fields"),
    [("recipe", ("learning_rate", "num_vectors", "margin")), ("serac", ("learning_rate", "first_scale", "first_cosine"))],
)
def test_a_memory_with_a_policy_is_swept_over_its_own_settings(plan: str, fields: tuple[str, ...]) -> None:
    sweep = tune.from_command_line([f"plan={plan}", "validation=8"])
    assert sweep.fields == tuple(f"editor.{field}" for field in fields) == tuple(sweep.space)
    assert tune.first_points(sweep) == [] and sweep.plan.schedule.train_steps % sweep.plan.checkpoint_every == 0
    chosen = {field: domain.sample() for field, domain in sweep.space.items()}
    assert with_fields(sweep.crossed, chosen).editor != sweep.plan.editor
    assert tune.from_command_line([f"plan={plan}", "sweep=learning_rate"]).fields == ("editor.learning_rate",)
    with pytest.raises(ValueError, match=f"no swept setting is named memory; there are {', '.join(fields)}"):
        tune.from_command_line([f"plan={plan}", "sweep=memory"])


def test_a_sweep_of_the_default_model_is_scored_on_what_it_gets_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    monkeypatch.setattr(smollm2, "check", lambda: None)
    sweep = tune.from_command_line(["plan=smollm2", "validation=8"])
    assert sweep.plan.model == smollm2.NAME
    edits = [Edit(f"q{number}", "a") for number in range(5)]
    file = Path(tune.training_data.edits_file(sweep.plan, "validation"))
    file.parent.mkdir(parents=True)
    write_parquet(edits, file)
    assert [edit.prompt for edit in tune.validation_edits(sweep.plan, 3)] == ["q0", "q1", "q2"]


def test_a_small_corpus_is_scored_on_all_that_it_has() -> None:
    """The smallest plan works as it is, and the message for too many names arguments that work."""
    sweep = tune.from_command_line(["plan=tiny"])
    assert 0 < sweep.validation < tune.VALIDATION
    assert len(sweep.plan.corpus.edits("validation", sweep.validation, 0)) == sweep.validation
    with pytest.raises(ValueError, match="fewer than 60: give validation=") as refused:
        tune.from_command_line(["plan=tiny", "validation=60"])
    most, larger = re.findall(r"\w+(?:\.\w+)?=\d+", str(refused.value))
    assert tune.from_command_line(["plan=tiny", most]).validation == sweep.validation
    assert tune.from_command_line(["plan=tiny", "validation=60", larger]).validation == 60


def test_progress_of_a_continued_sweep_counts_earlier_trials(capsys: pytest.CaptureFixture[str]) -> None:
    """Trials as Ray Tune restores them, two of four ended before."""
    trials = [Trial("trial", trial_id=f"t{i}", stub=True) for i in range(4)]
    for trial in trials[:2]:
        trial.set_status(Trial.TERMINATED)
    progress = tune.Progress(4)
    progress.setup()
    progress.on_trial_result(0, trials, trials[2], {tune.SCORE: 0.5, "train_step": 2})
    trials[2].set_status(Trial.TERMINATED)
    progress.on_trial_complete(0, trials, trials[2])
    progress.on_trial_error(0, trials, trials[3])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tune: t2 at train_step 2: score 0.500 (best 0.500)"
    assert lines[1].startswith("tune: 3/4 trials ended, about ")
    assert lines[2] == "tune: 4/4 trials ended, about 0 s left"


def test_each_sweep_has_its_folder() -> None:
    others = ([], ["trials=3"], ["sweep=memory"], ["validation=9"])
    sweeps = [tune.from_command_line(["plan=tiny", "validation=8", *arguments]) for arguments in others]
    assert len({sweep.directory for sweep in sweeps}) == len(sweeps)


def test_the_first_trials_are_the_plans_own_settings_with_each_network() -> None:
    sweep = tune.from_command_line(["plan=demo", "sweep=locality_weight,backtrack_depth,network,learning_rate"])
    first, *others = tune.first_points(sweep)
    assert first == {
        "editor.reward.locality_weight": 1.0,  # The plan has 0.7, which is below the sweep's bound.
        "editor.reward.backtrack_depth": 2,
        "editor.learning_rate": 3e-3,
        "editor.network": "identity",
    }
    assert [one["editor.network"] for one in others] == ["full", "residual"]
    assert with_fields(sweep.plan, first).editor.network == "identity"
    deep = tune.from_command_line(["plan=demo", "sweep=backtrack_depth,network", "editor.reward.backtrack_depth=9"])
    assert tune.first_points(deep)[0]["editor.reward.backtrack_depth"] == 4
    assert tune.first_points(tune.from_command_line(["plan=demo", "sweep=discount"])) == []
    assert "editor.network" in tune.from_command_line(["plan=tiny"]).fields


def test_ray_takes_the_first_trials(tmp_path: Path) -> None:
    """Optuna proposes them in their order, with a value for every setting."""
    from ray.tune.search.optuna import OptunaSearch

    sweep = tune.from_command_line(["plan=demo"])
    points = tune.first_points(sweep)
    search = OptunaSearch(metric=tune.SCORE, mode="max", points_to_evaluate=points)
    assert search.set_search_properties(tune.SCORE, "max", {field: tune.SPACE[field] for field in sweep.fields})
    for index, point in enumerate(points):
        assert search.suggest(f"trial-{index}") == pytest.approx(point)


def test_settings_are_set_by_path() -> None:
    plan = with_fields(PLANS["tiny"](), {"editor.reward.discount": 0.8, "editor.memory": 2.0})
    assert (plan.editor.reward.discount, plan.editor.memory) == (0.8, 2.0)


def test_a_sweep_sees_no_test_fact() -> None:
    """Checks edits for training, edits for scoring, and sentences of the key preconditioner."""
    world = World(20)
    seen = [*world.stream("train"), *world.stream("train-a"), *world.stream("train-b"), *world.edits("validation", 18)]
    texts = [f"{edit.prompt} {edit.target} {edit.rephrasings} {edit.locality} {edit.portability}" for edit in seen]
    texts += [f"{prompt} {answer}" for prompt, answer in world.sentences("train")]
    assert not [name for name in world.people("test") if any(name in text for text in texts)]
    assert len(world.sentences("train")) < len(world.sentences())
    plan = tune.from_command_line(["plan=tiny", "validation=8"]).crossed
    assert plan.metric_part == "train-a" and plan.cross_fit


def test_the_lifelong_score_restores_the_model(tiny_model: LanguageModel) -> None:
    world = World(20)
    batches = list(batches_of(world.edits("train", 20), 5))
    editor = RLEdit(("layers.1.mlp.down_proj",), rank=8)
    editor = editor.initialised(tiny_model, [EpisodeBatch(tiny_model, b).in_scope_texts for b in batches], batches, seed=0)
    before = {name: tensor.clone() for name, tensor in tiny_model.module.state_dict().items()}
    stream = BenchmarkStream(
        tuple(world.edits("validation", 10)), tuple(world.plain_sentences(held_out=True)), 5, checkpoints=()
    )
    scores = tune.lifelong_score(tiny_model, editor, stream)
    assert set(scores) == {"score", "efficacy", "generalisation", "locality"} and 0 <= scores["score"] <= 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_model.module.state_dict().items())


@pytest.mark.parametrize("name", [name for name in PLANS])
def test_a_plan_file_is_the_plan(name: str, tmp_path: Path) -> None:
    plan = PLANS[name]()
    write_plan(plan, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == plan
    assert from_arguments([f"plan={tmp_path / 'plan.json'}", "seed=4"]).seed == 4


def test_a_plan_file_of_an_editor_without_a_policy_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_plan(PLANS["tiny"](), path)
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"editor": {"name": "UltraEdit", "modules": ["layers.1.mlp.down_proj"]}})
    )
    with pytest.raises(ValueError, match="UltraEdit needs no training"):
        read_plan(path)


def test_a_plan_file_keeps_the_corpus_of_a_dataset(tmp_path: Path) -> None:
    plan = PLANS["tiny"]()
    object.__setattr__(plan, "corpus", CounterFact("somewhere", num_train=10))
    write_plan(plan, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json").corpus == plan.corpus


@pytest.mark.parametrize(
    ("content", "says"),
    [("{", "no JSON"), ("{}", "no plan"), (json.dumps({"editor": {"name": "None"}, "corpus": {}}), "no plan")],
)
def test_a_bad_plan_file_is_named(content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(ValueError, match=says):
        from_arguments([f"plan={tmp_path / 'plan.json'}"])
    with pytest.raises(ValueError, match="no plan file"):
        from_arguments([f"plan={tmp_path / 'other.json'}"])


def test_a_sweep_is_plotted_and_its_deciding_setting_is_most_important(tmp_path: Path) -> None:
    rng = random.Random(0)
    fields = ("editor.reward.discount", "editor.reward.update_penalty", tune.NETWORK)
    trials = []
    for index in range(12):
        discount, penalty = rng.uniform(0.7, 1.0), 10 ** rng.uniform(-6, -2)
        network = tune.NETWORKS[index % 3]
        trials.append({"settings": dict(zip(fields, (discount, penalty, network), strict=True)), "score": discount})
    importances = draw(trials, {field: tune.SPACE[field] for field in fields}, tmp_path)
    assert importances[fields[0]] > 0.8 > importances[fields[1]]
    assert (tmp_path / "heatmap.png").stat().st_size > 5000 and (tmp_path / "importances.png").exists()
