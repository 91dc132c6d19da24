"""The registry: MLflow with a model version for each version of the ledger, and a run for each job.

No other folder imports mlflow.
"""

from errata.registry.cursor import RegistryConflict, RegistryUnavailable
from errata.registry.registry import Registry, TrainingRun

__all__ = ["Registry", "RegistryConflict", "RegistryUnavailable", "TrainingRun"]
