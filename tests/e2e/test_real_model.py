"""The default model, a real language model: made out of its package, corrected in chat, served by vLLM, and rolled back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from errata.delta.side_branch import applied
from errata.edit import Edit, EditBatch
from errata.editors.hypernet.rledit import RLEdit
from errata.model.composing import composed
from errata.model.generation import greedy
from errata.testbed import smollm2
from errata.testbed.fact import Fact
from errata.testbed.world_facts import WorldFacts
from errata.text.dialogue import HELD_OUT_SYSTEM_PROMPT, HELD_OUT_TURN, Dialogue
from tests.e2e.pair import Pair, Reference, Served

pytestmark = pytest.mark.e2e
NUM_TOKENS, MAX_TOKENS = 20, 256
KEYS = ("country:Nellore", "tld:Nigeria", "symbol:tungsten", "atomic_number:tin")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    home = tmp_path_factory.mktemp("real")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ERRATA_HOME", str(home))
        checkpoint = smollm2.fetched()
    reference = Reference(home, checkpoint, RLEdit.load(smollm2.POLICY).modules)
    return Pair(reference, Served(reference.ledger, max_model_len=MAX_TOKENS))


@pytest.fixture(scope="module")
def facts() -> list[Fact]:
    by_key = {fact.key: fact for fact in WorldFacts().facts()}
    return [by_key[key] for key in KEYS]


def served_tokens(served: Served, dialogues: Sequence[Dialogue]) -> list[list[int]]:
    """Ask the engine in chat, with its own rendering of the messages."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=NUM_TOKENS)
    found = served.engine.chat([d.to_json() for d in dialogues], sampling, use_tqdm=False)  # type: ignore[arg-type]
    return [list(out.outputs[0].token_ids) for out in found]


def without_end(rows: Sequence[list[int]], ends: frozenset[int]) -> list[list[int]]:
    return [[token for token in ids if token not in ends] for ids in rows]


def test_training_goes_on_from_the_shipped_policy_as_its_record_says(pair: Pair) -> None:
    recorded = smollm2.record()["next_steps"]
    assert isinstance(recorded, list) and len(recorded) == smollm2.NEXT_STEPS.train_steps
    found = smollm2.next_steps(RLEdit.load(smollm2.POLICY), pair.reference.model)
    for ours, theirs in zip(found, recorded, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-2), "other processors round otherwise"
    assert found[0] != found[1]


def test_corrections_in_chat_are_served_alike_and_taken_back(pair: Pair, facts: list[Fact]) -> None:
    """Four corrections: vLLM and transformers say the same before, after and after the rollback, also in other contexts."""
    model = pair.reference.model
    edits = [Edit(f.question(), f.target, f.subject, form="chat", aliases=f.aliases) for f in facts]
    asked = [prompt for edit in edits for prompt in edit.prompts]
    others = [
        one
        for d in asked[:2]
        if isinstance(d, Dialogue)
        for one in (d.with_system(HELD_OUT_SYSTEM_PROMPT), d.after(*HELD_OUT_TURN))
    ]
    dialogues = [*(d for d in asked if isinstance(d, Dialogue)), *others]

    def both() -> list[list[int]]:
        served = without_end(served_tokens(pair.served, dialogues), model.end_ids)
        assert served == greedy(model, dialogues, NUM_TOKENS)
        return served

    def wrong(rows: Sequence[list[int]]) -> list[str | None]:
        texts = [model.tokenizer.decode(ids, skip_special_tokens=True) for ids in rows]
        return [edit.first_wrong([text]) for edit, text in zip(edits, texts, strict=False)]

    before = both()
    assert all(wrong(before)), "the unedited model answers none of these"
    batch = EditBatch(tuple(composed(model, edits, [said or "" for said in wrong(before)])))
    editor = RLEdit.load(smollm2.POLICY)
    editor = editor.with_preconditioners(editor.measure_preconditioners(model, smollm2.metric_texts(model, 60)))
    delta, state = editor.edit(model, batch, editor.start(model, pair.reference.spec))
    with applied(model.module, delta):
        assert wrong(greedy(model, dialogues, NUM_TOKENS)) == [None] * len(edits)
    version = pair.reference.append(delta, state)
    pair.served.swap(version)
    pair.reference.merge(version)
    assert wrong(both()) == [None] * len(edits)
    pair.served.swap(0, reset=True)
    pair.reference.merge(0)
    assert both() == before


def test_the_checkpoint_is_plain(pair: Pair) -> None:
    folder = Path(pair.reference.model.path)
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "probes.jsonl"} <= {
        file.name for file in folder.iterdir()
    }
    assert pair.reference.model.renderer.form == "chat" and "quantization_config" not in (folder / "config.json").read_text()
