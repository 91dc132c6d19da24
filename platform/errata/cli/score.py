"""The command `errata score`: the served model, evaluated by what it generates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import track
from rich.table import Table

from errata.cli.console import DEFAULT_URL, Url, connect, console, errors_as_one_line, say
from errata.durable import write_text

if TYPE_CHECKING:
    from errata.client.client import Client
    from errata.text.dialogue import Prompt

BATCH = 32
SHOWN = ("efficacy", "generalisation", "locality", "locality_gold", "portability", "harmonic_mean")


def score(
    edits: Annotated[str, typer.Argument(help="Edits with their probes: a file, folder or URI; docs/data.md has the formats.")],
    url: Url = DEFAULT_URL,
    limit: Annotated[int, typer.Option(help="Number of edits to score; 0 for all.", min=0)] = 0,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens; it ends at a new line or a period.", min=1)] = 16,
    save: Annotated[Path | None, typer.Option(help="File for the answers, as JSON.")] = None,
    base: Annotated[Path | None, typer.Option(help="Answers saved before the edits, for locality as agreement.")] = None,
) -> None:
    """Score the served model on a file of edits by what it generates, with 95 % intervals; edits nothing."""
    from errata.datasets.reader import read_edits
    from errata.evaluate.questions import Questions
    from errata.evaluate.scorecard import score

    with errors_as_one_line():
        chosen = list(islice(read_edits(edits), limit or None))
        saved = None if base is None else _saved(base, max_tokens)
        questions = Questions.of(chosen)
        before = None if saved is None else {p: saved[_name(p)] for p in questions.prompts if _name(p) in saved}
        found = _ask(connect(url), questions.prompts, max_tokens)
        card = score(questions, found["answers"], before)
        if save is not None:
            written = {**found, "answers": {_name(prompt): text for prompt, text in found["answers"].items()}}
            write_text(save, json.dumps(written, indent=1, ensure_ascii=False) + "\n")
    table = Table("score", "value", "95 %", title=f"{len(chosen)} edits, answered by version {found['version_max']}")
    shares = {name: getattr(card, name) for name in SHOWN}
    shares |= {f"portability/{kind}": share for kind, share in card.portability_by_kind.items()}
    for name, share in shares.items():
        if share is not None:
            low, high = card.intervals.get(name, (None, None))
            table.add_row(name, f"{share:.3f}", "" if low is None else f"{low:.3f} to {high:.3f}")
    console.print(table)
    if found["version_min"] != found["version_max"]:
        say(f"edits were made meanwhile: the answers are of versions {found['version_min']} to {found['version_max']}")


def _name(prompt: Prompt) -> str:
    """Return the name of a prompt in a file of answers: a dialogue is its messages as JSON."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt.to_json(), ensure_ascii=False)


def _ask(client: Client, prompts: Sequence[Prompt], max_tokens: int) -> dict[str, Any]:
    """Collect {"answers": by prompt, "version_min", "version_max", "max_tokens"}."""
    answers: dict[Prompt, str] = {}
    versions: list[int] = []
    for begin in track(range(0, len(prompts), BATCH), "asking", console=console, transient=True):
        batch = prompts[begin : begin + BATCH]
        answer = client.ask(batch, max_tokens)
        answers |= dict(zip(batch, answer["answers"], strict=True))
        versions += [answer["version_min"], answer["version_max"]]
    if not versions:
        raise ValueError("there is no edit to score")
    return {"version_min": min(versions), "version_max": max(versions), "max_tokens": max_tokens, "answers": answers}


def _saved(path: Path, max_tokens: int) -> dict[str, str]:
    """Read saved answers. Raises `ValueError` for a file that `--save` did not write, or another `max_tokens`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        answers, length = dict(found["answers"]), found["max_tokens"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} contains no answers; --save writes such a file") from None
    if length != max_tokens:
        raise ValueError(f"the answers in {path} have at most {length} tokens, not {max_tokens}: give --max-tokens {length}")
    return answers
