"""ELDER: its codes, its mixture and its loss against naive implementations, and what a record's removal leaves."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from errata.delta.accumulator import EditedModel
from errata.delta.kinds import stored
from errata.delta.memory_delta import MemoryDelta, between, held_after, one_change
from errata.delta.side_branch import applied
from errata.edit import EditBatch
from errata.edit_memory.bank import Bank, Record
from errata.edit_memory.experts import Experts, check_shared, distances, experts_of, packed, shared_of, signs, unpacked
from errata.edit_memory.hooks import bank_of, read_bank
from errata.editors.build import make_editor
from errata.editors.memory_based.elder import ELDER
from errata.model.encoding import answer_log_probs, encode
from errata.model.generation import greedy_texts
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from errata.testbed.world import World

BOTH = ("model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj")
EDITS = World(20).edits("test", 12)
EDITOR = ELDER(BOTH, num_experts=3, rank=2, num_steps=1, num_bits=64, radius=1, learning_rate=0.03)
TRAINED = replace(EDITOR, num_steps=60)


def edited_by(editor: ELDER, model: LanguageModel, edits: list[Any]) -> MemoryDelta:
    state = editor.start(model, find_matrices(model.module, editor.modules))
    return editor.edit(model, EditBatch(tuple(edits)), state)[0]


@torch.no_grad()
def inputs(model: LanguageModel, ids: list[int], name: str) -> Tensor:
    """Return the inputs of a module over a text, read alone, [S, I]."""
    kept: list[Tensor] = []
    handle = model.module.get_submodule(name).register_forward_pre_hook(lambda _module, args: kept.append(args[0][0]))
    model.module(input_ids=torch.tensor([ids]))
    handle.remove()
    return kept[0]


def naive_code(state: list[float], centre: list[float], num_bits: int) -> list[int]:
    """Return the code of one state, bit by bit."""
    length = math.sqrt(sum(x * x for x in state))
    stream = hashlib.shake_256(b"errata.experts").digest(num_bits * len(state) // 8)
    plane = [1 if stream[i // 8] >> (i % 8) & 1 else -1 for i in range(num_bits * len(state))]
    sums = [
        sum(plane[bit * len(state) + i] * (x / length - c) for i, (x, c) in enumerate(zip(state, centre, strict=True)))
        for bit in range(num_bits)
    ]
    return [int(total >= 0) for total in sums]


def naive_change(shared: Mapping[str, Tensor], name: str, x_X: Tensor, v_I: Tensor) -> Tensor:
    """Return the change of one matrix at one token, expert by expert, with gradients."""
    router, bias = shared[f"{name}|router_EX"], shared[f"{name}|bias_E"]
    share = torch.stack([router[e] @ x_X + bias[e] for e in range(len(bias))]).exp()
    share = share / share.sum()
    chosen = sorted(range(len(bias)), key=lambda e: -float(share[e]))[: int(shared["num_chosen"])]
    parts = [share[e] * (shared[f"{name}|up_EOR"][e] @ (shared[f"{name}|down_ERI"][e] @ v_I)) for e in chosen]
    return torch.stack(parts).sum(0)


@contextmanager
def naively_mixed(model: LanguageModel, shared: Mapping[str, Tensor], places: list[int]) -> Iterator[None]:
    """Mix the experts at these places of one text."""
    first: list[Tensor] = []

    def hook(name: str) -> Any:
        def mix(_module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            rows = list(output[0])
            for place in places:
                rows[place] = rows[place] + naive_change(shared, name, first[0][place], args[0][0, place])
            return torch.stack(rows)[None]

        return mix

    def keep(_module: Any, args: tuple[Tensor, ...]) -> None:
        first[:] = [args[0][0].detach()]

    handles = [model.module.get_submodule(BOTH[0]).register_forward_pre_hook(keep)]
    handles += [model.module.get_submodule(name).register_forward_hook(hook(name)) for name in BOTH]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def test_a_record_has_the_code_before_each_token_of_its_answer(tiny_model: LanguageModel) -> None:
    edits = [replace(edit, target=f"{edit.target} {edit.target}") for edit in EDITS[:2]]
    state = EDITOR.start(tiny_model, find_matrices(tiny_model.module, BOTH))
    delta, after = EDITOR.edit(tiny_model, EditBatch(tuple(edits)), state)
    assert after.num_edits == 2 and delta.site == BOTH[0] and delta.kind == "experts"
    centre = delta.shared["centre"].tolist()
    for edit, record in zip(edits, delta.records, strict=True):
        given, answer = tiny_model.renderer.rows([(edit.prompt, edit.target)], close=True)[0]
        state_SX = inputs(tiny_model, [*given, *answer], BOTH[0])
        assert record.rows["code"].shape == (len(answer), 8) and record.rows["radius"].tolist() == [1.0] * len(answer)
        for t, byte_B in enumerate(record.rows["code"]):
            code = [byte >> bit & 1 for byte in byte_B.tolist() for bit in range(8)]
            expected = naive_code(state_SX[len(given) - 1 + t].tolist(), centre, 64)
            assert sum(a != b for a, b in zip(code, expected, strict=True)) <= 1, "rounding decides at most one side"


def test_codes_are_packed_and_compared_bit_by_bit() -> None:
    state_TX = torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
    sign_TC = signs(state_TX, torch.zeros(24), 32)
    for state_X, sign_C in zip(state_TX, sign_TC, strict=True):
        assert [int(sign > 0) for sign in sign_C] == naive_code(state_X.tolist(), [0.0] * 24, 32)
    assert torch.equal(unpacked(packed(sign_TC)), sign_TC)
    apart_TT = [[sum(a != b for a, b in zip(x, y, strict=True)) for y in sign_TC.tolist()] for x in sign_TC.tolist()]
    assert distances(sign_TC, sign_TC).tolist() == apart_TT


@torch.no_grad()
def test_the_mixture_is_that_of_the_equations_at_the_tokens_with_a_code(tiny_model: LanguageModel) -> None:
    model, made = tiny_model, edited_by(TRAINED, tiny_model, EDITS[:3])
    codes = unpacked(torch.cat([record.rows["code"] for record in made.records]))
    for edit in EDITS[:3]:
        given, answer = model.renderer.rows([(edit.prompt, edit.target)], close=True)[0]
        ids = [*given, *answer]
        sign_SC = signs(inputs(model, ids, BOTH[0]), made.shared["centre"], 64)
        places = [s for s in range(len(ids)) if min((sign_SC[s] != key_C).sum() for key_C in codes) <= 1]
        assert set(places) >= set(range(len(given) - 1, len(ids) - 1))
        with naively_mixed(model, made.shared, places):
            expected_SV = model.module(input_ids=torch.tensor([ids])).logits[0]
        with applied(model.module, stored(made)):
            found_SV = model.module(input_ids=torch.tensor([ids])).logits[0]
        assert torch.allclose(found_SV, expected_SV, atol=1e-4)
        plain_SV = model.module(input_ids=torch.tensor([ids])).logits[0]
        assert not torch.allclose(found_SV, plain_SV, atol=1e-2)
        assert torch.equal(found_SV[: min(places)], plain_SV[: min(places)]), "other tokens keep their bits"


def test_a_step_descends_on_the_loss_of_the_paper(tiny_model: LanguageModel) -> None:
    """Compare one step of Adam, whose size is the learning rate in the direction of the gradient's sign."""
    editor, model = replace(EDITOR, guidance=0.5), tiny_model
    with_experts = edited_by(TRAINED, model, EDITS[:2])  # From other experts than the first, which change nothing.
    read_bank(model.module, held_after([with_experts]))
    batch = EDITS[2:4]
    made = edited_by(replace(editor, rehearsed=0), model, batch)
    read_bank(model.module, None)
    before = {name: tensor.clone().float().requires_grad_() for name, tensor in with_experts.shared.items() if "|" in name}
    shared = {"num_chosen": torch.tensor(2), **before}
    nll, guide, count = torch.zeros(()), torch.zeros(()), 0
    for edit in batch:
        given, answer = model.renderer.rows([(edit.prompt, edit.target)], close=True)[0]
        ids, places = [*given, *answer], list(range(len(given) - 1, len(given) + len(answer) - 1))
        with naively_mixed(model, shared, places), torch.enable_grad():
            log_probs_SV = model.module(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        state_SX = inputs(model, ids, BOTH[0])
        for place in places:
            nll, count = nll - log_probs_SV[place, ids[place + 1]], count + 1
            for name in BOTH:
                digest = hashlib.sha256(f"0 {name} {edit.target}".encode()).digest()
                generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
                share_E = (shared[f"{name}|router_EX"] @ state_SX[place] + shared[f"{name}|bias_E"]).softmax(0)
                guide = guide - sum(share_E[e].log() for e in torch.randperm(3, generator=generator)[:2].tolist())
    loss = (nll + 0.5 * guide) / count
    for (name, tensor), grad in zip(before.items(), torch.autograd.grad(loss, list(before.values())), strict=True):
        expected = tensor.detach() - 0.03 * grad / (grad.abs() + 1e-8)
        is_large = grad.abs() > 1e-5  # Of smaller ones rounding decides the sign.
        assert bool(is_large.any()) and torch.allclose(made.shared[name][is_large], expected[is_large], atol=3e-3), name


def test_a_removed_record_leaves_the_unedited_model_and_the_others_their_bits(tiny_model: LanguageModel) -> None:
    model, edits = tiny_model, EDITS[:4]
    prompts = [edit.prompt for edit in edits]
    said = greedy_texts(model, prompts, 3)
    first, second = edited_by(TRAINED, model, edits[:2]), None
    edited = EditedModel(model.module, find_matrices(model.module, BOTH))
    edited.add(first)
    second = edited_by(TRAINED, model, edits[2:])
    edited.add(second)
    assert all(text.startswith(edit.target) for text, edit in zip(greedy_texts(model, prompts, 3), edits, strict=True))
    encoded = encode(model.renderer, prompts[2:], [edit.target for edit in edits[2:]])
    with torch.no_grad():
        before_TV = answer_log_probs(model.module, encoded)
        edited.add(MemoryDelta(first.kind, first.site, (), tuple(record.fact for record in first.records)))
        assert torch.equal(answer_log_probs(model.module, encoded), before_TV)
    assert greedy_texts(model, prompts[:2], 3) == said[:2]
    edited.set([stored(first)])
    assert bank_of(model.module) is not None and torch.equal(
        bank_of(model.module).shared[f"{BOTH[0]}|up_EOR"], first.shared[f"{BOTH[0]}|up_EOR"]
    ), "an earlier version has its own experts"


def test_earlier_edits_are_rehearsed(tiny_model: LanguageModel) -> None:
    editor, model = replace(TRAINED, rehearsed=2), tiny_model
    bank = held_after([edited_by(editor, model, EDITS[:3])])
    rows = editor._rehearsed(EditBatch((EDITS[0],)), bank, 3)
    assert len(rows) == 2 and {(row.prompt, row.answer) for row in rows} == {(e.prompt, e.target) for e in EDITS[1:3]}
    assert editor._rehearsed(EditBatch((EDITS[0],)), bank, 3) == rows
    assert editor._rehearsed(EditBatch((EDITS[0],)), None, 0) == []


def test_the_radius_keeps_the_probes_apart(tiny_model: LanguageModel) -> None:
    state_MX = torch.randn(6, 24, generator=torch.Generator().manual_seed(1))
    other_TX = torch.randn(4, 24, generator=torch.Generator().manual_seed(2))
    editor = ELDER(num_bits=64, max_false=0.0)
    sign_NC = signs(torch.cat([state_MX, other_TX]), torch.zeros(24), 64).tolist()
    apart = [
        min(sum(a != b for a, b in zip(x, y, strict=True)) for j, y in enumerate(sign_NC) if j != i)
        for i, x in enumerate(sign_NC[:6])
    ]
    assert editor._calibrated(state_MX, other_TX, torch.zeros(24)) == min(apart) - 1
    assert editor._calibrated(state_MX[:0], other_TX[:0], torch.zeros(24)) == 2.0, "an angle of 0.1 of 64 bits"
    state = replace(EDITOR, radius=0).start(tiny_model, find_matrices(tiny_model.module, BOTH))
    assert state.tensors["radii"].shape == (2,) and bool((state.tensors["radii"] >= 2).all())


def test_shared_tensors_are_saved_replaced_as_a_whole_and_gone_with_the_last_record(tiny_model: LanguageModel) -> None:
    one, other = edited_by(TRAINED, tiny_model, EDITS[:2]), edited_by(TRAINED, tiny_model, EDITS[2:4])
    assert stored(one).digest() == one.digest() != replace(one, shared=other.shared).digest()
    gone = MemoryDelta(one.kind, one.site, (), tuple(record.fact for record in (*one.records, *other.records)))
    assert one_change([one, other]).shared.keys() == one.shared.keys()
    for changes in ([one], [one, other], [one, other, gone], [one, gone, other]):
        together, folded = one_change(changes).after(None), None
        for change in changes:
            folded = change.after(folded)
        assert isinstance(folded, Bank) and folded.shared.keys() == together.shared.keys()
        assert all(torch.equal(folded.shared[name], together.shared[name]) for name in folded.shared)
        assert bool(folded.shared) == bool(len(folded))
    back = between(held_after([one, other]), held_after([one]))
    assert back is not None and not back.records and back.shared.keys() == one.shared.keys()
    assert all(torch.equal(back.shared[name], tensor) for name, tensor in one.shared.items())
    same = between(held_after([one]), replace_record(held_after([one])))
    assert same is not None and len(same.records) == 1 and not same.shared
    assert one.num_bytes > sum(tensor.nbytes for tensor in one.shared.values())


def replace_record(bank: Bank | None) -> Bank:
    assert bank is not None
    record = next(iter(bank))
    return bank.changed((replace(record, text="another"),), ())


def test_experts_that_do_not_fit_are_refused(tiny_model: LanguageModel) -> None:
    made = edited_by(EDITOR, tiny_model, EDITS[:1])
    edited = EditedModel(tiny_model.module, find_matrices(tiny_model.module, BOTH))
    wrong = {
        "are not those of experts": {**made.shared, "more": torch.ones(1)},
        "do not fit each other": {**made.shared, f"{BOTH[1]}|bias_E": torch.ones(4)},
        "mixes 9 of 3 experts": {**made.shared, "num_chosen": torch.tensor([9])},
    }
    for says, shared in wrong.items():
        with pytest.raises(ValueError, match=says):
            check_shared(made.site, shared)
        with pytest.raises(ValueError, match=says):
            edited.add(replace(made, shared=shared))
    experts = experts_of(made.shared)
    wide = {name: Experts(one.down_ERI, torch.zeros(3, 7, 2), one.router_EX, one.bias_E) for name, one in experts.items()}
    with pytest.raises(ValueError, match=r"experts of .*down_proj as a matrix of \(7, "):
        edited.add(replace(made, shared=shared_of(wide, made.shared["centre"], 2)))
    with pytest.raises(ValueError, match="records that need experts, and no experts"):
        edited.add(replace(made, shared={}))
    record = made.records[0]
    floats = Record(record.fact, record.text, {**record.rows, "code": record.rows["code"].float()})
    with pytest.raises(ValueError, match="a code that is no bytes"):
        edited.add(replace(made, records=(floats,)))
    assert bank_of(tiny_model.module) is None


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"num_chosen": "5"}, "num_chosen is a number of the 4 experts"), ({"num_bits": "12"}, "num_bits is that of whole bytes")],
)
def test_settings_that_are_no_code_are_refused(settings: dict[str, str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make_editor("ELDER", settings=settings)


def test_a_copied_model_reads_the_experts_by_hooks_of_its_own(tiny_model: LanguageModel) -> None:
    """A blame and a dry run go on a copy, while the model itself is asked and edited."""
    model, prompts = tiny_model, [edit.prompt for edit in EDITS[:2]]
    plain = greedy_texts(model, prompts, 3)
    edited = EditedModel(model.module, find_matrices(model.module, BOTH))
    edited.add(edited_by(TRAINED, model, EDITS[:2]))
    copied = edited.copy()
    other = LanguageModel(copied.module, model.tokenizer, model.path)
    said = greedy_texts(model, prompts, 3)
    assert greedy_texts(other, prompts, 3) == said != plain
    copied.set([])
    assert (greedy_texts(other, prompts, 3), greedy_texts(model, prompts, 3)) == (plain, said)
    edited.set([])
    assert greedy_texts(model, prompts, 3) == plain
