"""The manifests against KubeRay's types; nothing is applied to a cluster."""

from __future__ import annotations

import copy
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from errata.access_keys import Keys
from jobs import tune
from jobs.arguments import from_arguments
from serving.app import Arguments
from tests.unit.deploy.deployment import (
    MANIFESTS,
    RAY_MANIFESTS,
    ROOT,
    cluster_of,
    manifests,
    serve_configs,
)
from tests.unit.deploy.kuberay_schema import SCHEMAS


def pods_of(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """List a manifest's pod templates, a head first."""
    if manifest["apiVersion"].startswith("ray.io/"):
        cluster = cluster_of(manifest)
        yield cluster["headGroupSpec"]["template"]
        yield from (group["template"] for group in cluster["workerGroupSpecs"])
    elif manifest["kind"] == "Deployment":
        yield manifest["spec"]["template"]


@pytest.mark.parametrize("name", RAY_MANIFESTS)
def test_a_manifest_is_valid_by_kuberays_types(name: str) -> None:
    for manifest in manifests(name):
        assert list(jsonschema.Draft202012Validator(SCHEMAS[manifest["kind"]]).iter_errors(manifest)) == []


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
def test_kuberays_types_are_a_valid_schema(schema: dict[str, Any]) -> None:
    kind = jsonschema.Draft202012Validator
    assert list(kind(kind.META_SCHEMA).iter_errors(schema)) == []


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """List the paths of keys that belong to the structure, except those of maps with arbitrary keys."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        if isinstance(key, str):
            yield (*path, key)
        if key not in ("labels", "annotations", "rayStartParams", "requests", "limits"):
            yield from paths_of(inner, (*path, key))


@pytest.mark.parametrize("name", RAY_MANIFESTS)
def test_a_typo_anywhere_in_a_manifest_is_caught(name: str) -> None:
    (manifest,) = manifests(name)
    paths, structure = list(paths_of(manifest)), jsonschema.Draft202012Validator(SCHEMAS[manifest["kind"]])
    assert len(paths) > 60
    for path in paths:
        broken = copy.deepcopy(manifest)
        at = broken
        for key in path[:-1]:
            at = at[key]
        at[f"{path[-1]}x"] = at.pop(path[-1])
        assert not structure.is_valid(broken), path


def test_all_objects_share_a_namespace_and_have_unique_names() -> None:
    found = manifests(*MANIFESTS)
    (namespace,) = [one["metadata"]["name"] for one in found if one["kind"] == "Namespace"]
    assert all(one["metadata"]["namespace"] == namespace for one in found if one["kind"] != "Namespace")
    names = [(one["kind"], one["metadata"]["name"]) for one in found]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", MANIFESTS)
def test_references_of_pods_exist(name: str) -> None:
    there = {(one["kind"], one["metadata"]["name"]) for one in manifests(*MANIFESTS)}
    for template in (template for manifest in manifests(name) for template in pods_of(manifest)):
        volumes = {volume["name"]: volume for volume in template["spec"].get("volumes", ())}
        for container in template["spec"]["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
            for source in container.get("envFrom", ()):
                assert ("Secret", source["secretRef"]["name"]) in there
        for volume in volumes.values():
            if claim := volume.get("persistentVolumeClaim"):
                assert ("PersistentVolumeClaim", claim["claimName"]) in there
            if secret := volume.get("secret"):
                assert ("Secret", secret["secretName"]) in there


@pytest.mark.parametrize("name", RAY_MANIFESTS)
def test_a_pod_of_ray_has_the_environment_and_the_shared_folder(name: str) -> None:
    for template in (template for manifest in manifests(name) for template in pods_of(manifest)):
        (container,) = template["spec"]["containers"]
        environment = {entry["name"]: entry["value"] for entry in container["env"]}
        assert environment == {"ERRATA_HOME": "/mnt/errata", "RAY_USAGE_STATS_ENABLED": "0"}
        assert {"name": "home", "mountPath": environment["ERRATA_HOME"]} in container["volumeMounts"]
        assert template["metadata"]["annotations"]["prometheus.io/scrape"] == "true"
        assert container["resources"]["requests"] == container["resources"]["limits"], "Ray counts the one, the node the other"


@pytest.mark.parametrize("name", RAY_MANIFESTS)
def test_a_group_declares_the_resource_that_it_is_named_after(name: str) -> None:
    """KubeRay takes a string that contains quoted JSON."""
    (manifest,) = manifests(name)
    for group in cluster_of(manifest)["workerGroupSpecs"]:
        assert json.loads(json.loads(group["rayStartParams"]["resources"])) == {group["groupName"]: 1}
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_manifests_name_existing_jobs() -> None:
    entrypoints = {name: shlex.split(manifests(f"rayjob-{name}.yaml")[0]["spec"]["entrypoint"]) for name in ("train", "tune")}
    for name, (python, script, *_) in entrypoints.items():
        assert python == "python" and script == f"/opt/errata/jobs/{name}.py" and (ROOT / "jobs" / f"{name}.py").exists()
    trained, swept = from_arguments(entrypoints["train"][2:]), tune.from_command_line(entrypoints["tune"][2:])
    for name, plan in (("train", trained), ("tune", swept.plan)):
        (group,) = cluster_of(manifests(f"rayjob-{name}.yaml")[0])["workerGroupSpecs"]
        assert plan.placement == group["groupName"] == "train" and plan.mlflow == "http://errata-mlflow:5000"
        assert bool(plan.use_gpu) == ("nvidia.com/gpu" in group["template"]["spec"]["containers"][0]["resources"]["limits"])
    assert trained.num_workers <= group_of("rayjob-train.yaml")["maxReplicas"]


def group_of(name: str) -> dict[str, Any]:
    (group,) = cluster_of(manifests(name)[0])["workerGroupSpecs"]
    return dict(group)


def test_the_service_has_gpus_for_its_replicas_and_the_edit_worker() -> None:
    arguments = Arguments.model_validate(serve_configs()["rayservice.yaml"]["applications"][0]["args"])
    group = group_of("rayservice.yaml")
    (container,) = group["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    assert arguments.replicas * arguments.gpus + 1 <= group["minReplicas"] * limits["nvidia.com/gpu"]
    assert (arguments.replicas + 1) * arguments.num_cpus <= group["minReplicas"] * int(limits["cpu"])
    (head,) = cluster_of(manifests("rayservice.yaml")[0])["headGroupSpec"]["template"]["spec"]["containers"]
    assert {"name": "serve", "containerPort": 8000} in head["ports"], "KubeRay takes the service's port from the head"
    (keys,) = [mount for mount in container["volumeMounts"] if mount["name"] == "keys"]
    assert arguments.keys == f"{keys['mountPath']}/keys.json" and keys["readOnly"]
    (volume,) = [volume for volume in group["template"]["spec"]["volumes"] if volume["name"] == "keys"]
    assert volume["secret"]["defaultMode"] & 0o022 == 0, "a file of keys that others may write to is refused"


def test_there_is_one_edit_worker() -> None:
    (service,) = manifests("rayservice.yaml")
    assert service["spec"]["upgradeStrategy"] == {"type": "None"}


def test_the_secrets_example_keys_give_no_access(tmp_path: Path) -> None:
    (secret,) = [one for one in manifests("secrets.yaml") if one["metadata"]["name"] == "errata-keys"]
    (tmp_path / "keys.json").write_text(secret["stringData"]["keys.json"])
    (tmp_path / "keys.json").chmod(0o440)
    assert Keys.load(tmp_path / "keys.json").entries == ()


def test_services_and_policies_select_existing_pods() -> None:
    found = manifests(*MANIFESTS)
    labels = [template["metadata"].get("labels", {}) for one in found for template in pods_of(one)]
    for one in found:
        selector = one["spec"]["selector"] if one["kind"] == "Service" else {}
        if one["kind"] == "NetworkPolicy":
            selector = one["spec"]["podSelector"].get("matchLabels", {})
        if one["kind"] == "PodDisruptionBudget":
            selector = one["spec"]["selector"]["matchLabels"]
        assert not selector or any(selector.items() <= own.items() for own in labels), one["metadata"]["name"]
    (mlflow,) = [one for one in found if one["kind"] == "Deployment"]
    assert mlflow["spec"]["selector"]["matchLabels"].items() <= mlflow["spec"]["template"]["metadata"]["labels"].items()


# -- hardening --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RAY_MANIFESTS)
def test_every_ray_cluster_asks_for_a_token(name: str) -> None:
    """A caller who reaches a dashboard without one runs code. The image refuses to start Ray without a token."""
    for manifest in manifests(name):
        assert cluster_of(manifest)["authOptions"] == {"mode": "token"}
        for template in pods_of(manifest):  # KubeRay sets the variables; one of ours would take their place.
            environment = {entry["name"] for container in template["spec"]["containers"] for entry in container["env"]}
            assert not environment & {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}
    assert "RAY_AUTH_MODE=token" in (ROOT / "deploy" / "Dockerfile").read_text()


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_pod_has_no_more_rights_than_it_needs(name: str) -> None:
    for manifest in manifests(name):
        is_ray = manifest["apiVersion"].startswith("ray.io/")
        is_autoscaled = is_ray and cluster_of(manifest).get("enableInTreeAutoscaling", False)
        locked = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        if is_autoscaled:
            assert cluster_of(manifest)["autoscalerOptions"]["securityContext"] == locked
        for number, template in enumerate(pods_of(manifest)):
            pod = template["spec"]
            security = pod["securityContext"]
            assert security["runAsNonRoot"] and security["runAsUser"] == 1000
            assert security["seccompProfile"] == {"type": "RuntimeDefault"}
            asks_kubernetes = is_autoscaled and number == 0  # The autoscaler beside the head starts pods.
            assert asks_kubernetes or pod["automountServiceAccountToken"] is False
            for container in pod["containers"]:
                assert container["securityContext"] == locked
                assert "@sha256:" in container["image"], "a tag may be another image tomorrow"


def test_pods_reach_nothing_outside_but_names_and_the_autoscalers_kubernetes() -> None:
    policies = [one for one in manifests(*MANIFESTS) if one["kind"] == "NetworkPolicy"]
    closed = [one["spec"] for one in policies if not one["spec"]["podSelector"]]
    assert {kind for spec in closed for kind in spec["policyTypes"]} == {"Ingress", "Egress"}, "all pods are closed both ways"
    for policy in policies:
        for rule in policy["spec"].get("egress", ()):
            ports = {port["port"] for port in rule.get("ports", ())}
            for target in rule["to"]:
                is_dns = "namespaceSelector" in target and ports == {53}
                is_kubernetes = target.get("ipBlock", {}).get("cidr", "").endswith("/32") and ports == {443, 6443}
                assert is_dns or target == {"podSelector": {}} or (is_kubernetes and policy["spec"]["podSelector"])


def test_a_drained_node_takes_one_serving_pod_at_a_time_and_never_the_head() -> None:
    budgets = {one["metadata"]["name"]: one["spec"] for one in manifests(*MANIFESTS) if one["kind"] == "PodDisruptionBudget"}
    assert {name: spec["maxUnavailable"] for name, spec in budgets.items()} == {"errata-serve": 1, "errata-serve-head": 0}
