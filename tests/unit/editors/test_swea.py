"""SWEA's patterns, search and suppression against naive implementations of their equations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from errata.edit import EditBatch
from errata.edit_memory.bank import Bank, Record
from errata.edit_memory.embedding_reader import EmbeddingSizes, RowsReader
from errata.editors import make_editor
from errata.editors.memory_based.subject_offsets import (
    OffsetSearch,
    SubjectText,
    SubjectTexts,
    attributions,
    embeddings_of,
    searched,
)
from errata.editors.memory_based.swea import SWEA, located
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from errata.testbed.world import World

VOCABULARY = 100
EDITS = World(20).edits("test", 2)


def a_record(fact: str, number: int, *patterns: tuple[int, ...]) -> Record:
    ids = [token for pattern in patterns for token in pattern]
    begins = [int(i == 0) for pattern in patterns for i in range(len(pattern))]
    rows = {
        "id": torch.tensor(ids),
        "embedding": torch.randn(len(ids), 4),
        "begins": torch.tensor(begins),
        "number": torch.full((len(ids),), number),
    }
    return Record(fact, fact, rows)


def naive(patterns: dict[tuple[int, ...], int], ids: list[int]) -> list[int]:
    """Replace the longest pattern at each place, from left to right."""
    found, at = list[int](), 0
    while at < len(ids):
        here = [p for p in patterns if ids[at : at + len(p)] == list(p)]
        longest = max(here, key=len, default=())
        found += (
            range(VOCABULARY + patterns[longest], VOCABULARY + patterns[longest] + len(longest))
            if longest
            else ids[at : at + 1]
        )
        at += max(1, len(longest))
    return found


def written(bank: Bank, ids: list[int]) -> list[int] | None:
    change = RowsReader(bank, EmbeddingSizes(VOCABULARY, 4, 1000)).change(ids, 0)
    return ids if change is None else change.prompt


@pytest.mark.parametrize("seed", range(5))
def test_patterns_are_those_of_a_naive_search(seed: int) -> None:
    records = [
        a_record("a", 0, (1, 2), (3, 2)),
        a_record("b", 1, (1, 2, 1)),
        a_record("c", 2, (2,)),
        a_record("d", 3, (1, 1, 3, 3)),
    ]
    patterns = {(1, 2): 0, (3, 2): 2, (1, 2, 1): 4, (2,): 7, (1, 1, 3, 3): 8}
    bank = Bank("rows", "embed").changed(records, ())
    ids = torch.randint(1, 4, (40,), generator=torch.Generator().manual_seed(seed)).tolist()
    assert written(bank, ids) == naive(patterns, ids)


def test_the_newest_of_equal_patterns_counts_also_where_it_replaced_an_old_record() -> None:
    bank = Bank("rows", "embed").changed([a_record("a", 0, (1, 2)), a_record("b", 1, (1, 2))], ())
    assert written(bank, [1, 2]) == [102, 103]
    newer = a_record("a", 2, (1, 2))
    bank = bank.changed([newer], ())
    assert written(bank, [1, 2]) == [102, 103], "a record that replaces another one is the last"
    assert torch.equal(bank.rows["embedding"][2:], newer.rows["embedding"])


def test_an_engine_gets_the_rows_at_the_patterns_and_the_tokens_elsewhere() -> None:
    records = [a_record("a", 0, (1, 2), (3, 2)), a_record("b", 1, (4,))]
    reader = RowsReader(Bank("rows", "embed").changed(records, ()), EmbeddingSizes(VOCABULARY, 4, 1000))
    ids = [7, 3, 2, 1, 4, 1, 2]
    change = reader.change(ids, 0)
    assert change is not None and [one.record for one in change.fired] == records
    prompt = reader.embedded(change.prompt or [])
    assert prompt.ids == ids and prompt.is_token == [True, False, False, True, False, False, False]
    assert torch.equal(prompt.embedding_LD[1:3], records[0].rows["embedding"][2:])
    assert torch.equal(prompt.embedding_LD[4:5], records[1].rows["embedding"])
    assert not prompt.embedding_LD[[0, 3]].any()
    assert reader.change([7, 3, 1], 0) is None


def one_subject(model: LanguageModel) -> tuple[list[SubjectText], tuple[int, ...]]:
    edit = EDITS[0]
    one = located(model, edit, edit.prompt, f"{edit.target} {edit.target}", 0)
    other = located(model, edit, f"the old {edit.prompt}", f"{edit.target} {edit.target}", 0)
    texts = [SubjectText((each.given, each.answer_ids), each.at) for each in (one, other)]
    return [*texts, SubjectText((one.given[:3], [5]), one.at, is_anchor=True)], one.subject_ids


def naive_loss(
    model: LanguageModel, texts: list[SubjectText], search: OffsetSearch
) -> Callable[[Tensor], tuple[Tensor, Tensor, bool]]:
    """Return a function from an offset to (loss, KL, whether the targets rank first), one text at a time."""

    def logits_of(text: SubjectText, offset_mD: Tensor) -> Tensor:
        given, answer = text.tokens
        embedding_SD = model.module.get_input_embeddings()(torch.tensor([*given, *answer])).clone()
        embedding_SD[text.at : text.at + len(offset_mD)] += offset_mD
        return model.module(inputs_embeds=embedding_SD[None]).logits[0, len(given) - 1 : -1].log_softmax(-1)

    def loss(offset_mD: Tensor) -> tuple[Tensor, Tensor, bool]:
        nlls, is_first = [], True
        for text in texts[:-1]:
            log_probs_tV, answer_t = logits_of(text, offset_mD), torch.tensor(text.tokens[1])
            nlls.append(-log_probs_tV.gather(1, answer_t[:, None]).mean())
            is_first &= bool((log_probs_tV.argmax(1) == answer_t).all())
        before_V = logits_of(texts[-1], torch.zeros_like(offset_mD))[0].detach()
        kl = (before_V.exp() * (before_V - logits_of(texts[-1], offset_mD)[0])).sum()
        at = texts[0].at
        embedding_mD = embeddings_of(model, texts[0].tokens[0][at : at + len(offset_mD)])
        weight = 0.5 if is_first else 1.0
        norm = search.norm_weight * offset_mD.norm() / embedding_mD.norm() ** 2
        return weight * sum(nlls) / len(nlls) + search.kl_weight * kl + norm, kl, is_first

    return loss


@pytest.mark.parametrize("search", [OffsetSearch(num_steps=6, learning_rate=0.05), OffsetSearch(60, 0.1, 0.2, 0.3, 3.0)])
def test_the_search_is_that_of_a_naive_implementation(tiny_model: LanguageModel, search: OffsetSearch) -> None:
    model = tiny_model
    texts, ids = one_subject(model)
    embedding_mD, loss_of = embeddings_of(model, ids), naive_loss(model, texts, search)
    offset_mD, first_mD, second_mD = embedding_mD.clone(), torch.zeros_like(embedding_mD), torch.zeros_like(embedding_mD)
    for step in range(1, search.num_steps + 1):
        leaf_mD = offset_mD.clone().requires_grad_()
        loss, kl, is_first = loss_of(leaf_mD)
        if float(loss) < 0.8 * search.kl_weight or (is_first and float(kl) < 0.01):
            break
        (grad_mD,) = torch.autograd.grad(loss, leaf_mD)
        first_mD, second_mD = 0.9 * first_mD + 0.1 * grad_mD, 0.999 * second_mD + 0.001 * grad_mD**2
        root_mD = (second_mD / (1 - 0.999**step)).sqrt() + 1e-8
        offset_mD = offset_mD - search.learning_rate * first_mD / (1 - 0.9**step) / root_mD
        offset_mD = offset_mD * min(1.0, float(search.max_norm * embedding_mD.norm() / offset_mD.norm()))
    found_ND, _ = searched(SubjectTexts(model, [texts], [ids]), embedding_mD, search)
    assert torch.allclose(found_ND, offset_mD, atol=2e-3) and not torch.allclose(found_ND, embedding_mD, atol=1e-2)
    assert float(found_ND.norm()) <= search.max_norm * float(embedding_mD.norm()) * 1.001


def test_a_subject_is_searched_alike_beside_another(tiny_model: LanguageModel) -> None:
    model, search = tiny_model, OffsetSearch(num_steps=5)
    texts, ids = one_subject(model)
    edit = EDITS[1]
    other = located(model, edit, edit.prompt, edit.target, 0)
    second = [SubjectText((other.given, other.answer_ids), other.at)]
    alone_ND, _ = searched(SubjectTexts(model, [texts], [ids]), embeddings_of(model, ids), search)
    together = SubjectTexts(model, [texts, second], [ids, other.subject_ids])
    found_ND, _ = searched(together, embeddings_of(model, [*ids, *other.subject_ids]), search)
    assert torch.allclose(found_ND[: len(ids)], alone_ND, atol=1e-4)


def test_attributions_are_integrated_gradients(tiny_model: LanguageModel) -> None:
    model = tiny_model
    texts, ids = one_subject(model)
    (given, old), at = texts[1].tokens, texts[1].at
    plain_SD = model.module.get_input_embeddings()(torch.tensor([*given, *old]))
    expected_mD = torch.zeros(len(ids), plain_SD.shape[1])
    for t in range(len(ids)):
        for scale in torch.linspace(1e-4, 1.0, 20).tolist():
            leaf_D = (scale * plain_SD[at + t]).requires_grad_()
            embedding_SD = plain_SD.clone()
            embedding_SD[at + t] = leaf_D
            probs_tV = model.module(inputs_embeds=embedding_SD[None]).logits[0, len(given) - 1 : -1].softmax(-1)
            mean = probs_tV.gather(1, torch.tensor(old)[:, None]).mean()
            expected_mD[t] += torch.autograd.grad(mean, leaf_D)[0] / 20
        expected_mD[t] *= plain_SD[at + t]
    found_mD = attributions(model, given, old, at, len(ids))
    assert torch.allclose(found_mD, expected_mD, atol=1e-7, rtol=1e-3)


@torch.no_grad()
def test_suppression_takes_its_share_of_the_dimensions_that_carry_the_old_answer(tiny_model: LanguageModel) -> None:
    spec, batch = find_matrices(tiny_model.module, ("layers.1.mlp.down_proj",)), EditBatch((EDITS[0],))
    made = []
    for suppression in (0.0, 0.5):
        editor = SWEA(("layers.1.mlp.down_proj",), starters=(), num_steps=3, suppression=suppression)
        made.append(editor.edit(tiny_model, batch, editor.start(tiny_model, spec))[0].records[0].rows)
    ids = made[0]["id"].tolist()
    change_mD = made[0]["embedding"] - made[1]["embedding"]
    share_mD = change_mD / embeddings_of(tiny_model, ids)
    chosen_mD = share_mD.abs() > 1e-4
    assert torch.allclose(share_mD[chosen_mD], torch.tensor(0.5), atol=1e-3) and 0 < chosen_mD.sum() < chosen_mD.numel() / 2


def test_a_record_that_begins_within_a_pattern_is_at_fault() -> None:
    record = a_record("a", 0, (1, 2))
    assert record.fault("rows") is None
    damaged = Record("a", "a", {**record.rows, "begins": torch.tensor([0, 1])})
    assert "tokens before its first pattern" in str(damaged.fault("rows"))


@pytest.mark.parametrize("setting", ["suppression", "attributed"])
def test_shares_out_of_range_are_refused(setting: str) -> None:
    with pytest.raises(ValueError, match="suppression and attributed are shares, from 0 to 1"):
        make_editor("SWEA", settings={setting: "1.5"})
