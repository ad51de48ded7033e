"""A process that kills itself at a chosen moment, which no other process can be sure to meet."""

import os
import signal
import sys

# Publishing, and putting away. What is on the disk between two of these are only files set aside.
_CHANGES = {"os.rename", "os.remove", "os.rmdir"}


def die_at(change: int, ending: str = "") -> None:
    """Have this process killed just before its `change`-th change of a name that ends so."""
    left = change

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in _CHANGES and any(str(name).endswith(ending) for name in arguments):
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
