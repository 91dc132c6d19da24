"""Errata keeps a served language model correct: edits in, versions out, and any version can be restored."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from errata.client import Client, ErrataError
    from errata.edit import Edit, EditBatch, EditRejected
    from errata.editors import EDITORS, make_editor
    from errata.ledger import Ledger
    from errata.registry import Registry

__version__ = "0.1.0"

_MODULES = {
    "EDITORS": "editors",
    "Client": "client",
    "Edit": "edit",
    "EditBatch": "edit",
    "EditRejected": "edit",
    "ErrataError": "client",
    "Ledger": "ledger",
    "Registry": "registry",
    "make_editor": "editors",
}

__all__ = [
    "EDITORS",
    "Client",
    "Edit",
    "EditBatch",
    "EditRejected",
    "ErrataError",
    "Ledger",
    "Registry",
    "__version__",
    "make_editor",
]


def __getattr__(name: str) -> Any:
    """Import an exported name on first use, so that `import errata` needs neither torch nor httpx."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
