"""MEND: a hypernetwork that maps the gradient of each token to a rank-one change; the changes are summed.

Paper: MEND (arXiv 2110.11309). Equations: net.py (the rule `outer`); rows of every token that has a gradient.
Deviations: the step is a descent from the start (published code starts as an ascent and must learn the sign) and trained as a
logarithm; the block's scale and shift follow the rectifier, as in MALMEN; edit prompts count beside rephrasings.
Remembers: only the number of edits. It is trained on single batches, each edited into the unedited model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from errata.editors.hypernet.hypernet_editor import HypernetworkEditor
from errata.editors.hypernet.net import Rule
from errata.editors.hypernet.reward import Reward

# The published weights are 0.1 and 1.
REWARD = Reward(edit_weight=0.1, locality_weight=1.0, update_penalty=0.0)


@dataclass(frozen=True, kw_only=True)
class MEND(HypernetworkEditor):
    """MEND; it has no solve, so `metric_strength` must be 0."""

    reward: Reward = field(default_factory=lambda: REWARD)

    rule: ClassVar[Rule] = "outer"

    def __post_init__(self) -> None:
        if self.metric_strength:
            raise ValueError("MEND has no solve that a key preconditioner could enter: metric_strength must be 0")
