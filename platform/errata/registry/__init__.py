"""MLflow: a model version for each version of the ledger, and a run for each job; the only folder that imports mlflow."""

from errata.registry.cursor import RegistryConflict, RegistryUnavailable
from errata.registry.registry import Registry, TrainingRun
from errata.registry.server import start_server, stop_server

__all__ = ["Registry", "RegistryConflict", "RegistryUnavailable", "TrainingRun", "start_server", "stop_server"]
