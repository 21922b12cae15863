"""What of KubeRay's `ray.io/v1` our manifests rely on, as JSON schemas; a field that is not here is refused.

From the types and the validation of KubeRay 1.6 (ray-operator/apis/ray/v1/raycluster_types.go and rayjob_types.go,
ray-operator/controllers/ray/utils/validation.go) and, below the pod templates, Kubernetes' core/v1.
"""

import re
from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NAME: Schema = {
    "type": "string",
    "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$",
    "maxLength": 47,
}  # DNS-1035; of a RayJob
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}
ANY: Schema = {"type": "object"}
LABELS: Schema = {
    "type": "object",
    "additionalProperties": {
        "type": "string",
        "pattern": "^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$",
    },
}


def fields(*required: str, **known: Schema) -> Schema:
    """An object with these fields and no others."""
    return {
        "type": "object",
        "properties": known,
        "required": list(required),
        "additionalProperties": False,
    }


def listed(item: Schema, least: int = 0) -> Schema:
    return {"type": "array", "items": item, "minItems": least}


def choice(*values: str) -> Schema:
    return {"enum": list(values)}


SECRET_KEY = fields("name", "key", name=TEXT, key=TEXT, optional=FLAG)
VALUE_FROM = fields(secretKeyRef=SECRET_KEY, configMapKeyRef=SECRET_KEY)
QUANTITIES: Schema = {
    "type": "object",
    "propertyNames": choice("cpu", "memory", "nvidia.com/gpu"),
    "additionalProperties": {"type": "string", "pattern": "^[0-9]+(m|Mi|Gi)?$"},
}
CONTAINER = fields(
    "name", "image", "resources", "securityContext",
    name=TEXT, image=TEXT, command=listed(TEXT), ports=listed(fields("containerPort", containerPort=COUNT)),
    env=listed(fields("name", name=TEXT, value=TEXT, valueFrom=VALUE_FROM)),
    envFrom=listed(fields(secretRef=fields("name", name=TEXT, optional=FLAG))),
    resources=fields("requests", "limits", requests=QUANTITIES, limits=QUANTITIES),
    securityContext=fields(allowPrivilegeEscalation={"const": False}, capabilities=fields(drop={"const": ["ALL"]})),
    volumeMounts=listed(fields("name", "mountPath", name=TEXT, mountPath=TEXT)),
)  # fmt: skip
POD = fields(
    "containers", "securityContext",
    containers=listed(CONTAINER, 1), serviceAccountName=TEXT, automountServiceAccountToken=FLAG,
    securityContext=fields(
        "runAsNonRoot", "seccompProfile",
        runAsNonRoot={"const": True}, runAsUser=COUNT, runAsGroup=COUNT, fsGroup=COUNT,
        seccompProfile={"const": {"type": "RuntimeDefault"}},
    ),
    volumes=listed(fields("name", name=TEXT, emptyDir=ANY)),
    affinity=fields(nodeAffinity=fields(preferredDuringSchedulingIgnoredDuringExecution=listed(ANY))),
    tolerations=listed(fields(key=TEXT, operator=choice("Exists", "Equal"), value=TEXT, effect=TEXT)),
    # Never, or unset, with version 2 of the autoscaler.
    restartPolicy={"const": "Never"},
)  # fmt: skip
POD_TEMPLATE = fields("spec", metadata=fields(labels=LABELS, annotations=TEXTS), spec=POD)
# Labels and resources have fields of their own; the operator refuses labels here.
START: Schema = TEXTS | {"not": {"anyOf": [{"required": ["labels"]}, {"required": ["redis-password"]}]}}
CLUSTER_SPEC = fields(
    "headGroupSpec", "rayVersion",
    rayVersion={"type": "string", "pattern": r"^2\.(5[2-9]|[6-9]\d|\d{3,})\.\d+$"},  # tokens came with 2.52
    authOptions=fields("mode", mode=choice("disabled", "token"), secretName=TEXT, enableK8sTokenAuth=FLAG),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=fields(
        version=choice("v1", "v2"), idleTimeoutSeconds=COUNT,
        upscalingMode=choice("Default", "Aggressive", "Conservative"),
    ),
    gcsFaultToleranceOptions=fields(
        "redisAddress",
        redisAddress=TEXT, externalStorageNamespace=TEXT,
        redisPassword=fields(value=TEXT, valueFrom=VALUE_FROM),
    ),
    headGroupSpec=fields(
        "template",
        template=POD_TEMPLATE, rayStartParams=START, labels=LABELS, resources=TEXTS,
        serviceType=choice("ClusterIP", "NodePort", "LoadBalancer"), enableIngress=FLAG,
    ),
    workerGroupSpecs=listed(fields(
        "groupName", "minReplicas", "maxReplicas", "template",
        groupName=TEXT, replicas=COUNT, minReplicas=COUNT, maxReplicas=COUNT, numOfHosts=COUNT,
        idleTimeoutSeconds=COUNT, labels=LABELS, resources=TEXTS, rayStartParams=START, template=POD_TEMPLATE,
    )),
)  # fmt: skip
METADATA = fields("name", "namespace", name=NAME, namespace=TEXT, labels=LABELS, annotations=TEXTS)
RAY_CLUSTER = fields(
    "apiVersion", "kind", "metadata", "spec",
    apiVersion={"const": "ray.io/v1"}, kind={"const": "RayCluster"}, metadata=METADATA, spec=CLUSTER_SPEC,
)  # fmt: skip
RAY_JOB = fields(
    "apiVersion", "kind", "metadata", "spec",
    apiVersion={"const": "ray.io/v1"}, kind={"const": "RayJob"}, metadata=METADATA,
    spec=fields(
        "entrypoint", "rayClusterSpec",
        entrypoint=TEXT, rayClusterSpec=CLUSTER_SPEC, runtimeEnvYAML=TEXT, backoffLimit=COUNT,
        submissionMode=choice("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
        submitterConfig=fields(backoffLimit=COUNT), activeDeadlineSeconds={"type": "integer", "minimum": 1},
        shutdownAfterJobFinishes=FLAG, ttlSecondsAfterFinished=COUNT, suspend=FLAG,
    ),
)  # fmt: skip


def as_bytes(quantity: str) -> int:
    """Memory as Kubernetes writes it."""
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", quantity).groups()  # type: ignore[union-attr]
    return int(number) << {"Mi": 20, "Gi": 30}[unit]
