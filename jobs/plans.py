"""Named plans: complete descriptions of a run. A job takes `plan=NAME` and `field=value` overrides, dots for nested fields.

A new plan is a function here, found by its name, or a row of the papers' table (errata/editors/presets.py), found by editor,
model and dataset: `rledit_llama3_8b_zsre`. `python jobs/train.py plans` lists all of them, docs/plans.md describes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from errata.editors import EDITORS
from errata.editors.hypernet.hypernet_editor import HypernetworkEditor
from errata.editors.hypernet.reward import FOR_LARGE_MODELS, Reward
from errata.editors.hypernet.rledit import RLEdit
from errata.editors.hypernet.training import Schedule
from errata.editors.memory_based.recipe import RECIPE
from errata.editors.memory_based.serac import SERAC
from errata.editors.presets import MODELS, Preset, preset_of, presets_of
from errata.overrides import with_fields
from errata.testbed import smollm2 as default_model
from errata.testbed.language_model import Shape
from errata.testbed.world import World
from errata.testbed.world_facts import WorldFacts
from jobs.plan import Plan


def tiny() -> Plan:
    """Build the smallest complete run, for tests: it trains for seconds, and its scores are poor."""
    shape = Shape(hidden=64, layers=2, intermediate=192, heads=2, train_steps=60, sentences_per_step=128, peak_lr=5e-3)
    editor = RLEdit(modules=("layers.1.mlp.down_proj",), rank=32, reward=Reward(backtrack_depth=1))
    return Plan(
        "tiny", editor, Schedule(train_steps=4, batches=3, batch_size=4), corpus=World(20), shape=shape, checkpoint_every=2
    )


def demo() -> Plan:
    """Build the plan of `make demo`: RLEdit at the last down-projection of the testbed's Llama."""
    editor = RLEdit(
        modules=("layers.3.mlp.down_proj",),
        metric_strength=1e5,
        first_step=0.4,
        first_ridge=1.0,
        num_passes=3,
        reward=Reward(backtrack_depth=2, backtrack_uniform=True, locality_weight=0.7),
    )
    return Plan("demo", editor, Schedule(train_steps=30, burn_in=6))


def demo_gate_up() -> Plan:
    """Build the demo at the matrices that the paper edits, gate and up, which a serving engine fuses."""
    plan = demo()
    editor = with_fields(plan.editor, {"modules": ("layers.3.mlp.gate_proj", "layers.3.mlp.up_proj")})
    return replace(plan, name="demo_gate_up", editor=editor)


def smollm2() -> Plan:
    """Build the plan of the default model, a real language model that is corrected in chat."""
    editor = RLEdit(
        modules=tuple(f"layers.{block}.mlp.down_proj" for block in (17, 19, 21, 23)),
        rank=64,
        metric_strength=1e4,
        first_step=0.3,
        first_ridge=1.0,
        num_passes=3,
        learning_rate=2e-3,
        reward=Reward(backtrack_depth=1, backtrack_uniform=True),
    )
    return Plan(
        "smollm2",
        editor,
        Schedule(train_steps=12, batches=2, batch_size=8, burn_in=2),
        model=default_model.NAME,
        corpus=WorldFacts(),
        metric_part="train",
        cross_fit=True,
        num_texts=default_model.NUM_TEXTS,
    )


def recipe() -> Plan:
    """Build RECIPE's plan on the demo's invented world: minutes on one core."""
    schedule = Schedule(train_steps=400, episodes=1, batch_size=8)
    return Plan("recipe", RECIPE(learning_rate=3e-3), schedule, num_workers=1, checkpoint_every=100)


def serac() -> Plan:
    """Build SERAC's plan on the demo's invented world: a minute on one core."""
    schedule = Schedule(train_steps=200, episodes=1, batch_size=32)
    return Plan("serac", SERAC(learning_rate=1e-2), schedule, num_workers=1, checkpoint_every=50)


def recipe_smollm2() -> Plan:
    """Build RECIPE's plan on the default model, for corrections in chat of facts that it gets wrong: minutes on one core."""
    schedule = Schedule(train_steps=60, episodes=1, batch_size=4)
    return _on_the_default_model(replace(recipe(), name="recipe_smollm2", schedule=schedule, checkpoint_every=20))


def serac_smollm2() -> Plan:
    """Build SERAC's plan on the default model, whose facts and questions its classifier learns: a minute on one core."""
    return _on_the_default_model(replace(serac(), name="serac_smollm2"))


def _on_the_default_model(plan: Plan) -> Plan:
    editor = with_fields(plan.editor, {"modules": ("layers.23.mlp.down_proj",)})
    return replace(
        plan, editor=editor, model=default_model.NAME, corpus=WorldFacts(), cross_fit=True
    )  # The edits of `smollm2`.


def of_model(model: str) -> Plan:
    """Build the plan of a published model on a GPU: RLEdit's matrices and network, and our own settings for the rest."""
    known = MODELS[model]
    return Plan(
        model,
        RLEdit(modules=preset_of(RLEdit, model).modules, rank=1024, num_blocks=4, learning_rate=1e-4),
        Schedule(train_steps=400, batches=20, batch_size=20),
        model=known.hub,
        dataset="any",
        dtype=known.dtype,
        use_gpu=True,
        num_workers=1,
        savings=FOR_LARGE_MODELS,
    )


def of_paper(kind: type[HypernetworkEditor], name: str) -> Plan:
    """Build the plan of a row of the papers' table: the paper's matrices, constants and batches."""
    row = preset_of(kind, name)
    plan = of_model(row.model)
    return replace(
        plan,
        name=f"{kind.__name__.lower()}_{name}",
        editor=kind.preset(name),
        schedule=replace(plan.schedule, **row.training),
        dataset=row.dataset_of(name) or "any",
    )


_OWN = (tiny, demo, demo_gate_up, smollm2, recipe, serac, recipe_smollm2, serac_smollm2)
OWN: dict[str, Callable[[], Plan]] = {plan.__name__: plan for plan in _OWN}
ALIASES = {"world": "demo"}  # The demo on an invented world, beside the one on a real model.
OF_MODELS: dict[str, Callable[[], Plan]] = {model: partial(of_model, model) for model in MODELS}
ROWS: dict[str, tuple[type[HypernetworkEditor], str, Preset]] = {
    f"{kind.__name__.lower()}_{name}": (kind, name, row)
    for kind in EDITORS.values()
    if issubclass(kind, HypernetworkEditor)
    for name, row in presets_of(kind).items()
}
OF_PAPERS: dict[str, Callable[[], Plan]] = {plan: partial(of_paper, kind, name) for plan, (kind, name, _) in ROWS.items()}
PLANS = OWN | OF_MODELS | OF_PAPERS
