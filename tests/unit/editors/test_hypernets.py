"""MEND and MALMEN, training over any number of workers, and past keys."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from errata.edit import EditBatch, batches_of
from errata.editors import EditorState
from errata.editors.hypernet import training
from errata.editors.hypernet.episode import play
from errata.editors.hypernet.episode_batch import EpisodeBatch
from errata.editors.hypernet.hypernet_editor import HypernetworkEditor
from errata.editors.hypernet.malmen import MALMEN
from errata.editors.hypernet.mend import MEND
from errata.editors.hypernet.net import Network
from errata.editors.hypernet.reward import Reward
from errata.editors.hypernet.rledit import RLEdit
from errata.editors.hypernet.training import Fold, Schedule, Trainer
from errata.editors.solve import KeyPreconditioner
from errata.model.capture import capture
from errata.model.encoding import encode
from errata.model.language_model import LanguageModel
from errata.testbed.corpus import FOLDS
from errata.testbed.world import World

MODULES = ("layers.0.mlp.down_proj", "layers.1.mlp.down_proj")
EDITS = World(20).edits("train", 24)
REWARD = Reward(backtrack_depth=1, locality_weight=0.5, update_penalty=1e-3)


def ready(model: LanguageModel, editor: HypernetworkEditor) -> HypernetworkEditor:
    batches = list(batches_of(EDITS, 4))
    editor = editor.initialised(model, [EpisodeBatch(model, batch).in_scope_texts for batch in batches], batches, seed=0)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in editor.trained_policy().net.named_parameters():
        if name.endswith("B_RF"):  # Not zero, so that every parameter has a gradient.
            parameter.data.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return editor


def fold(editor: HypernetworkEditor) -> list[Fold]:
    return [Fold(EDITS, editor.trained_policy().base_preconditioners)]


def test_untrained_mend_sums_rank_one_changes(tiny_model: LanguageModel) -> None:
    batch = next(batches_of(EDITS, 4))
    editor = MEND(MODULES, rank=8).initialised(tiny_model, [], [batch], seed=0)
    delta, _ = editor.edit(tiny_model, batch, EditorState())
    net = editor.trained_policy().net
    captured, _ = capture(tiny_model.module, encode(tiny_model.renderer, batch.prompts, batch.targets), net.spec.names, True)
    for i, name in enumerate(net.spec.names):
        rows = torch.cat([captured[name].keys_TI, captured[name].grads_TO], 1)
        assert (captured[name].grads_TO != 0).any(1).all()
        shape_net = next(iter(net.nets.values()))
        normal = shape_net.normaliser(rows)
        keys_nI, grads_nO = normal[:, : shape_net.num_in], normal[:, shape_net.num_in :]
        expected_OI = -shape_net.log_step_M[i].exp() * sum(torch.outer(g, k) for g, k in zip(grads_nO, keys_nI, strict=True))
        torch.testing.assert_close(delta.parts[name].dense(), expected_OI.detach(), rtol=1e-3, atol=1e-6)


def test_published_mend_starts_at_its_published_step(tiny_model: LanguageModel) -> None:
    batch = next(batches_of(EDITS, 2))
    editor = MEND.preset("llama3_8b", modules=MODULES, rank=8).initialised(tiny_model, [], [batch], seed=0)
    (net,) = editor.trained_policy().net.nets.values()
    assert net.log_step_M.exp().tolist() == pytest.approx([1e-4] * len(net.log_step_M))


def test_mend_has_no_preconditioner() -> None:
    with pytest.raises(ValueError, match="metric_strength"):
        MEND(metric_strength=1.0)


@pytest.mark.parametrize("make", [MEND, MALMEN])
def test_single_batch_editors_refuse_sequences(tiny_model: LanguageModel, make: type[HypernetworkEditor]) -> None:
    editor = ready(tiny_model, make(MODULES, rank=8))
    with pytest.raises(ValueError, match="single batches"):
        Trainer(editor, tiny_model, fold(editor), Schedule(batches=2, batch_size=4), seed=0)
    trainer = Trainer(editor, tiny_model, fold(editor), Schedule(batches=1, batch_size=4), seed=0)
    before = {n: p.detach().clone() for n, p in trainer.net.named_parameters()}
    trainer.step()
    assert any(not torch.equal(p, before[n]) for n, p in trainer.net.named_parameters())
    assert all(bool(torch.isfinite(p).all()) for p in trainer.net.parameters())


def add_to(summed: list[torch.Tensor], tensors: Sequence[torch.Tensor]) -> None:
    """Sum over the workers; the last one gets the totals."""
    for tensor, total in zip(tensors, summed or [torch.zeros(())] * len(tensors), strict=True):
        tensor += total
    summed[:] = [tensor.clone() for tensor in tensors]


def test_any_number_of_workers_has_the_gradient_and_the_losses_of_one(tiny_model: LanguageModel) -> None:
    schedule = Schedule(batches=2, batch_size=4, episodes=3, burn_in=1)
    found = []
    for num_workers in (1, 2, 3):
        editor = ready(tiny_model, RLEdit(MODULES, rank=8, reward=REWARD))
        summed: list[torch.Tensor] = []
        for rank in range(num_workers):
            trainer = Trainer(editor, tiny_model, fold(editor), schedule, seed=3)
            trainer.optimizer.step = lambda *_: None  # type: ignore[method-assign]
            losses = trainer.step(rank, num_workers, partial(add_to, summed))
        found.append((summed, losses))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-6)


def test_more_workers_than_episodes_are_refused(tiny_model: LanguageModel) -> None:
    editor = ready(tiny_model, RLEdit(MODULES, rank=8))
    trainer = Trainer(editor, tiny_model, fold(editor), Schedule(batches=2, batch_size=4), seed=0)
    with pytest.raises(ValueError, match=r"schedule\.episodes"):
        trainer.step(0, 3)


def test_folds_take_turns_each_with_its_own_preconditioners(tiny_model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    world, editor = World(20), ready(tiny_model, RLEdit(MODULES, rank=8, reward=REWARD))
    folds = []
    for own, other in (FOLDS, FOLDS[::-1]):
        text = [EpisodeBatch(tiny_model, batch).in_scope_texts for batch in batches_of(world.edits(other, 12), 4)]
        folds.append(Fold(world.edits(own, 12), editor.measure_preconditioners(tiny_model, text)))
    seen: list[tuple[set[str | None], Mapping[str, KeyPreconditioner]]] = []

    def watch(
        model: LanguageModel, net: Any, steps: list[EpisodeBatch], preconditioners: Mapping[str, KeyPreconditioner], *rest: Any
    ) -> Any:
        seen.append(({edit.subject for step in steps for edit in step.batch}, preconditioners))
        return play(model, net, steps, preconditioners, *rest)

    monkeypatch.setattr(training, "play", watch)
    trainer = Trainer(editor, tiny_model, folds, Schedule(batches=2, batch_size=4, episodes=1), seed=0)
    for _ in range(4):
        trainer.step()
    for index, (subjects, preconditioners) in enumerate(seen):
        own = folds[index % 2]
        assert subjects <= set(world.people(FOLDS[index % 2]))
        assert all(torch.equal(one.base_II, own.base_preconditioners[name]) for name, one in preconditioners.items())


def test_backtracking_scores_the_latest_or_uniformly_drawn_batches() -> None:
    recent = Reward(backtrack_depth=2)
    assert recent.backtracked(5, random.Random(0)) == [5, 4, 3] and recent.backtracked(1, random.Random(0)) == [1, 0]
    uniform = replace(recent, backtrack_uniform=True)
    drawn = [uniform.backtracked(9, random.Random(seed)) for seed in range(40)]
    assert all(b[0] == 9 and len(set(b)) == 3 and max(b[1:]) < 9 for b in drawn)
    assert {i for b in drawn for i in b[1:]} == set(range(9))
    assert drawn[3] == uniform.backtracked(9, random.Random(3))


def test_past_keys_are_remembered_unless_their_weight_is_zero(tiny_model: LanguageModel) -> None:
    first, second = list(batches_of(EDITS, 4))[:2]
    editor = ready(tiny_model, RLEdit(MODULES, rank=8))
    _, none = replace(editor, memory=0.0).edit(tiny_model, first, EditorState())
    assert not none.tensors and none.num_edits == 4
    _, state = editor.edit(tiny_model, first, EditorState())
    forgotten, kept = (editor.edit(tiny_model, second, s)[0].norms() for s in (none, state))
    assert forgotten != kept
    bare = EditorState(state.num_edits, state.tensors)  # A state from a file has nothing derived.
    assert editor.edit(tiny_model, second, bare)[0].digest() == editor.edit(tiny_model, second, state)[0].digest()


@pytest.mark.parametrize("network", ["residual", "identity"])
def test_another_network_is_trained_saved_and_loaded(tiny_model: LanguageModel, tmp_path: Path, network: Network) -> None:
    editor, batches = begun(tiny_model, network)
    trainer = Trainer(editor, tiny_model, [Fold(World(20).edits("train", 20), {})], Schedule(2, 1, 2, 3), seed=0)
    before = {name: p.detach().clone() for name, p in trainer.net.named_parameters()}
    for _ in range(2):
        trainer.step()
    assert all(
        not torch.equal(p, before[name]) for name, p in trainer.net.named_parameters() if "log_" in name or "head" in name
    )
    editor.save(tmp_path, {})
    again = type(editor).load(tmp_path)
    assert again.network == network and digest_of(again, tiny_model, batches[0]) == digest_of(editor, tiny_model, batches[0])


def test_an_artifact_from_before_networks_could_be_chosen_is_loaded(tiny_model: LanguageModel, tmp_path: Path) -> None:
    editor, batches = begun(tiny_model, "full")
    editor.save(tmp_path, {})
    description = json.loads((tmp_path / "artifact.json").read_text())
    del description["fields"]["network"], description["fields"]["reward"]["departure_penalty"]
    (tmp_path / "artifact.json").write_text(json.dumps(description))
    again = RLEdit.load(tmp_path)
    assert again.network == "full" and digest_of(again, tiny_model, batches[0]) == digest_of(editor, tiny_model, batches[0])
    with pytest.raises(ValueError, match="network is one of full, residual, identity, not 'wide'"):
        RLEdit(network="wide")  # type: ignore[arg-type]


def begun(model: LanguageModel, network: Network) -> tuple[RLEdit, list[EditBatch]]:
    batches = list(batches_of(World(20).edits("train", 20), 5))
    editor = RLEdit(("layers.1.mlp.down_proj",), rank=8, network=network)
    return editor.initialised(model, [EpisodeBatch(model, batch).in_scope_texts for batch in batches], batches, seed=0), batches


def digest_of(editor: RLEdit, model: LanguageModel, batch: EditBatch) -> str:
    return editor.edit(model, batch, EditorState())[0].digest()
