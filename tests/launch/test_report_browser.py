"""The page as headless Chromium shows it: readable on a telephone, alone, and alive when served."""

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import orjson
import pytest

from launch.__main__ import main
from launch.report.page import make_page
from launch.report.sections import Rates
from tests.launch.chromium import dump, measure, needs_chromium
from tests.launch.test_report import make_run
from tests.launch.test_report_runs import full_run, lines
from tests.launch.test_report_serve import Served

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of a full run with long names, of a classifier, and of two runs."""
    root = tmp_path_factory.mktemp("pages")
    full = full_run(root / "一个名字很长的训练运行-with-a-name-that-does-not-end-so-soon")
    sources = ["/a/very/long/path/" + "中文数据" * 12, "/another/" + "path" * 30]
    (full / "data_order.json").write_bytes(orjson.dumps({"sources": sources}))
    samples = [{"step": 1, "prompt": "word" * 60, "text": "word" * 200}]
    lines(full / "samples.jsonl", samples)
    tuned = make_run(root / "tuned")
    labels = [f"意图-{n}" if n % 2 else f"an intent with a long name {n}" for n in range(40)]
    scores = {"precision": 0.5, "recall": 0.5, "f1-score": 0.5, "support": 3}
    counts = [[3 if i == j else int(j == 0) for j in range(40)] for i in range(40)]
    report = {
        "classes": dict.fromkeys(labels, scores),
        **{"macro avg": scores, "weighted avg": scores, "split": "test", "accuracy": 0.75},
        **{"labels": labels, "confusion_matrix": counts},
    }
    (tuned / "report.json").write_bytes(orjson.dumps(report))
    (tuned / "config.yaml").write_text("task: {max_length: 128}\n")
    found = {}
    for name, runs in {
        "full": [full],
        "tuned": [tuned],
        "both": [full, make_run(root / "b")],
    }.items():
        found[name] = root / f"{name}.html"
        assert main(["report", *map(str, runs), "--output", str(found[name])]) == 0
    return found


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["full", "tuned", "both"])
def test_nothing_is_wider_than_the_screen(
    pages: dict[str, Path], tmp_path: Path, name: str, width: int
) -> None:
    found = measure(pages[name], width, tmp_path / "profile")
    assert found["clientWidth"] == width
    assert found["scrollWidth"] == width
    assert found["wide"] == []
    assert found["outside"] == []  # no label is cut off at the edge of its picture
    assert found["smallestText"] > 8.5  # pixels
    assert found["figures"] > 5
    assert found["requests"] == set()


class Tracker(BaseHTTPRequestHandler):
    """Counts who asks."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def tracker() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Tracker)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    Tracker.asked.clear()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_the_page_may_ask_nobody_for_anything(tmp_path: Path, tracker: str) -> None:
    """Even where something of a run came onto the page as markup, which escaping forbids."""
    run = make_run(tmp_path / "run")
    bad = f'<img src="{tracker}/image"><script src="{tracker}/script"></script>'
    bad += f'<link rel="stylesheet" href="{tracker}/style"><iframe src="{tracker}/frame"></iframe>'
    lines(run / "samples.jsonl", [{"step": 1, "prompt": "x", "text": bad}])
    assert main(["report", str(run)]) == 0
    page = run / "report.html"
    dump(page.as_uri(), tmp_path / "profile", "--virtual-time-budget=3000")
    assert Tracker.asked == []
    text = page.read_text()
    page.write_text(text.replace("<main>", f"<main>{bad}"))
    dump(page.as_uri(), tmp_path / "profile", "--virtual-time-budget=3000")
    assert Tracker.asked == []
    page.write_text(
        re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    )
    dump(page.as_uri(), tmp_path / "profile", "--virtual-time-budget=3000")
    assert "/image" in Tracker.asked  # the test would notice


@pytest.mark.parametrize(("scheme", "is_dark"), [("0", True), ("1", False)])
def test_colours_follow_the_scheme(
    pages: dict[str, Path], tmp_path: Path, scheme: str, is_dark: bool
) -> None:
    option = f"--blink-settings=preferredColorScheme={scheme}"
    found = measure(pages["full"], 1280, tmp_path / "profile", option)
    page, ink = (sum(map(int, re.findall(r"\d+", found[k])[:3])) for k in ("background", "ink"))
    assert (page < ink) == is_dark
    assert abs(page - ink) > 450  # of 765


def test_the_script_of_a_served_page_is_allowed_and_answered(tmp_path: Path) -> None:
    served = Served(full_run(tmp_path / "run"))
    try:
        url = f"http://127.0.0.1:{served.port}/"
        dumped = dump(url, tmp_path / "profile", "--virtual-time-budget=12000")
        state = re.search(r'<p id="state"[^>]*>([^<]+)</p>', dumped)
        assert state is not None
        assert state[1].startswith("live, looked at ")
        assert "<b>loss</b>" in dumped
    finally:
        served.process.kill()
        served.process.wait()


PROBE = """<script>
addEventListener('load', () => {
  document.querySelector('details').open = true;
  document.getElementById('x-tokens').checked = true;
  scrollTo(0, 700);
});
setTimeout(() => {
  const found = [scrollY, document.querySelector('details').open,
    document.getElementById('x-tokens').checked,
    document.querySelector('.by-step').getBoundingClientRect().width];
  document.body.insertAdjacentHTML('afterbegin', '<pre id="probe">' + found.join() + '</pre>');
}, 9000);
</script>"""


class Renewed(BaseHTTPRequestHandler):
    """Serves one page, then another; both with a probe, and without the policy against it."""

    pages: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        page = self.pages.pop(0) if len(self.pages) > 1 else self.pages[0]
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(page.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def test_a_served_page_renews_itself_and_stays_where_it_was(tmp_path: Path) -> None:
    run = full_run(tmp_path / "run")
    Renewed.pages.clear()
    for loss in (0.5, 0.125):
        with (run / "metrics.jsonl").open("ab") as file:
            file.write(orjson.dumps({"step": 101, "tokens_seen": 25856, "loss": loss}) + b"\n")
        page = make_page([run], Rates(), is_live=True)
        page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
        Renewed.pages.append(page.replace("</body>", f"{PROBE}</body>"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Renewed)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/"
        dumped = dump(url, tmp_path / "profile", "--virtual-time-budget=12000")
    finally:
        server.shutdown()
        server.server_close()
    assert "<dt>last training loss</dt><dd>0.125</dd>" in dumped  # it was renewed
    probe = re.search(r'<pre id="probe">([^<]+)</pre>', dumped)
    assert probe is not None
    assert probe[1] == "700,true,true,0"  # scrolled, unfolded, over tokens
