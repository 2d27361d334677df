"""How soon is the embedded server's page seen, and what does it weigh?

    python benchmarks/page.py --models models [--runs 20] [--screenshot docs/page.png]

Starts the server over a folder of models (NAME/VERSION) with a journal, and opens its page in headless Chromium over loopback, each time in a new tab
without a cache. Wanted: first contentful paint < 1 s, < 150,000 bytes in all, headers and the first answer of /page/state included. The peer, in turns
with it, is the smallest page there is (/healthz, one line of JSON): what the browser takes by itself. `usable` is when model and version can be chosen.

What it does not show: a slow network (the bytes tell), a slow phone, a server at its limit, a browser with a warm cache (the page is never cached).
`--screenshot` also asks the first model a question, with the numbers of its words shown, and writes what is then seen.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the browser is the tests' own

from tests import browser  # noqa: E402
from tests.browser import Browser, Page  # noqa: E402

START_S = 180.0
PAINT = "performance.getEntriesByName('first-contentful-paint').map(one => one.startTime)[0]"
QUESTION = "the app lost my payment and the clerk was rude, but the branch is lovely"


@contextlib.contextmanager
def served(models: Path) -> Iterator[str]:
    """A server process; its address."""
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        grpc, rest = one.getsockname()[1], two.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("wb") as log:
        arguments = [f"--models_root={models.resolve()}", f"--port={grpc}", f"--rest_api_port={rest}", "--page=on"]
        arguments += [f"--journal={folder}/journal", "--journal_text=redacted", "--max_num_load_retries=0"]
        process = subprocess.Popen([sys.executable, "-m", "serving", "serve", *arguments], cwd=ROOT, stdout=log, stderr=log)
        address = f"http://127.0.0.1:{rest}/"
        try:
            deadline = time.monotonic() + START_S
            while not _answers(address):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"the server did not start:\n{(Path(folder) / 'log').read_text()}")
                time.sleep(0.1)
            yield address
        finally:
            process.terminate()
            process.wait(60)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def opened(chromium: Browser, address: str, ready: str) -> dict[str, float]:
    """One visit of somebody new: milliseconds from the start of the navigation, and what came."""
    page = chromium.page()
    page.open(address)
    paint = page.until(PAINT)
    page.until(ready)
    usable = page.js("performance.now()")
    measured = {"paint_ms": paint, "usable_ms": usable, "bytes": float(page.received), "requests": float(len(page.requests))}
    if page.complaints and not address.endswith("/healthz"):  # which has no icon
        raise SystemExit(f"{address}: {page.complaints}")
    page.call("Page.close")
    return measured


def screenshot(page: Page, address: str, path: Path) -> None:
    page.size(1100, 800)
    page.open(address)
    page.until("document.getElementById('version').value")
    page.click("#input-0")
    page.write(QUESTION)
    page.click("#predict")
    page.until("document.querySelectorAll('#words .w').length")
    page.click("#show-numbers")
    page.until("/In all\\s+[1-9]/.test(document.getElementById('models').innerText)")
    page.screenshot(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--screenshot", type=Path)
    options = parser.parse_args()
    if not browser.find():
        raise SystemExit("no Chromium: apt-get install chromium, or name one in the environment variable CHROMIUM")
    pages = {"page": ("", "document.getElementById('version').value"), "peer": ("healthz", "true")}
    visits: dict[str, list[dict[str, float]]] = {name: [] for name in pages}
    with served(options.models) as address, browser.running() as chromium:
        for number in range(options.runs + 1):
            for name, (path, ready) in pages.items():
                visit = opened(chromium, address + path, ready)
                if number:  # the first one warms the browser
                    visits[name].append(visit)
        if options.screenshot:
            screenshot(chromium.page(), address, options.screenshot)
    figures = {
        name: {
            key: {"median": round(statistics.median(values), 1), "min": round(min(values), 1), "max": round(max(values), 1)}
            for key in found[0]
            if (values := [visit[key] for visit in found])
        }
        for name, found in visits.items()
    }
    print(json.dumps({"benchmark": "page", "n": options.runs, "cpus": os.cpu_count(), "machine": platform.machine(), **figures}))


if __name__ == "__main__":
    main()
