"""O-Edit and O-Edit+ against their equations, in fp64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from errata.delta.accumulator import EditedModel
from errata.delta.parts import LowRank
from errata.edit import EditBatch, EditRejected, batches_of
from errata.editors.closed_form.contexts import Contexts
from errata.editors.closed_form.moments import leading_outputs
from errata.editors.closed_form.rome import ROME
from errata.editors.closed_form.targets import OrthogonalityPenalty, find_targets
from errata.editors.wrappers.oedit import OEdit, OEditPlus
from errata.model.key_moments import gradient_sums
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from errata.testbed.world import World
from tests.unit.editors.wrapped import FLOOR, an_inner, some_text, text_directions
from tests.unit.small_models import (
    BATCHES,
    EXACT,
    MODULES,
    a_model,
    check_close,
    modules_of,
    played,
    rome_fact,
    weight_of,
    write,
)

OEDIT_IN_FP32 = 4e-5  # seen: 3.5e-6


@pytest.fixture(params=MODULES)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return a_model(request.param)


def with_directions(inner: Any, model: LanguageModel) -> Any:
    return inner.with_moments(replace(inner.moments, directions=text_directions(model.path, inner.modules)))


def rome_with_directions(model: LanguageModel) -> ROME:
    """Return ROME on the second layer's matrix, with its moments and directions."""
    return with_directions(an_inner("ROME", model), model)


def leading(sum_OI: Tensor, most: int) -> Tensor:
    """Return at most `most` left singular vectors, without those of rounding: edits at the same key add no rank."""
    left_OO, values_R, _ = torch.linalg.svd(sum_OI)
    return left_OO[:, : min(most, int((values_R > 1e-6 * values_R[0]).sum()))]


def protected(editor: OEdit | OEditPlus, written_OI: Tensor, basis_OO: Tensor, made: int, after: int) -> tuple[Tensor, Tensor]:
    """Return H, the leading left singular vectors of the sum, one for each edit, and B, those ⌊β t⌋ of the gradient.

    B is orthogonal to H and normalised; both are limited by the editor's ranks.
    """
    H_OR = leading(written_OI, min(made, 99 if editor.past_rank is None else editor.past_rank))
    count = min(math.floor(editor.knowledge_rate * after), 99 if editor.knowledge_rank is None else editor.knowledge_rank)
    B_OQ = basis_OO[:, :count].double()
    B_OQ = B_OQ - H_OR @ (H_OR.T @ B_OQ)
    return H_OR, B_OQ / B_OQ.norm(dim=0)


def protected_rome(
    model: LanguageModel, editor: OEdit | OEditPlus, batches: Sequence[EditBatch], contexts: tuple[str, ...]
) -> list[dict[str, Tensor]]:
    """Edit with the published equations; returns the changes of each batch, which are written into the model.

    O-Edit is ROME with λ1 mean_j |cos(h_j, δ)| + λ2 mean_j |cos(b_j, δ)| in the search for δ. O-Edit+ is ROME with every change
    projected off the span of H and B.
    """
    moments = editor.host.moments
    (name,) = find_matrices(model.module, editor.modules).names
    assert moments is not None
    C_II = moments.by_input[name].double()
    C_II = C_II + FLOOR * torch.eye(len(C_II), dtype=torch.float64)
    total_OI, made, changes = torch.zeros_like(weight_of(model, name)), 0, []
    for batch in batches:
        H_OR, B_OQ = protected(editor, total_OI, moments.directions[name], made, made + len(batch))
        penalties, projector_OO = [], None
        if isinstance(editor, OEdit):
            weighed = [(editor.past_weight, H_OR), (editor.knowledge_weight, B_OQ)]
            penalties = [OrthogonalityPenalty(weight, basis) for weight, basis in weighed if basis.shape[1]]
        else:
            both_OR = torch.cat([H_OR, B_OQ], 1)
            projector_OO = torch.eye(len(both_OR), dtype=torch.float64) - both_OR @ torch.linalg.pinv(both_OR)
        wanted_nO = find_targets(model, batch, name, Contexts(contexts), editor.host.search, penalties).wanted_nD
        change_OI = torch.zeros_like(total_OI)
        for edit, wanted_O in zip(batch, wanted_nO, strict=True):
            fact_OI = rome_fact(model, edit, contexts, name, wanted_O, C_II)
            fact_OI = fact_OI if projector_OO is None else projector_OO @ fact_OI
            write(model, name, fact_OI)
            change_OI = change_OI + fact_OI
        total_OI, made = total_OI + change_OI, made + len(batch)
        changes.append({name: change_OI})
    return changes


SETTINGS: dict[str, dict[str, Any]] = {
    "past and knowledge": {},
    "the past alone": {"knowledge_rate": 0.0},
    "half as much knowledge": {"knowledge_rate": 0.5},
    "of low ranks": {"past_rank": 1, "knowledge_rank": 2},
}
SEQUENCES = [(setting, 1) for setting in SETTINGS] + [("past and knowledge", 2)]  # Setting and batch size.
SOFT = {"past_weight": 0.5, "knowledge_weight": 0.25}  # These penalties are about as large as the loss.


@pytest.mark.parametrize(("setting", "size"), SEQUENCES)
def test_oedit_penalises_protected_directions_in_the_search(model: LanguageModel, setting: str, size: int) -> None:
    """The penalty is over the vectors h_j and b_j, because the mean of |cos| depends on the basis of a span."""
    editor = OEdit(rome_with_directions(model), **SETTINGS[setting], **SOFT)
    batches = list(batches_of(World(20).edits("test", 3), size))
    deltas, _, contexts = played(editor, model, batches)
    check_close(deltas, protected_rome(model, editor, batches, contexts), EXACT)


def test_oedit_has_the_published_weights(model: LanguageModel) -> None:
    """The weights are λ1 = λ2 = 50."""
    editor = OEdit(rome_with_directions(model))
    assert (editor.past_weight, editor.knowledge_weight, editor.knowledge_rate) == (50.0, 50.0, 1.0)
    deltas, _, contexts = played(editor, model, BATCHES[:2])
    check_close(deltas, protected_rome(model, editor, BATCHES[:2], contexts), EXACT)


@pytest.mark.parametrize("kind", [OEdit, OEditPlus])
def test_only_directions_of_the_edited_matrix_count(model: LanguageModel, kind: type[OEdit | OEditPlus]) -> None:
    """Moments may be of more matrices than are edited, in any order."""
    one = rome_with_directions(model)
    assert one.moments is not None
    directions = text_directions(model.path, modules_of(model))
    deltas = [played(kind(one), model, BATCHES[:2])[0]]
    for names in (tuple(directions), tuple(directions)[::-1]):
        more = replace(one.moments, directions={name: directions[name] for name in names})
        deltas.append(played(kind(one.with_moments(more)), model, BATCHES[:2])[0])
    for alone, *among_others in zip(*deltas, strict=True):
        assert [alone.digest()] * 2 == [each.digest() for each in among_others]


def test_the_orthogonality_penalty_is_the_weighted_mean_cosine() -> None:
    """It is the weight times the mean |cos| of a change with each vector, by edit; zero for a zero change."""
    generator = torch.Generator().manual_seed(0)
    change_nD = torch.randn(4, 8, generator=generator, dtype=torch.float64)
    basis_DR = torch.linalg.qr(torch.randn(8, 3, generator=generator, dtype=torch.float64))[0]
    for change_D, cost in zip(change_nD, OrthogonalityPenalty(7.0, basis_DR).cost(change_nD), strict=True):
        cosines = [abs(float(torch.dot(change_D, vector) / change_D.norm())) for vector in basis_DR.T]
        assert float(cost) == pytest.approx(7.0 * sum(cosines) / 3, rel=1e-12)
    assert not OrthogonalityPenalty(7.0, basis_DR).cost(torch.zeros(2, 8, dtype=torch.float64)).any()


@pytest.mark.parametrize(("setting", "size"), SEQUENCES)
def test_oedit_plus_projects_the_solution(model: LanguageModel, setting: str, size: int) -> None:
    editor = OEditPlus(rome_with_directions(model), **SETTINGS[setting])
    batches = list(batches_of(World(20).edits("test", 3), size))
    deltas, _, contexts = played(editor, model, batches)
    check_close(deltas, protected_rome(model, editor, batches, contexts), EXACT)


@pytest.mark.parametrize("setting", ["past and knowledge", "of low ranks"])
@pytest.mark.parametrize("kind", MODULES)
def test_oedit_plus_in_fp32_agrees_with_fp64(kind: str, setting: str) -> None:
    """Compare the editor in fp32 with the equations in fp64, targets included."""
    model = a_model(kind, torch.float32)
    editor = OEditPlus(rome_with_directions(model), **SETTINGS[setting])
    deltas, _, contexts = played(editor, model, BATCHES[:2])
    check_close(deltas, protected_rome(a_model(kind), editor, BATCHES[:2], contexts), OEDIT_IN_FP32)


@pytest.mark.parametrize("kind", MODULES)
def test_oedit_in_fp32_agrees_with_fp64(kind: str) -> None:
    model = a_model(kind, torch.float32)
    editor = OEdit(rome_with_directions(model), **SETTINGS["the past alone"], **SOFT)
    deltas, _, contexts = played(editor, model, BATCHES[:2])
    check_close(deltas, protected_rome(a_model(kind), editor, BATCHES[:2], contexts), OEDIT_IN_FP32)


@pytest.mark.parametrize("inner", ["ROME", "MEMIT"])
@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_the_changes_of_oedit_plus_are_orthogonal(model: LanguageModel, rate: float, inner: str) -> None:
    """The columns of U are orthogonal to the leading left singular vectors of the sum and ⌊β t⌋ directions of the gradient.

    The parts keep their rank.
    """
    plain = with_directions(an_inner(inner, model), model)
    directions = plain.moments.directions
    editor = OEditPlus(plain, knowledge_rate=rate)
    deltas, _, _ = played(editor, model, BATCHES)
    assert set(deltas[0].parts) == set(find_matrices(model.module, plain.modules).names)
    for name in deltas[0].parts:
        total_OI, made = torch.zeros_like(weight_of(model, name)), 0
        for batch, delta in zip(BATCHES, deltas, strict=True):
            part = delta.parts[name]
            assert isinstance(part, LowRank) and part.rank == len(batch)
            U_OR = part.U_OR.double() / part.U_OR.double().norm(dim=0)
            knowledge_OQ = directions[name][:, : math.floor(rate * (made + len(batch)))].double()
            for vector_O in torch.cat([leading(total_OI, made), knowledge_OQ], 1).T:
                assert float((vector_O @ U_OR).abs().max()) < EXACT
            total_OI, made = total_OI + part.dense().double(), made + len(batch)


def test_oedit_plus_refuses_when_a_matrix_is_full(model: LanguageModel) -> None:
    """There are 32 output directions. Three edits protect 9, six protect 3 + 18, and nine would protect 6 + 27."""
    editor = OEditPlus(rome_with_directions(model), knowledge_rate=3.0)
    (name,) = find_matrices(model.module, editor.modules).names
    assert weight_of(model, name).shape[0] == 32
    deltas, states, _ = played(editor, model, BATCHES[:2])
    assert states[-1].num_edits == 6
    edited = EditedModel(model.module, find_matrices(model.module, editor.modules))
    edited.set(deltas)
    with pytest.raises(EditRejected, match="no free output directions left after 6 edits") as refused:
        editor.edit(model, BATCHES[2], states[-1])
    assert name in str(refused.value) and refused.value.field == "edits"
    freer = replace(editor, knowledge_rank=8)
    assert freer.edit(model, BATCHES[2], states[-1])[1].num_edits == 9


@pytest.mark.parametrize("kind", [OEdit, OEditPlus])
def test_without_directions_oedit_cannot_start(model: LanguageModel, kind: type[OEdit | OEditPlus]) -> None:
    inner: Any = an_inner("ROME", model)
    spec = find_matrices(model.module, inner.modules)
    with pytest.raises(ValueError, match="needs the directions of") as refused:
        kind(inner).start(model, spec)
    assert spec.names[0] in str(refused.value)
    assert kind(inner, knowledge_rate=0.0).start(model, spec).num_edits == 0


def test_directions_are_the_left_singular_vectors_of_the_weights_gradient(model: LanguageModel) -> None:
    """Compare the measurement of `Moments.directions` with the gradient of the weights; signs are arbitrary."""
    names = find_matrices(model.module, modules_of(model)).names
    plain = text_directions(model.path, modules_of(model))
    for name, gradient_OI in gradient_sums(model.module, [some_text(model)], names).items():
        cosines = (leading_outputs(gradient_OI).double() * plain[name].double()).sum(0).abs()
        assert float(cosines[:20].min()) > 1 - 1e-5
