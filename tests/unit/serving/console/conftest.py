"""The access keys of the routes' tests."""

from tests.unit.serving.api.conftest import bearers

__all__ = ["bearers"]
