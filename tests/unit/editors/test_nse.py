"""NSE against its published equations in primal form and fp64: rewound targets, neurons, a second pass, past keys."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from errata.edit import EditBatch, EditRejected
from errata.editors.closed_form.contexts import Contexts
from errata.editors.closed_form.locate_then_edit import block_of
from errata.editors.closed_form.nse import NSE
from errata.editors.closed_form.targets import find_targets
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from tests.unit.small_models import (
    BATCHES,
    EXACT,
    MODULES,
    SEARCH,
    WORDS,
    a_model,
    at_subject,
    check_close,
    keys,
    modules_of,
    played,
    relative,
    subjects_of,
    with_moments,
    write,
)

WEIGHT, FLOOR = 20.0, 1e-3
# A value between the distances after the first pass, so that some batches write a part of their facts again.
ALPHA = {"llama": 0.045, "gpt2": 0.06}
# A value between the distances before the first pass, so that some facts are never written.
FAR_ALPHA = {"llama": 0.0712, "gpt2": 0.12}
IN_FP32 = 7e-4  # seen: 6.8e-5


def an_editor(model: LanguageModel, **fields: Any) -> NSE:
    settings = {"moment_weight": WEIGHT, "floor": FLOOR, "alpha": ALPHA[model.path], "upper": 1e3, **fields}
    return with_moments(NSE(modules_of(model), search=SEARCH, context_words=WORDS, context_lengths=(4,), **settings), model)


def chosen(K_In: Tensor, share: float) -> list[int]:
    """Select the inputs with the largest Σ_j |k_j| one by one, while their sum is at most `share` of the whole."""
    scores = K_In.abs().sum(1).tolist()
    limit = share * sum(scores) * (1 + 1e-12)  # Tolerance for the order of summation.
    taken: list[int] = []
    for index in sorted(range(len(scores)), key=lambda i: -scores[i]):
        if sum(scores[i] for i in [*taken, index]) > limit:
            break
        taken.append(index)
    return taken


def published(
    model: LanguageModel, editor: NSE, contexts: Sequence[str], rewinds: bool = True
) -> tuple[list[dict[str, Tensor]], list[list[list[int]]]]:
    """Edit with the published equations; returns the changes of each batch, and the edits that each pass wrote.

    Every target is found on the model before anything was written. A pass is over all layers, for the facts with
    α < |z - h| < upper: X_I = (λ C_II + past_II + K_I K_Iᵀ)⁻¹ K_I and ΔW = R X_Iᵀ, zero outside I. The past grows by the
    keys of all facts.
    Distances are in units of |h| where the editor says so.
    """
    spec = find_matrices(model.module, editor.modules)
    site = block_of(spec.names[-1])
    assert editor.moments is not None
    moments = {name: editor.moments.by_input[name].double() for name in spec.names}
    past = {m.name: torch.zeros(m.num_in, m.num_in, dtype=torch.float64) for m in spec.matrices}
    original = LanguageModel(deepcopy(model.module), model.tokenizer, model.path)
    changes, passes = [], []
    for batch in BATCHES:
        asked = original if rewinds else model
        wanted_nD = find_targets(asked, batch, site, Contexts(tuple(contexts), 0.5), editor.search).wanted_nD
        change = {m.name: torch.zeros(m.shape, dtype=torch.float64) for m in spec.matrices}
        written: list[list[int]] = []
        for _ in range(editor.max_iterations - 1):
            h_nD = at_subject(model, batch.prompts, subjects_of(batch), site, True)
            away_n = (wanted_nD - h_nD).norm(dim=1) / (h_nD.norm(dim=1) if editor.relative else 1.0)
            active = [j for j in range(len(batch)) if editor.alpha < float(away_n[j]) < editor.upper]
            written.append(active)
            if not active:
                break
            facts = EditBatch(tuple(batch.edits[j] for j in active))
            for index, name in enumerate(spec.names):
                K_In = keys(model, facts, contexts, name).T
                now_nD = at_subject(model, facts.prompts, subjects_of(facts), site, True)
                R_On = ((wanted_nD[active] - now_nD) / (len(spec.names) - index)).T
                taken = chosen(K_In, editor.neurons)
                A_II = WEIGHT * moments[name] + FLOOR * torch.eye(len(K_In), dtype=torch.float64) + past[name]
                X_Jn = torch.linalg.solve(A_II[taken][:, taken] + K_In[taken] @ K_In[taken].T, K_In[taken])
                pass_OI = torch.zeros_like(change[name])
                pass_OI[:, taken] = R_On @ X_Jn.T
                write(model, name, pass_OI)
                change[name] = change[name] + pass_OI
        for name in past:
            K_In = keys(model, batch, contexts, name).T
            past[name] += K_In @ K_In.T
        changes.append(change)
        passes.append(written)
    return changes, passes


@pytest.fixture(params=MODULES)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return a_model(request.param)


@pytest.mark.parametrize("max_iterations", [2, 3])
@pytest.mark.parametrize("neurons", [1.0, 0.7])
def test_nse_is_the_published_solve(model: LanguageModel, neurons: float, max_iterations: int) -> None:
    """There are `max_iterations` - 1 passes: all facts in the first, and a part, or none, of each batch in the second."""
    editor = an_editor(model, neurons=neurons, max_iterations=max_iterations)
    deltas, _, contexts = played(editor, model, BATCHES)
    changes, passes = published(model, editor, contexts)
    check_close(deltas, changes, EXACT)
    assert [len(first) for first, *_ in passes] == [len(batch) for batch in BATCHES]
    seconds = [len(second) for _, *more in passes for second in more]
    if max_iterations == 3:
        assert 0 in seconds and any(0 < count < 3 for count in seconds)
        assert max(deltas[1].ranks().values()) > 3
    else:
        assert not seconds


@pytest.mark.parametrize("neurons", [1.0, 0.7])
def test_a_fact_near_its_target_is_not_written(model: LanguageModel, neurons: float) -> None:
    """An α between the first distances leaves some facts unwritten; their keys are still past keys."""
    editor = an_editor(model, neurons=neurons, alpha=FAR_ALPHA[model.path])
    deltas, _, contexts = played(editor, model, BATCHES)
    changes, passes = published(model, editor, contexts)
    check_close(deltas, changes, EXACT)
    assert 0 < len(passes[0][0]) < len(BATCHES[0])


def test_distances_may_be_relative_to_the_present_output(model: LanguageModel) -> None:
    editor = an_editor(model, relative=True, alpha=0.3, upper=3.0)
    deltas, _, contexts = played(editor, model, BATCHES)
    changes, passes = published(model, editor, contexts)
    check_close(deltas, changes, EXACT)
    assert sum(map(len, (second for _, second in passes))) in range(1, 9)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("neurons", [1.0, 0.7])
def test_a_model_in_fp32_gives_the_same_up_to_rounding(kind: str, neurons: float) -> None:
    """Compare the editor in fp32 with the equations in fp64, targets included."""
    model = a_model(kind, torch.float32)
    editor = an_editor(model, neurons=neurons)
    deltas, _, contexts = played(editor, model, BATCHES)
    check_close(deltas, published(a_model(kind), editor, contexts)[0], IN_FP32)


def test_targets_are_those_of_the_unedited_model(model: LanguageModel) -> None:
    """Rewinding finds targets on the unedited model; targets of the edited model would give another change."""
    editor = an_editor(model)
    deltas, _, contexts = played(editor, model, BATCHES)
    changes, _ = published(model, editor, contexts, rewinds=False)
    pairs = zip(deltas, changes, strict=True)
    errors = [max(relative(part.dense(), change[name]) for name, part in delta) for delta, change in pairs]
    assert errors[0] < EXACT and min(errors[1:]) > 0.01


def test_only_selected_neurons_change(model: LanguageModel) -> None:
    """A share of 0.7 makes whole columns of every change zero; a share of 1, or two passes, need not."""
    every, some = (played(an_editor(model, neurons=share), model, BATCHES[:1])[0][0] for share in (1.0, 0.7))
    for name, part in some:
        columns = (part.dense() == 0).all(0)
        assert 0.2 < float(columns.double().mean()) < 0.9
        assert not (every.parts[name].dense() == 0).all(0).any()


@pytest.mark.parametrize("named", [True, False])
def test_a_target_too_far_away_is_refused_with_its_edit(model: LanguageModel, named: bool) -> None:
    """The refusal has the id of the one edit whose target is `upper` or more away, or its position without an id."""
    edits = [replace(edit, id=f"fact {i}" if named else None) for i, edit in enumerate(BATCHES[0])]
    batch, editor = EditBatch(tuple(edits)), an_editor(model)
    spec = find_matrices(model.module, editor.modules)
    contexts = editor.contexts(editor.start(model, spec))
    away = find_targets(model, batch, block_of(spec.names[-1]), contexts, editor.search).change_nD.norm(dim=1).tolist()
    *_, second, first = sorted(away)
    refusing = an_editor(model, upper=0.5 * (first + second))
    with pytest.raises(EditRejected, match="upper") as refused:
        refusing.edit(model, batch, refusing.start(model, spec))
    assert refused.value.edit == (f"fact {away.index(first)}" if named else away.index(first))
    (delta,), _, _ = played(an_editor(model, upper=1.01 * first), model, [batch])
    (free,), _, _ = played(editor, model, [batch])
    assert delta.digest() == free.digest()


def test_a_batch_without_facts_to_write_gives_a_zero_change(model: LanguageModel) -> None:
    """An α that no target reaches gives every matrix a zero change of its shape, and the edits are counted."""
    editor = an_editor(model, alpha=1e2)
    deltas, states, _ = played(editor, model, BATCHES)
    spec = find_matrices(model.module, editor.modules)
    for delta in deltas:
        assert set(delta.parts) == set(spec.names)
        for name, part in delta:
            assert part.shape == spec[name].shape and not part.dense().any()
    assert [state.num_edits for state in states] == [0, 3, 6, 9]


def test_the_factors_are_in_fp32(model: LanguageModel) -> None:
    """This holds for a model in fp64, too, because deltas are summed and compacted in fp32."""
    (delta,), _, _ = played(an_editor(model), model, BATCHES[:1])
    assert {tensor.dtype for _, part in delta for tensor in part.tensors().values()} == {torch.float32}
