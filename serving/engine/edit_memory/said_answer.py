"""The logits processor that makes the engine say an answer of the memory: token by token, as long as it has said nothing else.

Each row is decided by its own request, so neither the batch nor the other requests matter. After the last token the model goes
on freely; in chat, the last one ends the turn.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from errata.model.said_answers import with_said

ANSWER = "errata_answer"  # of a request's extra arguments: the tokens that are said
PROCESSOR = "serving.engine.edit_memory.said_answer:SaidAnswer"  # as vLLM's argument `logits_processors` names it


class SaidAnswer(LogitsProcessor):
    """vLLM's interface of the V1 runner. `said` has by row the answer, and the tokens that the request has so far."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.said: dict[int, tuple[list[int], list[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self.said, batch_update, _answer_of)

    def apply(self, logits: Tensor) -> Tensor:
        found = {row: next_said(answer, output) for row, (answer, output) in self.said.items()}
        due = {row: token for row, token in found.items() if token is not None}
        return with_said(logits, due) if due else logits


def next_said(answer: list[int], output: list[int]) -> int | None:
    """Return the token that is said after `output`; None if the answer is complete, or if another one was begun."""
    at = len(output)
    return answer[at] if at < len(answer) and output == answer[:at] else None


def _answer_of(params: SamplingParams, _prompt: list[int] | None, output: list[int]) -> tuple[list[int], list[int]] | None:
    answer = (params.extra_args or {}).get(ANSWER)
    return None if answer is None else (answer, output)
