"""Chromium through its DevTools protocol: pages, key strokes, screenshots, and what went wrong."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
from websockets.sync.client import connect

PATH = shutil.which("chromium") or shutil.which("chromium-browser")


def axe_core() -> Path | None:
    """axe.min.js: the file AXE, or that in the package axe-playwright-python; None without both."""
    if given := os.environ.get("AXE"):
        return Path(given)
    package = importlib.util.find_spec("axe_playwright_python")
    if package is None or package.origin is None:
        return None
    return Path(package.origin).parent / "axe.min.js"


AXE = axe_core()
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--hide-scrollbars", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--remote-debugging-port=0"),
]
SECONDS = 30.0
needs_browser = pytest.mark.skipif(PATH is None, reason="there is no Chromium")


class Browser:
    """One tab. problems: console errors and exceptions; requests: the addresses it asked for."""

    def __init__(self, socket):
        self._socket, self._number = socket, 0
        self.problems: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            found = json.loads(self._socket.recv(timeout=SECONDS))
            if found.get("id") == self._number:
                assert "error" not in found, found
                return found["result"]
            self._heard(found)

    def _heard(self, event):
        params = event.get("params", {})
        if event["method"] == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif event["method"] == "Runtime.exceptionThrown":
            self.problems.append(str(params["exceptionDetails"]))
        elif event["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(str(params["entry"]))
        elif event["method"] == "Runtime.consoleAPICalled" and params["type"] == "error":
            self.problems.append(str(params["args"]))

    def run(self, script):
        """The value of a JavaScript expression; a promise is awaited."""
        found = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script):
        """Waits until an expression is true."""
        end = time.monotonic() + SECONDS
        while not self.run(script):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.02)

    def open(self, url, width=1400, dark=False):
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=900, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)
        self.wait("location.href != 'about:blank' && document.readyState == 'complete'")

    def key(self, key, code=0):
        """Presses a key; code: of Windows, which Enter, Tab and Space need."""
        text = "\r" if key == "Enter" else " " if key == "Space" else ""
        name = " " if key == "Space" else key
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=name, windowsVirtualKeyCode=code,
                text=text if kind == "keyDown" else "",
            )  # fmt: skip

    def type(self, text):
        self.call("Input.insertText", text=text)

    def screenshot(self, path):
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        Path(path).write_bytes(base64.b64decode(found["data"]))

    def overflow(self):
        """How many pixels the page is wider than its window."""
        return self.run("document.documentElement.scrollWidth - innerWidth")

    def violations(self):
        """What axe-core finds, as lines; [] without it."""
        if AXE is None:
            return []
        self.call("Page.setBypassCSP", enabled=True)
        self.run(AXE.read_text() + ";true")
        found = self.run("axe.run().then(found => found.violations)")
        return [
            f"{one['id']}: {node['html'][:200]} {node.get('failureSummary', '')}"
            for one in found
            for node in one["nodes"]
        ]


@contextlib.contextmanager
def browser(folder):
    """A new Chromium whose profile is in ``folder``."""
    process = subprocess.Popen(
        [PATH, *FLAGS, f"--user-data-dir={folder}", "about:blank"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        note, end = Path(folder) / "DevToolsActivePort", time.monotonic() + SECONDS
        while not note.exists() or len(note.read_text().split()) < 2:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        port = note.read_text().split()[0]
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{port}/json") as answer:
            tabs = json.load(answer)
        url = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
        with connect(url, max_size=None, proxy=None) as socket:
            yield Browser(socket)
    finally:
        process.terminate()
        process.wait(timeout=SECONDS)
