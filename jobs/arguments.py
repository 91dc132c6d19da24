"""Command-line arguments of the jobs."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

from errata.editors.presets import in_short
from errata.local.matrix_check import matched
from errata.local.models import ready, resolved
from errata.local.preflight import DTYPES
from errata.local.problems import Problems
from errata.model.checkpoint import check_checkpoint, headers
from errata.model.gguf import is_gguf
from errata.model.matrices import find_matrices
from errata.overrides import overridden
from errata.testbed import smollm2
from errata.testbed.language_model import make_model
from jobs.entry import run_job
from jobs.plan import Plan
from jobs.plan_json import read_plan
from jobs.plans import ALIASES, OF_MODELS, OF_PAPERS, OWN, PLANS, ROWS


def listing() -> str:
    """List all plans, one a line: name, editor, model, edited matrices, and source of the settings."""
    lines = []
    for name, make in PLANS.items():
        plan, row = make(), ROWS[name][2] if name in ROWS else None
        source = f"{row.basis}: {row.source}" if row else "our settings"
        editor = type(plan.editor).__name__
        lines.append((name, editor, plan.model or "the testbed's Llama", in_short(plan.editor.modules), source))
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    return "\n".join("  ".join([*map(str.ljust, line, widths), line[-1]]) for line in lines)


def _names() -> str:
    groups = {"to try out": OWN, "our settings": OF_MODELS, "the papers' constants": OF_PAPERS}
    return "\n".join(
        textwrap.fill(", ".join(names), 120, initial_indent=f"  {title}: ", subsequent_indent=" " * 4, break_on_hyphens=False)
        for title, names in groups.items()
    )


def _plan(chosen: str) -> Plan:
    """Find a plan by its name, or read it from a file that a sweep wrote."""
    if chosen.endswith(".json"):
        return read_plan(Path(chosen))
    chosen = ALIASES.get(chosen, chosen)
    if chosen not in PLANS:
        near = get_close_matches(chosen, PLANS)
        meant = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(
            f"no plan is named {chosen!r}{meant}\n{_names()}\n  or a .json file that jobs/tune.py wrote; "
            "`python jobs/train.py plans` describes them"
        )
    return PLANS[chosen]()


def from_arguments(arguments: Sequence[str], default: str = "demo") -> Plan:
    """Read a plan from `plan=NAME field=value ...`; `default` is the plan if none is named.

    Raises `ValueError` that names an unknown plan or field and lists all.
    """
    pairs = [argument.partition("=") for argument in arguments]
    wrong = [argument for argument, (_, sign, _) in zip(arguments, pairs, strict=True) if not sign]
    if wrong:
        raise ValueError(f"arguments have the form field=value; these do not: {', '.join(wrong)}")
    values = {name: value for name, _, value in pairs}
    chosen = values.pop("plan", default)
    plan = _plan(chosen)
    for name, value in values.items():
        plan = overridden(plan, name, value)
    plan.check_workers()
    return plan


def check_model(plan: Plan, modules: Sequence[str]) -> None:
    """Raise `ValueError` for a model that cannot be edited, or that lacks a matrix of `modules`; no weights are loaded.

    A model that is not on this machine is only refused if the job cannot run on another one.
    """
    found = Problems()
    if plan.dtype not in DTYPES:
        found.note("dtype", f"{plan.dtype!r} is not a type of weights: give one of {', '.join(DTYPES)}")
    if not plan.model:
        found.checked("editor.modules", find_matrices, _testbed(plan), modules)
    elif plan.model == smollm2.NAME or is_gguf(plan.model):  # Its matrices are known once it is made.
        if made := found.checked("model", ready, plan.model):
            found.checked("editor.modules", matched, Path(made), headers(Path(made)), modules)
    elif Path(plan.model).is_dir() or not (plan.placement or "RAY_ADDRESS" in os.environ):
        folder = found.checked("model", check_checkpoint, plan.model)
        if folder is not None:
            found.checked("editor.modules", matched, folder, headers(folder), modules)
    if found:
        raise ValueError("; ".join(map(str, found)))


def with_checkpoint(plan: Plan, modules: Sequence[str]) -> Plan:
    """Return the plan with the checkpoint of its GGUF file, which is made on first use; other plans as they are.

    Raises `ValueError` for a file that cannot be converted, or whose model lacks a matrix of `modules`.
    """
    if not is_gguf(plan.model):
        return plan
    found = replace(plan, model=resolved(plan.model))
    check_model(found, modules)
    return found


def _testbed(plan: Plan) -> Any:
    """Make the testbed's model without weights."""
    with torch.device("meta"):
        return make_model(plan.shape, vocabulary_size=8, seed=0)


def main(run: Callable[[Plan], None], check: Callable[[Plan], None] = lambda plan: None, default: str = "demo") -> None:
    """Run a job on the plan of the command line, or list all plans if the only argument is `plans`.

    Before Ray starts, the plan's model is checked. `check` raises `ValueError` or `FileNotFoundError` where the job cannot do
    what the plan says.
    """
    if sys.argv[1:] == ["plans"]:
        print(listing())
        return

    def read(arguments: Sequence[str]) -> Plan:
        plan = from_arguments(arguments, default)
        check_model(plan, plan.editor.modules)
        check(plan)
        plan.check_gpus()
        return plan

    run_job(read, lambda plan: run(with_checkpoint(plan, plan.editor.modules)))
