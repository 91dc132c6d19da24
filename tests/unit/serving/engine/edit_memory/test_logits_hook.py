"""The hooks of a vLLM worker that read a memory at each token: the decisions of transformers, request by request."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from errata.delta.memory_delta import MemoryDelta
from errata.edit_memory.bank import Bank, Record
from errata.edit_memory.lookup import unit

logits_hook = pytest.importorskip("serving.engine.edit_memory.logits_hook")  # vLLM
OneModule = pytest.importorskip("tests.fakes.engine").OneModule
FORCED, READ = 9, 4  # the token that is forced where the token `READ` was read


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    return OneModule()


def bank_of(model: Any, after: int = READ) -> Bank:
    """Make a bank of one record that fires at the token `READ`."""
    key = unit(model.embedding.weight[READ][None].detach())
    rows = {
        "key": key,
        "token": torch.tensor([FORCED]),
        "after": torch.tensor([after]),
        "threshold": torch.tensor([0.99]),
    }
    return MemoryDelta("state", "inside", (Record('"a"', "a", rows),)).after(None)


@pytest.fixture
def step(model: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a step of several requests as vLLM's runner does; returns the logits of each request's last token."""

    def run(*requests: list[int], with_metadata: bool = True) -> torch.Tensor:
        begins = torch.tensor([0, *(len(ids) for ids in requests)]).cumsum(0)
        metadata = {"layer": SimpleNamespace(query_start_loc=begins)} if with_metadata else None
        monkeypatch.setattr(logits_hook, "is_forward_context_available", lambda: True)
        monkeypatch.setattr(logits_hook, "get_forward_context", lambda: SimpleNamespace(attn_metadata=metadata))
        hidden = model(input_ids=torch.tensor([token for ids in requests for token in ids]), positions=None)
        found: torch.Tensor = model.compute_logits(hidden[begins[1:] - 1])
        return found

    return run


def test_a_token_is_forced_where_a_request_ends_with_what_a_record_read(model: Any, step: Any) -> None:
    requests = ([1, 2, READ], [READ], [READ, 3], [2])
    before = step(*requests)
    hook = logits_hook.LogitsHook(model, model.inside, bank_of(model))
    after = step(*requests)
    assert after.argmax(1).tolist()[:2] == [FORCED, FORCED]
    assert torch.equal(after[2:], before[2:]), "other requests keep their bits"
    hook.remove()
    assert torch.equal(step(*requests), before) and not model._forward_pre_hooks


def test_a_record_may_follow_one_token_alone(model: Any, step: Any) -> None:
    before = step([1, READ])
    logits_hook.LogitsHook(model, model.inside, bank_of(model, after=2))
    assert torch.equal(step([1, READ]), before)


def test_the_logits_of_prompts_and_of_warm_ups_are_the_models_own(model: Any, step: Any) -> None:
    before = step([READ])
    logits_hook.LogitsHook(model, model.inside, bank_of(model))
    assert torch.equal(step([READ], with_metadata=False), before)
    assert step([READ]).argmax(1).item() == FORCED
    assert torch.equal(model.compute_logits(model.embedding(torch.tensor([READ]))), before), "the step's logits are taken"


def test_a_datastore_is_mixed_in_where_a_last_state_is_near(model: Any, step: Any) -> None:
    one = torch.ones(1)
    rows = {
        "key": unit(model.embedding.weight[READ][None].detach()),
        "token": torch.tensor([FORCED]),
        "nearest": torch.tensor([1]),
        "threshold": 0.99 * one,
        "temperature": 0.01 * one,
        "share": 0.75 * one,
    }
    requests = ([1, 2, READ], [READ, 3], [READ])
    before = step(*requests)
    hook = logits_hook.MixingHook(model, MemoryDelta("datastore", "head", (Record('"a"', "a", rows),)).after(None))
    after = step(*requests)
    expected = 0.25 * before[[0, 2]].softmax(1)
    expected[:, FORCED] += 0.75
    assert torch.allclose(after[[0, 2]].softmax(1), expected, atol=1e-6) and torch.equal(after[1], before[1])
    hook.remove()
    assert torch.equal(step(*requests), before) and "compute_logits" not in vars(model)


def test_a_rank_without_logits_mixes_nothing(model: Any) -> None:
    model.compute_logits = lambda *_: None
    hook = logits_hook.MixingHook(model, bank_of(model))
    assert model.compute_logits(torch.zeros(1, 96)) is None
    assert hook.bank is not None
