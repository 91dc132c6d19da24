"""The vLLM plug-in: registers the weight-transfer engine in every vLLM process, which ends with its replica."""

from __future__ import annotations

from vllm.distributed.weight_transfer import WeightTransferEngineFactory

from serving.engine.replica_watch import end_with_replica
from serving.engine.weight_engine import BACKEND


def register() -> None:
    """Register the engine; the entry point of group `vllm.general_plugins`, which every vLLM process calls once."""
    end_with_replica()
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, "serving.engine.weight_engine", "DeltaEngine")
