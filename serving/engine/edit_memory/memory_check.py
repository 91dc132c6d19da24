"""Check that an engine's model can read a memory, before the memory is taken into an update."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from errata.delta.memory_delta import MemoryDelta
from errata.edit_memory.bank import AT_MATRIX, PER_TOKEN
from errata.edit_memory.experts import check_matrices


def check_site(delta: MemoryDelta, shapes: Mapping[str, tuple[int, int]], embeddings: Mapping[str, int]) -> None:
    """Raise `ValueError` for a memory of another model.

    `shapes` are those of the matrices that may be edited, [out, in], and `embeddings` the sizes of the vectors at the input
    embeddings and the output layer.
    """
    if delta.kind in AT_MATRIX:
        what = "editable matrix"
        width = shapes[delta.site][1] if delta.site in shapes else None
    else:
        width, what = embeddings.get(delta.site), "embedding or output layer"
    name, is_several = "key" if delta.kind in PER_TOKEN else "embedding", delta.kind == "prefix"
    sizes = {record.rows[name].shape[1] for record in delta.records if name in record.rows}  # A code has the size of none.
    if width is None or any(size % width if is_several else size != width for size in sizes):
        raise ValueError(f"the memory reads {delta.site}, and no {what} of this model has its name and inputs")
    if delta.shared:
        check_matrices(delta.site, delta.shared, shapes)


def check_engine(model_config: Any, parallel_config: Any) -> None:
    """Raise `ValueError` for an engine, by vLLM's configuration, that can read no memory inside its model."""
    if not model_config.enforce_eager:
        raise ValueError("a memory that is read inside the model needs an eager engine: serve on the CPU, or edit with SCR")
    if parallel_config.tensor_parallel_size > 1:
        raise ValueError("a memory that is read inside the model needs a model on one device: gpus=1, or edit with SCR")
