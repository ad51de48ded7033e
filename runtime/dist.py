"""The process group: start, end, and small agreements between ranks on host memory."""

import datetime
import json
import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as torch_dist
from safetensors import SafetensorError
from torch._C._distributed_c10d import HashStore, Store

from runtime import heap
from runtime.errors import EXIT_BAD_INPUT, EXIT_FAILED, UserError
from runtime.rendezvous import Meeting, is_single_node, listen_towards, stay_on_loopback


@dataclass(frozen=True)
class Ranks:
    """This process among the others."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0


_FP8_CAPABILITY = (8, 9)  # Ada; Hopper is 9.0
CONTROL_TIMEOUT = datetime.timedelta(hours=2)

_control: torch_dist.ProcessGroup | None = None
_meeting: Meeting | None = None
# What gloo says when the process at the other end of a connection has gone.
_LOST_PEER = ("Connection closed", "Connection reset", "Broken pipe", "remote worker", "gloo")
_endings: list[Callable[[], None]] = []


def world_size_from_env() -> int:
    """The number of ranks that the launcher announced; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank_from_env() -> int:
    """This process's rank as the launcher announced it; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def resolve_device(device: str) -> torch.device:
    """`auto` | `cpu` | `cuda` → this process's device."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        if not torch.cuda.is_available():
            raise UserError(
                "run.device = cuda: torch sees no GPU here; write auto or cpu",
                status=EXIT_BAD_INPUT,
            )
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def init(
    device: str,
    timeout_s: float,
    *,
    start_timeout_s: float | None = None,
    same: dict[str, str] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Ranks:
    """Join the process group that the launcher describes, or make one of a single process.

    `timeout_s` is a collective's; `start_timeout_s` how long to wait for the other ranks.
    `same`: what must be equal on all ranks (`require_same`), checked before there is a group.
    `should_stop` is asked while waiting for them. A single process opens no port.
    """
    global _control, _meeting
    where = resolve_device(device)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    else:
        _share_cores()
        heap.keep()
    if is_single_node():
        stay_on_loopback()
    else:
        listen_towards(os.environ.get("MASTER_ADDR", ""))
    backend = "nccl" if where.type == "cuda" else "gloo"
    timeout = datetime.timedelta(seconds=timeout_s)
    rank, world_size = rank_from_env(), world_size_from_env()
    store: Store = HashStore()
    if world_size > 1:
        _meeting = Meeting(rank, world_size, start_timeout_s or timeout_s, should_stop)
        _meeting.wait_for_all()
        require_same({"run.device": where.type, **(same or {})})
        store = _meeting.store
    torch_dist.init_process_group(
        backend, store=store, rank=rank, world_size=world_size, timeout=timeout
    )
    if world_size > 1:
        # Agreements must neither wait for a GPU's queue nor end a run while the main rank hashes
        # a checkpoint: a group of its own, on host memory, with a longer patience.
        _control = torch_dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT)
    return Ranks(rank, int(os.environ.get("LOCAL_RANK", "0")), world_size, where)


def require_same(what: dict[str, str]) -> None:
    """Refuse to run, on every rank, where ranks were started with different things. Collective.

    Raises UserError with the first rank that differs from rank 0, and in what.
    """
    if _meeting is None:
        return
    stated = json.dumps({"host": socket.gethostname(), "what": what})
    if problem := _meeting.agree(stated, _first_difference):
        raise UserError(problem, status=EXIT_BAD_INPUT)


def _first_difference(texts: list[str]) -> str:
    stated = [json.loads(text) for text in texts]
    is_one_machine = len({s["host"] for s in stated}) == 1
    for rank, s in enumerate(stated):
        who = f"rank {rank}" if is_one_machine else f"rank {rank} on {s['host']}"
        if told := _difference(stated[0]["what"], s["what"], who):
            return told
    return ""


def _difference(expected: dict[str, str], got: dict[str, str], who: str) -> str:
    different = [k for k in {**expected, **got} if expected.get(k) != got.get(k)]
    if not different:
        return ""
    listed = "; ".join(f"{k}: {got.get(k)} instead of {expected.get(k)}" for k in different[:5])
    more = f"; and {len(different) - 5} more" if len(different) > 5 else ""
    return (
        f"{who} was started with something else than rank 0: {listed}{more}; "
        "start all ranks from one source tree, with one command"
    )


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error only says that another rank has gone."""
    is_group = isinstance(error, torch_dist.DistError)
    return is_group or (
        isinstance(error, RuntimeError) and any(part in str(error) for part in _LOST_PEER)
    )


def require_precision(precision: str, device: torch.device) -> None:
    """Refuse a precision that the device found does not compute in. Raises UserError."""
    mend = None
    if precision == "fp16" and device.type == "cpu":
        mend = "fp16 does not run on a CPU; write bf16 or fp32"
    is_bf16_gpu = precision in ("bf16", "fp8") and device.type == "cuda"
    if is_bf16_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        mend = f"{torch.cuda.get_device_name(device)} has no bf16; write fp16 or fp32"
    elif precision == "fp8" and device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability < _FP8_CAPABILITY:
            mend = (
                f"{torch.cuda.get_device_name(device)} has no FP8: its compute capability is "
                f"{capability[0]}.{capability[1]}, and 8.9 is the first that has; write bf16"
            )
    if mend:
        raise UserError(f"precision: {mend}", status=EXIT_BAD_INPUT)


def _share_cores() -> None:
    """Give each rank of this machine its part of the cores, unless the launcher did."""
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
    if local_ranks > 1 and "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        torch.set_num_threads(max(1, (cores or 1) // local_ranks))


def before_shutdown(action: Callable[[], None]) -> None:
    """Have something done at the end, however it comes, while the process group is still there."""
    _endings.append(action)


def shutdown() -> None:
    """Leave the process group. Without it gloo can abort at exit."""
    global _control, _meeting
    while _endings:
        _endings.pop()()
    if torch_dist.is_initialized():
        # DeepSpeed keeps groups in globals, which a later engine of this process would take.
        deepspeed = sys.modules.get("deepspeed")
        comm = deepspeed.comm if deepspeed and deepspeed.comm.is_initialized() else torch_dist
        comm.destroy_process_group()
    _control = _meeting = None


def sum_over_ranks(values: Sequence[float]) -> list[float]:
    """Element-wise sums over all ranks, in double precision on the host. Collective."""
    total = torch.tensor(values, dtype=torch.float64)
    if torch_dist.is_initialized() and torch_dist.get_world_size() > 1:
        torch_dist.all_reduce(total, group=_control)
    return [float(value) for value in total]


def new_host_group() -> torch_dist.ProcessGroup | None:
    """A group on host memory for one thread, which must not meet the loop's own collectives.

    None where there is one rank. Collective.
    """
    if not torch_dist.is_initialized() or torch_dist.get_world_size() == 1:
        return None
    group: torch_dist.ProcessGroup = torch_dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT)
    return group


def gather_text(text: str, group: torch_dist.ProcessGroup | None = None) -> list[str]:
    """Every rank's text, in rank order, on every rank. Collective; plain bytes, no pickle.

    group: of `new_host_group`; None is the loop's own.
    """
    if not torch_dist.is_initialized() or torch_dist.get_world_size() == 1:
        return [text]
    data = torch.frombuffer(bytearray(text.encode() or b"\0"), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(torch_dist.get_world_size())]
    torch_dist.all_gather(sizes, torch.tensor([data.numel()]), group=group or _control)
    longest = int(max(int(size) for size in sizes))
    padded = torch.zeros(longest, dtype=torch.uint8)
    padded[: data.numel()] = data
    parts = [torch.zeros(longest, dtype=torch.uint8) for _ in sizes]
    torch_dist.all_gather(parts, padded, group=group or _control)
    texts = (part[: int(size)].numpy().tobytes() for part, size in zip(parts, sizes, strict=True))
    return [text.decode().strip("\0") for text in texts]


def raise_together(error: str | None, status: int = EXIT_FAILED) -> None:
    """Fail on every rank if any rank has an error, naming the first one. Collective.

    Without it one rank would leave while the others wait for it until the timeout.
    status: what this rank's error would end it with; all end with the first one's.
    """
    for rank, told in enumerate(gather_text(f"{status} {error}" if error else "")):
        if told:
            first, _, message = told.partition(" ")
            prefix = f"rank {rank}: " if world_size_from_env() > 1 else ""
            raise UserError(f"{prefix}{message}", status=int(first))


def together(action: Callable[[], None], *, only_main: bool = False) -> None:
    """Write files on every rank, or on the main one; if one fails, all of them do. Collective."""
    error, status = None, EXIT_FAILED
    if not only_main or rank_from_env() == 0:
        try:
            action()
        except UserError as problem:
            error, status = str(problem), problem.status
        except (OSError, SafetensorError, ValueError) as problem:
            error = f"not saved: {problem}; what was saved before is intact"
    raise_together(error, status)
