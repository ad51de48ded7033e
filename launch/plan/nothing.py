"""What to tell where nothing fits: by how much, and what would. Imports no torch."""

from launch.plan.explain import largest_parts, layout_text
from launch.plan.quantities import gigabytes
from launch.plan.search import Ask, Found, room, search, sharers

_MOST_GPUS = 1 << 16
_LEAST_SEQ_LEN = 512


def nothing_fits(ask: Ask, found: Found) -> str:
    """One line: the layout that needs least, what it lacks, and what would make it fit."""
    least = min(found.refused, key=lambda one: one.memory.high)
    memory = least.memory
    if least.is_host:
        told = (
            f"{gigabytes(memory.host * sharers(ask) - ask.host_memory)} of a node's host memory "
            f"are short of {gigabytes(memory.host * sharers(ask))}"
        )
    else:
        told = (
            f"{gigabytes(memory.high - room(ask))} are short of {gigabytes(memory.high)} "
            f"({largest_parts(memory)})"
        )
    mends = [*_more_gpus(ask), *_shorter(ask), *_more_memory(ask, least.is_host)]
    mend = "; ".join(mends) or "take a smaller model, or a GPU with more memory"
    return (
        f"{ask.subject.name} does not fit on {ask.gpus:,} × {ask.device.name} of "
        f"{gigabytes(ask.device.memory_bytes)}: with the least ({layout_text(least.layout)}) "
        f"{told}. What fits: {mend}"
    )


def _fits(ask: Ask) -> bool:
    return bool(search(ask).fitting)


def _more_gpus(ask: Ask) -> list[str]:
    gpus = ask.gpus * 2
    while gpus <= _MOST_GPUS:
        batch = -(-ask.global_batch_size // gpus) * gpus
        if _fits(ask._replace(gpus=gpus, global_batch_size=batch)):
            return [f"--gpus {gpus}"]
        gpus *= 2
    return []


def _shorter(ask: Ask) -> list[str]:
    seq_len = ask.seq_len // 2
    while seq_len >= _LEAST_SEQ_LEN:
        if _fits(ask._replace(seq_len=seq_len)):
            return [f"--seq-len {seq_len}"]
        seq_len //= 2
    return []


def _more_memory(ask: Ask, is_host: bool) -> list[str]:
    if not is_host:
        return []
    for factor in (2, 4, 8):
        more = ask._replace(host_memory=factor * ask.host_memory)
        if _fits(more):
            return [f"nodes with {gigabytes(more.host_memory)} of memory (--host-memory)"]
    return []
