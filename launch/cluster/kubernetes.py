"""`python -m launch kubernetes -- CONFIG`: a run as an indexed Job of Kubernetes.

A pod a node. The pods find one another by the name that the headless Service gives to the first.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.arguments import counted
from launch.cluster import training
from launch.cluster.kubernetes_objects import Pods, objects
from launch.cluster.kubernetes_words import (
    Volume,
    check_image,
    check_label,
    check_name,
    check_quantity,
    check_variable,
    check_volume,
)
from launch.cluster.torchrun import MAX_NODES, MAX_RANKS
from runtime.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_OK, UserError
from runtime.yaml_documents import documents_to_yaml

MAX_CONFIG_BYTES = 1_000_000  # a ConfigMap holds 1 MiB, with its names


def main(argv: Sequence[str]) -> int:
    """Print the objects as YAML, or apply them. Raises UserError."""
    options = _options(argv)
    run = training.read(options, options.nodes * max(options.gpus_per_node, 1))
    text = run.file.read_text(encoding="utf-8")
    if len(text.encode()) > MAX_CONFIG_BYTES:
        raise _refused(f"{run.path}: larger than {MAX_CONFIG_BYTES} bytes, what a ConfigMap holds")
    pods = Pods(
        name=options.job_name or run.config.run.name,
        namespace=options.namespace,
        nodes=options.nodes,
        gpus=options.gpus_per_node,
        image=options.image,
        volumes=[check_volume(text) for text in options.volume],
        environment=dict(check_variable(text) for text in options.env),
        secrets=options.env_from_secret,
        selector=dict(check_label(text) for text in options.node_selector),
        cpu=options.cpu,
        memory=options.memory,
        shared_memory=options.shared_memory,
        grace_s=options.grace,
        user=options.user,
    )
    _check(pods)
    _check_run_dir(Path(run.config.run_dir), pods.volumes)
    script = f"launch/{run.stage}.sh"
    manifest = documents_to_yaml(objects(pods, script, run.overrides, text))
    if options.print:
        print(manifest, end="")
    else:
        _apply(manifest)
    return EXIT_OK


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m launch kubernetes", description=__doc__)
    parser.add_argument("--nodes", type=counted("nodes", 1, MAX_NODES), default=1, help="pods")
    parser.add_argument(
        "--gpus-per-node",
        type=counted("gpus-per-node", 0, MAX_RANKS),
        default=0,
        help="ranks on each; 0: one rank, on CPUs",
    )
    parser.add_argument("--image", required=True, help="built from launch/templates/Containerfile")
    parser.add_argument("--namespace", default="default")
    parser.add_argument("--job-name", help="default: the run's name")
    parser.add_argument(
        "--volume",
        action="append",
        default=[],
        metavar="CLAIM:/PATH[:ro]",
        help="a PersistentVolumeClaim that all pods mount: data, and the run directory",
    )
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument(
        "--env-from-secret", action="append", default=[], metavar="SECRET", help="such as tokens"
    )
    parser.add_argument("--node-selector", action="append", default=[], metavar="LABEL=VALUE")
    parser.add_argument("--cpu", default="4", help="CPUs of a pod; default 4")
    parser.add_argument("--memory", default="32Gi", help="memory of a pod; default 32Gi")
    parser.add_argument("--shared-memory", default="8Gi", help="of it for /dev/shm; default 8Gi")
    parser.add_argument(
        "--grace",
        type=counted("grace", 30, 86_400),
        default=600,
        help="seconds for a save when a pod must go; default 600",
    )
    parser.add_argument(
        "--user",
        type=counted("user", 1, 2**31 - 1),
        default=1000,
        help="user and group id in the container; default 1000",
    )
    training.add_arguments(parser)
    parser.add_argument("--apply", action="store_true", help="send it to the cluster by kubectl")
    options = parser.parse_args(argv)
    if options.print == options.apply:
        parser.error("give --print or --apply, one of them")
    return options


def _check(pods: Pods) -> None:
    """Everything that Kubernetes would refuse, or take for something else. Raises UserError."""
    # A pod is called NAME-INDEX, and its host name is a label of DNS.
    room = 63 - len(f"-{pods.nodes - 1}")
    check_name("--job-name", pods.name, room, letter_first=True)
    check_name("--namespace", pods.namespace, 63)
    for secret in pods.secrets:
        check_name("--env-from-secret", secret, 253)
    check_image(pods.image)
    for option in ("cpu", "memory", "shared_memory"):
        check_quantity(f"--{option.replace('_', '-')}", getattr(pods, option))
    paths = [volume.path for volume in pods.volumes]
    if len(set(paths)) < len(paths):
        raise _refused(f"--volume: two are mounted at one path: {', '.join(sorted(paths))}")


def _check_run_dir(run_dir: Path, volumes: Sequence[Volume]) -> None:
    """What is written must outlive a pod. Raises UserError."""
    writable = [Path(volume.path) for volume in volumes if not volume.is_read_only]
    leads_out = ".." in run_dir.parts
    if leads_out or not any(run_dir.is_relative_to(path) for path in writable):
        mounted = ", ".join(map(str, writable)) or "none"
        raise _refused(
            f"run.dir: {run_dir} is on no volume that pods can write (--volume: {mounted}); a pod "
            "that is replaced would lose its checkpoints; write run.dir=/PATH/{name}"
        )


def _apply(manifest: str) -> None:
    if shutil.which("kubectl") is None:
        raise _refused("kubectl is not here; install it, or use --print and apply that")
    done = subprocess.run(
        ["kubectl", "apply", "--filename", "-"], input=manifest, text=True, check=False
    )
    if done.returncode:
        raise UserError("kubectl could not apply it; its message is above", status=EXIT_FAILED)


def _refused(message: str) -> UserError:
    return UserError(message, status=EXIT_BAD_INPUT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
