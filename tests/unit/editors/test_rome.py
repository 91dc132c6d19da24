"""ROME and R-ROME against their published equations, one fact after the other, in fp64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from errata.delta.side_branch import applied
from errata.edit import Edit, EditBatch
from errata.editors.closed_form.contexts import Contexts
from errata.editors.closed_form.locate_then_edit import contexts_of
from errata.editors.closed_form.rome import ROME, RROME
from errata.editors.closed_form.targets import Search, find_targets
from errata.model.encoding import answer_log_probs, answer_nll, encode
from errata.model.generation import greedy_texts
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from errata.testbed.language_model import Shape, make_model
from errata.testbed.world import World
from tests.tokenizers_under_test import LIKE_SUBJECTS, make
from tests.unit.small_models import (
    EXACT,
    MODULES,
    SEARCH,
    SHAPE,
    WORDS,
    a_model,
    at_subject,
    check_close,
    in_contexts,
    modules_of,
    played,
    relative,
    rome_fact,
    subjects_of,
    weight_of,
    with_moments,
    write,
)

EDITS = World(20).edits("test", 6)
BATCHES = [EditBatch(tuple(EDITS[:1])), EditBatch(tuple(EDITS[1:4])), EditBatch(tuple(EDITS[4:]))]
FLOOR = 1e-5  # About the smaller eigenvalues of C in these models, so that both C and the floor change u.
FLAVOURS: dict[str, tuple[type[ROME], dict[str, bool]]] = {
    "ROME": (ROME, {}),
    "R-ROME": (RROME, {}),
    "R-ROME, prompt keys": (RROME, {"prompt_keys": True}),
}
IN_FP32 = 1.5e-4  # seen: 1.3e-5


def an_editor(flavour: str, model: LanguageModel, use_moments: bool = True) -> ROME:
    """Return an editor of the second layer's matrix, with contexts of two lengths."""
    kind, fields = FLAVOURS[flavour]
    made = kind(
        modules_of(model)[1:],
        search=SEARCH,
        context_words=WORDS,
        context_lengths=(2, 4),
        use_moments=use_moments,
        floor=FLOOR,
        **fields,
    )
    return with_moments(made, model) if use_moments else made


def floored_moment(editor: ROME, name: str) -> Tensor | None:
    """Return C + floor I in fp64, or None if the editor takes the identity."""
    if editor.moments is None:
        return None
    moment_II = editor.moments.by_input[name].double()
    return moment_II + FLOOR * torch.eye(len(moment_II), dtype=torch.float64)


def published(model: LanguageModel, editor: ROME, contexts: tuple[str, ...], flavour: str) -> list[dict[str, Tensor]]:
    """Return the change of each batch: targets on the model before it, then every fact into the weights."""
    (name,) = find_matrices(model.module, editor.modules).names
    changes = []
    for batch in BATCHES:
        wanted_nO = find_targets(model, batch, name, Contexts(contexts), editor.search).wanted_nD
        moment_II, change_OI = floored_moment(editor, name), torch.zeros_like(weight_of(model, name))
        for edit, wanted_O in zip(batch, wanted_nO, strict=True):
            fact_OI = rome_fact(model, edit, contexts, name, wanted_O, moment_II, flavour)
            write(model, name, fact_OI)
            change_OI = change_OI + fact_OI
        changes.append({name: change_OI})
    return changes


@pytest.fixture(params=MODULES)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return a_model(request.param)


@pytest.mark.parametrize("use_moments", [True, False])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_every_flavour_is_the_published_equation(model: LanguageModel, flavour: str, use_moments: bool) -> None:
    """Each fact changes W by (v* - W k) uᵀ / (uᵀ k), with the flavour's keys, and C + floor I or the identity."""
    editor = an_editor(flavour, model, use_moments)
    deltas, _, contexts = played(editor, model, BATCHES)
    assert len(contexts) == 5
    assert [part.rank for delta in deltas for _, part in delta] == [len(batch) for batch in BATCHES]
    check_close(deltas, published(model, editor, contexts, flavour), EXACT)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("use_moments", [True, False])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_model_in_fp32_gives_the_same_up_to_rounding(kind: str, flavour: str, use_moments: bool) -> None:
    """Compare the editor in fp32 with the equations in fp64, targets included."""
    model = a_model(kind, torch.float32)
    editor = an_editor(flavour, model, use_moments)
    deltas, _, contexts = played(editor, model, BATCHES)
    check_close(deltas, published(a_model(kind), editor, contexts, flavour), IN_FP32)


def test_the_three_flavours_differ(model: LanguageModel) -> None:
    """The same facts get three different changes, so that the comparison with the equations distinguishes them."""
    changes = [played(an_editor(flavour, model), model, BATCHES[:1])[0][0] for flavour in FLAVOURS]
    (name,) = changes[0].parts
    dense = [change.parts[name].dense() for change in changes]
    assert min(relative(dense[i], dense[j]) for i in range(3) for j in range(i)) > 0.05


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_last_edit_of_a_batch_has_its_target_exactly(model: LanguageModel, flavour: str) -> None:
    """(W + ΔW) k = v* holds for the key k of the last edit, because no later edit moves it."""
    editor, batch = an_editor(flavour, model), BATCHES[1]
    (delta,), _, contexts = played(editor, model, [batch])
    ((name, part),) = delta
    wanted_nO = find_targets(model, batch, name, Contexts(contexts), editor.search).wanted_nD
    before_nO = at_subject(model, batch.prompts, subjects_of(batch), name, True)
    write(model, name, part.dense())
    asked = contexts if flavour == "R-ROME" else ("",)
    after_nO = torch.stack(in_contexts(model, batch, asked, name, True)).mean(0)
    assert relative(after_nO[-1], wanted_nO[-1]) < EXACT
    assert relative(before_nO[-1], wanted_nO[-1]) > 0.1


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_several_matrices_are_refused(model: LanguageModel, flavour: str) -> None:
    editor = replace(an_editor(flavour, model), modules=modules_of(model))
    with pytest.raises(ValueError, match="writes into one matrix") as refused:
        editor.start(model, find_matrices(model.module, editor.modules))
    assert all(module in str(refused.value) for module in modules_of(model))


@pytest.mark.parametrize("kind", [ROME, RROME])
def test_there_are_twenty_one_contexts(model: LanguageModel, kind: type[ROME]) -> None:
    """They are the bare prompt, ten texts of at most five tokens and ten of ten, with the word, all of equal weight."""
    editor = kind(modules_of(model)[:1], use_moments=False)
    state = editor.start(model, find_matrices(model.module, editor.modules))
    bare, *others = contexts_of(state)
    assert bare == "" and len(others) == 20
    for short, long in zip(others[:10], others[10:], strict=True):
        assert short[0] == long[0]  # Both continue the same word.
        assert len(model.tokenizer(short)["input_ids"]) <= len(model.tokenizer(long)["input_ids"])
    assert editor.contexts(state).weights == [1 / 21] * 21


CITIES = ("Rome", "Wien", "Paris", "Tokyo", "Москва", "Łódź")
WORKS = "{} works in the city of"


def a_model_that_knows_bands(family: str) -> LanguageModel:
    """Train a small model on the cities of ten bands whose names differ in the last of their bytes.

    Its first block looks at no other token, so that the later ones must read the city where the name ends.
    """
    tokenizer = make(family)
    module = make_model(Shape(hidden=64, layers=3, intermediate=96, heads=2), len(tokenizer), seed=0)
    module.generation_config.eos_token_id = tokenizer.eos_token_id
    model = LanguageModel(module.eval(), tokenizer, family)
    prompts = [WORKS.format(f"Band {chr(ord('🎲') + i)}") for i in range(10)]
    text = encode(model.renderer, prompts, [CITIES[7 * i % len(CITIES)] for i in range(len(prompts))])
    module.model.layers[0].self_attn.o_proj.weight.requires_grad_(False).zero_()
    optimizer = torch.optim.Adam([weight for weight in module.parameters() if weight.requires_grad], lr=5e-3)
    for _ in range(80):
        optimizer.zero_grad()
        answer_nll(answer_log_probs(module, text), text).mean().backward()
        optimizer.step()
    module.requires_grad_(False)
    return model


@pytest.mark.parametrize("family", ["byte-level", "sentence pieces"])
def test_two_subjects_that_differ_in_their_last_byte_have_keys_and_answers_of_their_own(family: str) -> None:
    """Two edits of one batch, of subjects whose last character has several tokens."""
    model = a_model_that_knows_bands(family)
    pairs = [("Band 🎸", "Paris"), ("Band 🎹", "Tokyo")]
    batch = EditBatch(tuple(Edit(WORKS.format(subject), target, subject) for subject, target in pairs))
    one, other = (model.renderer.ids(subject) for subject, _ in pairs)
    assert one[:-1] == other[:-1] and len(one) > len(model.renderer.ids("Band ")) + 1
    editor = RROME(
        MODULES["llama"][:1],
        search=Search(num_steps=60, learning_rate=0.05, decay=0.0, clamp=1e3, kl_weight=0.0),
        context_lengths=(),
        use_moments=False,
    )
    spec = find_matrices(model.module, editor.modules)
    state = editor.start(model, spec)
    _, keys_nI, _ = editor.keys(model, batch, state, spec.names[0])
    assert relative(keys_nI[0], keys_nI[1]) > 0.5
    delta, _ = editor.edit(model, batch, state)
    assert [text.strip() for text in greedy_texts(model, batch.prompts)] != [target for _, target in pairs]
    with applied(model.module, delta):
        assert [text.strip() for text in greedy_texts(model, batch.prompts)] == [target for _, target in pairs]


@pytest.mark.parametrize("family", ["byte-level", "sentence pieces", "Eastern"])
@pytest.mark.parametrize(("one", "other", "frame"), LIKE_SUBJECTS)
def test_like_subjects_of_every_script_have_keys_of_their_own(family: str, one: str, other: str, frame: str) -> None:
    tokenizer = make(family)
    module = make_model(replace(SHAPE, max_tokens=96), len(tokenizer), seed=0)
    model = LanguageModel(module.eval().requires_grad_(False), tokenizer, family)
    editor = RROME(MODULES["llama"][1:], context_words=WORDS, context_lengths=(2, 4), use_moments=False)
    spec = find_matrices(model.module, editor.modules)
    batch = EditBatch(tuple(Edit(frame.format(subject), "Paris", subject) for subject in (one, other)))
    _, keys_nI, _ = editor.keys(model, batch, editor.start(model, spec), spec.names[0])
    assert relative(keys_nI[0], keys_nI[1]) > 0.1
