"""MALMEN: a hypernetwork whose rank-one changes for a batch are combined by least squares.

Paper: MALMEN (arXiv 2311.04661). Equations: net.py (the rule `solve`), ../solve.py (ridge).
Deviations: the dual n-by-n solve in fp64 instead of the primal one; gradients of the sum over answer tokens, not of means over
micro-batches; edit prompts count in the loss beside the rephrasings; learned scales are logarithms, set from first batches.
Remembers: only the number of edits. It is trained on single batches, each edited into the unedited model.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from errata.editors.hypernet.hypernet_editor import HypernetworkEditor
from errata.editors.hypernet.reward import Reward


@dataclass(frozen=True, kw_only=True)
class MALMEN(HypernetworkEditor):
    """MALMEN; the default reward has its published locality weight and no penalty."""

    reward: Reward = field(default_factory=lambda: Reward(locality_weight=1.0, update_penalty=0.0))
