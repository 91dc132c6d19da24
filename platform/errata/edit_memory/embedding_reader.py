"""Readers of the banks whose embeddings a prompt is read with, in place of those of its own tokens or before them.

A prompt is changed once, as a whole, before it is read: a token that is read with another embedding is written as V + n, where
n is a row of the bank's table. Tokens that the model generates are never changed.
L tokens of a prompt, D embedding size, E dimensions of a text's vector, N rows of the table, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from errata.edit_memory.bank import Bank
from errata.edit_memory.encoder import SentenceEncoder
from errata.edit_memory.lookup import Candidate
from errata.edit_memory.prompt_form import PromptForm
from errata.edit_memory.reader import Change
from errata.model.renderer import Renderer


class EmbeddingSizes(NamedTuple):
    """The sizes of a model's input embeddings, and the tokens of its context."""

    vocabulary: int
    dimensions: int
    max_tokens: int


class EmbeddedPrompt(NamedTuple):
    """A prompt for an engine: its tokens, whether each is read with its own embedding, and the embeddings of the others."""

    ids: list[int]
    is_token: list[bool]
    embedding_LD: Tensor


class EmbeddingReader(ABC):
    """Reads a bank. It has no state but the bank, so that any thread may ask it."""

    bank: Bank
    vocabulary: int
    table_ND: Tensor

    @abstractmethod
    def change(self, ids: Sequence[int], room: int) -> Change | None:
        """Return what the bank does to a prompt; None if no record fits it. `room` is the number of tokens that follow it."""

    @abstractmethod
    def plain_ids(self, ids_BS: Tensor) -> Tensor:
        """Return texts of changed prompts without tokens beyond the vocabulary."""

    def embedded(self, ids: list[int]) -> EmbeddedPrompt:
        """Return a changed prompt as an engine reads it."""
        ids_L = torch.tensor(ids)
        is_token_L = ids_L < self.vocabulary
        embedding_LD = self.table_ND.new_zeros(len(ids), self.table_ND.shape[1])
        embedding_LD[~is_token_L] = self.table_ND[ids_L[~is_token_L] - self.vocabulary]
        return EmbeddedPrompt(self.plain_ids(ids_L[None])[0].tolist(), is_token_L.tolist(), embedding_LD)


def embedding_reader(bank: Bank, renderer: Renderer, sizes: EmbeddingSizes) -> EmbeddingReader:
    """Make the reader of a bank of the kind `rows` or `prefix`. Raises `ValueError` if it needs the encoder and has none."""
    return RowsReader(bank, sizes) if bank.kind == "rows" else PrefixReader(bank, renderer, sizes)


class TokenPatterns:
    """The sequences of tokens of a bank of `rows`, each with the place of its first row; of equal ones the newest counts.

    A record holds one or several patterns: `begins` marks the first row of each, `number` grows with every edit.
    """

    def __init__(self, bank: Bank) -> None:
        self.first_row: dict[tuple[int, ...], int] = {}
        newest: dict[tuple[int, ...], int] = {}
        ids, begins, numbers = (bank.rows[name].tolist() for name in ("id", "begins", "number"))
        starts = [row for row, is_first in enumerate(begins) if is_first]
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            pattern = tuple(ids[start:end])
            if numbers[start] >= newest.get(pattern, numbers[start]):
                self.first_row[pattern], newest[pattern] = start, numbers[start]
        self.lengths: dict[int, list[int]] = {}  # by first token, the longest first
        for pattern in sorted(self.first_row, key=len, reverse=True):
            own = self.lengths.setdefault(pattern[0], [])
            if len(pattern) not in own:
                own.append(len(pattern))

    def places(self, ids: Sequence[int]) -> Iterator[tuple[int, int, int]]:
        """Yield begin, length and first row of each pattern: from left to right, and of several patterns the longest."""
        at = 0
        while at < len(ids):
            length = next((n for n in self.lengths.get(ids[at], ()) if tuple(ids[at : at + n]) in self.first_row), 0)
            if length:
                yield at, length, self.first_row[tuple(ids[at : at + length])]
            at += max(1, length)


class RowsReader(EmbeddingReader):
    """Reads a bank of rows: those of a pattern take the places of its tokens in a prompt, which keeps its length."""

    def __init__(self, bank: Bank, sizes: EmbeddingSizes) -> None:
        self.bank, self.vocabulary = bank, sizes.vocabulary
        self.table_ND, self.id_N = bank.rows["embedding"], bank.rows["id"]
        self.patterns = TokenPatterns(bank)

    def change(self, ids: Sequence[int], room: int) -> Change | None:
        read, fired = list(ids), dict[str, Candidate]()
        for begin, length, row in self.patterns.places(ids):
            read[begin : begin + length] = range(self.vocabulary + row, self.vocabulary + row + length)
            record = self.bank.record_of_row(row)
            fired[record.fact] = Candidate(record, 1.0)  # Patterns fit, or they do not.
        return Change(tuple(fired.values()), read, None) if fired else None

    def plain_ids(self, ids_BS: Tensor) -> Tensor:
        """Return texts with the tokens of the patterns in place of their rows."""
        is_row_BS = ids_BS >= self.vocabulary
        place_BS = (ids_BS - self.vocabulary).clamp(min=0)
        return torch.where(is_row_BS, self.id_N.to(ids_BS.device)[place_BS], ids_BS)


class PrefixReader(EmbeddingReader):
    """Reads a bank of prefixes: the record that fits a question best is put before its prompt.

    A record fits if <u, k> > 0, where u is the vector of the question: the trained key has its own threshold inside.
    """

    def __init__(self, bank: Bank, renderer: Renderer, sizes: EmbeddingSizes) -> None:
        self.bank, self.form, self.limit = bank, PromptForm(renderer), sizes.max_tokens
        self.vocabulary, self.key_NE = sizes.vocabulary, bank.rows["key"].cpu()
        self.table_ND = bank.rows["embedding"].view(-1, sizes.dimensions)
        self.num_vectors = len(self.table_ND) // len(bank)
        SentenceEncoder.load()

    def change(self, ids: Sequence[int], room: int) -> Change | None:
        (vector_E,) = SentenceEncoder.load().encode([self.form.asked(ids).question])
        score, best = (one.item() for one in (self.key_NE @ vector_E).max(0))
        if score <= 0 or self.num_vectors + len(ids) + room > self.limit:
            return None
        first = self.vocabulary + int(best) * self.num_vectors
        found = Candidate(self.bank.record_of_row(int(best)), score)
        return Change((found,), [*range(first, first + self.num_vectors), *ids], None)

    def plain_ids(self, ids_BS: Tensor) -> Tensor:
        """Return texts with their last token in place of the vectors, which are no tokens."""
        return torch.where(ids_BS >= self.vocabulary, ids_BS[:, -1:], ids_BS)
