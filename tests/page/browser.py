"""Drive a headless Chromium over its debugging pipe (Chrome DevTools Protocol): open a page, press keys, evaluate, take pictures."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome")
#: Seconds until the browser must have answered.
_PATIENCE = 60
#: The code of a key for the keys that are not characters.
_KEY_CODES = {
    "Tab": 9,
    "Enter": 13,
    "PageUp": 33,
    "PageDown": 34,
    "End": 35,
    "Home": 36,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
}
_CTRL = 2


class BrowserError(Exception):
    """The browser is missing, does not answer, or reports an error."""


class Browser:
    """One page in a headless Chromium."""

    def __init__(self, into: int, out: int) -> None:
        self._into, self._out = into, out
        self._unread = b""
        self._last = 0
        self._session = ""
        #: URLs that the page asked for, and errors that it reported.
        self.requests: list[str] = []
        self.errors: list[str] = []
        self._loaded = False

    def start(self) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result. Raises BrowserError if it fails."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._into, data) :]
        while True:
            answer = self._read()
            if answer.get("id") != self._last:
                continue
            if "error" in answer:
                raise BrowserError(f"{method}: {answer['error']['message']}")
            result: dict[str, Any] = answer["result"]
            return result

    def _read(self) -> dict[str, Any]:
        """Return the next message, after taking note of what it says about the page."""
        deadline = time.monotonic() + _PATIENCE
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._out], [], [], max(0, deadline - time.monotonic()))
            data = os.read(self._out, 1 << 20) if ready else b""
            if not data:
                raise BrowserError(f"Chromium {'has ended' if ready else 'does not answer'}")
            self._unread += data
        text, _, self._unread = self._unread.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        params = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"][:200])
        elif message.get("method") == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif message.get("method") == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(params["entry"]["text"])
        elif message.get("method") == "Page.loadEventFired":
            self._loaded = True
        return message

    def open(self, url: str) -> float:
        """Open a page and return after how many seconds it was painted."""
        self.call("Page.navigate", url="about:blank")
        self._loaded = False
        started = time.monotonic()
        self.call("Page.navigate", url=url)
        while not self._loaded:
            self._read()
        self.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return time.monotonic() - started

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression in the page, after the promise that it may be. Raises BrowserError if it throws."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            details = found["exceptionDetails"]
            raise BrowserError(f"{expression}: {details.get('exception', {}).get('description', details['text'])}")
        return found["result"].get("value")

    def press(self, *keys: str, ctrl: bool = False) -> None:
        """Press keys, one after the other: names as in KeyboardEvent.key, or single characters."""
        for key in keys:
            params: dict[str, Any] = {"key": key, "modifiers": _CTRL if ctrl else 0}
            if key in _KEY_CODES:
                params["windowsVirtualKeyCode"] = _KEY_CODES[key]
            text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
            self.call("Input.dispatchKeyEvent", type="keyDown", **params, **({"text": text} if text else {}))
            self.call("Input.dispatchKeyEvent", type="keyUp", **params)

    def write(self, text: str) -> None:
        """Insert text where the focus is."""
        self.call("Input.insertText", text=text)

    def look(self, width: int, height: int, theme: str = "light") -> None:
        """Set the size of the window, and whether the user prefers a ``light`` or a ``dark`` page."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])

    def picture(self, path: Path) -> None:
        """Write what the window shows to a PNG file."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


def find_chromium() -> str:
    """Return the path of Chromium. Raises BrowserError if there is none."""
    for name in _NAMES:
        path = shutil.which(name)
        if path:
            return path
    raise BrowserError("Chromium is missing: install it (Debian: apt-get install chromium fonts-dejavu-core)")


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Start Chromium with a profile of its own, and end it afterwards. Raises BrowserError if it is missing or does not start."""
    chromium = find_chromium()
    with (
        tempfile.TemporaryDirectory(prefix="page-", ignore_cleanup_errors=True) as profile,
        contextlib.ExitStack() as stack,
    ):
        child_in, into = _pipe(stack)
        out, child_out = _pipe(stack)
        options = (
            "--headless=new",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
            "--no-first-run",
            "--disable-gpu",
        )
        # Chromium's own sandbox refuses to run as root. The page is ours.
        sandbox = ("--no-sandbox",) if os.geteuid() == 0 else ()
        # Chromium reads commands from descriptor 3 and writes answers to 4. dash takes descriptors of one digit only.
        script = f'exec "$@" 3<&{child_in} 4>&{child_out}'
        process = subprocess.Popen(
            ["bash", "-c", script, "bash", chromium, *options, *sandbox, "--disable-dev-shm-usage"],
            pass_fds=(child_in, child_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            os.close(child_in)
            os.close(child_out)
            found = Browser(into, out)
            found.start()
            yield found
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _pipe(stack: contextlib.ExitStack) -> tuple[int, int]:
    """Return the ends of a pipe, both with numbers that leave 3 and 4 free."""
    ends = []
    for end in os.pipe():
        high = fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10)
        os.close(end)
        ends.append(high)
        stack.callback(_close, high)
    return ends[0], ends[1]


def _close(descriptor: int) -> None:
    with contextlib.suppress(OSError):
        os.close(descriptor)
