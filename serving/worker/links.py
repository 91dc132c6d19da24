"""Addresses of other pages about the service, where they are known: MLflow's page of the live version, and Ray's dashboard."""

from __future__ import annotations

import socket
from typing import Any
from urllib.parse import quote, urlsplit

WEB = ("http", "https")
CONNECT_S = 1.0


def mlflow_links(uri: str | None, name: str, state: dict[str, Any]) -> dict[str, str]:
    """Return the address of the registered model's page (`mlflow`), and of that of the version with the alias `serving`.

    None for a store that is no web server. A user's name and password in `uri` are left out, because everyone who may read the
    status may read the addresses.
    """
    parts = urlsplit(uri or "")
    if parts.scheme not in WEB or not parts.hostname:
        return {}
    model = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}/#/models/{quote(name, safe='')}"
    number = state.get("mlflow_version")
    return {"mlflow": model} | ({} if number is None else {"mlflow_version": f"{model}/versions/{number}"})


def dashboard_link() -> dict[str, str]:
    """Return the address of Ray's dashboard (`ray`), as its head announces it; nothing without one.

    Ray announces an address without a dashboard, too, so it must listen there. The call blocks, and asks Ray from one of its
    workers.
    """
    from ray._private import ray_constants
    from ray.exceptions import RayError
    from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_initialized

    if not _internal_kv_initialized():
        return {}
    try:
        found = _internal_kv_get("webui:url", namespace=ray_constants.KV_NAMESPACE_DASHBOARD)
    except RayError:  # A link is worth no start that fails.
        return {}
    return {"ray": f"http://{found.decode()}"} if found and listens(found.decode()) else {}


def listens(address: str) -> bool:
    """Say if a program takes connections at `HOST:PORT`."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_S):
            return True
    except (OSError, ValueError, OverflowError):
        return False
