"""RECIPE: its records, losses and reading against naive implementations, its training, and its artifact."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from errata.delta.accumulator import EditedModel
from errata.delta.kinds import stored
from errata.delta.memory_delta import MemoryDelta
from errata.delta.side_branch import applied
from errata.edit import Edit, EditBatch
from errata.edit_memory.bank import Record
from errata.edit_memory.encoder import SentenceEncoder
from errata.edit_memory.hooks import bank_of
from errata.editors import EDITORS, make_editor
from errata.editors.build import needs, outline
from errata.editors.memory_based.recipe import RECIPE, PromptEncoder, hinged, retrieval_losses
from errata.editors.memory_based.trained import MemoryTrainer
from errata.guard.inspector import Inspector
from errata.guard.limits import Guard
from errata.guard.probes import Probes
from errata.model.encoding import answer_log_probs, encode
from errata.model.generation import greedy, greedy_texts
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from errata.testbed.world import World
from tests.tiny_models import make_tiny

WORLD = World(20)
EDITOR = RECIPE(("layers.1.mlp.down_proj",), num_features=64, learning_rate=3e-3)
STREAM = WORLD.edits("train", 24)
EDITED, UNRELATED = STREAM[:6], [edit.locality[0].prompt for edit in STREAM[6:10]]
NUM_STEPS = 200


@pytest.fixture(scope="module")
def random_model() -> LanguageModel:
    """Make a model whose weights are large enough for vectors before a prompt to decide an answer."""
    return make_tiny("qwen3")


@pytest.fixture(scope="module")
def trained(random_model: LanguageModel) -> RECIPE:
    editor = EDITOR.initialised(random_model, seed=0)
    trainer = MemoryTrainer(editor, random_model, STREAM, (NUM_STEPS, 1, 6), seed=0)
    losses = [trainer.step() for _ in range(NUM_STEPS)]
    assert all(losses[-1][name] < 0.6 * losses[0][name] for name in ("own", "sentinel", "answers")), losses[-1]
    return editor


def edited_by(editor: RECIPE, model: LanguageModel, edits: list[Edit]) -> MemoryDelta:
    state = editor.start(model, find_matrices(model.module, editor.modules))
    return editor.edit(model, EditBatch(tuple(edits)), state)[0]


def naive(net: PromptEncoder, text: str, question: str) -> tuple[float, Tensor]:
    """Return s(q, k) - s(q, S) and the vectors of a correction, by the equations."""
    text_E, question_E = SentenceEncoder.load().encode([text, question]) * 384**0.5
    z_R = net.first.weight @ text_E + net.first.bias
    r_R = z_R + (net.second.weight @ z_R + net.second.bias).clamp(min=0)
    query_R = net.query.weight @ question_E
    score = (query_R @ r_R - query_R @ net.sentinel_R) / math.sqrt(len(r_R))
    y_R = r_R + (net.third.weight @ r_R + net.third.bias).clamp(min=0)
    return float(score), net.scale * (net.prompt.weight @ y_R + net.prompt.bias).view(net.num_vectors, net.hidden)


@torch.no_grad()
def test_a_prompt_is_read_behind_the_vectors_of_the_record_that_fits_best(trained: RECIPE, random_model: LanguageModel) -> None:
    model, net = random_model, trained.trained_policy()
    prompts = [edit.prompt for edit in EDITED] + [edit.rephrasings[0] for edit in EDITED] + UNRELATED
    asked = encode(model.renderer, prompts, [EDITED[0].target] * len(prompts))
    made = edited_by(trained, model, EDITED)
    with applied(model.module, stored(made)):
        found_TV = answer_log_probs(model.module, asked)
    expected, num_fired = [], 0
    for prompt, (given, answer) in zip(prompts, asked.texts(), strict=True):
        scored = [naive(net, record.text, prompt) for record in made.records]
        best, vectors_PD = max(scored, key=lambda one: one[0])
        embedding_SD = model.module.get_input_embeddings()(torch.tensor([*given, *answer]))
        whole_SD = torch.cat([vectors_PD, embedding_SD]) if best > 0 else embedding_SD
        num_fired += best > 0
        expected.append(model.module(inputs_embeds=whole_SD[None]).logits[0, -len(answer) - 1 : -1].log_softmax(-1))
    assert torch.allclose(found_TV, torch.cat(expected), atol=1e-4) and len(EDITED) <= num_fired < len(prompts)


def test_trained_edits_are_answered_whatever_is_read_beside_them(trained: RECIPE, random_model: LanguageModel) -> None:
    model, prompts = random_model, [edit.prompt for edit in EDITED]
    plain = [greedy(model, [prompt], 3)[0] for prompt in (*prompts, *UNRELATED)]
    before = answer_log_probs(model.module, encode(model.renderer, UNRELATED, ["the"] * len(UNRELATED)))
    with applied(model.module, edited_by(trained, model, EDITED)):
        alone = [greedy(model, [prompt], 3)[0] for prompt in (*prompts, *UNRELATED)]
        assert greedy(model, [*prompts, *UNRELATED], 3) == alone
        after = answer_log_probs(model.module, encode(model.renderer, UNRELATED, ["the"] * len(UNRELATED)))
    right = [model.tokenizer.decode(ids) == edit.target for ids, edit in zip(alone, EDITED, strict=False)]
    assert sum(right) >= len(EDITED) - 1 and alone[len(prompts) :] == plain[len(prompts) :]
    assert torch.equal(before, after), "an unrelated question keeps its bits"
    assert [greedy(model, [prompt], 3)[0] for prompt in (*prompts, *UNRELATED)] == plain


def test_a_later_record_wins_and_a_dropped_one_restores_the_model(trained: RECIPE, random_model: LanguageModel) -> None:
    model, edit = random_model, EDITED[0]
    other = replace(edit, target=next(one.target for one in STREAM if one.target != edit.target))
    edited, plain = EditedModel(model.module, find_matrices(model.module, trained.modules)), greedy(model, [edit.prompt], 3)
    rows = []
    for each in (edit, other, edit):
        edited.add(edited_by(trained, model, [each]))
        bank = bank_of(model.module)
        assert bank is not None and len(bank) == 1
        rows.append(next(iter(bank)).rows["embedding"])
    assert torch.equal(rows[0], rows[2]) and not torch.allclose(rows[0], rows[1])
    made = edited_by(trained, model, [edit])
    edited.add(MemoryDelta(made.kind, made.site, (), (made.records[0].fact,)))
    assert greedy(model, [edit.prompt], 3) == plain
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.module.modules())


def test_a_prompt_without_room_and_a_repetition_penalty(trained: RECIPE, random_model: LanguageModel) -> None:
    model, prompt = random_model, EDITED[0].prompt
    made, room = (
        edited_by(trained, model, EDITED[:1]),
        random_model.max_tokens - len(random_model.renderer.ids(EDITED[0].prompt)),
    )
    plain = greedy(model, [prompt], room)
    with applied(model.module, made):
        assert greedy(model, [prompt], room) == plain
        model.module.generation_config.repetition_penalty = 1.3
        try:
            assert greedy_texts(model, [prompt], 3)[0].startswith(EDITED[0].target)
        finally:
            model.module.generation_config.repetition_penalty = 1.0


def test_the_inspector_reads_the_prefixes(trained: RECIPE, random_model: LanguageModel) -> None:
    spec = find_matrices(random_model.module, trained.modules)
    inspector = Inspector(random_model, spec, Guard(), Probes(tuple(UNRELATED), ()))
    found, _ = inspector.measure(EditBatch(tuple(EDITED)), edited_by(trained, random_model, EDITED))
    assert found.efficacy is not None and found.efficacy >= 0.8 and found.locality == 1.0


def test_the_losses_of_retrieval_are_those_of_the_equations() -> None:
    generator = torch.Generator().manual_seed(0)
    own, apart, unrelated = (torch.randn(n, 5, generator=generator) * 3 for n in (4, 4, 3))

    def hinge(rows: list[list[float]], targets: list[int]) -> float:
        kept = []
        for row, target in zip(rows, targets, strict=True):
            p = [math.exp(x) / sum(map(math.exp, row)) for x in row]
            if p[target] < 1.2 * sorted(p)[-2]:
                kept.append(-math.log(p[target]))
        return sum(kept) / max(1, len(kept))

    found = retrieval_losses(own, apart, unrelated, 1.2)
    plain = [-math.log(math.exp(row[i]) / sum(map(math.exp, row))) for i, row in enumerate(own.tolist())]
    without = [[-math.inf if column == i else x for column, x in enumerate(row)] for i, row in enumerate(apart.tolist())]
    assert float(found["own"]) == pytest.approx(sum(plain) / 4, rel=1e-4)
    assert float(found["sentinel"]) == pytest.approx(hinge(without, [4] * 4), rel=1e-4)
    assert float(found["unrelated"]) == pytest.approx(hinge(unrelated.tolist(), [4] * 3), rel=1e-4)
    assert float(hinged(torch.tensor([[0.0, -9.0]]), torch.tensor([0]), 1.2)) == 0.0
    assert set(retrieval_losses(own, apart, unrelated[:0], 1.2)) == {"own", "sentinel"}


def test_any_number_of_workers_trains_the_same_policy(random_model: LanguageModel) -> None:
    alone, first, second = (
        MemoryTrainer(EDITOR.initialised(random_model, 0), random_model, STREAM, (3, 2, 4), seed=1) for _ in range(3)
    )
    alone.step()
    grads: list[list[Tensor]] = []
    first.step(0, 2, lambda tensors: grads.append([tensor.clone() for tensor in tensors]))
    second.step(1, 2, lambda tensors: [one.add_(other) for one, other in zip(tensors, grads[0], strict=True)])
    for mine, theirs in zip(alone.net.parameters(), second.net.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-4)


def test_training_resumes_from_a_checkpoint(random_model: LanguageModel) -> None:
    whole, part, again = (
        MemoryTrainer(EDITOR.initialised(random_model, 0), random_model, STREAM, (2, 1, 4), seed=1) for _ in range(3)
    )
    for trainer in (whole, whole, part):
        trainer.step()
    again.load_state_dict(part.state_dict())
    again.step()
    assert all(map(torch.equal, whole.net.state_dict().values(), again.net.state_dict().values()))


def test_an_artifact_gives_the_same_editor(trained: RECIPE, random_model: LanguageModel, tmp_path: Path) -> None:
    trained.save(tmp_path / "artifact", {"seed": 0})
    made = make_editor("RECIPE", tmp_path / "artifact")
    assert made == trained and needs("RECIPE") == "hypernets" and isinstance(made, RECIPE)
    assert edited_by(made, random_model, EDITED).digest() == edited_by(trained, random_model, EDITED).digest()
    assert outline("RECIPE", tmp_path / "artifact").modules == trained.modules
    with pytest.raises(ValueError, match="was trained with its settings"):
        make_editor("RECIPE", tmp_path / "artifact", settings={"margin": "2"})
    with pytest.raises(ValueError, match="no RECIPE artifact"):
        RECIPE.load(tmp_path)


def test_an_untrained_editor_and_another_model_are_refused(trained: RECIPE, random_model: LanguageModel) -> None:
    spec = find_matrices(random_model.module, EDITOR.modules)
    with pytest.raises(ValueError, match=r"RECIPE has no trained policy.*jobs/train\.py"):
        EDITOR.start(random_model, spec)
    wide = replace(trained, policy=PromptEncoder(64, 3, 128, 0))
    with pytest.raises(ValueError, match="was trained for 128 dimensions, but the model has 64"):
        wide.start(random_model, spec)
    assert EDITORS["RECIPE"] is RECIPE


def test_a_record_with_another_key_is_at_fault() -> None:
    rows = {"key": torch.zeros(1, 384), "embedding": torch.zeros(1, 192)}
    assert Record("a", "a", rows).fault("prefix") is None
    assert "other keys than one vector of 384" in str(Record("a", "a", rows | {"key": torch.zeros(1, 64)}).fault("prefix"))


def test_a_stream_that_is_too_short_is_refused(random_model: LanguageModel) -> None:
    with pytest.raises(ValueError, match="a batch needs 8 different edits, but the stream has 3"):
        MemoryTrainer(EDITOR.initialised(random_model, 0), random_model, STREAM[:3], (1, 1, 8), seed=0)
