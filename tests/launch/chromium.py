"""A page in headless Chromium: how wide it is, and what it asks the network for."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
_ITS_MAKER = (".google.com", ".googleapis.com", ".gvt1.com", ".gstatic.com")
_QUIET = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-default-apps"),
    *("--disable-domain-reliability", "--disable-client-side-phishing-detection", "--no-pings"),
    *("--allow-file-access-from-files", "--hide-scrollbars", "--disable-dev-shm-usage"),
]


def dump(url: str, profile: Path, *options: str, timeout: float = 60) -> str:
    """The document as it stands after loading."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, *_QUIET, f"--user-data-dir={profile}", *options, "--dump-dom", url],
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def measure(page: Path, width: int, profile: Path, *options: str) -> dict[str, Any]:
    """Lay a page out in a frame of a width; returns what is wider than it should be, and colours.

    In a frame, as a window has a least width of its own, and as the page itself runs no script.
    """
    harness = profile.with_name(f"{profile.name}-{width}.html")
    harness.write_text(_HARNESS.replace("WIDTH", str(width)).replace("PAGE", page.as_uri()))
    log = profile.with_name(f"{profile.name}-{width}-net.json")
    dumped = dump(
        harness.as_uri(), profile, f"--log-net-log={log}", "--virtual-time-budget=5000", *options
    )
    found = re.search(r'<pre id="found">(.+?)</pre>', dumped, re.DOTALL)
    assert found is not None, dumped[-1000:]
    measured: dict[str, Any] = json.loads(html.unescape(found[1]))
    measured["requests"] = _requests(log)
    return measured


def _requests(log: Path) -> set[str]:
    """Addresses that the pages asked the network for; what Chromium asks its maker left out."""
    text = log.read_text(encoding="utf-8", errors="replace")
    found = re.findall(r'"url":"(https?://([^/"]+)[^"]*)"', text)
    return {url for url, host in found if not host.endswith(_ITS_MAKER)}


_HARNESS = """<!doctype html><meta charset="utf-8">
<body style="margin:0"><iframe id="f" style="border:0;width:WIDTHpx;height:3000px" src="PAGE">
</iframe><pre id="found"></pre><script>
document.getElementById('f').onload = () => {
  const page = document.getElementById('f').contentDocument, root = page.documentElement;
  const scrolls = (one) => one && (one.closest('.scroll') !== null);
  const texts = [...page.querySelectorAll('svg text')].map((one) => one.getBoundingClientRect());
  const boxes = [...page.querySelectorAll('svg')].map((one) => one.getBoundingClientRect());
  const outside = [...page.querySelectorAll('svg')].flatMap((svg) => {
    const box = svg.getBoundingClientRect();
    if (!box.width) return [];
    return [...svg.querySelectorAll('text')].filter((text) => {
      const own = text.getBoundingClientRect();
      return own.left < box.left - 2 || own.right > box.right + 2 || own.top < box.top - 2
        || own.bottom > box.bottom + 2;
    }).map((text) => text.textContent);
  });
  const sizes = [...page.querySelectorAll('.by-step svg')].map(
    (svg) => 11 * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width);
  document.getElementById('found').textContent = JSON.stringify({
    scrollWidth: root.scrollWidth,
    clientWidth: root.clientWidth,
    wide: [...page.querySelectorAll('body *')].filter((one) => !scrolls(one)
      && one.getBoundingClientRect().right > root.clientWidth + 1).map((one) => one.tagName),
    outside: outside,
    smallestText: Math.min(...sizes),
    background: getComputedStyle(page.body).backgroundColor,
    ink: getComputedStyle(page.body).color,
    figures: page.querySelectorAll('figure').length,
  });
};
</script>"""
