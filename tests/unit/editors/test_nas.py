"""NAS against its rule, solved in primal form and in fp64: targets whose values have the norm of the unedited model's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from errata.editors import make_editor, name_of
from errata.editors.closed_form.alphaedit import AlphaEdit
from errata.editors.closed_form.contexts import Contexts
from errata.editors.closed_form.locate_then_edit import block_of
from errata.editors.closed_form.memit import MEMIT
from errata.editors.closed_form.nse import NSE
from errata.editors.closed_form.targets import find_targets
from errata.editors.wrappers.nas import NAS, value_norm
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
    subjects_of,
    weight_of,
    with_moments,
    write,
)


@pytest.fixture(params=MODULES)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return a_model(request.param)


def a_memit(model: LanguageModel) -> MEMIT:
    made = MEMIT(
        modules_of(model), search=SEARCH, context_words=WORDS, context_lengths=(4,), moment_weight=20.0, floor=1e-2, memory=1.0
    )
    found: MEMIT = with_moments(made, model)
    return found


def test_values_have_the_norm_of_the_unedited_models(model: LanguageModel) -> None:
    editor = NAS(a_memit(model))
    deltas, _, contexts = played(editor, model, BATCHES[:2])
    assert isinstance(editor.host, MEMIT) and editor.host.moments is not None
    moments, names = editor.host.moments.by_input, find_matrices(model.module, editor.modules).names
    last, site = names[-1], block_of(names[-1])
    norm = value_norm(weight_of(model, last), moments[last])
    past: dict[str, Tensor] = {name: torch.zeros_like(C_II).double() for name, C_II in moments.items()}
    changes = []
    for batch in BATCHES[:2]:
        subjects = subjects_of(batch)
        change_nD = find_targets(model, batch, site, Contexts(contexts), editor.host.search).change_nD.double()
        value_nO = at_subject(model, batch.prompts, subjects, last, False) @ weight_of(model, last).T
        solved_nO = value_nO + change_nD
        solved_nO *= norm / solved_nO.norm(dim=1, keepdim=True)
        wanted_nD = at_subject(model, batch.prompts, subjects, site, True) - value_nO + solved_nO
        change: dict[str, Tensor] = {}
        for index, name in enumerate(names):
            K_In = keys(model, batch, contexts, name).T
            R_On = (wanted_nD - at_subject(model, batch.prompts, subjects, site, True)).T / (len(names) - index)
            A_II = 20.0 * moments[name].double() + past[name] + K_In @ K_In.T + 1e-2 * torch.eye(len(K_In)).double()
            change[name] = R_On @ torch.linalg.solve(A_II, K_In).T
            write(model, name, change[name])
        for name in past:
            K_In = keys(model, batch, contexts, name).T
            past[name] += K_In @ K_In.T
        changes.append(change)
    check_close(deltas, changes, EXACT)


def test_the_norm_is_that_of_the_unedited_model_for_the_whole_stream() -> None:
    model = a_model("llama")
    _, states, _ = played(NAS(a_memit(model)), model, BATCHES[:3])
    assert len({float(state.tensors["value_norm"]) for state in states}) == 1


def test_the_root_mean_square_of_the_values_follows_from_the_second_moment_of_the_keys() -> None:
    torch.manual_seed(0)
    keys_TI, weight_OI = torch.randn(50, 6).double(), torch.randn(4, 6).double()
    rms = (keys_TI @ weight_OI.T).square().sum(1).mean().sqrt()
    assert value_norm(weight_OI, keys_TI.T @ keys_TI / 50) == pytest.approx(float(rms))


def test_it_wraps_alphaedit_or_memit_and_no_other() -> None:
    nas = make_editor("NAS", preset="llama3_8b")
    assert isinstance(nas, NAS) and type(nas.host) is AlphaEdit and name_of(nas) == "NAS"
    assert name_of(make_editor("NAS/MEMIT", preset="gpt2_xl")) == "NAS/MEMIT"
    with pytest.raises(ValueError, match="NAS rescales the targets of MEMIT or AlphaEdit, not of NSE"):
        NAS(NSE())  # type: ignore[arg-type]
