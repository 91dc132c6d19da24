"""The contract of memories that change how a prompt's tokens are embedded: SWEA's rows.

What the model does with a memory is compared with a pass over embeddings that were put together by hand.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from errata.delta.accumulator import EditedModel
from errata.delta.kinds import stored
from errata.delta.memory_delta import MemoryDelta
from errata.delta.side_branch import applied
from errata.edit import Edit, EditBatch
from errata.edit_memory.bank import Record
from errata.edit_memory.hooks import bank_of
from errata.editors.memory_based.swea import SWEA
from errata.guard.inspector import Inspector
from errata.guard.limits import Guard
from errata.guard.probes import Probes
from errata.model.encoding import answer_log_probs, encode
from errata.model.generation import greedy, greedy_texts
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from errata.testbed.world import World
from tests.tiny_models import make_tiny

EDITS = World(20).edits("test", 16)
EDITED = [replace(edit, prompt=f"the old river {edit.prompt}") for edit in EDITS[:3]]
SUBJECTS = {edit.subject for edit in EDITED}
UNRELATED = [edit.prompt for edit in EDITS[3:] if edit.subject not in SUBJECTS][:4]
STRONG = SWEA(("layers.1.mlp.down_proj",), starters=("the",), num_steps=40, learning_rate=0.1, max_norm=10.0)


@pytest.fixture
def random_model() -> LanguageModel:
    """Make a model whose weights are large enough for the embeddings of a subject to decide an answer."""
    return make_tiny("qwen3")


def edited_by(model: LanguageModel, edits: list[Edit]) -> MemoryDelta:
    state = STRONG.start(model, find_matrices(model.module, STRONG.modules))
    return STRONG.edit(model, EditBatch(tuple(edits)), state)[0]


def by_hand(model: LanguageModel, record: Record, ids: list[int]) -> Tensor:
    """Return the embeddings of a prompt in which the tokens of a record have its embeddings, [S, D]."""
    pattern, found_SD = record.rows["id"].tolist(), model.module.get_input_embeddings()(torch.tensor(ids)).clone()
    for at in range(len(ids) - len(pattern) + 1):
        if ids[at : at + len(pattern)] == pattern:
            found_SD[at : at + len(pattern)] = record.rows["embedding"]
    return found_SD


@torch.no_grad()
def test_a_prompt_is_read_with_the_rows_at_the_subject(random_model: LanguageModel) -> None:
    model, prompts, targets = random_model, [edit.prompt for edit in EDITED], [edit.target for edit in EDITED]
    made = edited_by(model, EDITED)
    unrelated = encode(model.renderer, UNRELATED, [EDITS[0].target] * len(UNRELATED))
    plain_TV, asked = answer_log_probs(model.module, unrelated), encode(model.renderer, prompts, targets)
    with applied(model.module, stored(made)):
        found_TV = answer_log_probs(model.module, asked)
        assert torch.equal(answer_log_probs(model.module, unrelated), plain_TV), "an unrelated question keeps its bits"
    expected = []
    for record, (given, answer) in zip(made.records, asked.texts(), strict=True):
        whole_SD = torch.cat([by_hand(model, record, given), model.module.get_input_embeddings()(torch.tensor(answer))])
        logits_SV = model.module(inputs_embeds=whole_SD[None]).logits[0]
        expected.append(logits_SV[len(given) - 1 : -1].log_softmax(-1))
    assert torch.allclose(found_TV, torch.cat(expected), atol=1e-4)
    assert torch.equal(found_TV.argmax(1), asked.targets_T), "the search reaches its targets"


def test_each_edit_is_answered_whatever_is_read_beside_it(random_model: LanguageModel) -> None:
    model = random_model
    prompts = [text for pair in zip([edit.prompt for edit in EDITED], UNRELATED, strict=False) for text in pair]
    plain = [greedy(model, [prompt], 3)[0] for prompt in prompts]
    longer = ["the old river " * 3 + edit.prompt for edit in EDITED]
    with applied(model.module, edited_by(model, EDITED)):
        alone = [greedy(model, [prompt], 3)[0] for prompt in prompts]
        for size in (2, len(prompts)):
            assert greedy(model, prompts, 3, batch_size=size) == alone
        assert greedy(model, longer, 3) == [greedy(model, [prompt], 3)[0] for prompt in longer], "a shared beginning"
    assert [model.tokenizer.decode(ids) for ids in alone[::2]] == [edit.target for edit in EDITED]
    assert alone[1::2] == plain[1::2] and alone[::2] != plain[::2]
    assert [greedy(model, [prompt], 3)[0] for prompt in prompts] == plain


def test_a_repetition_penalty_falls_on_the_tokens_of_the_prompt(random_model: LanguageModel) -> None:
    model = random_model
    model.module.generation_config.repetition_penalty = 1.3
    with applied(model.module, edited_by(model, EDITED)):
        said = greedy_texts(model, [edit.prompt for edit in EDITED], 3)
    assert len(said) == len(EDITED) and any(edit.target in text for edit, text in zip(EDITED, said, strict=True))


def test_a_later_record_of_a_fact_wins_and_a_dropped_one_restores_the_model(random_model: LanguageModel) -> None:
    model, prompts = random_model, [edit.prompt for edit in EDITED]
    others = [replace(edit, target=other.target) for edit, other in zip(EDITED, EDITS[4:7], strict=True)]
    edited, said = EditedModel(model.module, find_matrices(model.module, STRONG.modules)), greedy(model, prompts, 3)
    state = STRONG.start(model, find_matrices(model.module, STRONG.modules))
    for edits in (EDITED, others, EDITED):
        delta, state = STRONG.edit(model, EditBatch(tuple(edits)), state)
        edited.add(delta)
        assert greedy_texts(model, prompts, 3) == [edit.target for edit in edits]
    edited.add(MemoryDelta(delta.kind, delta.site, (), tuple(record.fact for record in delta.records)))
    assert greedy(model, prompts, 3) == said and bank_of(model.module) is None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.module.modules())


def test_a_new_fact_of_a_subject_is_searched_with_the_earlier_ones(random_model: LanguageModel) -> None:
    model, world = random_model, World(20)
    subject = str(EDITS[0].subject)
    first = Edit(f"{subject} works as a", "baker", subject)
    second = Edit(f"{subject} plays the", "harp", subject)
    edited = EditedModel(model.module, find_matrices(model.module, STRONG.modules))
    state = STRONG.start(model, find_matrices(model.module, STRONG.modules))
    for edit in (first, second):
        delta, state = STRONG.edit(model, EditBatch((edit,)), state)
        edited.add(delta)
    assert greedy_texts(model, [first.prompt, second.prompt], 1) == ["baker", "harp"] and subject in world.subjects
    edited.add(MemoryDelta(delta.kind, delta.site, (), (delta.records[0].fact,)))
    assert greedy_texts(model, [first.prompt], 1) == ["baker"], "the earlier record counts again"
    again, _ = STRONG.edit(model, EditBatch((second,)), state)
    assert torch.allclose(again.records[0].rows["embedding"], delta.records[0].rows["embedding"], atol=1e-3)


def test_the_inspector_reads_the_rows(random_model: LanguageModel) -> None:
    spec, batch = find_matrices(random_model.module, STRONG.modules), EditBatch(tuple(EDITED))
    inspector = Inspector(random_model, spec, Guard(), Probes(tuple(UNRELATED), ()))
    found, _ = inspector.measure(batch, edited_by(random_model, EDITED))
    assert (found.efficacy, found.locality) == (1.0, 1.0)


def test_an_edit_without_a_subject_is_refused_by_name(random_model: LanguageModel) -> None:
    with pytest.raises(ValueError, match=r"edit 1, subject: this method changes the embeddings of the subject"):
        edited_by(random_model, [EDITED[0], replace(EDITED[1], subject=None)])
