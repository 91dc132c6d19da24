"""The Python client of the HTTP interface.

It needs httpx, and none of torch, Ray and vLLM.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from errata.client.client import Client
    from errata.client.errors import ErrataError, Unreachable
    from errata.client.events import Event

_HOME = {"Client": "client", "ErrataError": "errors", "Event": "events", "Unreachable": "errors"}

__all__ = ["Client", "ErrataError", "Event", "Unreachable"]


def __getattr__(name: str) -> Any:
    """Import an exported name on first use: `errata --help` needs the errors without httpx."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
