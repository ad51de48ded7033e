"""What a run is checked for: how many ranks, on which devices. Torch-free."""

import argparse
from pathlib import Path
from typing import NamedTuple

from launch.arguments import positive
from launch.estimate.devices import Device, find
from launch.estimate.network import Network, default_network
from runtime import hardware
from runtime.errors import EXIT_BAD_INPUT, UserError

_MOST_NODES, _MOST_PER_NODE, _MOST_RANKS = 100_000, 1024, 1_000_000
_USUAL_PER_NODE = 8
_DRIVER = Path("/proc/driver/nvidia/gpus")  # a directory for each GPU, with its name


class Target(NamedTuple):
    """The machines of a run."""

    device: Device
    network: Network
    ranks: int
    nodes: int
    per_node: int  # ranks of one node
    is_here: bool  # this machine alone
    host_memory: float | None = None  # bytes of a node; None: nobody said

    @property
    def is_cpu(self) -> bool:
        """Whether there is no GPU."""
        return self.device.name == "cpu"

    @property
    def device_type(self) -> str:
        """As run.device has it."""
        return "cpu" if self.is_cpu else "cuda"

    def __str__(self) -> str:
        name = "CPU" if self.is_cpu else self.device.name
        ranks = f"{self.ranks:,} rank{'s' if self.ranks > 1 else ''} on {name}"
        return ranks if self.nodes == 1 else f"{ranks}, {self.nodes:,} nodes of {self.per_node}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that say where the run will be."""
    parser.add_argument("--ranks", type=int, metavar="N", help="processes in all; default 1")
    parser.add_argument("--nodes", type=int, metavar="N", help="machines; instead of --ranks")
    parser.add_argument(
        "--gpus-per-node", type=int, metavar="N", help="ranks of each; default 8, on CPUs 1"
    )
    parser.add_argument(
        "--gpu", metavar="NAME", help="h200, a100-80gb, … or cpu; default what is here"
    )
    parser.add_argument(
        "--host-memory", type=positive, metavar="GB", help="of a node, for what is offloaded"
    )


def target_of(options: argparse.Namespace, device_key: str) -> Target:
    """The machines that the options name. device_key: the config's run.device.

    Raises UserError (status 2) for numbers that cannot be, and devices that nobody knows.
    """
    for name, most in (("ranks", _MOST_RANKS), ("nodes", _MOST_NODES)):
        _in_range(f"--{name}", getattr(options, name), most)
    _in_range("--gpus-per-node", options.gpus_per_node, _MOST_PER_NODE)
    name = _device_name(options.gpu, device_key)
    device = find(name)
    usual = 1 if device.name == "cpu" else _USUAL_PER_NODE
    ranks = options.ranks
    if options.nodes is not None:
        per_node = options.gpus_per_node or usual
        if ranks is not None and ranks != options.nodes * per_node:
            raise _refusal(
                f"--ranks: {ranks} is not --nodes × --gpus-per-node = {options.nodes} × "
                f"{per_node} = {options.nodes * per_node}; leave one of them out"
            )
        ranks, nodes = options.nodes * per_node, options.nodes
    else:
        ranks = ranks or options.gpus_per_node or 1
        # Without more said, CPU ranks share this machine.
        per_node = options.gpus_per_node or (ranks if device.name == "cpu" else min(ranks, usual))
        nodes = -(-ranks // per_node)
    if ranks > _MOST_RANKS:
        raise _refusal(f"--nodes: {ranks:,} ranks; at most {_MOST_RANKS:,} are reckoned with")
    is_here = nodes == 1 and (options.gpu is None or device.name == _here(device_key))
    host = None
    if options.host_memory is not None:
        host = options.host_memory * 1e9
    elif is_here:
        host = find("cpu").memory_bytes
    return Target(device, default_network(device), ranks, nodes, per_node, is_here, host)


def _in_range(option: str, value: int | None, most: int) -> None:
    if value is not None and not 1 <= value <= most:
        raise _refusal(f"{option}: got {value}, expected 1 to {most:,}")


def _device_name(option: str | None, device_key: str) -> str:
    if option is not None:
        is_cpu = option.strip().lower() == "cpu"
        if device_key != "auto" and is_cpu != (device_key == "cpu"):
            raise _refusal(
                f"--gpu: {option[:40]}, and the config says run.device: {device_key}; leave "
                "--gpu out, or write run.device=auto"
            )
        return option
    if device_key == "cuda" and not hardware.has_nvidia_gpu():
        raise _refusal(
            "run.device: cuda, and this machine has no GPU; name that of the other with --gpu"
        )
    return _here(device_key)


def _here(device_key: str) -> str:
    """The device that a run would take on this machine. Raises UserError for an unknown GPU."""
    if hardware.device_type(device_key) == "cpu":
        return "cpu"
    name = gpu_name()
    if name is None:
        raise _refusal("this machine's GPU does not say its name; give it with --gpu")
    return name


def gpu_name(driver: Path = _DRIVER) -> str | None:
    """The name of the first GPU, as the driver tells it without CUDA; None where it does not."""
    for path in sorted(driver.glob("*/information")):
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        for line in text.splitlines():
            key, _, value = line.partition(":")
            if key == "Model":
                return value.strip()
    return None


def _refusal(message: str) -> UserError:
    return UserError(message, status=EXIT_BAD_INPUT)
