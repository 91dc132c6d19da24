"""Training episodes in which facts are edited again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from errata.edit import EditBatch
from errata.editors.hypernet import training
from errata.editors.hypernet.episode import Episode, EpisodeOptions, play
from errata.editors.hypernet.episode_batch import EpisodeBatch
from errata.editors.hypernet.hypernet_editor import HypernetworkEditor
from errata.editors.hypernet.reward import Reward
from errata.editors.hypernet.rledit import RLEdit
from errata.editors.hypernet.training import Fold, Schedule, Trainer
from errata.editors.solve import KeyPreconditioner
from errata.model.generation import own_answer
from errata.model.language_model import LanguageModel
from errata.testbed.world import World

WORLD = World(20)
EDITS = WORLD.edits("train", 24)
MODULE = "model.layers.1.mlp.down_proj"


def ready(model: LanguageModel) -> HypernetworkEditor:
    batches = [EditBatch(tuple(EDITS[i : i + 3])) for i in (0, 3)]
    text = [EpisodeBatch(model, batch).in_scope_texts for batch in batches]
    return RLEdit((MODULE,), rank=8, reward=Reward(backtrack_depth=3)).initialised(model, text, batches, seed=0)


def drawn(model: LanguageModel, monkeypatch: pytest.MonkeyPatch, schedule: Schedule) -> list[list[EditBatch]]:
    """Return the batches of the episodes of two training steps."""
    seen: list[list[EditBatch]] = []

    def watch(model: LanguageModel, net: Any, steps: Sequence[EpisodeBatch], *rest: Any) -> dict[str, float]:
        seen.append([step.batch for step in steps])
        return play(model, net, steps, *rest)

    monkeypatch.setattr(training, "play", watch)
    editor = ready(model)
    trainer = Trainer(editor, model, [Fold(EDITS, editor.trained_policy().base_preconditioners)], schedule, seed=1)
    for _ in range(2):
        trainer.step()
    return seen


def test_a_schedule_draws_re_edits_and_reversions(tiny_model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = Schedule(episodes=2, batches=4, batch_size=4)
    plain = drawn(tiny_model, monkeypatch, schedule)
    again = drawn(tiny_model, monkeypatch, replace(schedule, re_edits=0.6))
    assert [batches[0] for batches in again] == [batches[0] for batches in plain]
    assert all(len({edit.prompt for batch in batches for edit in batch}) == 16 for batches in plain)
    given = {edit.prompt: edit for edit in EDITS}
    re_edits = [edit for batches in again for batch in batches for edit in batch if edit != given[edit.prompt]]
    assert 16 <= len(re_edits) <= 40
    truths = {edit.target == own_answer(tiny_model, edit.prompt) for edit in re_edits}
    assert truths == {True, False}
    assert again == drawn(tiny_model, monkeypatch, replace(schedule, re_edits=0.6))


def test_a_superseded_edit_leaves_the_batches_that_are_scored_again_and_the_past_keys(tiny_model: LanguageModel) -> None:
    editor = ready(tiny_model)
    policy = editor.trained_policy()
    metric = {name: KeyPreconditioner.start(base_II) for name, base_II in policy.base_preconditioners.items()}
    episode = Episode(tiny_model, policy.net, metric, editor.reward, EpisodeOptions())
    first, second = EDITS[:2], EDITS[2:4]
    again = tuple(replace(edit, target="painter") for edit in (*first, second[0]))
    for t, batch in enumerate((first, second, again)):
        episode.edit(EpisodeBatch(tiny_model, EditBatch(tuple(batch))), t)
        for index, weight in episode.scored_at(t):
            episode.score(episode.batches[index], weight)
    assert [batch.batch.edits for batch in episode.batches] == [(), (second[1],), again]
    assert [index for index, _ in episode.scored_at(2)] == [2, 1]
    assert episode.backward() > 0

    keys = episode.state.tensors[MODULE]
    live = torch.tensor([i // 2 in (3, *range(4, 7)) for i in range(len(keys))])  # Two answer tokens an edit.
    expected = KeyPreconditioner.resume(policy.base_preconditioners[MODULE], keys[live].double())
    torch.testing.assert_close(episode.preconditioners[MODULE].apply(keys), expected.apply(keys))


@pytest.mark.parametrize("field", ["re_edits", "reversions"])
def test_shares_are_between_0_and_1(field: str) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Schedule(**{field: 1.5})  # type: ignore[arg-type]
