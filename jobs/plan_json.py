"""Plans as JSON files: a sweep writes them, `plan=FILE.json` reads them."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from errata.durable import write_text
from errata.editors import EDITORS, name_of
from errata.editors.hypernet.hypernet_editor import HypernetworkEditor
from errata.editors.hypernet.reward import MemoryOptions, Reward
from errata.editors.hypernet.training import Schedule
from errata.testbed.counterfact import CounterFact
from errata.testbed.language_model import Shape
from errata.testbed.world import World
from errata.testbed.world_facts import WorldFacts
from jobs.plan import Plan

CORPORA: dict[str, type[World | CounterFact | WorldFacts]] = {kind.__name__: kind for kind in (World, CounterFact, WorldFacts)}


def write_plan(plan: Plan, path: Path) -> None:
    data = dataclasses.asdict(replace(plan, editor=plan.editor.without_policy()))
    del data["editor"]["policy"]
    data["editor"] = {"name": name_of(plan.editor), **data["editor"]}
    data["corpus"] = {"name": type(plan.corpus).__name__, **data["corpus"]}
    write_text(path, json.dumps(data, indent=1))


def read_plan(path: Path) -> Plan:
    """Read a plan from a file. Raises `ValueError` that names the fault of the file."""
    if not path.exists():
        raise ValueError(f"no plan file {path}")
    try:
        data = json.loads(path.read_text())
        editor, corpus = dict(data.pop("editor")), dict(data.pop("corpus"))
        make_editor, make_corpus = EDITORS[editor.pop("name")], CORPORA[corpus.pop("name")]
        editor["modules"] = tuple(editor["modules"])
        if issubclass(make_editor, HypernetworkEditor):  # A trained memory has no reward.
            editor["reward"] = Reward(**editor["reward"])
        parts: dict[str, Any] = {"schedule": Schedule(**data.pop("schedule")), "shape": Shape(**data.pop("shape"))}
        parts["savings"] = MemoryOptions(**data.pop("savings", {}))
        made: Any = make_editor(**editor)
        plan = Plan(editor=made, corpus=make_corpus(**corpus), **parts, **data)
    except json.JSONDecodeError as wrong:
        raise ValueError(f"{path} is no JSON: {wrong}") from wrong
    except (KeyError, TypeError, AttributeError) as wrong:
        raise ValueError(f"{path} is no plan as jobs/tune.py writes it: {wrong}") from wrong
    if not plan.editor.is_trained:
        raise ValueError(f"{path}: {name_of(plan.editor)} needs no training; a plan is for an editor with a policy")
    return plan
