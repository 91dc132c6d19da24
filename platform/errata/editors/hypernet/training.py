"""Training of the policy: several short episodes for each optimiser step, divided among any number of workers.

Each worker has a copy of the frozen model and plays its share of a train_step's episodes; `sum_up` adds gradients and losses.
The episodes depend on seed and train_step alone, so that any number of workers trains the same policy, and training resumes
from a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from errata.datasets.re_edits import ReEdits, with_re_edits
from errata.edit import Edit, EditBatch, batches_of
from errata.editors.hypernet.episode import EpisodeOptions, play
from errata.editors.hypernet.episode_batch import EpisodeBatch
from errata.editors.hypernet.hypernet_editor import HypernetworkEditor
from errata.editors.hypernet.reward import MemoryOptions
from errata.editors.solve import KeyPreconditioner
from errata.model.generation import own_answer
from errata.model.language_model import LanguageModel
from errata.text.dialogue import Prompt


@dataclass(frozen=True)
class Schedule:
    """Length of training: in each of `train_steps`, `episodes` episodes of `batches` batches of `batch_size` edits.

    An episode starts with 0 to `burn_in` batches that are edited and not scored, because a policy that is trained only on
    early states does not generalise to its hundredth batch. Of the edits after the first batch, the share `re_edits` edits a
    fact of an earlier batch again, and of these the share `reversions` goes back to the unedited model's answer.
    """

    train_steps: int = 60
    episodes: int = 2
    batches: int = 8
    batch_size: int = 10
    burn_in: int = 0
    re_edits: float = 0.0
    reversions: float = 0.5

    def __post_init__(self) -> None:
        ReEdits(self.re_edits, self.reversions)

    @property
    def longest(self) -> int:
        """The number of edits of the longest episode; all are different, but for re-edits."""
        return (self.batches + self.burn_in) * self.batch_size

    def check_workers(self, num_workers: int) -> None:
        """Raise `ValueError` if there are more workers than episodes."""
        if num_workers > self.episodes:
            raise ValueError(f"{num_workers} workers cannot share {self.episodes} episodes: raise schedule.episodes")


@dataclass(frozen=True)
class Fold:
    """The data of an episode: edits, and base preconditioners by input. Folds take turns.

    A preconditioner measured on the locality probes of its own episodes protects them better than the probes at edit time.
    With the edits of one fold and the preconditioners of another, training has the conditions of use.
    """

    edits: Sequence[Edit]
    base_preconditioners: Mapping[str, Tensor]


class Trainer:
    """The optimiser of a policy and the progress of its training. The policy of `editor` is trained in place."""

    def __init__(
        self,
        editor: HypernetworkEditor,
        model: LanguageModel,
        folds: Sequence[Fold],
        schedule: Schedule,
        seed: int,
        savings: MemoryOptions | None = None,
    ) -> None:
        if (fewest := min(len(fold.edits) for fold in folds)) < schedule.longest:
            raise ValueError(f"an episode needs {schedule.longest} different edits, but the stream has {fewest}")
        if schedule.batches + schedule.burn_in > 1 and not editor.trains_on_sequences:
            raise ValueError(f"{type(editor).__name__} is trained on single batches: set schedule.batches=1 and burn_in=0")
        self.editor, self.model, self.folds, self.schedule, self.seed = editor, model, folds, schedule, seed
        self.savings = savings or MemoryOptions()
        self._truths: dict[Prompt, str | None] = {}
        self.net = editor.trained_policy().net
        scalars = [p for n, p in self.net.named_parameters() if n.endswith(("log_step_M", "log_ridge_M"))]
        others = [p for n, p in self.net.named_parameters() if not n.endswith(("log_step_M", "log_ridge_M"))]
        # Gradients are clipped by group, because those of the scalars are far larger than the rest.
        groups: list[dict[str, Any]] = [{"params": others, "share": 1.0}, {"params": scalars, "share": 10.0}]
        self.optimizer = torch.optim.Adam([group for group in groups if group["params"]], lr=editor.learning_rate)
        self.train_step = 0

    def step(
        self, rank: int = 0, num_workers: int = 1, sum_up: Callable[[Sequence[Tensor]], None] = lambda tensors: None
    ) -> dict[str, float]:
        """Play this worker's episodes and take one optimiser step. `sum_up` adds tensors over the workers, in place.

        Returns the mean losses of all workers' episodes; raises on every worker if one is not finite.
        """
        self.schedule.check_workers(num_workers)
        self.optimizer.zero_grad()
        own = range(rank, self.schedule.episodes, num_workers)
        losses = [self._play(index) for index in own]
        grads = [parameter.grad for parameter in self.net.parameters() if parameter.grad is not None]
        totals = torch.tensor([sum(each[name] for each in losses) for name in losses[0]]).to(grads[0])
        sum_up([*grads, totals])
        for tensor in (*grads, totals):
            tensor /= self.schedule.episodes
        for group in self.optimizer.param_groups:
            torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
            group["lr"] = self.editor.learning_rate * group["share"] * self._decay()
        self.optimizer.step()
        self.train_step += 1
        means = dict(zip(losses[0], totals.tolist(), strict=True))
        if not all(math.isfinite(value) for value in means.values()):
            raise FloatingPointError(
                f"train_step {self.train_step}: losses {means} are not finite; lower learning_rate or first_step"
            )
        return means

    def _play(self, index: int) -> dict[str, float]:
        """Play one episode, drawn by train_step and index; returns its mean losses."""
        fold = self.folds[(self.train_step * self.schedule.episodes + index) % len(self.folds)]
        seed = (self.seed * 1_000_003 + self.train_step) * self.schedule.episodes + index
        generator = torch.Generator().manual_seed(seed)
        burn_in = int(torch.randint(self.schedule.burn_in + 1, (), generator=generator))
        size = self.schedule.batch_size
        order = torch.randperm(len(fold.edits), generator=generator)[: (burn_in + self.schedule.batches) * size]
        drawn, shares = [fold.edits[int(i)] for i in order], ReEdits(self.schedule.re_edits, self.schedule.reversions)
        batches = batches_of(with_re_edits(drawn, size, shares, self._truth_of, seed), size)
        preconditioners = {name: KeyPreconditioner.start(base_II) for name, base_II in fold.base_preconditioners.items()}
        editor, steps = self.editor, [self.step_of(batch) for batch in batches]
        options = EpisodeOptions(
            past_weight=editor.memory, num_passes=editor.num_passes, num_burn_in=burn_in, seed=seed, savings=self.savings
        )
        return play(self.model, self.net, steps, preconditioners, editor.reward, options)

    def _truth_of(self, edit: Edit) -> str | None:
        """Return the unedited model's answer, which the trainer's model gives between episodes."""
        if edit.prompts[-1] not in self._truths:
            self._truths[edit.prompts[-1]] = own_answer(self.model, edit.prompts[-1])
        return self._truths[edit.prompts[-1]]

    def step_of(self, batch: EditBatch) -> EpisodeBatch:
        return EpisodeBatch(self.model, batch, self.editor.reward.score_prompts, self.savings)

    def _decay(self) -> float:
        """Return the learning rate's factor, a cosine from 1 to 0.1."""
        return 0.55 + 0.45 * math.cos(math.pi * self.train_step / max(1, self.schedule.train_steps))

    def state_dict(self) -> dict[str, Any]:
        return {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict(), "train_step": self.train_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.train_step = state["train_step"]
