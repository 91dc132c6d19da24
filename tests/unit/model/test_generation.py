"""Greedy decoding of prompts that begin alike: what they share is read once."""

from __future__ import annotations

import pytest

from errata.model import generation
from errata.model.generation import greedy, shared_beginning
from tests.tiny_models import ARCHITECTURES, WORLD, make_tiny

COMMON = "the city where the dog of the city was born is the city where "


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_shared_beginning_changes_no_token(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for models with sliding windows, which read every prompt whole."""
    model = make_tiny(name)
    prompts = [COMMON + edit.prompt for edit in WORLD.edits("test", 4)]
    rows = [list(model.renderer.ids(prompt)) for prompt in prompts]
    assert shared_beginning(rows) >= generation.MIN_SHARED and len({len(ids) for ids in rows}) > 1
    once = greedy(model, prompts, 6)
    monkeypatch.setattr(generation, "MIN_SHARED", 10**6)
    assert once == greedy(model, prompts, 6)


def test_each_prompt_keeps_a_token_of_its_own() -> None:
    assert shared_beginning([[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 9]]) == 2
    assert shared_beginning([[1, 2, 3], [1, 2, 3]]) == 2, "the last one is read to predict the next"
    assert shared_beginning([[1, 2], [3]]) == 0 and shared_beginning([[1, 2, 3]]) == 0
