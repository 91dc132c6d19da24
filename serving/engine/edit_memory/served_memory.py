"""The memory of the served version in front of the engine: its bank, and the reader of a kind that is read there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from errata.delta.kinds import split_by_kind
from errata.delta.memory_delta import ABOUT, MemoryDelta, held_after
from errata.edit_memory.bank import BY_QUESTION, EMBEDDED, PER_TOKEN, Bank, Kind
from errata.edit_memory.embedding_reader import EmbeddingReader, EmbeddingSizes, embedding_reader
from errata.edit_memory.encoder import SentenceEncoder
from errata.edit_memory.reader import MemoryReader
from errata.ledger import read_segments
from errata.model.language_model import renderer_at
from errata.model.renderer import Renderer


@dataclass(frozen=True)
class FrontMemory:
    """The memory of one version; `reader` is None if nothing is read in front of the engine."""

    version: int = 0
    bank: Bank | None = None
    reader: MemoryReader | EmbeddingReader | None = None

    @property
    def num_records(self) -> int:
        return 0 if self.bank is None else len(self.bank)

    @property
    def kind(self) -> Kind | None:
        """The kind of the records; None if there are none."""
        return self.bank.kind if self.bank is not None and self.num_records else None


class ServedMemory:
    """`now` is the memory of the served version; `prepare` makes that of the next one before it is served.

    `sizes` are those of the engine's model, and `kind` is the memory for which the engine was started, None for changes of
    weights.
    """

    def __init__(self, model: str, sizes: EmbeddingSizes, kind: Kind | None) -> None:
        self.model, self.sizes, self.kind = model, sizes, kind
        self.now = FrontMemory()
        self._renderer: Renderer | None = None

    async def prepare(self, update: dict[str, Any]) -> FrontMemory:
        """Fold the memory of an update that the workers have read. Raises `ValueError` and `OSError`, as their reading does."""
        before = None if update["reset"] else self.now.bank
        return await asyncio.to_thread(self._folded, update["version"], update["files"], before)

    def serves(self, memory: FrontMemory) -> None:
        """Note that the version of `memory` is served from now on."""
        self.now = memory

    def warm(self) -> None:
        """Load what reads a memory, which takes a second. Raises `ValueError` if an encoder is needed and not installed."""
        if self.kind in BY_QUESTION:
            SentenceEncoder.load()
        self._renderer = self._renderer or renderer_at(self.model)

    def _folded(self, version: int, files: Iterable[str], before: Bank | None) -> FrontMemory:
        bank = held_after((delta for file in files for delta in _changes_in(file)), before)
        if bank is None or not len(bank):
            return FrontMemory(version, bank)
        if bank.kind != self.kind:
            started = "changes of weights" if self.kind is None else f"a memory of kind {self.kind}"
            raise ValueError(
                f"this version has a memory of kind {bank.kind}, and the service was started for {started}: start it with the "
                "editor that made the memory (editor=...)"
            )
        if bank.kind in PER_TOKEN:
            return FrontMemory(version, bank)
        self.warm()
        assert self._renderer is not None
        # A reader is made here, where no request waits for what it needs.
        if bank.kind in EMBEDDED:
            return FrontMemory(version, bank, embedding_reader(bank, self._renderer, self.sizes))
        return FrontMemory(version, bank, MemoryReader(bank, self._renderer, self.sizes.max_tokens))


def _changes_in(file: str) -> list[MemoryDelta]:
    """Return the changes of a memory in a file. Changes of weights, which may be large, are not read."""
    try:
        with safe_open(file, framework="pt") as opened:
            if not any(name.endswith(ABOUT) for name in opened.keys()):  # noqa: SIM118
                return []
        return split_by_kind(read_segments(Path(file)))[1]
    except SafetensorError as wrong:
        raise ValueError(f"{file} cannot be read: {wrong}") from None
