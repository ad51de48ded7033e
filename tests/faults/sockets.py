"""What processes listen on, as the kernel tells it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


def listeners(pid: int) -> Iterator[str]:
    """The addresses, in hexadecimal, that a process listens on."""
    links = []
    with contextlib.suppress(OSError):  # it has gone
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # closed just now: the others still count
                links.append(str(fd.readlink()))
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in links:
                yield fields[1].split(":")[0]


def is_loopback(address: str) -> bool:
    return address in ("0100007F", "00000000000000000000000001000000") or address.endswith(
        "FFFF00000100007F"
    )
