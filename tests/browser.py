"""A real headless Chromium for tests and benchmarks, driven over the Chrome DevTools Protocol through a pipe.

Frees the tests from Selenium, a driver's port and a WebSocket library: Chromium reads JSON messages from file descriptor 3 and writes them to 4, each
ended by a NUL. One thread, nothing in the background: events are read while an answer is awaited. The profile is new each time and thrown away.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Without the switches about the background, Chromium calls its maker's hosts at every start.
SWITCHES = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars", "--mute-audio", "--lang=en",
    "--remote-debugging-pipe",
)  # fmt: skip
# Puts the pipes where Chromium looks for them. Done in the child, because forking with code of ours in between is not safe in a process with threads.
_EXEC = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
KEYS = {"Tab": 9, "Enter": 13, " ": 32, "ArrowDown": 40, "Escape": 27}
TIMEOUT_S = 60.0


def find() -> str:
    """The path of a Chromium, or empty. `CHROMIUM` in the environment names one that is not on the PATH."""
    return os.environ.get("CHROMIUM", "") or next((path for path in map(shutil.which, NAMES) if path), "")


class BrowserError(AssertionError):
    """The browser said no, a script threw, or something awaited did not come."""


@contextlib.contextmanager
def running(path: str = "") -> Iterator[Browser]:
    """A browser, closed and its profile removed at the end."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(path or find(), profile)
        try:
            yield browser
        finally:
            browser.close()


class Browser:
    """The process and its pipe."""

    def __init__(self, path: str, profile: str) -> None:
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        try:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    _EXEC,
                    str(to_browser),
                    str(from_browser),
                    path,
                    *SWITCHES,
                    f"--user-data-dir={profile}",
                    "about:blank",
                ],
                pass_fds=(to_browser, from_browser),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "HOME": profile},
            )
        finally:
            os.close(to_browser)
            os.close(from_browser)
        self._buffer = bytearray()
        self._number = 0
        self.pages: dict[str, Page] = {}

    def page(self) -> Page:
        """A new empty tab with storage of its own."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self.pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        return page

    def call(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        """A command and its answer."""
        self._number += 1
        number = self._number
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            answer = self.read(deadline)
            if answer is None:
                raise BrowserError(f"{method}: no answer within {TIMEOUT_S} s")
            if answer.get("id") == number:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']}")
                return dict(answer["result"])

    def read(self, deadline: float) -> dict[str, Any] | None:
        """The next message, after its page has seen it; None when none came in time."""
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return None
            part = os.read(self._read, 1 << 16)
            if not part:
                raise BrowserError("the browser has ended")
            self._buffer += part
        raw, _, rest = bytes(self._buffer).partition(b"\0")
        self._buffer = bytearray(rest)
        message = json.loads(raw)
        page = self.pages.get(message.get("sessionId", ""))
        if page is not None and "method" in message:
            page.saw(message["method"], message["params"])
        return dict(message)

    def close(self) -> None:
        """Asked to leave first, then ended with all its children."""
        with contextlib.suppress(BrowserError, OSError):
            self.call("Browser.close")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)
        os.close(self._write)
        os.close(self._read)


class Page:
    """A tab.

    Attributes:
        complaints: what a developer would see in red: console errors, uncaught exceptions, blocked and failed requests.
        requests: address of every request.
        received: bytes that came over the network, headers included.
    """

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.received = 0
        self._loaded = 0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command for this tab."""
        return self._browser.call(method, self._session, **parameters)

    def saw(self, event: str, about: dict[str, Any]) -> None:
        """Keeps what the tests ask for later."""
        if event == "Runtime.exceptionThrown":
            self.complaints.append(
                str(about["exceptionDetails"].get("exception", {}).get("description", about["exceptionDetails"]["text"]))
            )
        elif event == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
            self.complaints.append(str([argument.get("value", argument.get("description")) for argument in about["args"]]))
        elif event == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{about['entry']['text']} {about['entry'].get('url', '')}")
        elif event == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        elif event == "Network.loadingFinished":
            self.received += int(about["encodedDataLength"])
        elif event == "Page.loadEventFired":
            self._loaded += 1

    def open(self, address: str) -> None:
        """Goes there and waits for the load event."""
        before = self._loaded
        answer = self.call("Page.navigate", url=address)
        if answer.get("errorText"):
            raise BrowserError(f"{address}: {answer['errorText']}")
        deadline = time.monotonic() + TIMEOUT_S
        while self._loaded == before:
            if self._browser.read(deadline) is None:
                raise BrowserError(f"{address}: not loaded within {TIMEOUT_S} s")

    def js(self, expression: str) -> Any:
        """The value of an expression; a promise is awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise BrowserError(f"{expression}: {answer['exceptionDetails'].get('exception', {}).get('description')}")
        return answer["result"].get("value")

    def until(self, expression: str, timeout_s: float = TIMEOUT_S) -> Any:
        """Waits until an expression is true; its value."""
        deadline = time.monotonic() + timeout_s
        while True:
            value = self.js(expression)
            if value:
                return value
            if time.monotonic() > deadline:
                raise BrowserError(f"never true: {expression}\n{self.text()}\ncomplaints: {self.complaints}")
            self._browser.read(time.monotonic() + 0.02)

    def text(self) -> str:
        """All text that can be seen."""
        return str(self.js("document.body.innerText"))

    def click(self, selector: str) -> None:
        """A real click in the middle of an element."""
        chosen = json.dumps(selector)
        self.js(f"document.querySelector({chosen}).scrollIntoView({{block: 'center', behavior: 'instant'}})")
        box = f"(() => {{ const b = document.querySelector({chosen}).getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; }})()"
        x, y = self.js(box)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def write(self, text: str) -> None:
        """Types into whatever has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, *, shift: bool = False, control: bool = False) -> None:
        """One key."""
        about = {
            "key": key,
            "code": "Space" if key == " " else key,
            "windowsVirtualKeyCode": KEYS[key],
            "modifiers": 8 * shift + 2 * control,
        }
        text = {"Enter": "\r", " ": " "}.get(key, "")
        self.call("Input.dispatchKeyEvent", type="keyDown", **about, **({"text": text} if text and not control else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def size(self, width: int, height: int, *, scale: float = 1.0, phone: bool = False) -> None:
        """The window."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=phone)

    def media(self, **features: str) -> None:
        """What the person prefers, such as `prefers_color_scheme="dark"`."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": n.replace("_", "-"), "value": v} for n, v in features.items()])

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG, not only what fits the window."""
        height = self.js("Math.ceil(document.documentElement.getBoundingClientRect().height)")
        width = self.js("innerWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]))
