"""A headless Chromium for tests of pages, told what to do through its debugging pipe; nothing has to be installed."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

FOUND = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
_FLAGS = (
    "--headless=new", "--no-sandbox", "--remote-debugging-pipe", "--disable-gpu", "--disable-dev-shm-usage",
    "--no-first-run", "--disable-extensions", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--mute-audio",
)  # fmt: skip
_PATIENCE = 240.0
"""Seconds for an answer; a busy machine takes its time."""


class Browser:
    """One process and one tab. `complaints` has what its console said since the last page was opened."""

    def __init__(self, home: Path) -> None:
        assert FOUND is not None
        (hear, say), (theirs, ours) = os.pipe(), os.pipe()
        to, back = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (hear, ours))

        def connect() -> None:  # Chromium reads its file 3 and writes its file 4
            os.dup2(to, 3)
            os.dup2(back, 4)

        self._process = subprocess.Popen(
            [FOUND, *_FLAGS, f"--user-data-dir={home / 'profile'}", "about:blank"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=False,
            preexec_fn=connect,
        )  # fmt: skip
        for fd in (hear, ours, to, back):
            os.close(fd)
        self._say, self._hear, self._rest, self._number = say, theirs, b"", 0
        self._events: list[dict[str, Any]] = []
        self.complaints: list[str] = []
        self.downloads = home / "downloads"
        self.downloads.mkdir()
        target = self._tell("Target.createTarget", {"url": "about:blank"}, session=None)["targetId"]
        self._session: str | None = None
        attached = self._tell("Target.attachToTarget", {"targetId": target, "flatten": True}, session=None)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._tell(f"{domain}.enable")
        where = {"behavior": "allow", "downloadPath": str(self.downloads), "eventsEnabled": True}
        self._tell("Browser.setDownloadBehavior", where, session=None)

    def open(self, page: Path, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        """Show a file as a screen of that many pixels would."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._tell("Emulation.setDeviceMetricsOverride", size)
        self.prefer(scheme)
        self._events.clear()
        self.complaints.clear()
        self._tell("Page.navigate", {"url": page.resolve().as_uri()})
        self._wait("Page.loadEventFired")
        self.settle()

    def prefer(self, scheme: str) -> None:
        """``light`` or ``dark``."""
        self._tell("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})

    def settle(self) -> None:
        """Until what was asked for is drawn."""
        self.ask("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression, as JSON has it; a promise's when it has one."""
        asked = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        answer = self._tell("Runtime.evaluate", asked)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def click(self, element: str) -> None:
        """A click in the middle of what a JavaScript expression finds."""
        x, y = self._place(element, 0.5, 0.5)
        for kind in ("mousePressed", "mouseReleased"):
            pressed = {"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1}
            self._tell("Input.dispatchMouseEvent", pressed)
        self.settle()

    def point(self, element: str, across: float, down: float) -> None:
        """The pointer over a place in an element, in shares of its width and height."""
        x, y = self._place(element, across, down)
        self._tell("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x, "y": y})
        self.settle()

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self._tell("Input.dispatchKeyEvent", {"type": kind, "key": key})
        self.settle()

    def download(self, element: str) -> Path:
        """The file that a click on an element makes."""
        self._events = [e for e in self._events if not e["method"].startswith("Browser.download")]
        self.click(element)
        begun = self._wait("Browser.downloadWillBegin")
        while self._wait("Browser.downloadProgress", keep=False)["state"] != "completed":
            pass
        return self.downloads / str(begun["suggestedFilename"])

    def picture(self, file: Path) -> None:
        """The whole page as PNG."""
        shot = self._tell("Page.captureScreenshot", {"captureBeyondViewport": True})
        file.write_bytes(base64.b64decode(shot["data"]))

    def asked_for(self) -> list[str]:
        """The addresses that the page has asked for, besides itself."""
        asked = [e["params"]["request"]["url"] for e in self._events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]

    def close(self) -> None:
        try:
            self._tell("Browser.close", session=None)
            self._process.wait(30)
        except (OSError, AssertionError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        os.close(self._say)
        os.close(self._hear)

    def _place(self, element: str, across: float, down: float) -> tuple[float, float]:
        found = self.ask(
            f"(() => {{ const it = {element}; it.scrollIntoView({{block: 'center', behavior: 'instant'}});"
            " const box = it.getBoundingClientRect(); return [box.left, box.top, box.width, box.height]; })()"
        )
        self.settle()
        return found[0] + across * found[2], found[1] + down * found[3]

    def _tell(self, method: str, params: dict[str, Any] | None = None, session: str | None = "own") -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params or {}}
        if session is not None:
            message["sessionId"] = self._session
        os.write(self._say, json.dumps(message).encode() + b"\0")
        while True:
            heard = self._next()
            if heard.get("id") == self._number:
                assert "error" not in heard, (method, heard["error"])
                return dict(heard["result"])
            self._keep(heard)

    def _wait(self, event: str, keep: bool = True) -> dict[str, Any]:
        seen = 0
        while True:
            for one in self._events[seen:]:
                seen += 1
                if one["method"] == event:
                    if not keep:
                        self._events.remove(one)
                    return dict(one["params"])
            self._keep(self._next())

    def _keep(self, heard: dict[str, Any]) -> None:
        method, params = heard.get("method"), heard.get("params", {})
        if method is None:
            return
        self._events.append(heard)
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.complaints.append(str(details.get("exception", {}).get("description", details["text"])))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append(" ".join(str(a.get("value", a.get("description"))) for a in params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(str(params["entry"]["text"]))

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + _PATIENCE
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._hear], [], [], max(0.0, end - time.monotonic()))
            assert ready, "Chromium does not answer"
            read = os.read(self._hear, 1 << 16)
            assert read, "Chromium has ended"
            self._rest += read
        one, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(one))
