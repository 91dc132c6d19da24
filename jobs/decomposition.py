"""Rows of the ablation: what a score comes from, {what is written} x {metric} x {passes}, all by one solve.

Written is a gradient step (the identity network, of which step and ridge are trained), MEMIT's target, or what RLEdit's network
makes of the gradient. The metric is none, that of text without the people who are edited and asked about, or that of all true
sentences. Policies are trained in the metric that they are used in, on the same schedule. Columns of a row are its `parts`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from errata.editors.closed_form.memit import MEMIT
from errata.editors.hypernet.hypernet_editor import HypernetworkEditor
from errata.editors.hypernet.training import Schedule
from errata.overrides import with_fields
from jobs.editor_settings import MOMENT_WEIGHTS, EditorGrid, EditorSetting

METRICS = ("no metric", "metric of unseen text", "metric of all")
PASSES = (1, 3)
GRADIENT_STEP, TARGET, NETWORK = "gradient step", "MEMIT target", "network"


def decomposition(editor: HypernetworkEditor, schedule: Schedule) -> tuple[EditorGrid, ...]:
    """Return a row for every combination; `editor` is the whole method, with its metric of all and its network."""
    identity = replace(editor, network="identity")
    return tuple(
        EditorGrid(row_name(written, metric, passes), (setting,), {"written": written, "metric": metric, "passes": passes})
        for metric in METRICS
        for passes in PASSES
        for written, setting in (
            (GRADIENT_STEP, _learned(identity, schedule, metric, passes)),
            (TARGET, _target(editor.modules, metric, passes)),
            (NETWORK, _learned(editor, schedule, metric, passes)),
        )
    )


def row_name(written: str, metric: str, passes: int) -> str:
    """Return the name of a row; without commas, which separate names on a command line."""
    return f"{written} / {metric} / {passes} {'pass' if passes == 1 else 'passes'}"


def _learned(editor: HypernetworkEditor, schedule: Schedule, metric: str, passes: int) -> EditorSetting:
    setting, fields = EditorSetting(editor, schedule), dict[str, Any]()
    if metric == "no metric":
        fields = {"editor.metric_strength": 0.0}
    elif metric == "metric of unseen text":  # A fold of the people has half as many edits for an episode.
        fields = {"metric_part": "train", "cross_fit": True, "schedule.burn_in": schedule.burn_in // 2}
    return with_fields(setting, fields | {"editor.num_passes": passes})


def _target(modules: tuple[str, ...], metric: str, passes: int) -> EditorSetting:
    memit = MEMIT.preset("testbed", modules=modules, moment_weight=MOMENT_WEIGHTS[0], num_passes=passes)
    part = "train" if metric == "metric of unseen text" else ""
    return EditorSetting(memit, metric_part=part, white_metric=metric == "no metric")
