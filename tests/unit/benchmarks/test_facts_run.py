"""One row of the comparison on a tiny model: its scores and costs, refused edits, and the model that is left as it was."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import pytest

from benchmarks import facts_run
from benchmarks.facts_rows import ORACLE, UNEDITED, EditorRow
from benchmarks.facts_run import BeforeEdits, RowRun, generated
from benchmarks.facts_stream import CorrectionStream
from errata.benchmark.run import fingerprint
from errata.edit import Code, EditBatch, EditRejected
from errata.editors.memory_based.state import StateMemory
from errata.editors.state import EditorState
from errata.evaluate.transformations import TransformedQuestion, TransformedQuestions
from errata.model.language_model import LanguageModel
from errata.model.prefix_cache import BatchCache
from errata.testbed.world import World

EDITS = tuple(World(20).edits("test", 24))
EDITED, UNRELATED = EDITS[:20], tuple(edit.prompt for edit in EDITS[20:])
STATE = StateMemory(("layers.1.mlp.down_proj",), threshold=0.999)


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts_run, "MAX_TOKENS", 4)
    monkeypatch.setattr(facts_run, "NUM_TIMED", 2)
    monkeypatch.setattr(facts_run, "sentences", lambda: World(20).plain_sentences(held_out=True)[:4])


def row_run(model: LanguageModel, name: str) -> RowRun:
    questions = [TransformedQuestion(edit.prompt, edit.question(edit.prompt), "target") for edit in EDITED]
    stream = CorrectionStream(EDITED, TransformedQuestions({"question": tuple(questions)}), UNRELATED)
    before = BeforeEdits.of(model, generated(model, stream.prompts))
    return RowRun(EditorRow(name), model, replace(model, module=deepcopy(model.module)), stream, before)


def test_the_unedited_model_costs_nothing_and_agrees_with_itself(tiny_model: LanguageModel) -> None:
    figures = row_run(tiny_model, UNEDITED).figures(None)
    assert figures["agreement"] == figures["ppl_ratio"] == 1.0 and figures["question"] == 0.0
    assert (figures["edit_s"], figures["bytes"], figures["added_tokens"], figures["half_life"]) == (None, 0, 0.0, None)
    assert -100 < figures["added_ms"] < 100


def test_an_editor_is_scored_and_taken_out_again(tiny_model: LanguageModel) -> None:
    before = fingerprint(tiny_model)
    run = row_run(tiny_model, "state")
    figures = run.figures(STATE)
    assert figures["question"] == figures["immediate"] == figures["agreement"] == 1.0 and figures["half_life"] == float("inf")
    assert figures["bytes"] > 0 and figures["edit_s"] > 0 and figures["refused"] == 0
    assert fingerprint(tiny_model) == before and generated(tiny_model, run.stream.prompts) == run.before.tokens
    assert run.validation(STATE) == 1.0


def test_a_refused_batch_is_made_edit_by_edit(tiny_model: LanguageModel) -> None:
    @dataclass(frozen=True)
    class Choosy(StateMemory):
        def edit(self, model: LanguageModel, batch: EditBatch, state: EditorState, cache: BatchCache | None = None) -> Any:
            if any(edit.prompt == EDITED[3].prompt for edit in batch):
                raise EditRejected("not this one", code=Code.NOT_FINITE)
            return super().edit(model, batch, state)

    figures = row_run(tiny_model, "state").figures(Choosy(STATE.modules, threshold=0.999))
    assert figures["refused"] == 1 and figures["question"] == figures["immediate"] == 19 / 20


def test_the_oracle_reads_the_right_correction_before_each_question(tiny_model: LanguageModel) -> None:
    run = row_run(tiny_model, ORACLE)
    figures = run.figures(None)
    text, ids = (f"Known fact: {EDITED[0].prompt} {EDITED[0].target}.\n{EDITED[0].prompt}", run.model.renderer.ids)
    with run._oracle():
        assert generated(tiny_model, EDITED[0].prompts)[EDITED[0].prompt] == run.before.tokens.get(
            text, generated(run.unedited, [text])[text]
        )
    assert figures["agreement"] == 1.0, "other prompts stay as they are"
    assert figures["added_tokens"] > 3 and len(ids(text)) > len(ids(EDITED[0].prompt))
