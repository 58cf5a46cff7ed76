"""Programs on a SandboxFusion server instead of this host (POST {url}/run_code); the verdict is still made here.

For hosts where `sandbox.py` refuses: `[rewards.code] sandbox_url = "http://host:8080"`. The server only runs a script on standard input and
returns its output, so a program that answers calls is run anew with all calls so far, and its answers are read from what it prints last:
n calls take n + 1 requests. Tests that are code run in requests of their own, so expected values never stand beside the program. The
containment is the server's; programs must be deterministic.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rewards.sandbox_run import Limits, Run

HERE = Path(__file__).resolve().parent
OVERHEAD_S = 30.0  # queueing and transport on top of a program's own time
DRIVER = """
import json, os, sys, types
given = json.loads(sys.stdin.readline())
for name, text in given["modules"].items():
    sys.modules[name] = types.ModuleType(name)
    exec(compile(text, name, "exec"), sys.modules[name].__dict__)
jobs, out, said, frames = sys.modules["sandbox_jobs"], os.dup(1), [], iter(given["frames"])
os.dup2(2, 1)
def stop():
    os.write(out, b"\\n" + json.dumps(said).encode())
    os._exit(0)
jobs.read_frame = lambda: next(frames, None) or stop()
jobs.write_frame = said.append
jobs.JOBS[given["job"].pop("mode")](**given["job"])
stop()
"""


class RemoteProgram:
    """The face of `sandbox_run.Program`, by replaying all frames in a new request whenever an answer is missing."""

    def __init__(self, ask: Callable[[str, str, Limits], Run], job: dict[str, Any], limits: Limits):
        self.ask, self.job, self.limits = ask, job, limits
        self.deadline = time.monotonic() + limits.wall_s + OVERHEAD_S
        self.sent: list[Any] = []
        self.said: list[Any] = []
        self.read = 0
        self.run: Run | None = None
        self.gone = False

    @property
    def ended(self) -> bool:
        return self.run is not None

    def send(self, data: Any) -> None:
        self.sent.append(data)

    def send_raw(self, frame: bytes) -> None:
        try:
            self.sent.append(json.loads(frame))
        except (ValueError, RecursionError):
            self.sent.append(["e", "ValueError", "no plain data"])

    def frame(self) -> bytes | None:
        if self.read == len(self.said) and not self.ended:
            self._replay()
        if self.read >= len(self.said):
            return None
        self.read += 1
        return json.dumps(self.said[self.read - 1]).encode()

    def _replay(self) -> None:
        modules = {name: (HERE / f"{name}.py").read_text("utf-8") for name in ("sandbox_codec", "sandbox_jobs")}
        run = Run("timeout", detail="over the time of all requests")
        if time.monotonic() < self.deadline:
            run = self.ask(DRIVER, json.dumps({"modules": modules, "frames": self.sent, "job": self.job}) + "\n", self.limits)
        try:
            said = json.loads(run.stdout.rpartition("\n")[2])
        except (ValueError, RecursionError):
            said = None
        if run.kind != "ok" or not isinstance(said, list) or len(said) <= self.read:
            self.run = run
        else:
            self.said = said

    def kill(self, why: str) -> None:
        self.run = self.run or Run(why)


class RemoteSandbox:
    """The face of `sandbox.Sandbox` on a SandboxFusion server."""

    tier = "remote"

    def __init__(self, url: str, limits: Limits | None = None):
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"sandbox_url is {url!r}: it must be the address of a SandboxFusion server, e.g. http://host:8080")
        self.url, self.limits, self.lock = url.rstrip("/"), limits or Limits(), threading.RLock()

    def start(
        self, image: str, job: dict[str, Any], stdin: bytes = b"", role: str = "solve", limits: Limits | None = None
    ) -> RemoteProgram:
        return RemoteProgram(self._ask, job, limits or self.limits)

    def finish(self, program: Any) -> Run:
        return program.run or Run("ok")

    def close(self) -> None:
        """Nothing is held."""

    def run(self, source: str, stdin: str = "", limits: Limits | None = None) -> Run:
        return self._ask(source, stdin, limits or self.limits)

    def _ask(self, source: str, stdin: str, limits: Limits) -> Run:
        """One request. A server that fails, refuses or does not answer is infrastructure."""
        asked = {
            "language": "python",
            "code": source,
            "stdin": stdin,
            "run_timeout": limits.wall_s,
            "memory_limit_MB": limits.memory_mb,
        }
        request = urllib.request.Request(
            f"{self.url}/run_code", data=json.dumps(asked).encode(), headers={"Content-Type": "application/json"}, method="POST"
        )
        begin = time.monotonic()
        try:
            with urllib.request.urlopen(request, timeout=limits.wall_s + OVERHEAD_S) as response:
                answer = json.loads(response.read())
            ran = answer.get("run_result") or {}
            if answer.get("status") == "SandboxError" or ran.get("status") not in ("Finished", "TimeLimitExceeded"):
                return Run("infrastructure", detail=str(answer.get("message"))[:200])
        except (OSError, ValueError, AttributeError, urllib.error.URLError) as e:
            return Run("infrastructure", detail=f"{self.url}: {e}"[:200])
        out, err = str(ran.get("stdout") or ""), str(ran.get("stderr") or "")
        kind, detail = "ok", ""
        if ran["status"] == "TimeLimitExceeded":
            kind, detail = "timeout", f"over {limits.wall_s:g} s"
        elif len(out) > limits.output_kb << 10:
            kind, detail = "output", f"over {limits.output_kb} KiB"
        elif ran.get("return_code"):
            last = err.strip().rpartition("\n")[2][:200]
            kind, detail = "memory" if last.startswith("MemoryError") else "crash", f"exit status {ran['return_code']}: {last}"
        return Run(kind, out, err, time.monotonic() - begin, detail)
