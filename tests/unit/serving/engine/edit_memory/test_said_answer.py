"""Answers that the engine says: token by token, each row by itself, and only as long as nothing else was said."""

from __future__ import annotations

from typing import Any

import pytest
import torch

vllm = pytest.importorskip("vllm")
said_answer = pytest.importorskip("serving.engine.edit_memory.said_answer")
interface = pytest.importorskip("vllm.v1.sample.logits_processor.interface")
NUM_TOKENS = 10


def params(answer: list[int] | None) -> Any:
    return vllm.SamplingParams(extra_args=None if answer is None else {said_answer.ANSWER: answer, "other": 1})


class Batch:
    """Rows of a running batch as vLLM describes their changes; the lists of outputs grow in place."""

    def __init__(self, *answers: list[int] | None) -> None:
        self.processor = said_answer.SaidAnswer(None, torch.device("cpu"), False)
        self.outputs: list[list[int]] = [[] for _ in answers]
        added = [(row, params(answer), [1, 2], self.outputs[row]) for row, answer in enumerate(answers)]
        self.processor.update_state(interface.BatchUpdate(len(answers), (), added, ()))

    def logits(self) -> tuple[torch.Tensor, torch.Tensor]:
        before = torch.randn(len(self.outputs), NUM_TOKENS, generator=torch.Generator().manual_seed(0))
        return before, self.processor.apply(before.clone())

    def step(self) -> list[int]:
        """Generate greedily; returns the new tokens."""
        self.processor.update_state(None)
        tokens: list[int] = self.logits()[1].argmax(1).tolist()
        for output, token in zip(self.outputs, tokens, strict=True):
            output.append(token)
        return tokens


def test_an_answer_is_said_and_then_the_model_goes_on() -> None:
    batch = Batch([7, 3, 9], None, [4])
    free = batch.logits()[0].argmax(1).tolist()
    assert [batch.step() for _ in range(4)] == [
        [7, free[1], 4],
        [3, free[1], free[2]],
        [9, free[1], free[2]],
        free,
    ]


def test_rows_without_an_answer_keep_their_bits() -> None:
    batch = Batch(None, [4], None)
    before, after = batch.logits()
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    probability = after[1].softmax(0)
    assert probability[4] > 1 - 1e-6 and torch.isfinite(after).all()
    for _ in range(2):
        batch.step()
    before, after = batch.logits()
    assert torch.equal(before, after), "the answer is complete"


def test_an_answer_is_left_where_the_output_is_another() -> None:
    batch = Batch([7, 3], [7, 3])
    batch.outputs[0].append(6)
    batch.outputs[1].append(7)
    before, after = batch.logits()
    assert torch.equal(before[0], after[0]) and after[1].argmax() == 3


def test_requests_that_move_or_end_take_their_answers_along() -> None:
    batch = Batch([7], [3], [4])
    direction = interface.MoveDirectionality
    batch.processor.update_state(interface.BatchUpdate(2, (0,), (), ((2, 0, direction.UNIDIRECTIONAL),)))
    batch.outputs = batch.outputs[:2]
    assert batch.logits()[1].argmax(1).tolist() == [4, 3]
    batch.processor.update_state(interface.BatchUpdate(2, (), (), ((0, 1, direction.SWAP),)))
    assert batch.logits()[1].argmax(1).tolist() == [3, 4]
    batch.processor.update_state(interface.BatchUpdate(2, (), ((0, params(None), [1], []),), ()))
    before, after = batch.logits()
    assert torch.equal(before[0], after[0]) and after[1].argmax() == 4


def test_vllm_finds_the_processor_by_its_name() -> None:
    from vllm.v1.sample.logits_processor import _load_logitsprocs_by_fqcns

    assert _load_logitsprocs_by_fqcns([said_answer.PROCESSOR]) == [said_answer.SaidAnswer]
    assert not said_answer.SaidAnswer(None, torch.device("cpu"), False).is_argmax_invariant()
