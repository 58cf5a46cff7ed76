"""Headless Chromium for tests, driven over its DevTools protocol through a pipe: open a page, click, type, look.

No package beyond the standard library: the browser reads commands from file descriptor 3 and answers on 4, JSON ended by a zero byte.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --hide-scrollbars --remote-debugging-pipe "
    "--disable-background-networking --disable-component-update --disable-sync --disable-extensions"
)  # fmt: skip
PATIENCE = 90.0  # seconds until something that does not come is an error


def find_browser() -> str:
    """The command of a Chromium; skips the test where there is none (.ci/run installs one)."""
    found = next((name for name in NAMES if shutil.which(name)), None)
    if found is None:
        pytest.skip(f"no browser on this machine ({', '.join(NAMES)}): the page was checked by its source only")
    return found


class Tab:
    """One page. `errors` collects what its console and its scripts complained about."""

    def __init__(self, write: int, read: int) -> None:
        self.out, self.read, self.rest, self.number = write, read, b"", 0
        self.errors: list[str] = []
        self.events: list[str] = []
        self.session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command and its result. Raises RuntimeError for one that the browser refuses."""
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        rest = json.dumps(message).encode() + b"\0"
        while rest:
            rest = rest[os.write(self.out, rest) :]
        while (answer := self._next()).get("id") != self.number:
            self._note(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    def open(self, path: Path) -> None:
        """Load a file and wait until it has run."""
        self.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        while "Page.loadEventFired" not in self.events:
            self._note(self._next())

    def js(self, expression: str) -> Any:
        """The JSON value of an expression. Raises RuntimeError where it throws."""
        got = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in got:
            raise RuntimeError(f"{expression}: {got['exceptionDetails']}")
        return got["result"].get("value")

    def text(self, selector: str) -> str:
        return str(self.js(f"document.querySelector({json.dumps(selector)}).innerText"))

    def click(self, selector: str) -> None:
        """A real press of the mouse in the middle of an element."""
        found = f"document.querySelector({json.dumps(selector)})"
        x, y = self.js(
            f"(() => {{ {found}.scrollIntoView({{block: 'center'}}); const b = {found}.getBoundingClientRect(); "
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, selector: str, text: str) -> None:
        """Replace what stands in a field by typing."""
        self.click(selector)
        self.js(f"document.querySelector({json.dumps(selector)}).select()")
        self.call("Input.insertText", text=text)

    def choose(self, selector: str, value: str) -> None:
        """Pick an option of a select; a drop-down is drawn by the system, out of a mouse's reach here."""
        found = f"document.querySelector({json.dumps(selector)})"
        picked = self.js(f"({found}.value = {json.dumps(value)}, {found}.dispatchEvent(new Event('change')), {found}.value)")
        assert picked == value, f"{selector} has no option {value!r}"

    def wait(self, expression: str) -> None:
        """Until it is true."""
        end = time.monotonic() + PATIENCE
        while not self.js(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.02)

    def size(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)

    def picture(self, path: Path, whole: bool = False) -> Path:
        """A PNG of the window, or of the whole page."""
        got = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole, **(self._all() if whole else {}))
        path.write_bytes(base64.b64decode(got["data"]))
        return path

    def _all(self) -> dict[str, Any]:
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.read], [], [], max(0.0, end - time.monotonic()))
            part = os.read(self.read, 1 << 20) if ready else b""
            assert part, "the browser said nothing more"
            self.rest += part
        line, _, self.rest = self.rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message

    def _note(self, message: dict[str, Any]) -> None:
        method, params = message.get("method", ""), message.get("params", {})
        self.events.append(method)
        if method == "Runtime.exceptionThrown":
            self.errors.append(str(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.errors.append(str(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])


@contextmanager
def browser(folder: Path) -> Iterator[Tab]:
    """A browser with a profile of its own in `folder`; it ends with the block. Skips the test where there is none."""
    command = [find_browser(), *FLAGS.split(), f"--user-data-dir={folder / 'profile'}"]
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    shell = ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "browser", *command]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(shell, pass_fds=(theirs_in, theirs_out), start_new_session=True, **quiet)  # type: ignore[call-overload]
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        tab = Tab(ours_out, ours_in)
        yield tab
        tab.session = ""
        tab.call("Browser.close")
        process.wait(PATIENCE)
    finally:
        process.kill()
        process.wait()
        os.close(ours_out)
        os.close(ours_in)
