"""The whole loop on a small model: each version is served, and each refused edit is named."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from errata.delta.parts import LowRank
from errata.delta.weight_delta import WeightDelta
from errata.edit import Code, Edit, EditBatch, EditRejected, batches_of
from errata.editors.editor import Editor
from errata.editors.state import EditorState
from errata.generate import HFGenerator
from errata.guard.inspector import Inspector
from errata.guard.limits import Guard, Limit, VersionRefused
from errata.guard.probes import Probes
from errata.lifelong import run
from errata.model.capture import capture
from errata.model.encoding import encode
from errata.model.language_model import load
from errata.model.matrices import find_matrices

MATRICES = ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]
ABSENT = "rejected by the editor"
POISON = "question"
# The editors of these tests make changes that the random model rarely answers by.
LENIENT = Guard(change=Limit(1e6, 1e6), growth=Limit(1e6, 1e6), strict=False)
STRICT = Guard(change=Limit(1e-9, 1e-9), strict=False)


class GradientStep(Editor):
    """One large gradient step, and a refusal for one prompt."""

    def start(self, model, spec):
        return EditorState()

    def edit(self, model, batch, state, cache=None):
        if ABSENT in batch.prompts:
            raise EditRejected(ABSENT, edit=0, code=Code.EDITOR_FAILED)
        encoded = encode(model.renderer, batch.prompts, batch.targets)
        captured, _ = capture(model.module, encoded, MATRICES)
        parts = {name: LowRank(-20 * rows.grads_TO.T, rows.keys_TI.T) for name, rows in captured.items()}
        return WeightDelta(parts), EditorState(state.num_edits + len(batch))


class Careless(GradientStep):
    """Tiny changes, but for one prompt with which it ruins the model."""

    def edit(self, model, batch, state, cache=None):
        delta, state = super().edit(model, EditBatch(tuple(e for e in batch if e.prompt != POISON) or batch.edits), state)
        return delta.scaled(50.0 if POISON in batch.prompts else 1e-5), state


class Overflowing(GradientStep):
    def edit(self, model, batch, state, cache=None):
        raise torch.linalg.LinAlgError("singular")


def inspector_of(model, guard=None, probes=None):
    """Make an inspector of the base model, before a generator moves the model to the ledger's head."""
    return Inspector(model, find_matrices(model.module, MATRICES), guard or Guard(strict=False), probes or Probes((), ()))


def looped(model, ledger, editor, batches, guard=None, probes=None):
    """Run the loop on the served model, and return the versions, the refusals and the generator."""
    inspector, refused = inspector_of(model, guard, probes), []
    generator = HFGenerator(model, inspector.spec, ledger)
    made = list(run(editor, inspector, batches, ledger, generator, on_rejected=lambda *refusal: refused.append(refusal)))
    return made, refused, generator


@pytest.mark.parametrize("shared", [True, False])
def test_the_loop_serves_each_version_and_continues_from_the_head(tiny_model, ledger, world, model_dir, shared):
    inspector = inspector_of(tiny_model, LENIENT)
    spec = inspector.spec
    generator = HFGenerator(tiny_model if shared else load(model_dir), spec, ledger)
    edits = world.edits("test", 4)
    first = list(run(GradientStep(), inspector, batches_of(edits[:2], 1), ledger, generator, "test"))
    again = generator if shared else HFGenerator(load(model_dir), spec, ledger)
    inspector = inspector if shared else inspector_of(load(model_dir), LENIENT)
    second = list(run(GradientStep(), inspector, batches_of(edits[2:], 1), ledger, again))
    assert [version.number for version in (*first, *second)] == [1, 2, 3, 4]
    assert (again.version, ledger.state(4).num_edits, ledger.version(4).editor) == (4, 4, "GradientStep")
    assert [ledger.version(number).plan for number in (2, 3)] == ["test", ""]
    fresh = HFGenerator(load(model_dir), spec, ledger)
    for name in MATRICES:
        models = (inspector.model, again.language_model, fresh.language_model)
        weights = [model.module.get_submodule(name).weight for model in models]
        assert torch.equal(weights[0], weights[1])
        assert torch.equal(weights[0], weights[2])


def test_a_refused_edit_leaves_no_trace(tiny_model, ledger, world):
    edits = world.edits("test", 2)
    edits[0] = Edit(ABSENT, "x")
    made, refused, generator = looped(tiny_model, ledger, GradientStep(), batches_of(edits, 1), STRICT)
    assert made == [] and [batch.prompts for batch, _ in refused] == [[ABSENT], [edits[1].prompt]]
    assert [refusal.code for _, refusal in refused] == [Code.EDITOR_FAILED, Code.GUARD_CHANGE]
    assert (ledger.newest, generator.version) == (0, 0)
    with pytest.raises(VersionRefused):
        list(run(GradientStep(), inspector_of(tiny_model, STRICT), batches_of(edits[1:], 1), ledger, generator))


@pytest.mark.parametrize("position", [0, 3, 6])
def test_one_harmful_edit_is_found_and_its_neighbours_are_made(tiny_model, ledger, world, position):
    healthy = world.edits("test", 6)
    poison = Edit(POISON, "answer", id="poison")
    batch = EditBatch((*healthy[:position], poison, *healthy[position:]))
    probes = Probes(tuple(p for p, _ in world.sentences("train")[:20]), tuple(world.plain_sentences(held_out=True)[:5]))
    made, refused, generator = looped(tiny_model, ledger, Careless(), [batch], LENIENT, probes)
    assert [edit for version in made for edit in version.edits] == healthy
    ((culprit, refusal),) = refused
    assert culprit.edits == (poison,) and isinstance(refusal, VersionRefused)
    assert refusal.code in (Code.GUARD_DISTURBED, Code.GUARD_DRIFT, Code.GUARD_PERPLEXITY, Code.GUARD_BROKEN)
    (record,) = ledger.refusals()
    assert (record["edit"]["id"], record["reason"]) == ("poison", refusal.reason)
    assert record["scores"]["lost_locality"] == refusal.scores["lost_locality"]
    assert (ledger.head, ledger.state(ledger.head).num_edits, generator.version) == (made[-1].number, 6, made[-1].number)
    card = made[-1].scorecard
    assert card["num_edits"] == len(made[-1].edits) and card["lost_locality"] <= 0.05
    assert card["ppl_ratio"] == pytest.approx(1.0, abs=1e-2) and card["guard_s"] > 0


def test_the_later_of_two_targets_for_one_prompt_is_made(tiny_model, ledger, world):
    first, second, *_ = world.edits("test", 2)
    batch = EditBatch((first, second, replace(first, target=second.target)))
    (version,), refused, _ = looped(tiny_model, ledger, Careless(), [batch])
    assert version.edits == (second, replace(first, target=second.target))
    ((culprit, refusal),) = refused
    assert culprit.edits == (first,) and (refusal.field, refusal.code) == ("target", Code.CONTRADICTED)


def test_a_numerical_failure_of_the_editor_is_a_refusal(tiny_model, ledger, world):
    made, refused, _ = looped(tiny_model, ledger, Overflowing(), batches_of(world.edits("test", 2), 2))
    assert not made and [refusal.code for _, refusal in refused] == [Code.EDITOR_FAILED] * 2
    assert refused[0][1].reason == "LinAlgError in the editor: singular"


def test_an_edit_that_does_not_fit_is_refused_by_name(tiny_model, ledger, world):
    (fits,) = world.edits("test", 1)
    too_long = Edit(" ".join(["river"] * tiny_model.max_tokens), "dog")
    made, refused, _ = looped(tiny_model, ledger, Careless(), [EditBatch((too_long, fits))])
    assert [version.edits for version in made] == [(fits,)]
    ((batch, refusal),) = refused
    assert batch.edits == (too_long,) and (refusal.field, refusal.code) == ("prompt", Code.TOO_LONG)


def test_an_edit_at_the_limit_of_the_context_is_made_and_its_wrong_answer_is_cut(tiny_model, ledger):
    longest = Edit(" ".join(["river"] * (tiny_model.max_tokens - 2)), "dog")
    ((version,), refused, _) = looped(tiny_model, ledger, Careless(), [EditBatch((longest,))])
    assert not refused
    (failed,) = version.scorecard["failed"]
    assert failed["prompt"] == longest.prompt and len(tiny_model.tokenizer(failed["answer"])["input_ids"]) <= 2


def test_without_batches_the_head_stays_served(tiny_model, ledger, world):
    inspector = inspector_of(tiny_model)
    generator = HFGenerator(tiny_model, inspector.spec, ledger)
    assert len(list(run(Careless(), inspector, batches_of(world.edits("test", 2), 1), ledger, generator))) == 2
    generator.swap(1)
    assert list(run(Careless(), inspector, [], ledger, generator)) == [] and generator.version == 2
    assert list(run(Careless(), inspector, [EditBatch(())], ledger, generator)) == []
