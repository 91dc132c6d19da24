"""Gradient descent on the answers of a batch, with what is beside the frozen weights as the parameters.

In `descend` that is the change of each matrix as a side branch, `y + x Dᵀ`, so the model is never written to and the method
does not depend on the orientation of the stored weight. Adam on the change is Adam on the weight. O out-features, I
in-features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from errata.delta.parts import Dense
from errata.delta.side_branch import applied
from errata.delta.weight_delta import WeightDelta
from errata.edit import Code, EditBatch, EditRejected
from errata.editors.editor import check_batch
from errata.model.devices import device_of
from errata.model.encoding import Encoded, answer_log_probs, answer_nll, encode_rows
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from errata.timing import timed


@dataclass(frozen=True, kw_only=True)
class Descent:
    """Settings of the descent.

    An epoch passes over the whole batch in mini-batches of `batch_size` (breadth first). Descent ends after `num_epochs`, or
    after an epoch with a mean loss below `loss_floor`. `box` bounds the absolute value of each entry of the change.
    """

    num_epochs: int
    learning_rate: float
    batch_size: int
    loss_floor: float
    eos: bool
    seed: int
    box: float | None = None


def descend(model: LanguageModel, batch: EditBatch, modules: Sequence[str], max_batch: int, descent: Descent) -> WeightDelta:
    """Return the change as dense parts. Raises `EditRejected` for a batch of the wrong size or a loss that is not finite."""
    check_batch(batch, max_batch)
    spec = find_matrices(model.module, modules)
    change = {m.name: torch.zeros(m.shape, device=device_of(model.module, m.name), requires_grad=True) for m in spec.matrices}
    branch = WeightDelta({name: Dense(D_OI) for name, D_OI in change.items()})
    minimise(model, batch, list(change.values()), descent, lambda: applied(model.module, branch))
    delta = WeightDelta({name: Dense(D_OI.detach()) for name, D_OI in change.items()})
    if not delta.is_finite:
        raise EditRejected("the update is not finite: lower learning_rate", code=Code.NOT_FINITE)
    return delta


def minimise(
    model: LanguageModel,
    batch: EditBatch,
    parameters: Sequence[Tensor],
    descent: Descent,
    beside: Callable[[], AbstractContextManager[None]],
) -> None:
    """Minimise the mean -log p of the batch's answers over `parameters`, which the model reads inside of `beside`.

    Raises `EditRejected` for a loss that is not finite.
    """
    optimizer = torch.optim.Adam(parameters, lr=descent.learning_rate)
    generator = torch.Generator().manual_seed(descent.seed)

    def loss_of(encoded: Encoded) -> Tensor:
        with beside(), torch.enable_grad():
            return answer_nll(answer_log_probs(model.module, encoded), encoded).mean()

    with timed("solve"):
        for _ in range(descent.num_epochs):
            losses = [
                _step(loss_of, e, optimizer, parameters, descent) for e in _mini_batches(model, batch, descent, generator)
            ]
            if sum(losses) / len(losses) < descent.loss_floor:
                break


def _step(
    loss_of: Callable[[Encoded], Tensor],
    encoded: Encoded,
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    descent: Descent,
) -> float:
    loss = loss_of(encoded)
    value = float(loss.detach())
    if not torch.isfinite(loss):
        raise EditRejected("the model's loss on the batch is not finite", field="edits", code=Code.NOT_FINITE)
    if value >= descent.loss_floor:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if descent.box is not None:
            with torch.no_grad():
                for D_OI in parameters:
                    D_OI.clamp_(-descent.box, descent.box)
    return value


def _mini_batches(model: LanguageModel, batch: EditBatch, descent: Descent, generator: torch.Generator) -> Iterator[Encoded]:
    rows = batch.rows
    order = torch.randperm(len(rows), generator=generator).tolist()
    for start in range(0, len(order), descent.batch_size):
        chosen = [rows[i] for i in order[start : start + descent.batch_size]]
        yield encode_rows(model.renderer, chosen, model.device, eos=descent.eos)
