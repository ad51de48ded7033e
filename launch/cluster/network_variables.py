"""What NCCL and gloo read from the environment: unknown names, absent interfaces, contradictions.

Both libraries ignore a variable that they do not know, and hang or fall back to a slow network
where a value fits no interface. Names: NCCL's documentation and sources, torch's ProcessGroupGloo.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_NCCL = """
ALGO ALLOC_P2P_NET_LL_BUFFERS BUFFSIZE CGA_CLUSTER_SIZE CHECKS_DISABLE CHECK_POINTERS CLOSE_TIMEOUT
COLLNET_ENABLE COLLNET_NODE_THRESHOLD COMM_BLOCKING COMM_ID COMM_SPLIT_SHARE_RESOURCES CONF_FILE
CROSS_NIC CTA_POLICY CUMEM_ENABLE CUMEM_HOST_ENABLE DEBUG DEBUG_FILE DEBUG_SUBSYS
DEBUG_TIMESTAMP_FORMAT DEBUG_TIMESTAMP_LEVELS DMABUF_ENABLE GDRCOPY_ENABLE GIN_ENABLE GIN_TYPE
GRAPH_DUMP_FILE GRAPH_FILE GRAPH_MIXING_SUPPORT GRAPH_REGISTER HOSTID IB_ADAPTIVE_ROUTING
IB_ADDR_FAMILY IB_ADDR_RANGE IB_AR_THRESHOLD IB_CUDA_SUPPORT IB_DATA_DIRECT IB_DISABLE IB_ECE_ENABLE
IB_FIFO_TC IB_GID_INDEX IB_HCA IB_MERGE_NICS IB_MQP_RETRY_ALL IB_MQP_RETRY_CNT
IB_MQP_RETRY_SLEEP_MSEC IB_OOO_RQ IB_PCI_RELAXED_ORDERING IB_PKEY IB_QPS_PER_CONNECTION
IB_RETRY_CNT IB_RETURN_ASYNC_EVENTS IB_ROCE_VERSION_NUM IB_SL IB_SPLIT_DATA_ON_QPS IB_TC IB_TIMEOUT
IB_USE_INLINE IB_WARN_RAIL_LOCAL IGNORE_CPU_AFFINITY IGNORE_DISABLED_P2P L1_SHARED_MEMORY_CARVEOUT
LAUNCH_MODE LAUNCH_ORDER_IMPLICIT LAUNCH_RACE_FATAL LL128_BUFFSIZE LL128_NTHREADS LL_BUFFSIZE
LOCAL_REGISTER MAX_CTAS MAX_NCHANNELS MAX_NRINGS MAX_P2P_NCHANNELS MIN_CTAS MIN_NCHANNELS MIN_NRINGS
MIN_P2P_NCHANNELS MNNVL_CLIQUE_ID MNNVL_ENABLE MNNVL_UUID NCHANNELS_PER_NET_PEER NET
NETDEVS_POLICY NET_DISABLE_INTRA NET_FORCE_MERGE NET_GDR_C2C NET_GDR_LEVEL NET_GDR_READ
NET_OVERHEAD NET_PLUGIN NET_SHARED_BUFFERS NET_SHARED_COMMS NIC NSOCKS_PERTHREAD NTHREADS NTREES
NVB_DISABLE NVB_PRECONNECT NVLS_CHUNKSIZE NVLS_ENABLE NVLS_NCHANNELS NVLSTREE_MAX_CHUNKSIZE
NVTX_DISABLE OOB_NET_ENABLE OOB_NET_IFNAME P2P_DIRECT_DISABLE P2P_DISABLE P2P_LEVEL
P2P_LL_THRESHOLD P2P_NET_CHUNKSIZE P2P_NVL_CHUNKSIZE P2P_PCI_CHUNKSIZE P2P_PER_CHANNEL_NET_SCALE
P2P_PXN_LEVEL P2P_READ_ENABLE P2P_USE_CUDA_MEMCPY PROFILER_PLUGIN PROGRESS_APPENDOP_FREQ PROTO
PXN_C2C PXN_DISABLE RAS_ADDR RAS_ENABLE RAS_TIMEOUT_FACTOR RINGS RUNTIME_CONNECT SET_STACK_SIZE
SET_THREAD_NAME SHM_DISABLE SHM_LOCALITY SHM_MEMCPY_MODE SHM_USE_CUDA_MEMCPY
SINGLE_PROC_MEM_REG_ENABLE SINGLE_RING_THRESHOLD SOCKET_FAMILY SOCKET_IFNAME SOCKET_NTHREADS
SOCKET_POLL_TIMEOUT_MSEC SOCKET_RETRY_CNT SOCKET_RETRY_SLEEP_MSEC STORE_IFNAME SYM_CTAS
THREAD_THRESHOLDS TOPO_DUMP_FILE TOPO_FILE TUNER_CONFIG_FILE TUNER_PLUGIN UID_STAGGER_RATE
UID_STAGGER_THRESHOLD WARN_ENABLE_DEBUG_INFO WIN_ENABLE WIN_STRIDE WORK_ARGS_BYTES WORK_FIFO_BYTES
ASYNC_ERROR_HANDLING BLOCKING_WAIT DESYNC_DEBUG
"""
_GLOO = "SOCKET_IFNAME DEVICE_TRANSPORT"
_KNOWN = frozenset(
    [*(f"NCCL_{name}" for name in _NCCL.split()), *(f"GLOO_{name}" for name in _GLOO.split())]
)
_LEVELS = ("VERSION", "WARN", "INFO", "ABORT", "TRACE")
_PER_HOST = ("NCCL_HOSTID", "NCCL_DEBUG_FILE", "NCCL_TOPO_FILE", "NCCL_MNNVL_CLIQUE_ID")


def unknown(variables: Mapping[str, str]) -> Iterator[str]:
    """Names that neither library reads. Warnings: plug-ins of networks have names of their own."""
    for name in variables:
        if name not in _KNOWN:
            close = difflib.get_close_matches(name, _KNOWN, n=1, cutoff=0.75)
            mend = f"did you mean {close[0]}?" if close else "it has no effect by itself"
            yield f"{name} is not a variable of NCCL or gloo; {mend}"


def misfits(facts: Mapping[str, Any]) -> Iterator[str]:
    """What the variables of a host name and the host does not have. `facts`: as the probe tells."""
    variables, there = facts["environment"], facts["interfaces"]
    chosen = variables.get("GLOO_SOCKET_IFNAME", "")
    for name in filter(None, chosen.split(",")):
        if name not in there:
            yield _no_interface("GLOO_SOCKET_IFNAME", name, there)
    chosen = variables.get("NCCL_SOCKET_IFNAME", "")
    if chosen and not matching(chosen, there):
        yield _no_interface("NCCL_SOCKET_IFNAME", chosen, there)
    adapters = facts["infiniband"]
    chosen = variables.get("NCCL_IB_HCA", "")
    if chosen and adapters and not matching(_without_ports(chosen), adapters):
        yield f"NCCL_IB_HCA={chosen} fits no InfiniBand adapter there ({', '.join(adapters)})"
    elif chosen and not adapters:
        yield f"NCCL_IB_HCA={chosen} is set and there is no InfiniBand adapter there"
    level = variables.get("NCCL_DEBUG", "")
    if level and level.upper() not in _LEVELS:
        yield f"NCCL_DEBUG={level[:40]}: expected one of {', '.join(_LEVELS)}"


def unused_infiniband(facts: Mapping[str, Any]) -> str:
    """A warning where InfiniBand is there and switched off; else nothing."""
    adapters = facts["infiniband"]
    if adapters and facts["environment"].get("NCCL_IB_DISABLE", "0") not in ("", "0"):
        return (
            f"NCCL_IB_DISABLE is set and {', '.join(adapters)} is there: NCCL will use the slower "
            "sockets; unset it"
        )
    return ""


def contradictions(environments: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[str, str]]:
    """Hosts whose value of a variable differs from the first host's, and how."""
    first, *others = environments
    for host in others:
        mine, theirs = environments[first], environments[host]
        for name in sorted({*mine, *theirs} - set(_PER_HOST)):
            if mine.get(name) != theirs.get(name) and not name.endswith("_IFNAME"):
                told = [theirs.get(name, "unset"), mine.get(name, "unset")]
                yield (
                    host,
                    f"{name} is {told[0][:60]}, and {told[1][:60]} on {first}; the start files of "
                    "its shell set it: make them alike",
                )


def matching(chosen: str, there: Sequence[str]) -> list[str]:
    """The interfaces or adapters that a value of NCCL's chooses: `eth`, `=eth0`, `^docker,lo`."""
    is_exclusion = chosen.startswith("^")
    names = chosen.removeprefix("^")
    is_exact = names.startswith("=")
    words = [word for word in names.removeprefix("=").split(",") if word]

    def fits(name: str) -> bool:
        return any(name == word if is_exact else name.startswith(word) for word in words)

    return [name for name in there if fits(name) != is_exclusion]


def _without_ports(chosen: str) -> str:
    return ",".join(word.partition(":")[0] for word in chosen.split(","))


def _no_interface(variable: str, value: str, there: Sequence[str]) -> str:
    close = difflib.get_close_matches(value, there, n=1)
    mend = f"did you mean {close[0]}?" if close else f"there are: {', '.join(there)}"
    return f"{variable}={value[:60]} fits no network interface there; {mend}"
