"""What moving bytes between ranks takes: rings of an α–β model over nodes. Imports no torch.

A ring moves (n-1)/n of the data over each link, and its first piece takes a hop per rank (Thakur
et al. 2005, §4; Rajbhandari et al. 2020, §7). Constants are those of NCCL's own tuning model
(src/graph/tuning.cc, protocol Simple): hops of 3.4 µs over NVLink, 5.7 over PCIe and 9.6 between
nodes, 8.4 µs to start; it takes 235 of an A100's 300 GB/s for what a link gives.
"""

import math
from typing import NamedTuple

from launch.estimate.devices import Device

GB = 1e9
HOST_MEMORY = 1000 * GB  # that a node of eight GPUs commonly has
GIVEN = 235 / 300  # of a link's data-sheet bandwidth
START_S = 8.4e-6  # of any collective
_NVLINK_HOP_S, _PCIE_HOP_S, _WIRE_HOP_S = 3.4e-6, 5.7e-6, 9.6e-6
_PCIE = 64 * GB  # what is no faster is no NVLink
_WIRE = {"hopper": 50 * GB, "blackwell": 50 * GB}  # one 400 Gb/s adapter per GPU
_OTHER_WIRE = 25 * GB  # one of 200 Gb/s (DGX A100)
_CPU_WIRE = 1.25 * GB  # 10 Gb/s Ethernet


class Network(NamedTuple):
    """Links as their data sheets state them, in one direction."""

    link: float  # bytes/s per GPU inside a node
    wire: float  # bytes/s per GPU between nodes
    latency_s: float  # of a hop between nodes
    # Share of communication that costs nothing where there is computing to hide it; the rest slows
    # the computing, with which it shares cores and memory.
    overlap: float
    link_latency_s: float = _NVLINK_HOP_S  # of a hop inside a node
    host_link: float = 32 * GB  # bytes/s per GPU to the host's memory, for offload
    host_bandwidth: float = 40 * GB  # bytes/s of the host's memory, per GPU
    nvme: float = 3 * GB  # bytes/s per GPU to and from NVMe: two PCIe 4 drives among four GPUs


def default_network(device: Device) -> Network:
    """What a common cluster of this device has: an adapter per GPU, as in NVIDIA's own systems."""
    is_cpu = device.generation == "cpu"
    return Network(
        link=device.link,
        wire=_CPU_WIRE if is_cpu else _WIRE.get(device.generation, _OTHER_WIRE),
        latency_s=50e-6 if is_cpu else _WIRE_HOP_S,
        overlap=0.0 if is_cpu else 0.5,
        link_latency_s=_PCIE_HOP_S if device.link <= _PCIE else _NVLINK_HOP_S,
        host_link=device.host_link,
    )


def bus_bandwidth(network: Network, ranks: int, gpus_per_node: int) -> float:
    """Bytes/s that each rank of a ring passes on: the slower of its links.

    Between nodes a ring per adapter runs at once, so that a node's adapters add up.
    """
    if ranks <= gpus_per_node:
        return GIVEN * network.link
    return GIVEN * min(network.link, network.wire * min(ranks, gpus_per_node))


def _hops(network: Network, ranks: int, gpus_per_node: int) -> float:
    """Seconds that a piece takes around a ring."""
    boundaries = -(-ranks // gpus_per_node) - 1
    return boundaries * network.latency_s + (ranks - 1 - boundaries) * network.link_latency_s


def ring_time(
    size: float, ranks: int, network: Network, gpus_per_node: int, *, calls: int = 1
) -> float:
    """Seconds of an all-gather or reduce-scatter of `size` bytes, the whole, in so many calls."""
    if ranks <= 1:
        return 0.0
    start = calls * (START_S + _hops(network, ranks, gpus_per_node))
    share = (ranks - 1) / ranks
    return start + share * size / bus_bandwidth(network, ranks, gpus_per_node)


def all_reduce_time(
    size: float, ranks: int, network: Network, gpus_per_node: int, *, calls: int = 1
) -> float:
    """Seconds of an all-reduce of `size` bytes: both halves of a ring, or a tree if that is less.

    A double binary tree moves the same bytes in 2·log₂(nodes) hops between nodes (Sanders et al.
    2009), at nine tenths of the bandwidth, as NCCL reckons.
    """
    if ranks <= 1:
        return 0.0
    bandwidth = bus_bandwidth(network, ranks, gpus_per_node)
    moved = 2 * (ranks - 1) / ranks * size / bandwidth
    ring = calls * (START_S + 2 * _hops(network, ranks, gpus_per_node)) + moved
    nodes, local = -(-ranks // gpus_per_node), min(ranks, gpus_per_node)
    depth = (local - 1) * network.link_latency_s + math.ceil(math.log2(nodes)) * network.latency_s
    tree = calls * (START_S + 2 * depth) + moved / 0.9
    return min(ring, tree) if nodes > 1 else ring


def replica_time(
    size: float, replicas: int, network: Network, gpus_per_node: int, *, is_local: bool
) -> float:
    """Seconds of an all-reduce of `size` bytes per rank between sharding groups.

    Each rank talks with those of its place in other groups, through its own adapter alone unless
    the groups lie side by side in one node (`is_local`).
    """
    if replicas <= 1:
        return 0.0
    link = network.link if is_local else min(network.link, network.wire)
    hop = network.link_latency_s if is_local else network.latency_s
    share = 2 * (replicas - 1) / replicas
    return START_S + 2 * (replicas - 1) * hop + share * size / (GIVEN * link)
