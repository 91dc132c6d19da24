"""The mixture of a datastore against a naive implementation, and the tokens that keep their bits."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from errata.delta.memory_delta import MemoryDelta
from errata.delta.side_branch import applied
from errata.edit import EditBatch
from errata.edit_memory.datastore import mixed
from errata.editors import make_editor
from errata.editors.memory_based.memory_editor import output_layer
from errata.editors.memory_based.rtd import RTD
from errata.model.encoding import answer_log_probs, encode
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from errata.testbed.world import World

HIDDEN, WORDS, ROWS = 8, 12, 20
EDITOR = RTD(("layers.1.mlp.down_proj",), threshold=0.99999)


def some_rows(threshold: float, nearest: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    key_NH = torch.randn(ROWS, HIDDEN, generator=generator)
    return {
        "key": key_NH / key_NH.norm(dim=1, keepdim=True),
        "token": torch.randint(0, 4, (ROWS,), generator=generator),
        "threshold": torch.full((ROWS,), threshold),
        "temperature": torch.linspace(0.3, 0.6, ROWS),
        "share": torch.linspace(0.5, 0.9, ROWS),
        "nearest": torch.full((ROWS,), nearest),
    }


def naive(rows: dict[str, torch.Tensor], state_H: list[float], logits_V: list[float]) -> list[float]:
    """Compute the next token's distribution by the equation, one number at a time."""
    length = math.sqrt(sum(x * x for x in state_H))
    unit = [x / length for x in state_H]
    distance = [sum((x - k) ** 2 for x, k in zip(unit, key, strict=True)) for key in rows["key"].tolist()]
    order = sorted(range(ROWS), key=lambda n: distance[n])
    first = order[0]
    share, temperature = float(rows["share"][first]), float(rows["temperature"][first])
    near = order[: int(rows["nearest"][first])]
    total = sum(math.exp(-distance[n] / temperature) for n in near)
    own = [math.exp(z) / sum(map(math.exp, logits_V)) for z in logits_V]
    found = [(1 - share) * p for p in own]
    for n in near:
        found[int(rows["token"][n])] += share * math.exp(-distance[n] / temperature) / total
    return found


@pytest.mark.parametrize("nearest", [1, 5, 100])
def test_the_mixture_is_that_of_a_naive_implementation(nearest: int) -> None:
    rows, generator = some_rows(threshold=-1.0, nearest=nearest), torch.Generator().manual_seed(1)
    state_TH, logits_TV = 3 * torch.randn(6, HIDDEN, generator=generator), torch.randn(6, WORDS, generator=generator)
    expected = [naive(rows, state, logits) for state, logits in zip(state_TH.tolist(), logits_TV.tolist(), strict=True)]
    found_TV = mixed(rows, state_TH, logits_TV).logits_TV
    assert torch.allclose(found_TV.exp(), torch.tensor(expected), atol=1e-5)
    assert torch.allclose(found_TV.exp().sum(1), torch.ones(6), atol=1e-5)


def test_tokens_far_from_every_reference_keep_their_bits() -> None:
    rows = some_rows(threshold=0.99)
    state_TH = torch.cat([rows["key"][:2] * 5, -rows["key"][:2]])
    logits_TV = torch.randn(4, WORDS)
    found_TV = mixed(rows, state_TH, logits_TV).logits_TV
    assert torch.equal(found_TV[2:], logits_TV[2:]) and not torch.isclose(found_TV[:2], logits_TV[:2]).all(1).any()
    assert mixed(rows, state_TH[2:], logits_TV).logits_TV is logits_TV


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mixture_is_finite_for_sharp_distributions(dtype: torch.dtype) -> None:
    rows = some_rows(threshold=0.99) | {"temperature": torch.full((ROWS,), 1e-6), "share": torch.full((ROWS,), 0.9)}
    logits_TV = torch.full((1, WORDS), -200.0).index_fill(1, torch.tensor([7]), 200.0).to(dtype)
    found_TV = mixed(rows, rows["key"][:1], logits_TV).logits_TV
    assert found_TV.dtype == dtype and bool(torch.isfinite(found_TV).all())
    assert int(found_TV.argmax()) == int(rows["token"][0])


@torch.no_grad()
def test_references_are_the_last_states_before_each_token_of_the_answer(tiny_model: LanguageModel) -> None:
    model = tiny_model
    edits = [replace(edit, target=f"{edit.target} {edit.target}") for edit in World(20).edits("test", 3)]
    delta, after = EDITOR.edit(model, EditBatch(tuple(edits)), EDITOR.start(model, find_matrices(model.module, EDITOR.modules)))
    assert after.num_edits == 3 and (delta.kind, delta.site) == ("datastore", output_layer(model)) == ("datastore", "lm_head")
    for edit, record in zip(edits, delta.records, strict=True):
        given, answer = model.renderer.rows([(edit.prompt, edit.target)])[0]
        assert record.rows["token"].tolist() == answer
        state_SH = model.module.base_model(input_ids=torch.tensor([[*given, *answer]])).last_hidden_state[0]
        state_tH = state_SH[len(given) - 1 : -1]
        assert torch.allclose(record.rows["key"], state_tH / state_tH.norm(dim=1, keepdim=True), atol=1e-5)


@torch.no_grad()
def test_the_answer_has_at_least_the_references_share(tiny_model: LanguageModel) -> None:
    edits = World(20).edits("test", 2)
    delta, _ = EDITOR.edit(
        tiny_model, EditBatch(tuple(edits)), EDITOR.start(tiny_model, find_matrices(tiny_model.module, EDITOR.modules))
    )
    assert isinstance(delta, MemoryDelta)
    encoded = encode(tiny_model.renderer, [edit.prompt for edit in edits], [edit.target for edit in edits])
    with applied(tiny_model.module, delta):
        log_probs_TV = answer_log_probs(tiny_model.module, encoded)
    assert log_probs_TV.gather(1, encoded.targets_T[:, None]).exp().min() >= 0.9 * EDITOR.share


def test_the_gate_is_calibrated_at_the_last_state(tiny_model: LanguageModel) -> None:
    editor = replace(EDITOR, threshold=0.0, max_false=0.5)
    state = editor.start(tiny_model, find_matrices(tiny_model.module, editor.modules))
    assert 0.0 < float(state.tensors["thresholds"].min()) < 1.0


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("share", "1.0", "above 0 and below 1"),
        ("share", "0", "above 0"),
        ("temperature", "0", "above 0"),
        ("nearest", "0", "1"),
    ],
)
def test_settings_out_of_range_are_refused(setting: str, value: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_editor("RTD", settings={setting: value})
