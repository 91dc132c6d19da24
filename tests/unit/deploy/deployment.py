"""Readers of the deployment files for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[3]
CLUSTERS = ("cluster.yaml", "deploy/cluster-local.yaml")
MANIFESTS = sorted(path.name for path in (ROOT / "deploy" / "kubernetes").glob("*.yaml"))
RAY_MANIFESTS = tuple(name for name in MANIFESTS if name.startswith("ray"))


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return found


def manifests(*names: str) -> list[dict[str, Any]]:
    return [one for name in names for one in yaml.safe_load_all((ROOT / "deploy" / "kubernetes" / name).read_text())]


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = manifest["spec"]
    found: dict[str, Any] = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    return found


def serve_configs() -> dict[str, dict[str, Any]]:
    (service,) = manifests("rayservice.yaml")
    return {"deploy/serve.yaml": read("deploy/serve.yaml"), "rayservice.yaml": yaml.safe_load(service["spec"]["serveConfigV2"])}


def manifest_ray_version(manifest: dict[str, Any]) -> str:
    return str(cluster_of(manifest)["rayVersion"])
