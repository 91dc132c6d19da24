"""Training of the policy: many short episodes, one optimiser step each, on one worker of any number.

Every worker plays an episode of its own on its own copy of the frozen model; `average` makes the gradients common. The same
seed, number of workers and train_step give the same episode, so that training resumes where a checkpoint stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from errata.edit import Edit, EditBatch
from errata.editors.hypernet.rledit import RLEdit
from errata.editors.hypernet.trajectory import make_step, play
from errata.editors.solve import Metric
from errata.model import LanguageModel


@dataclass(frozen=True)
class Schedule:
    """How much is played: `train_steps` episodes a worker, of `batches` batches of `batch_size` edits."""

    train_steps: int = 60
    batches: int = 8
    batch_size: int = 10


class Trainer:
    """The policy, its optimiser, and where training stands. The policy of `editor` is trained in place."""

    def __init__(self, editor: RLEdit, model: LanguageModel, edits: Sequence[Edit], schedule: Schedule, seed: int) -> None:
        if len(edits) < schedule.batches * schedule.batch_size:
            raise ValueError(
                f"an episode needs {schedule.batches * schedule.batch_size} different edits; the stream has {len(edits)}"
            )
        self.editor, self.model, self.edits, self.schedule, self.seed = editor, model, edits, schedule, seed
        self.net = editor.trained_policy().net
        scalars = [p for n, p in self.net.named_parameters() if n.endswith(("log_step_M", "log_ridge_M"))]
        others = [p for n, p in self.net.named_parameters() if not n.endswith(("log_step_M", "log_ridge_M"))]
        # Groups are clipped apart: the scalars' gradients would drown the rest.
        self.optimizer = torch.optim.Adam(
            [{"params": others, "share": 1.0}, {"params": scalars, "share": 10.0}], lr=editor.learning_rate
        )
        self.train_step = 0

    def episode(self, rank: int, num_workers: int) -> list[EditBatch]:
        """Distinct edits, drawn anew for each train_step and worker."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.train_step) * max(1, num_workers) + rank)
        order = torch.randperm(len(self.edits), generator=generator)
        size = self.schedule.batch_size
        picked = [self.edits[int(i)] for i in order[: self.schedule.batches * size]]
        return [EditBatch(tuple(picked[i : i + size])) for i in range(0, len(picked), size)]

    def step(self, rank: int = 0, num_workers: int = 1, average: Callable[[Any], None] = lambda net: None) -> dict[str, float]:
        """Play one episode and take one optimiser step. Returns the episode's losses; raises if they are not finite."""
        steps = [make_step(self.model, batch) for batch in self.episode(rank, num_workers)]
        metrics = {name: Metric.start(base_II) for name, base_II in self.editor.trained_policy().metric_bases.items()}
        self.optimizer.zero_grad()
        losses = play(self.model, self.net, steps, metrics, self.editor.reward, self.net.spec.names)
        average(self.net)
        for group in self.optimizer.param_groups:
            torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
            group["lr"] = self.editor.learning_rate * group["share"] * self._decay()
        self.optimizer.step()
        self.train_step += 1
        if not all(math.isfinite(value) for value in losses.values()):
            raise FloatingPointError(
                f"train_step {self.train_step}: losses {losses} are not finite; lower learning_rate or first_step"
            )
        return losses

    def _decay(self) -> float:
        """A cosine from 1 to 0.1."""
        return 0.55 + 0.45 * math.cos(math.pi * self.train_step / max(1, self.schedule.train_steps))

    def state_dict(self) -> dict[str, Any]:
        return {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict(), "train_step": self.train_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.train_step = state["train_step"]
