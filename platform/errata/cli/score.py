"""`errata score`, a command of cli.py: the model that is served, asked as its users ask it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from errata.cli.console import DEFAULT_URL, Url, connect, explained
from errata.client.errors import ErrataError

if TYPE_CHECKING:
    from errata.client.client import Client

console = Console()
BATCH = 32
SHOWN = ("efficacy", "generalisation", "locality", "locality_gold", "portability", "harmonic_mean")


def score(
    edits: Annotated[str, typer.Argument(help="Edits with their probes: a file, folder or URI; docs/data.md has the formats.")],
    url: Url = DEFAULT_URL,
    limit: Annotated[int, typer.Option(help="Take that many edits; 0 for all.", min=0)] = 0,
    max_tokens: Annotated[int, typer.Option(help="Of an answer, at most; it ends at a new line or a period.", min=1)] = 16,
    save: Annotated[Path | None, typer.Option(help="File for the answers, as JSON.")] = None,
    base: Annotated[Path | None, typer.Option(help="Answers that were saved before the edits: locality is agreement.")] = None,
) -> None:
    """Score the served model on a file of edits by what it generates, with 95 % intervals; edits nothing."""
    from errata.datasets.reader import read_edits
    from errata.evaluate.questions import Questions
    from errata.evaluate.scorecard import score

    try:
        chosen = list(islice(read_edits(edits), limit or None))
        before = None if base is None else _saved(base, max_tokens)
        questions = Questions.of(chosen)
        found = _ask(connect(url), questions.prompts, max_tokens)
        card = score(questions, found["answers"], before)
        if save is not None:
            save.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except (ValueError, OSError, ErrataError) as wrong:
        said = explained(wrong) if isinstance(wrong, ErrataError) else str(wrong)
        console.print(said, style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from None
    table = Table("score", "value", "95 %", title=f"{len(chosen)} edits, answered by version {found['version_max']}")
    shares = {name: getattr(card, name) for name in SHOWN}
    shares |= {f"portability/{kind}": share for kind, share in card.portability_by_kind.items()}
    for name, share in shares.items():
        if share is not None:
            low, high = card.intervals.get(name, (None, None))
            table.add_row(name, f"{share:.3f}", "" if low is None else f"{low:.3f} to {high:.3f}")
    console.print(table)
    if found["version_min"] != found["version_max"]:
        console.print(f"edits came in between: answers are by versions {found['version_min']} to {found['version_max']}")


def _ask(client: Client, prompts: Sequence[str], max_tokens: int) -> dict[str, Any]:
    """{"answers": by prompt, "version_min", "version_max"}."""
    answers: dict[str, str] = {}
    versions: list[int] = []
    for begin in track(range(0, len(prompts), BATCH), "asking", console=console, transient=True):
        batch = prompts[begin : begin + BATCH]
        answer = client.complete(batch, max_tokens)
        answers |= {prompt: choice["text"] for prompt, choice in zip(batch, answer["choices"], strict=True)}
        versions += [answer["errata"]["version_min"], answer["errata"]["version_max"]]
    if not versions:
        raise ValueError("there is no edit to score")
    return {"version_min": min(versions), "version_max": max(versions), "max_tokens": max_tokens, "answers": answers}


def _saved(path: Path, max_tokens: int) -> dict[str, str]:
    """Raises `ValueError` for what `--save` did not write, and for answers that were cut elsewhere."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        answers, length = dict(found["answers"]), found["max_tokens"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} holds no answers: --save writes them") from None
    if length != max_tokens:
        raise ValueError(f"the answers in {path} have at most {length} tokens, not {max_tokens}: give --max-tokens {length}")
    return answers
