"""The served page: alone on the loopback, for its own names, up to date, gone on a signal."""

import http.client
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from launch.__main__ import main
from tests.launch.test_report import make_run
from tests.processes import ROOT, environment


class Served:
    """A server process and its port."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "launch",
                "report",
                str(run),
                "--serve",
                "--port",
                "0",
            ],
            env=environment(),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("serving http://127.0.0.1:"), line
        self.port = int(line.split(":")[2].split("/")[0])

    def ask(
        self, path: str = "/", method: str = "GET", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers=named)
        answer = connection.getresponse()
        found = answer.status, dict(answer.getheaders()), answer.read()
        connection.close()
        return found

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=20)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    run = make_run(tmp_path_factory.mktemp("live") / "run")
    server = Served(run)
    yield server
    if server.process.poll() is None:
        server.process.kill()
        server.process.wait()


def test_the_page_is_there_for_its_own_names_alone(served: Served) -> None:
    status, headers, body = served.ask()
    assert status == 200
    assert b"<b>loss</b>" in body
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'sha256-")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert served.ask(Host=f"localhost:{served.port}")[0] == 200
    for host in ("evil.example", f"evil.example:{served.port}", "127.0.0.1", f"127.0.0.1:{1}", ""):
        status, _, body = served.ask(Host=host)
        assert status == 403, host
        assert b"loss" not in body


def test_there_is_no_other_file(served: Served) -> None:
    for path in (
        *("/metrics.jsonl", "/../config.yaml", "/%2e%2e/config.yaml", "//etc/passwd", "/?x=1"),
        *("/report.html", "/..%2fconfig.yaml", "*", "http://127.0.0.1/"),
    ):
        status, _, body = served.ask(path)
        assert status in (400, 403, 404), path
        assert b"script" not in body
    assert served.ask(method="POST")[0] == 501
    status, headers, body = served.ask(method="HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) > 1000


def test_two_host_headers_are_refused(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        own = f"Host: 127.0.0.1:{served.port}\r\n"
        connection.sendall(
            f"GET / HTTP/1.1\r\n{own}Host: evil\r\nConnection: close\r\n\r\n".encode()
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 403")


def test_it_listens_on_the_loopback_alone(served: Served) -> None:
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = {row[1] for row in rows if row[3] == "0A"}
    mine = {address for address in listening if int(address.split(":")[1], 16) == served.port}
    assert mine == {f"0100007F:{served.port:04X}"}


def test_an_unchanged_page_is_not_sent_again_and_a_changed_one_is(served: Served) -> None:
    tag = served.ask()[1]["ETag"]
    status, _, body = served.ask(If_None_Match=tag)
    assert (status, body) == (304, b"")
    record = {"step": 101, "tokens_seen": 25856, "loss": 0.125}
    with (served.run / "metrics.jsonl").open("ab") as file:
        file.write(orjson.dumps(record) + b"\n")
    deadline = time.monotonic() + 60
    while served.ask(If_None_Match=tag)[0] == 304:
        assert time.monotonic() < deadline, "the page is not made anew"
        time.sleep(0.1)
    assert b"<dt>last training loss</dt><dd>0.125</dd>" in served.ask()[2]


def test_a_taken_port_is_a_clear_error(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    assert main(["report", str(run), "--serve", "--port", str(served.port)]) == 2
    assert (
        f"--port {served.port}: Address already in use; choose another" in capsys.readouterr().err
    )
    with pytest.raises(SystemExit, match="2"):
        main(["report", str(run), "--serve", "--port", "70000"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it(tmp_path: Path, number: int) -> None:
    server = Served(make_run(tmp_path / "run"))
    with socket.create_connection(("127.0.0.1", server.port)):  # a client that says nothing
        assert server.end(number) == 0
    assert server.process.communicate()[1] == ""
