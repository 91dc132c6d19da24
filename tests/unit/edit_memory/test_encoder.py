"""The sentence encoder: what its vectors are, and what they do not depend on."""

from __future__ import annotations

import threading

import torch

from errata.edit_memory.encoder import MAX_TOKENS, NUM_DIMENSIONS, SentenceEncoder

TEXTS = ["What is the capital of France?", "Name the capital city of France.", "The train arrives at nine."]


def test_texts_of_the_same_meaning_are_near_each_other() -> None:
    vector_nE = SentenceEncoder.load().encode(TEXTS)
    assert vector_nE.shape == (3, NUM_DIMENSIONS) and vector_nE.dtype == torch.float32
    assert torch.allclose(vector_nE.norm(dim=1), torch.ones(3), atol=1e-6)
    cosine_nn = vector_nE @ vector_nE.T
    assert cosine_nn[0, 1] > 0.8 > 0.2 > cosine_nn[0, 2]
    assert SentenceEncoder.load().encode([]).shape == (0, NUM_DIMENSIONS)


def test_a_texts_bits_depend_on_neither_its_neighbours_nor_the_asking_thread() -> None:
    encoder = SentenceEncoder.load()
    first, num_threads = encoder.encode(TEXTS), torch.get_num_threads()
    encoder.vector.cache_clear()
    found: list[torch.Tensor] = []

    def ask() -> None:
        torch.set_num_threads(1)
        found.append(encoder.encode(TEXTS[::-1])[-1])

    asking = threading.Thread(target=ask)
    asking.start()
    asking.join()
    assert torch.equal(found[0], first[0]) and torch.get_num_threads() == num_threads
    assert encoder.load() is encoder


def test_what_was_begun_is_encoded_once() -> None:
    encoder = SentenceEncoder.load()
    first = encoder.encode(TEXTS)
    encoder.vector.cache_clear()
    encoder.begin(TEXTS)
    assert torch.equal(encoder.encode(TEXTS), first) and encoder.vector.cache_info().misses == len(TEXTS)


def test_a_long_text_is_read_up_to_a_limit() -> None:
    encoder = SentenceEncoder.load()
    long, longer = "river " * MAX_TOKENS, "river " * MAX_TOKENS + "bridge"
    assert torch.equal(*encoder.encode([long, longer]))
