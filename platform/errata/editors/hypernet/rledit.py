"""RLEdit: a hypernetwork trained by reinforcement over whole edit sequences.

Paper: RLEdit (arXiv 2502.05759), on MALMEN's network (2311.04661). Equations: net.py, trajectory.py, ../solve.py.
Deviations: docs/rledit.md. Beyond the paper: `metric_strength` and `memory`, updates in the metric of the base model's keys and
of past edits.
Remembers: the keys of past edits, where the metric is used; otherwise only their number.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from errata.editors.hypernet.learned import Learned
from errata.editors.hypernet.trajectory import Reward


@dataclass(frozen=True)
class RLEdit(Learned):
    metric_strength: float = 1000.0

    trains_on_sequences: ClassVar[bool] = True

    @classmethod
    def published(cls, **fields: Any) -> RLEdit:
        """Plain ridge from η=1e-6 and λ=1, standardised rows, rank 1024, 4 blocks, learning rate 1e-5."""
        published = cls(
            modules=("layers.*.mlp.gate_proj", "layers.*.mlp.up_proj"),
            rank=1024,
            num_blocks=4,
            centred=True,
            first_step=None,
            first_ridge=None,
            metric_strength=0.0,
            reward=Reward(score_prompts=False),
            learning_rate=1e-5,
        )
        return replace(published, **fields)
