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
from errata.guard.limits import Guard, Limit, VersionRefused
from errata.guard.probes import Probes
from errata.lifelong import run
from errata.model.capture import capture
from errata.model.encoding import encode
from errata.model.language_model import load
from errata.model.matrices import find_matrices

MATRICES = ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]

ABSENT = "rejected by the editor"
NOTHING = Guard(change=Limit(1e-9, 1e-9))


class Gradient(Editor):
    """A long gradient step, enough to try the loop; refuses one prompt."""

    def start(self, model, spec):
        return EditorState()

    def edit(self, model, batch, state, cache=None):
        if ABSENT in batch.prompts:
            raise EditRejected(ABSENT, edit=0, code=Code.EDITOR_FAILED)
        encoded = encode(model.tokenizer, batch.prompts, batch.targets)
        captured, _ = capture(model.module, encoded, MATRICES)
        parts = {name: LowRank(-20 * rows.grads_TO.T, rows.keys_TI.T) for name, rows in captured.items()}
        return WeightDelta(parts), EditorState(state.num_edits + len(batch))


@pytest.mark.parametrize("shared", [True, False])
def test_the_loop_serves_each_version_and_goes_on_where_it_was(tiny_model, ledger, world, model_dir, shared):
    spec = find_matrices(tiny_model.module, MATRICES)
    generator = HFGenerator(tiny_model if shared else load(model_dir), spec, ledger)
    edits, guard = world.edits("test", 4), Guard(change=Limit(1e6, 1e6), growth=Limit(1e6, 1e6))
    first = list(run(tiny_model, spec, Gradient(), batches_of(edits[:2], 1), ledger, generator, guard, "test"))
    again = generator if shared else HFGenerator(load(model_dir), spec, ledger)
    model = tiny_model if shared else load(model_dir)
    second = list(run(model, spec, Gradient(), batches_of(edits[2:], 1), ledger, again, guard))
    assert [version.number for version in (*first, *second)] == [1, 2, 3, 4]
    assert (again.version, ledger.state(4).num_edits, ledger.version(4).editor) == (4, 4, "Gradient")
    plain = HFGenerator(load(model_dir), spec, ledger)
    for name in MATRICES:
        weights = [m.module.get_submodule(name).weight for m in (model, again.language_model, plain.language_model)]
        assert torch.equal(weights[0], weights[1])
        assert torch.equal(weights[0], weights[2])


def test_what_is_refused_leaves_no_trace(tiny_model, ledger, world):
    spec = find_matrices(tiny_model.module, MATRICES)
    generator = HFGenerator(tiny_model, spec, ledger)
    edits = world.edits("test", 2)
    edits[0] = Edit(ABSENT, "x")
    refused = []
    loop = run(
        tiny_model, spec, Gradient(), batches_of(edits, 1), ledger, generator, NOTHING, "", lambda *why: refused.append(why)
    )
    assert list(loop) == []
    assert [batch.prompts for batch, _ in refused] == [[ABSENT], [edits[1].prompt]]
    assert "would change" in str(refused[1][1])
    assert (ledger.newest, generator.version) == (0, 0)
    with pytest.raises(EditRejected, match="would change"):
        list(run(tiny_model, spec, Gradient(), batches_of(edits[1:], 1), ledger, generator, NOTHING))


class Careless(Gradient):
    """Writes nothing of importance, but for one prompt, with which it ruins the model."""

    def edit(self, model, batch, state, cache=None):
        delta, state = super().edit(model, EditBatch(tuple(e for e in batch if e.prompt != POISON) or batch.edits), state)
        return delta.scaled(50.0 if POISON in batch.prompts else 1e-5), state


POISON = "question"


@pytest.mark.parametrize("position", [0, 3, 6])
def test_one_poisonous_edit_is_found_and_its_neighbours_are_made(tiny_model, ledger, world, position):
    spec = find_matrices(tiny_model.module, MATRICES)
    generator = HFGenerator(tiny_model, spec, ledger)
    healthy = world.edits("test", 6)
    poison = Edit(POISON, "answer", id="poison")
    batch = EditBatch((*healthy[:position], poison, *healthy[position:]))
    probes = Probes(tuple(p for p, _ in world.sentences("train")[:20]), tuple(world.plain_sentences(held_out=True)[:5]))
    guard, refused = Guard(change=Limit(1e6, 1e6), growth=Limit(1e6, 1e6)), []
    made = list(
        run(tiny_model, spec, Careless(), [batch], ledger, generator, guard, "", lambda *why: refused.append(why), probes)
    )
    assert [edit for version in made for edit in version.edits] == healthy
    ((culprit, why),) = refused
    assert culprit.edits == (poison,) and isinstance(why, VersionRefused)
    assert "of the answers to unrelated questions would change" in why.reason or "perplexity" in why.reason
    (record,) = ledger.refusals()
    assert (record["edit"]["id"], record["reason"]) == ("poison", why.reason)
    assert record["scores"]["lost_locality"] == why.scores["lost_locality"]
    assert (ledger.head, ledger.state(ledger.head).num_edits, generator.version) == (made[-1].number, 6, made[-1].number)
    card = made[-1].scorecard
    assert card["num_edits"] == len(made[-1].edits) and card["lost_locality"] <= 0.05
    assert card["ppl_ratio"] == pytest.approx(1.0, abs=1e-2) and card["guard_s"] > 0


def test_of_two_answers_in_a_batch_the_later_is_made(tiny_model, ledger, world):
    spec = find_matrices(tiny_model.module, MATRICES)
    first, second, *_ = world.edits("test", 2)
    batch = EditBatch((first, second, replace(first, target=second.target)))
    refused = []
    loop = run(
        tiny_model,
        spec,
        Careless(),
        [batch],
        ledger,
        HFGenerator(tiny_model, spec, ledger),
        Guard(),
        "",
        lambda *why: refused.append(why),
    )
    (version,) = loop
    assert version.edits == (second, replace(first, target=second.target))
    ((culprit, why),) = refused
    assert culprit.edits == (first,) and why.field == "target"
    assert "the later one counts" in why.reason


class Overflowing(Gradient):
    def edit(self, model, batch, state, cache=None):
        raise torch.linalg.LinAlgError("singular")


def looped(model, ledger, editor, batches, **more):
    spec, refused = find_matrices(model.module, MATRICES), []
    generator = HFGenerator(model, spec, ledger)
    made = list(run(model, spec, editor, batches, ledger, generator, Guard(), "", lambda *why: refused.append(why), **more))
    return made, refused, generator


def test_what_the_editor_cannot_compute_is_a_refusal(tiny_model, ledger, world):
    made, refused, _ = looped(tiny_model, ledger, Overflowing(), batches_of(world.edits("test", 2), 2))
    assert not made and [why.reason for _, why in refused] == ["LinAlgError in the editor: singular"] * 2


def test_an_edit_that_does_not_fit_is_refused_by_name(tiny_model, ledger, world):
    (fits,) = world.edits("test", 1)
    too_long = Edit(" ".join(["river"] * tiny_model.max_tokens), "dog")
    made, refused, _ = looped(tiny_model, ledger, Careless(), [EditBatch((too_long, fits))])
    assert [version.edits for version in made] == [(fits,)]
    ((batch, why),) = refused
    assert batch.edits == (too_long,) and why.field == "prompt" and "context holds" in why.reason


def test_an_edit_at_the_contexts_limit_is_made_and_what_is_said_instead_is_cut(tiny_model, ledger):
    brink = Edit(" ".join(["river"] * (tiny_model.max_tokens - 2)), "dog")
    ((version,), refused, _) = looped(tiny_model, ledger, Careless(), [EditBatch((brink,))])
    assert not refused
    (failed,) = version.scorecard["failed"]
    assert failed["prompt"] == brink.prompt and len(tiny_model.tokenizer(failed["answer"])["input_ids"]) <= 2


def test_without_batches_the_head_stays_served(tiny_model, ledger, world):
    made, _, generator = looped(tiny_model, ledger, Careless(), batches_of(world.edits("test", 2), 1))
    assert (len(made), generator.version) == (2, 2)
    spec = generator.language_model and find_matrices(tiny_model.module, MATRICES)
    assert list(run(tiny_model, spec, Careless(), [], ledger, generator, Guard())) == [] and generator.version == 2
    assert list(run(tiny_model, spec, Careless(), [EditBatch(())], ledger, generator, Guard())) == []
    long = Probes((" ".join(["river"] * tiny_model.max_tokens),), ())
    with pytest.raises(ValueError, match="a prompt must have"):
        list(run(tiny_model, spec, Careless(), [], ledger, generator, Guard(), probes=long))
    assert generator.version == 2
