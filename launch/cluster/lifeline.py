"""The line from the supervisor of a run to those on its hosts: through ssh, into their input.

A dot every few seconds says that the other end is there; the end of the input asks to stop and
save, an exclamation mark before it says that another host is lost: there is nothing to wait for.
A host that is cut off hears no dots, and sshd would not notice for hours.
"""

import os
import select
import time

BEAT, HURRY = b".", b"!"
BEAT_S = 5.0
HURRY_S = 15.0  # for ranks to end where another host is lost
SILENCE_S = 120.0  # longer than a network is away that comes back


class Lifeline:
    """The end of the line on a host. `descriptor`: of the input; None where there is no line."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self._heard_at = float("inf")  # until the first dot no silence counts
        self._over_at = float("inf")

    def requests(self) -> int:
        """How many more times than before the ranks are to be told to stop."""
        now = time.monotonic()
        if now > self._over_at:
            self._over_at = float("inf")
            return 1
        if self._descriptor is None:
            return 0
        heard = b""
        if select.select([self._descriptor], [], [], 0)[0]:
            heard = os.read(self._descriptor, 4096)
        elif now - self._heard_at < SILENCE_S or self._heard_at == float("inf"):
            return 0
        if HURRY in heard:
            self._over_at = now + HURRY_S
        if heard:
            self._heard_at = now
            return 0
        self._descriptor = None  # its end, or silence
        return 1
