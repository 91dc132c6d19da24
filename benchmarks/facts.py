"""Editors on the default model, one stream of true corrections in chat: `make bench-facts`.

Test facts that SmolLM2 gets wrong are edited in batches of 10 in this process, without a guard and without making anything
again, and asked by free generation as `make demo` asks them. Rows are RLEdit with the policy that comes with Errata, the same
with one part changed, other editors, and the correction in the prompt, which is the most that a retrieval can do.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.report import console, show, write_report
from errata.delta.kinds import Delta, added_up
from errata.delta.side_branch import applied
from errata.delta.weight_delta import WeightDelta
from errata.edit import Edit, Question, batches_of
from errata.editors.editor import Editor
from errata.editors.fine_tuning.ftl import FTL
from errata.editors.hypernet.rledit import RLEdit
from errata.hardware import hardware
from errata.model.composing import composed
from errata.model.generation import greedy_texts
from errata.model.language_model import LanguageModel, load
from errata.model.matrices import find_matrices
from errata.testbed import smollm2
from errata.testbed.known_facts import AT_ONCE, MAX_TOKENS, KnownFacts, question_of
from errata.testbed.world_facts import WorldFacts
from errata.text.dialogue import HELD_OUT_SYSTEM_PROMPT, Dialogue, Prompt
from jobs import demo_answers, demo_facts, plans
from jobs.demo_answers import FORMS, AskedFacts, FactSearch
from jobs.demo_run import BATCH_SIZE
from jobs.entry import run_job

NUM_FIRST_EDITS = 100  # on which the scales of a policy without training are set
IN_CONTEXT, UNEDITED = "correction in the prompt", "unedited"


@dataclass(frozen=True)
class FactsSettings:
    """`edits` corrections and `right` facts to keep; `policy` is another trained policy to compare; `rows` selects by name."""

    edits: int = 60
    right: int = 50
    seed: int = 0
    policy: str = ""
    rows: str = ""


@dataclass(frozen=True)
class Stream:
    """The edits with the answers that Errata composes, and what is asked after them."""

    model: LanguageModel
    edits: list[Edit]
    asked: AskedFacts

    @classmethod
    def of(cls, model: LanguageModel, settings: FactsSettings) -> Stream:
        """Find facts that the model gets wrong and facts that it gets right, in the order of `make demo`."""
        plan, known = replace(plans.smollm2(), seed=settings.seed), KnownFacts.beside(model)
        search = FactSearch(settings.edits, settings.right)
        facts = demo_facts.facts_in_random_order(plan)
        for begin in range(0, len(facts), AT_ONCE):
            part = facts[begin : begin + AT_ONCE]
            known.ask(part)
            search.add(part, {question_of(fact).prompt: known.answers[fact.key] for fact in part})
            if search.is_over:
                break
        wrong, right = search.wrong, search.right
        posted = [replace(edit, answer=None) for edit in demo_facts.edits_of(plan, wrong)]
        said = [known.answers[fact.key] for fact in wrong]
        return cls(model, composed(model, posted, said), AskedFacts.about(posted, right))

    def answered(self, prompts: Sequence[Prompt]) -> dict[Prompt, str]:
        return dict(zip(prompts, greedy_texts(self.model, prompts, MAX_TOKENS), strict=True))

    def scores(self, delta: Delta) -> dict[str, float | None]:
        with applied(self.model.module, delta):
            return self.asked.scores(self.answered(self.asked.every))

    def scores_in_context(self) -> dict[str, float | None]:
        """Ask with the correction in the system prompt; the facts to keep are asked as they are."""
        by_form = {form: [_with_correction(*pair, form) for pair in self._pairs(form)] for form in FORMS}
        asked = replace(self.asked, forms={**self.asked.forms, **by_form})
        return asked.scores(self.answered(asked.every))

    def _pairs(self, form: str) -> list[tuple[Edit, Question]]:
        """Return the edits that are asked in a form, with the question."""
        asked = self.edits if form == "question" else self.edits[:: demo_answers.EVERY]
        return list(zip(asked, self.asked.forms[form], strict=True))


def _with_correction(edit: Edit, question: Question, form: str) -> Question:
    prompt = question.prompt
    assert isinstance(prompt, Dialogue)
    system = f"{HELD_OUT_SYSTEM_PROMPT} " if form == "other_system" else ""
    return question._replace(prompt=prompt.with_system(f"{system}Known fact: {edit.answer}"))


def edited(stream: Stream, editor: Editor, edits: Sequence[Edit]) -> Delta:
    """Edit batch by batch, each on the model so far."""
    model, total = stream.model, added_up([])
    state = editor.start(model, find_matrices(model.module, editor.modules))
    for batch in batches_of(edits, BATCH_SIZE):
        with applied(model.module, total):
            delta, state = editor.edit(model, batch, state)
        total = added_up([total, delta])
    return total


def without_metric(model: LanguageModel) -> RLEdit:
    """Initialise the shipped settings without a key preconditioner, and with scales of their own."""
    editor = plans.smollm2().editor
    first = list(batches_of(WorldFacts().edits("train", NUM_FIRST_EDITS), BATCH_SIZE))
    assert isinstance(editor, RLEdit)
    return replace(editor, metric_strength=0.0).initialised(model, [], first, seed=0)


def bare(edits: Sequence[Edit]) -> list[Edit]:
    """Return the edits with the bare target as the whole answer."""
    return [replace(edit, answer=edit.target) for edit in edits]


def as_composed(edits: Sequence[Edit]) -> list[Edit]:
    return list(edits)


Arm = tuple[Callable[[LanguageModel], Editor], Callable[[Sequence[Edit]], list[Edit]]]


def arms(settings: FactsSettings) -> dict[str, Arm]:
    """Return the rows that edit weights: how the editor is made, and what becomes of the edits."""

    def shipped(_model: LanguageModel) -> RLEdit:
        return RLEdit.load(smollm2.policy())

    found: dict[str, Arm] = {"shipped policy": (shipped, as_composed)}
    if settings.policy:
        found["other policy"] = (lambda _model: RLEdit.load(settings.policy), as_composed)
    found |= {
        "bare targets": (shipped, bare),
        "one pass": (lambda model: replace(shipped(model), num_passes=1), as_composed),
        "without memory": (lambda model: replace(shipped(model), memory=0.0), as_composed),
        "without metric": (without_metric, as_composed),
        "FT-L": (lambda _model: FTL(("layers.20.mlp.down_proj",), epsilon=1e-2), as_composed),
    }
    return found


def row_of(name: str, stream: Stream, make: Callable[[], dict[str, float | None]]) -> dict[str, Any]:
    began = time.monotonic()
    scores = make()
    console().print(f"  {name}: {time.monotonic() - began:.0f} s", highlight=False)
    return {"row": name, **{form: scores[form] for form in (*FORMS, "two_hop", "kept")}}


def run(settings: FactsSettings, command: str) -> Path:
    """Measure, print, and write `$ERRATA_HOME/bench-facts/report.json`."""
    about = {"command": command, "seed": settings.seed, "hardware": hardware()}
    console().print(*(f"{name}: {value}" for name, value in about.items()), sep="\n", highlight=False)
    stream = Stream.of(load(smollm2.fetched()), settings)
    chosen = [name.strip() for name in settings.rows.split(",") if name.strip()]

    def wanted(name: str) -> bool:
        return not chosen or name in chosen

    rows = [row_of(UNEDITED, stream, lambda: stream.scores(WeightDelta({})))]
    if wanted(IN_CONTEXT):
        rows.append(row_of(IN_CONTEXT, stream, stream.scores_in_context))
    for name, (make, changed) in arms(settings).items():
        if wanted(name):
            editor, edits = make(stream.model), changed(stream.edits)
            rows.append(row_of(name, stream, lambda e=editor, s=edits: stream.scores(edited(stream, e, s))))  # type: ignore[misc]
    show(f"{len(stream.edits)} corrections of {smollm2.NAME} in chat", rows, "shares of right answers, generated freely")
    return write_report("bench-facts", rows, **about, settings=asdict(settings))


def read(arguments: Sequence[str]) -> FactsSettings:
    """Read `--name value` arguments. Raises `ValueError` for unknown rows or too few edits."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, value in asdict(FactsSettings()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    settings = FactsSettings(**vars(parser.parse_args(arguments)))
    known = (UNEDITED, IN_CONTEXT, *arms(settings))
    if unknown := [name for name in map(str.strip, settings.rows.split(",")) if name and name not in known]:
        raise ValueError(f"no row is named {', '.join(unknown)}; there are {', '.join(known)}")
    if settings.edits < BATCH_SIZE:
        raise ValueError(f"edits is at least {BATCH_SIZE}, not {settings.edits}")
    return settings


def main() -> None:
    run_job(read, lambda settings: run(settings, f"python -m benchmarks.facts {' '.join(sys.argv[1:])}".strip()))


if __name__ == "__main__":
    main()
