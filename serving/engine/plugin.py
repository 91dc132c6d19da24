"""vLLM's plug-in entry point."""

from __future__ import annotations

from vllm.distributed.weight_transfer import WeightTransferEngineFactory

from serving.engine.weight_engine import BACKEND


def register() -> None:
    """The entry point of group `vllm.general_plugins`: called once in every vLLM process."""
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, "serving.engine.weight_engine", "DeltaEngine")
