"""Probe of the places where an edit can be written: does a matrix tell rephrasings from neighbours? `make bench-places`.

Prints and writes to `$ERRATA_HOME/bench-places/report.json`, for every matrix and at the prompt's end and the subject, the AUC
of rephrasings against neighbours, and the share of a written change that arrives (errata/editors/closed_form/places.py).
With `--text` the shares are in the metric of that text, as the editors with a key preconditioner write. No edit is made.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from torch import Tensor

from benchmarks.report import console, show, write_report
from errata.datasets.reader import read_edits
from errata.editors.closed_form.places import place_scores
from errata.editors.solve import base_preconditioner
from errata.hardware import hardware
from errata.local.models import ready, resolved
from errata.model.encoding import encode_text
from errata.model.key_moments import key_sums
from errata.model.language_model import LanguageModel, load
from errata.model.matrices import find_matrices
from jobs.entry import run_job


@dataclass(frozen=True)
class PlacesSettings:
    """Patterns of the matrices, number of edits, and the strength c of the metric (c C + I)⁻¹ of the text."""

    model: str
    edits: Path
    text: Path | None
    modules: tuple[str, ...]
    limit: int
    strength: float


def measured(model: LanguageModel, text: Path, names: Sequence[str], strength: float) -> dict[str, Tensor]:
    """Measure the preconditioner of each matrix on a file of text, a line each, at all tokens."""
    lines = [line for line in text.read_text(encoding="utf-8").splitlines() if len(line.split()) > 1]
    chunks = (lines[start : start + 64] for start in range(0, len(lines), 64))
    encoded = (encode_text(model.tokenizer, chunk, model.max_tokens, model.device) for chunk in chunks)
    sums, num_tokens = key_sums(model.module, encoded, names, all_tokens=True)
    return {name: base_preconditioner(total / max(1, num_tokens), strength) for name, total in sums.items()}


def run(settings: PlacesSettings) -> None:
    """Score every place, print the best first, and write the report."""
    edits = list(islice(read_edits(settings.edits), settings.limit))
    ready(settings.model)
    model = load(resolved(settings.model))
    names = find_matrices(model.module, settings.modules).names
    bases = measured(model, settings.text, names, settings.strength) if settings.text else {}
    rows = [asdict(place) for place in place_scores(model, edits, names, bases)]
    show(f"Rephrasings against neighbours, {len(edits)} edits", rows, NOTE)
    best = rows[0]
    console().print(f"best: {best['matrix']} at the {best['position']}", highlight=False, soft_wrap=True)
    command = f"make bench-places ARGS={shlex.quote(shlex.join(sys.argv[1:]))}"
    write_report("bench-places", rows, command=command, hardware=hardware(), edits=len(edits))


NOTE = (
    "auc: probability that a rephrasing gets a larger share of what is written for its edit than a neighbour; 0.5 by chance.\n"
    "share: median of what arrives, 1 is all. prompt: at the ends of both prompts. subject: at the other's nearest token."
)


def parsed(arguments: Sequence[str]) -> PlacesSettings:
    parser = argparse.ArgumentParser(description="How well each matrix and position tells rephrasings from neighbours.")
    parser.add_argument("--model", required=True, help="folder or name of the model")
    parser.add_argument("--edits", required=True, type=Path, help="edits with rephrasings and neighbours (docs/data.md)")
    parser.add_argument("--text", type=Path, help="plain text, a line each: shares in the metric of its keys")
    parser.add_argument("--modules", default="mlp.up_proj,mlp.down_proj", help="patterns of the matrices, with commas")
    parser.add_argument("--limit", type=int, default=200, help="number of edits")
    parser.add_argument("--strength", type=float, default=1e4, help="c of the metric (c C + I)⁻¹")
    found = parser.parse_args(arguments)
    if found.limit < 1:
        raise ValueError(f"--limit is a number of edits, at least 1, not {found.limit}")
    modules = tuple(found.modules.split(","))
    return PlacesSettings(found.model, found.edits, found.text, modules, found.limit, found.strength)


if __name__ == "__main__":
    run_job(parsed, run)
