"""Packed texts: the same log probabilities and keys as texts in rows of their own, from fewer tokens."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoConfig, MixtralConfig

from errata.edit import Edit, EditBatch, EditRejected
from errata.editors.editor import check_finite
from errata.model import packing
from errata.model.capture import capture
from errata.model.encoding import IGNORED, Encoded, GivenAnswer, answer_log_probs, padded, split
from errata.model.language_model import LanguageModel
from errata.model.packing import MAX_PACKED, MIN_SHARED, Packed, packed
from errata.model.prefix_cache import PrefixCache
from tests.tiny_models import ARCHITECTURES, MAX_TOKENS, make_tiny

WINDOWED = {"mistral", "gemma2", "gemma3", "gemma3-wrapped"}
SYSTEM = list(range(3, 3 + MIN_SHARED))
OTHER_SYSTEM = list(range(5, 5 + MIN_SHARED))


def texts(count: int, begin: list[int], seed: int = 0) -> list[GivenAnswer]:
    """Return texts of several lengths that begin alike."""
    draw = random.Random(seed)

    def some(least: int, most: int) -> list[int]:
        return [draw.randrange(3, 40) for _ in range(draw.randint(least, most))]

    return [([*begin, 2, *some(1, 9)], some(1, 6)) for _ in range(count)]


def same_values(model: LanguageModel, rows: list[GivenAnswer]) -> Encoded:
    """Check packed texts against rows of their own, and return them."""
    apart, together = padded(rows, 0), packed(model, rows)
    with torch.no_grad():
        expected_TV, found_TV = answer_log_probs(model.module, apart), answer_log_probs(model.module, together)
    torch.testing.assert_close(found_TV, expected_TV, atol=1e-4, rtol=1e-4)
    assert together.targets_T.tolist() == apart.targets_T.tolist()
    assert together.answer_lengths == apart.answer_lengths
    return together


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_texts_have_the_values_of_rows_of_their_own(name: str) -> None:
    """A model with sliding windows reads rows of their own, as before."""
    together = same_values(make_tiny(name), texts(40, SYSTEM))
    assert (not isinstance(together, Packed)) == (name in WINDOWED)
    if isinstance(together, Packed):
        assert together.input_ids_BS.numel() < padded(texts(40, SYSTEM), 0).input_ids_BS.numel() * 0.6
        assert together.input_ids_BS.shape[1] <= MAX_PACKED + len(SYSTEM) + 16


def test_texts_of_several_beginnings_keep_their_order() -> None:
    model = make_tiny("llama3")
    rows = [*texts(1, []), *texts(9, SYSTEM), *texts(2, [], 1), *texts(5, OTHER_SYSTEM, 2), *texts(1, [], 3)]
    together = same_values(model, rows)
    assert isinstance(together, Packed)
    beginnings = [ids[text == 0].tolist() for ids, text in zip(together.input_ids_BS, together.text_BS, strict=True)]
    assert [begin[:MIN_SHARED] for begin in beginnings] == [[], SYSTEM, [], OTHER_SYSTEM, []]


def test_padding_has_a_position_that_every_model_has() -> None:
    """Packs of very different lengths, of a model that has learnt 64 positions."""
    rows = [*texts(2, OTHER_SYSTEM), *texts(30, SYSTEM)]
    together = same_values(make_tiny("gpt-2"), rows)
    assert isinstance(together, Packed) and together.input_ids_BS.shape[1] > MAX_TOKENS
    assert int(together.position_BS.max()) == max(len(given) + len(answer) for given, answer in rows) - 1


def test_one_text_does_not_shorten_a_long_beginning() -> None:
    long, short = list(range(3, 43)), list(range(3, 19))
    rows = [*texts(4, long), *texts(4, [*short, 50], 1)]
    together = same_values(make_tiny("llama3"), rows)
    assert isinstance(together, Packed) and (together.text_BS == 0).sum(1).tolist() == [len(long) + 1, len(short) + 2]


def test_texts_that_share_little_are_not_packed() -> None:
    model = make_tiny("llama3")
    for rows in (texts(4, []), texts(1, SYSTEM), texts(4, SYSTEM[: MIN_SHARED - 2])):
        assert not isinstance(packed(model, rows), Packed)


def test_a_text_without_an_answer_has_no_answer_tokens() -> None:
    rows = texts(3, SYSTEM)
    rows[1] = (rows[1][0], [])
    rows[2] = (rows[2][0], [])
    assert same_values(make_tiny("llama3"), rows).answer_lengths == [len(rows[0][1]), 0, 0]


def test_equal_prompts_keep_a_token_of_their_own_each() -> None:
    given = [*SYSTEM, 2, 7]
    together = same_values(make_tiny("llama3"), [(given, [8, 9]), (given, [4]), (given, [8, 9])])
    assert isinstance(together, Packed) and int((together.text_BS == 0).sum()) == len(given) - 1


def test_parts_of_packed_rows_are_packed() -> None:
    model = make_tiny("llama3")
    together = packed(model, texts(60, SYSTEM))
    parts = split(together, 1)
    assert len(parts) == len(together.input_ids_BS) > 1
    with torch.no_grad():
        found_TV = torch.cat([answer_log_probs(model.module, part) for part in parts])
        torch.testing.assert_close(found_TV, answer_log_probs(model.module, together), atol=1e-5, rtol=1e-5)


def test_keys_and_gradients_are_those_of_rows_of_their_own() -> None:
    """Also when activations before the module are replayed."""
    model, rows, name = make_tiny("llama3"), texts(20, SYSTEM), ARCHITECTURES["llama3"].name("mlp.down_proj")
    expected, _ = capture(model.module, padded(rows, 0), [name])
    together = packed(model, rows)
    cache = PrefixCache(model.module, [name])
    for _ in range(2):
        with cache.reusing(together):
            found, _ = capture(model.module, together, [name])
        torch.testing.assert_close(found[name].keys_TI, expected[name].keys_TI, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found[name].grads_TO, expected[name].grads_TO, atol=1e-5, rtol=1e-3)
    assert cache.has(together)


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_a_repetition_penalty_needs_rows_of_their_own(penalty: float) -> None:
    model = make_tiny("llama3")
    model.module.generation_config.repetition_penalty = penalty
    assert isinstance(packed(model, texts(4, SYSTEM)), Packed) == (penalty == 1.0)


def test_a_model_that_reads_packed_texts_otherwise_gets_rows_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_tiny("llama3")
    monkeypatch.setattr(Packed, "position_BS", property(lambda self: torch.zeros_like(self.text_BS) + 60))
    assert not isinstance(packed(model, texts(4, SYSTEM)), Packed)
    assert packing._READS_ALIKE[model.module] is False


def test_the_check_sees_windows_that_the_configuration_does_not_name() -> None:
    config = GPTNeoConfig(
        vocab_size=60,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        window_size=64,
        attention_types=[[["global", "local"], 1]],
        max_position_embeddings=512,
    )
    model = replace(make_tiny("llama3"), module=AutoModelForCausalLM.from_config(config).eval())
    assert not isinstance(packed(model, texts(40, SYSTEM)), Packed)


def test_a_model_that_refuses_the_mask_gets_rows_of_their_own() -> None:
    """The load-balancing loss reads a mask of rows."""
    config = MixtralConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=None,
        num_local_experts=2,
        output_router_logits=True,
    )
    model = replace(make_tiny("llama3"), module=AutoModelForCausalLM.from_config(config).eval())
    assert not isinstance(packed(model, texts(4, SYSTEM)), Packed)


def test_texts_without_answers_do_not_decide_the_check() -> None:
    model, rows = make_tiny("llama3"), texts(4, SYSTEM)
    assert not isinstance(packed(model, [(given, []) for given, _ in rows]), Packed)
    assert isinstance(packed(model, rows), Packed)


def test_a_fault_in_a_packed_text_names_its_edit() -> None:
    model = make_tiny("llama3")
    rows = texts(3, SYSTEM)
    batch = EditBatch(tuple(Edit(f"p{i}", "t", "p", id=f"edit-{i}") for i in range(3)))
    together = packed(model, rows)
    nll_T = torch.zeros(together.num_answers)
    nll_T[len(rows[0][1])] = float("nan")
    with pytest.raises(EditRejected, match="edit-1"):
        check_finite(batch, together, {}, nll_T)


def test_labels_are_on_answers_only() -> None:
    rows = texts(5, SYSTEM)
    together = packed(make_tiny("llama3"), rows)
    assert together.labels_BS[together.labels_BS != IGNORED].tolist() == [i for _, answer in rows for i in answer]
