"""The objects of a run on Kubernetes: a ConfigMap, a headless Service, an indexed Job.

Fields as of Kubernetes 1.31, where podFailurePolicy became stable:
https://kubernetes.io/docs/concepts/workloads/controllers/job/
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from launch.cluster.kubernetes_words import Volume
from launch.cluster.torchrun import PORT
from runtime.errors import EXIT_BAD_INPUT, EXIT_PREEMPTED

_CONTAINER = "train"
_CONFIG = "/etc/ingot/config.yaml"
_INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
_TERMINATED = 128 + 15  # by SIGTERM before our handlers were there
# Of a pod, by itself: its supervisor has started the ranks again before, ten times.
_FAILURES_OF_A_POD = 3

Object = dict[str, Any]


class Pods(NamedTuple):
    """What the pods of a run have and are."""

    name: str
    namespace: str
    nodes: int
    gpus: int  # of each; 0: one rank, on CPUs
    image: str
    volumes: Sequence[Volume]
    environment: Mapping[str, str]
    secrets: Sequence[str]
    selector: Mapping[str, str]
    cpu: str
    memory: str
    shared_memory: str
    grace_s: int
    user: int


def objects(pods: Pods, script: str, overrides: Sequence[str], config: str) -> list[Object]:
    """The documents to apply, in their order."""
    # An immutable map under a name of its own: pods of one Job never read two configs.
    digest = hashlib.sha256(config.encode()).hexdigest()[:8]
    labels = {
        "app.kubernetes.io/name": "ingot",
        "app.kubernetes.io/instance": pods.name,
    }

    def metadata(name: str) -> Object:
        return {"name": name, "namespace": pods.namespace, "labels": labels}

    config_map = f"{pods.name}-{digest}"
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata(config_map),
            "immutable": True,
            "data": {"config.yaml": config},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata(pods.name),
            "spec": {
                "clusterIP": "None",
                # They look for one another before they are ready.
                "publishNotReadyAddresses": True,
                "selector": {"batch.kubernetes.io/job-name": pods.name},
                "ports": [{"name": "rendezvous", "port": PORT, "protocol": "TCP"}],
            },
        },
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": metadata(pods.name),
            "spec": {
                **_policy(pods.nodes),
                "template": {
                    "metadata": {"labels": labels},
                    "spec": _pod(pods, config_map, [script, _CONFIG, *overrides]),
                },
            },
        },
    ]


def _policy(nodes: int) -> Object:
    """When pods are replaced, and when the Job has failed."""
    return {
        "completionMode": "Indexed",
        "completions": nodes,
        "parallelism": nodes,
        "backoffLimitPerIndex": _FAILURES_OF_A_POD,
        "maxFailedIndexes": 0,  # the others cannot train without it
        "podReplacementPolicy": "Failed",  # never two pods of one index
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onExitCodes": _exit_codes(EXIT_BAD_INPUT)},
                # Stopped, and saved: replaced, as often as it happens.
                {"action": "Ignore", "onExitCodes": _exit_codes(EXIT_PREEMPTED, _TERMINATED)},
                {
                    "action": "Ignore",
                    "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                },
            ]
        },
    }


def _exit_codes(*codes: int) -> Object:
    return {"containerName": _CONTAINER, "operator": "In", "values": list(codes)}


def _pod(pods: Pods, config_map: str, script: Sequence[str]) -> Object:
    spec: Object = {
        "restartPolicy": "Never",  # what podFailurePolicy asks for
        "subdomain": pods.name,  # gives each pod the name NAME-INDEX.NAME
        "terminationGracePeriodSeconds": pods.grace_s,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": pods.user,
            "runAsGroup": pods.user,
            "fsGroup": pods.user,
            "fsGroupChangePolicy": "OnRootMismatch",  # not every file of a corpus at each start
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(pods, script)],
        "volumes": [
            {"name": "config", "configMap": {"name": config_map}},
            {
                "name": "shared-memory",
                "emptyDir": {"medium": "Memory", "sizeLimit": pods.shared_memory},
            },
            {"name": "scratch", "emptyDir": {}},
            *(
                {
                    "name": f"claim-{number}",
                    "persistentVolumeClaim": {
                        "claimName": volume.claim,
                        "readOnly": volume.is_read_only,
                    },
                }
                for number, volume in enumerate(pods.volumes)
            ),
        ],
    }
    if pods.selector:
        spec["nodeSelector"] = dict(pods.selector)
    if pods.gpus:
        spec["tolerations"] = [
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
        ]
    return spec


def _container(pods: Pods, script: Sequence[str]) -> Object:
    launcher = ["python", "-m", "torch.distributed.run"]
    launcher += ["--nnodes", str(pods.nodes), "--nproc-per-node", str(max(pods.gpus, 1))]
    # Kubernetes has numbered the pods. torchrun's own way (c10d) looks the name up to learn who is
    # first, and DNS may not know it yet when the pod starts.
    launcher += ["--node-rank", "$(NODE_RANK)"]
    launcher += ["--master-addr", f"{pods.name}-0.{pods.name}", "--master-port", str(PORT)]
    command = ["python", "-m", "launch", "supervise", "--", *launcher]
    limits: Object = {"memory": pods.memory}
    if pods.gpus:
        limits["nvidia.com/gpu"] = pods.gpus
    # Caches are written below HOME, and the image's files are read-only.
    environment = {"HOME": "/scratch", "TMPDIR": "/scratch", **pods.environment}
    container: Object = {
        "name": _CONTAINER,
        "image": pods.image,
        "command": [*command, *map(_unexpanded, script)],
        "env": [
            {"name": "NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": _INDEX}}},
            *({"name": n, "value": _unexpanded(v)} for n, v in environment.items()),
        ],
        "resources": {"requests": {"cpu": pods.cpu, **limits}, "limits": limits},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "config", "mountPath": "/etc/ingot", "readOnly": True},
            {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108 - in a pod
            {"name": "scratch", "mountPath": "/scratch"},
            *(
                {"name": f"claim-{number}", "mountPath": v.path, "readOnly": v.is_read_only}
                for number, v in enumerate(pods.volumes)
            ),
        ],
    }
    if pods.secrets:
        container["envFrom"] = [{"secretRef": {"name": name}} for name in pods.secrets]
    return container


def _unexpanded(word: str) -> str:
    """A word that arrives as it is: Kubernetes makes a variable of $(NAME), and $ of $$."""
    return word.replace("$", "$$")
