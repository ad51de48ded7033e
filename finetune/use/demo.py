"""`python -m finetune demo`: a page on this machine's own address to try a fine-tuned model.

Only this machine reaches it, and only under its own names: a page of another site whose name was
made to point here (DNS rebinding) is refused by the Host header.
"""

import argparse
import contextlib
import hmac
import secrets
import socket
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import orjson

from finetune.config import model_directory
from finetune.evaluate import answers
from finetune.models import Opened, open_model
from finetune.use.page import page
from finetune.use.typed import fields, typed_example
from runtime.errors import EXIT_BAD_INPUT, EXIT_OK, UserError
from runtime.signals import StopRequest

HOST = "127.0.0.1"
_MAX_BYTES = 1 << 20  # of a request
_TIMEOUT_S = 30
_LINGER_S = 2  # without a byte from a sender who was refused
_LINGER_PIECES = 256
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Answers:
    """What the model says of what somebody typed; one question at a time."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._lock = threading.Lock()
        opened.net.eval()

    def answer(self, values: dict[str, str]) -> dict[str, Any]:
        """The model's prediction. Raises UserError for what can't be read."""
        task, labels = self._opened.task, self._opened.labels
        with self._lock:
            example = typed_example(task, values)
            data = task.encode([example], labels, self._opened.tokenizer)
            indices = np.arange(len(data))
            device = next(self._opened.net.parameters()).device
            tokenizer = self._opened.tokenizer
            found = answers(self._opened.net, task, data, indices, tokenizer, device)
            return next(iter(task.predictions(data, found, labels)))


class _Handler(BaseHTTPRequestHandler):
    """Answers GET / with the page and POST /predict with what the model says."""

    server: ThreadingHTTPServer
    answers: ClassVar[Answers]
    html: ClassVar[bytes]
    token: ClassVar[str]  # only the page knows it: no other site can ask
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "ingot", ""
    timeout = _TIMEOUT_S

    def do_GET(self) -> None:
        """Send the page."""
        if not self._is_ours():
            self._send(HTTPStatus.FORBIDDEN, b"not a name of this server\n")
        elif self.path != "/":
            self._send(HTTPStatus.NOT_FOUND, b"there is one page: /\n")
        else:
            self._send(HTTPStatus.OK, self.html, "text/html")

    def do_POST(self) -> None:
        """Send the model's answer to the values of the form, as JSON."""
        given = self.headers.get("X-Token", "")
        is_known = hmac.compare_digest(given.encode(), self.token.encode())
        length = self.headers.get("Content-Length", "")
        if not self._is_ours() or not is_known or self.path != "/predict":
            self._refuse(HTTPStatus.FORBIDDEN, b"ask from the page\n")
            return
        if not length.isdecimal() or int(length) > _MAX_BYTES:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, b"too long\n")
            return
        try:
            values = orjson.loads(self.rfile.read(int(length)))
            content = self.answers.answer({str(k): str(v) for k, v in values.items()})
        except UserError as error:
            self._send(HTTPStatus.BAD_REQUEST, f"{error}\n".encode())
        except (orjson.JSONDecodeError, AttributeError):
            self._send(HTTPStatus.BAD_REQUEST, b"expected a JSON object\n")
        else:
            self._send(HTTPStatus.OK, orjson.dumps(content), "application/json")

    def _refuse(self, status: HTTPStatus, body: bytes) -> None:
        """Answer a request whose body is of no use, and end the connection."""
        self.close_connection = True
        self._send(status, body)
        # Closed with bytes unread, a connection is reset, and the answer may be lost with it
        # (RFC 9112, section 9.6): hear the sender out, for a while.
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(_LINGER_S)
            for _ in range(_LINGER_PIECES):
                if not self.rfile.read1(_MAX_BYTES):
                    break

    def _is_ours(self) -> bool:
        names = {f"{name}:{self.server.server_port}" for name in (HOST, "localhost")}
        hosts = self.headers.get_all("Host") or []
        return len(hosts) == 1 and hosts[0].lower() in names

    def _send(self, status: HTTPStatus, body: bytes, kind: str = "text/plain") -> None:
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: what people type is theirs."""


def make_server(opened: Opened, port: int) -> ThreadingHTTPServer:
    """A server for the model; port 0 takes a free one. Raises UserError where it is taken."""
    token = secrets.token_urlsafe(24)
    names = {
        "answers": Answers(opened),
        "html": page(opened.task.keys.kind, fields(opened.task), token).encode(),
        "token": token,
    }
    try:
        return ThreadingHTTPServer((HOST, port), type("Handler", (_Handler,), names))
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is no port (0 to 65535)"
        raise UserError(f"--port {port}: {reason}; take another", status=EXIT_BAD_INPUT) from error


def main(arguments: list[str]) -> int:
    """Serve the page until interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m finetune demo",
        description="A page on this machine, and for it alone, to try a fine-tuned model.",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="model directory, or a run")
    parser.add_argument("--port", type=int, default=8600, help="0 takes a free one (8600)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options = parser.parse_args(arguments)
    from runtime.dist import resolve_device

    opened = open_model(model_directory(options.directory))
    if opened.task.kind == "choice":
        raise UserError(
            f"{options.directory}: task choice; the page has no field for a list of choices",
            status=EXIT_BAD_INPUT,
        )
    opened.net.to(resolve_device(options.device))
    server = make_server(opened, options.port)
    print(f"http://{HOST}:{server.server_port}/  (Ctrl-C ends it)", flush=True)
    stop = StopRequest()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while not stop.check():
        threading.Event().wait(0.2)
    server.shutdown()
    server.server_close()
    return EXIT_OK
