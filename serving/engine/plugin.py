"""The vLLM plug-in: registers the weight-transfer engine in every vLLM process."""

from __future__ import annotations

from vllm.distributed.weight_transfer import WeightTransferEngineFactory

from serving.engine.weight_engine import BACKEND


def register() -> None:
    """Register the engine; the entry point of group `vllm.general_plugins`, which every vLLM process calls once."""
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, "serving.engine.weight_engine", "DeltaEngine")
