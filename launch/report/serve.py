"""The page over HTTP on this machine's own address, made anew when the runs have got on.

Only this machine reaches it, and only under its own names: a page of another site whose name was
made to point here (DNS rebinding) is refused by the Host header. There is one page and no files.
"""

import contextlib
import hashlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType

from launch.report.page import make_page
from launch.report.runs import find_runs
from launch.report.sections import Rates
from launch.report.style import SCRIPT, STYLE, hash_of
from runtime.errors import EXIT_BAD_INPUT, EXIT_OK, UserError

HOST = "127.0.0.1"
_REST = 10  # times as long as making the page took, it is not made again
_TIMEOUT_S = 30
_WATCHED = ("metrics", "events", "samples", "scores", "clock", "config", "versions", "report")


class LivePage:
    """The page, remade when a file of the runs has changed, but never without a pause."""

    def __init__(self, directories: Sequence[Path], rates: Rates) -> None:
        self._directories, self._rates = directories, rates
        self._lock = threading.Lock()
        self._seen: object = None
        self._page = b""
        self._next = 0.0
        self.tag = ""

    def get(self) -> tuple[bytes, str]:
        """The page and its entity tag. Raises UserError where there is no run any more."""
        with self._lock:
            now = time.monotonic()
            if now >= self._next and (seen := self._state()) != self._seen:
                self._page = make_page(self._directories, self._rates, is_live=True).encode(
                    "utf-8", "replace"
                )
                self._seen = seen
                self._next = time.monotonic() + _REST * (time.monotonic() - now)
                self.tag = f'"{hashlib.sha256(self._page).hexdigest()[:32]}"'
            return self._page, self.tag

    def _state(self) -> object:
        """Sizes and times of all that the page is made of."""
        found = []
        for directory in self._directories:
            for path in find_runs(directory):
                for name in _WATCHED:
                    for file in path.glob(f"{name}.*"):
                        about = file.stat()
                        found.append((str(file), about.st_size, about.st_mtime_ns))
        return found


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD of `/`, and nothing else."""

    page: LivePage
    port: int
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "ingot", ""
    timeout = _TIMEOUT_S

    def do_GET(self) -> None:
        """Send the page, if it is asked for by our own name."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Send what GET would, without the page."""
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        names = {f"{name}:{self.port}" for name in (HOST, "localhost")}
        if self.port == 80:  # which a browser leaves out
            names |= {HOST, "localhost"}
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or hosts[0].lower() not in names:
            self._send(HTTPStatus.FORBIDDEN, b"not a name of this server\n", with_body=with_body)
            return
        if self.path != "/":
            self._send(HTTPStatus.NOT_FOUND, b"there is one page: /\n", with_body=with_body)
            return
        try:
            page, tag = self.page.get()
        except (UserError, OSError) as error:
            text = f"{error}\n".encode()
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, text, with_body=with_body)
            return
        if self.headers.get("If-None-Match") == tag:
            self._send(HTTPStatus.NOT_MODIFIED, b"", tag=tag, with_body=False)
            return
        self._send(HTTPStatus.OK, page, "text/html", tag=tag, with_body=with_body)

    def _send(
        self,
        status: HTTPStatus,
        body: bytes,
        kind: str = "text/plain",
        *,
        tag: str = "",
        with_body: bool,
    ) -> None:
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        if status != HTTPStatus.NOT_MODIFIED:
            self.send_header("Content-Length", str(len(body)))
        if tag:
            self.send_header("ETag", tag)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of each request."""


_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": f"default-src 'none'; script-src {hash_of(SCRIPT)}; "
    f"connect-src 'self'; style-src {hash_of(STYLE)}; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that went away is nothing to tell."""


def serve(directories: Sequence[Path], port: int, rates: Rates) -> int:
    """Serve the page until Ctrl-C or SIGTERM. Raises UserError where the port is taken."""
    page = LivePage(directories, rates)
    page.get()  # a mistake in the command shows here

    class Handler(_Handler):
        pass

    Handler.page = page
    try:
        server = _Server((HOST, port), Handler)
    except OSError as error:
        raise UserError(
            f"--port {port}: {error.strerror}; choose another, or 0 for a free one",
            status=EXIT_BAD_INPUT,
        ) from error
    Handler.port = server.server_address[1]
    with _signals() as wait, server:
        thread = threading.Thread(target=server.serve_forever, args=(0.2,), daemon=True)
        thread.start()
        print(f"serving http://{HOST}:{Handler.port}/ to this machine; Ctrl-C ends it", flush=True)
        wait()
        server.shutdown()
        thread.join()
    return EXIT_OK


@contextlib.contextmanager
def _signals() -> Iterator[Callable[[], object]]:
    """Hear SIGINT and SIGTERM; gives what waits for the first of them."""
    inner, outer = socket.socketpair()
    outer.setblocking(False)

    def heard(_number: int, _frame: FrameType | None) -> None:
        """Nothing: the number is in the socket already."""

    # Written to by the signal itself: it may come to a thread that is not the one which waits.
    was = signal.set_wakeup_fd(outer.fileno(), warn_on_full_buffer=False)
    before = [(number, signal.signal(number, heard)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield lambda: inner.recv(1)
    finally:
        signal.set_wakeup_fd(was)
        for number, handler in before:
            signal.signal(number, handler)
        inner.close()
        outer.close()
