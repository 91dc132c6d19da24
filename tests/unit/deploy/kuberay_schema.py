"""JSON Schema of KubeRay's resources (ray.io/v1), reduced to what deploy/kubernetes uses.

Written from the operator's published types (raycluster_types.go, rayjob_types.go, rayservice_types.go): names, kinds, required
fields. Strict: an unknown field is a typo. A pod is reduced to fields of core/v1 in the same way.
"""

from __future__ import annotations

from typing import Any

TEXT, FLAG, COUNT = {"type": "string"}, {"type": "boolean"}, {"type": "integer", "minimum": 0}
QUANTITY = {"type": ["string", "integer"], "pattern": r"^\d+(\.\d+)?(m|[KMGTP]i?)?$"}
TEXTS = {"type": "object", "additionalProperties": TEXT}


def record(required: str = "", **fields: Any) -> dict[str, Any]:
    """Build the schema of an object with exactly these fields."""
    return {"type": "object", "required": required.split(), "properties": fields, "additionalProperties": False}


def listed(item: dict[str, Any], least: int = 1) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": least}


def one_of(*values: str) -> dict[str, Any]:
    return {"enum": list(values)}


SECURITY = record(
    "allowPrivilegeEscalation capabilities", allowPrivilegeEscalation=FLAG, capabilities=record("drop", drop=listed(TEXT))
)
AMOUNTS = {"type": "object", "additionalProperties": QUANTITY}
RESOURCES = record(requests=AMOUNTS, limits=AMOUNTS)
CONTAINER = record(
    "name image",
    name=TEXT,
    image=TEXT,
    securityContext=SECURITY,
    command=listed(TEXT),
    args=listed(TEXT),
    env=listed(record("name value", name=TEXT, value=TEXT)),
    envFrom=listed(record(secretRef=record("name", name=TEXT, optional=FLAG))),
    ports=listed(record("containerPort", name={"type": "string", "maxLength": 15}, containerPort=COUNT)),
    readinessProbe=record(httpGet=record("port", path=TEXT, port={"type": ["string", "integer"]})),
    resources=RESOURCES,
    volumeMounts=listed(record("name mountPath", name=TEXT, mountPath=TEXT, readOnly=FLAG, subPath=TEXT)),
)
VOLUME = record(
    "name",
    name=TEXT,
    persistentVolumeClaim=record("claimName", claimName=TEXT, readOnly=FLAG),
    secret=record("secretName", secretName=TEXT, defaultMode=COUNT, optional=FLAG),
    emptyDir=record(medium=TEXT, sizeLimit=QUANTITY),
)
POD = record(
    "spec",
    metadata=record(labels=TEXTS, annotations=TEXTS),
    spec=record(
        "containers",
        containers=listed(CONTAINER),
        volumes=listed(VOLUME),
        nodeSelector=TEXTS,
        tolerations=listed(record(key=TEXT, operator=TEXT, value=TEXT, effect=TEXT)),
        automountServiceAccountToken=FLAG,
        securityContext=record(
            runAsUser=COUNT,
            runAsGroup=COUNT,
            runAsNonRoot=FLAG,
            fsGroup=COUNT,
            fsGroupChangePolicy=one_of("OnRootMismatch", "Always"),
            seccompProfile=record("type", type=one_of("RuntimeDefault", "Unconfined", "Localhost"), localhostProfile=TEXT),
        ),
    ),
)

CLUSTER_SPEC = record(
    "headGroupSpec",
    rayVersion=TEXT,
    authOptions=record(mode=one_of("disabled", "token"), secretName=TEXT),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=record(
        resources=RESOURCES,
        idleTimeoutSeconds=COUNT,
        upscalingMode=one_of("Default", "Aggressive", "Conservative"),
        securityContext=SECURITY,
    ),
    headServiceAnnotations=TEXTS,
    suspend=FLAG,
    headGroupSpec=record("rayStartParams template", serviceType=TEXT, enableIngress=FLAG, rayStartParams=TEXTS, template=POD),
    workerGroupSpecs=listed(
        record(
            "groupName minReplicas maxReplicas rayStartParams template",
            groupName=TEXT,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            numOfHosts=COUNT,
            rayStartParams=TEXTS,
            template=POD,
        )
    ),
)
JOB_SPEC = record(
    "entrypoint rayClusterSpec",
    activeDeadlineSeconds=COUNT,
    backoffLimit=COUNT,
    rayClusterSpec=CLUSTER_SPEC,
    metadata=TEXTS,
    entrypoint=TEXT,
    runtimeEnvYAML=TEXT,
    submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode"),
    entrypointNumCpus={"type": "number"},
    entrypointResources=TEXT,
    ttlSecondsAfterFinished=COUNT,
    shutdownAfterJobFinishes=FLAG,
    suspend=FLAG,
)
SERVICE_SPEC = record(
    "rayClusterConfig",
    serveConfigV2=TEXT,
    rayClusterConfig=CLUSTER_SPEC,
    upgradeStrategy=record(type=one_of("NewCluster", "None")),
    excludeHeadPodFromServeSvc=FLAG,
    rayClusterDeletionDelaySeconds=COUNT,
)


def resource(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = record("name namespace", name=TEXT, namespace=TEXT, labels=TEXTS, annotations=TEXTS)
    return record(
        "apiVersion kind metadata spec", apiVersion={"const": "ray.io/v1"}, kind={"const": kind}, metadata=metadata, spec=spec
    )


SCHEMAS = {
    kind: resource(kind, spec)
    for kind, spec in (("RayCluster", CLUSTER_SPEC), ("RayJob", JOB_SPEC), ("RayService", SERVICE_SPEC))
}
