"""Where model-written code runs, and nothing but its output comes back.

    with Sandbox() as sandbox:
        run = sandbox.run("print(int(input()) * 2)", stdin="21")     # Run(kind="ok", stdout="42\\n", ...)

    python -m rewards.sandbox FILE.py [--stdin F]     runs one program and prints outcome, output and time
    python -m rewards.sandbox --probe                 says which tier this host allows and why

A warm worker (`sandbox_child.py`) inside bubblewrap forks once per program (tiers: `sandbox_host.py`). No verdict is made in there: the
program gets its input and returns bytes or tagged plain data (`sandbox_codec.py`); expected values never enter its worker, tests that
hold them run in a second one. Time is kept here. How a run ended is told by the kernel's exit status, never by what the program says.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from rewards import sandbox_host as host

START_S = 60.0  # a worker with numpy and sympy on a cold, busy disk
GRACE_S = 2.0  # for a worker to report after it was told to kill
SOURCE_MOST = 1 << 20


class SandboxRefused(RuntimeError):
    """This host cannot contain a program; the message says why and what to do."""


@dataclass(frozen=True)
class Limits:
    """Of one program: seconds on the clock, MiB of address space, KiB of output (and as much again of errors), threads."""

    wall_s: float = 5.0
    memory_mb: int = 1024
    output_kb: int = 4096
    threads: int = 64


@dataclass(frozen=True)
class Run:
    """How one program ended. `kind`: ok, timeout, memory, output, crash, refused (never started), infrastructure (our fault).

    >>> Run("crash", detail="exit status 1: ValueError: no").kind
    'crash'
    """

    kind: str
    stdout: str = ""
    stderr: str = ""
    seconds: float = 0.0
    detail: str = ""


class _Spawner:
    """Starts processes from one thread that never ends: the kernel's die-with-parent is bound to the starting thread, not its process."""

    def __init__(self) -> None:
        self.pid, self.jobs, self.lock = 0, queue.SimpleQueue(), threading.Lock()

    def __call__(self, start: Callable[[], Any]) -> Any:
        with self.lock:
            if self.pid != os.getpid():
                self.pid, self.jobs = os.getpid(), queue.SimpleQueue()
                threading.Thread(target=self._loop, args=(self.jobs,), daemon=True, name="sandbox-spawner").start()
        answer: queue.SimpleQueue = queue.SimpleQueue()
        self.jobs.put((start, answer))
        result = answer.get()
        if isinstance(result, BaseException):
            raise result
        return result

    @staticmethod
    def _loop(jobs: queue.SimpleQueue) -> None:
        while True:
            start, answer = jobs.get()
            try:
                answer.put(start())
            except BaseException as e:
                answer.put(e)


spawn = _Spawner()


class Worker:
    """One warm worker process; OSError from the constructor says why it could not start."""

    def __init__(self, tier: str, image: str):
        self.tier = tier
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            argv, setup = host.plan(tier, image, theirs.fileno())
            options = {"pass_fds": (theirs.fileno(),), "env": dict(host.ENVIRONMENT), "cwd": "/", "start_new_session": True}
            pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
            self.process = spawn(lambda: subprocess.Popen(argv, **pipes, **options))
        except BaseException:
            self.control.close()
            raise
        finally:
            theirs.close()
        self.control.settimeout(START_S)
        try:
            self.control.send(json.dumps(setup).encode())
            ready = self.control.recv(65536)
        except OSError:
            ready = b""
        if not ready:
            self.close()
            raise OSError(f"its worker did not start: {self.complaint[-300:] or 'no message'}")
        self.control.settimeout(None)
        self.about = json.loads(ready)

    complaint = ""

    def close(self) -> None:
        """Kill it and all that it started."""
        self.control.close()
        self.process.kill()
        if self.process.stderr:
            with contextlib.suppress(OSError, ValueError):
                os.set_blocking(self.process.stderr.fileno(), False)
                self.complaint = (self.process.stderr.read() or b"").decode(errors="replace").strip()
            self.process.stderr.close()
        self.process.wait()


class Program:
    """One program while it runs: `frame` waits for its next frame, `finish` for its end."""

    def __init__(self, worker: Worker, job: dict[str, Any], limits: Limits, stdin: bytes = b""):
        self.worker, self.limits, self.start = worker, limits, time.monotonic()
        self.deadline = self.start + limits.wall_s
        self.stopped = self.said = ""
        self.report: dict[str, Any] | None = None
        self.gone = False  # the worker is
        self.text: dict[str, bytearray] = {"out": bytearray(), "err": bytearray(), "frames": bytearray()}
        pipes = [os.pipe() for _ in range(5)]  # stdin, stdout, stderr, channel in, channel out
        theirs = [r if i in (0, 3) else w for i, (r, w) in enumerate(pipes)]
        ours = [w if i in (0, 3) else r for i, (r, w) in enumerate(pipes)]
        self.pending = {ours[0]: bytearray(stdin), ours[3]: bytearray()}
        self.reading = {ours[1]: "out", ours[2]: "err", ours[4]: "frames"}
        self.stdin, self.channel = ours[0], ours[3]
        for fd in ours:
            os.set_blocking(fd, False)
        tasks = host.tasks_allowed(worker.tier, limits.threads, int(self.start) // 2)
        order = {"wall_s": limits.wall_s, "memory_mb": limits.memory_mb, "tasks": tasks}
        try:
            socket.send_fds(worker.control, [json.dumps(order).encode()], theirs)
        except OSError:
            self.gone = True
        finally:
            for fd in theirs:
                os.close(fd)
        self.send(job)

    def send(self, data: Any) -> None:
        self.send_raw(json.dumps(data).encode())

    def send_raw(self, frame: bytes) -> None:
        if self.channel in self.pending:
            self.pending[self.channel] += struct.pack("<I", len(frame)) + frame

    def _next(self) -> bytes | None:
        frames = self.text["frames"]
        if len(frames) < 4:
            return None
        size = struct.unpack_from("<I", frames)[0]
        if size > self.limits.output_kb << 10:
            self.kill("output")
        if len(frames) < 4 + size:
            return None
        frame = bytes(frames[4 : 4 + size])
        del frames[: 4 + size]
        return frame

    def frame(self) -> bytes | None:
        """The next frame as it came, or None when the program ended without one."""
        while (frame := self._next()) is None and not self.ended:
            self._pump()
        return frame if not self.stopped else None

    @property
    def ended(self) -> bool:
        return self.gone or self.report is not None

    def kill(self, why: str) -> None:
        if not self.stopped:
            self.stopped, self.deadline = why, time.monotonic() + GRACE_S
            with contextlib.suppress(OSError):
                self.worker.control.send(b"kill")

    def _pump(self) -> None:
        """Wait for something to happen and do it: move bytes, notice the end, keep the time."""
        poller = select.poll()
        poller.register(self.worker.control, select.POLLIN)
        for fd in self.reading:
            poller.register(fd, select.POLLIN)
        for fd, data in self.pending.items():
            if data or fd == self.stdin:
                poller.register(fd, select.POLLOUT)
        left = self.deadline - time.monotonic()
        ready = poller.poll(max(0.0, left) * 1000) if left > 0 else []
        if not ready and time.monotonic() >= self.deadline:
            if self.stopped:  # it did not obey in time
                self.worker.process.kill()
                self.gone = True
            self.kill("timeout")
        for fd, _ in ready:
            if fd in self.reading:
                self._read(fd)
            elif fd in self.pending:
                self._write(fd)
            elif fd == self.worker.control.fileno():
                self._status()

    def _read(self, fd: int) -> bool:
        try:
            data = os.read(fd, 1 << 18)
        except BlockingIOError:
            return False
        text = self.text[self.reading[fd]]
        if not data:
            self._close(fd)
            return False
        most = (self.limits.output_kb << 10) + (4 if text is self.text["frames"] else 0)
        if len(text) + len(data) > most:
            self.kill("output")
        text += data[: max(0, most - len(text))]
        return len(text) < most

    def _write(self, fd: int) -> None:
        data = self.pending[fd]
        try:
            sent = os.write(fd, data[: 1 << 18]) if data else 0
            del data[:sent]
        except BlockingIOError:
            return
        except OSError:  # the program closed it
            self._close(fd)
            return
        if not data and fd == self.stdin:
            self._close(fd)

    def _close(self, fd: int) -> None:
        self.reading.pop(fd, None)
        self.pending.pop(fd, None)
        os.close(fd)

    def _status(self) -> None:
        try:
            message = self.worker.control.recv(65536)
        except OSError:
            message = b""
        if not message:
            self.gone = True
            return
        self.report = json.loads(message)
        for fd in list(self.reading):  # what it had written before it ended
            while fd in self.reading and self._read(fd):
                pass

    def finish(self) -> Run:
        """Wait for the end (`kill` first to have it now) and say how it was."""
        while not self.ended:
            while self._next() is not None:
                pass
            self._pump()
        while (frame := self._next()) is not None:
            self.said = frame.decode(errors="replace")
        for fd in [*self.reading, *self.pending]:
            self._close(fd)
        kind, detail = self._verdict()
        texts = (self.text[k].decode(errors="replace") for k in ("out", "err"))
        return Run(kind, *texts, seconds=time.monotonic() - self.start, detail=detail)

    def _verdict(self) -> tuple[str, str]:
        if self.stopped:
            limit = {"timeout": f"{self.limits.wall_s:g} s", "output": f"{self.limits.output_kb} KiB"}.get(self.stopped, "")
            return self.stopped, f"over {limit}" if limit else ""
        if self.report is None:
            return "infrastructure", "the sandbox's worker died"
        status = self.report["status"]
        if os.WIFSIGNALED(status):
            name = signal.Signals(os.WTERMSIG(status)).name
            if name in ("SIGXCPU", "SIGKILL") and self.report["cpu_s"] > 2 * self.limits.wall_s:
                return "timeout", "over its CPU time"
            if name == "SIGKILL":
                if self.report["rss_mb"] > self.limits.memory_mb // 2:
                    return "memory", f"killed at {self.report['rss_mb']} MiB"
                return "infrastructure", "killed from outside"
            return "crash", name
        error = self.text["err"][-2000:].decode(errors="replace").strip().rpartition("\n")[2][:200]
        if "MemoryError" in self.said or error.startswith("MemoryError"):
            return "memory", f"over {self.limits.memory_mb} MiB"
        code = os.waitstatus_to_exitcode(status)
        return ("ok", "") if code == 0 else ("crash", f"exit status {code}{': ' + error if error else ''}")


def image_for(source: str) -> str:
    """The leanest image that has what `source` imports."""
    return "sympy" if re.search(r"\b(sympy|mpmath)\b", source) else "numpy" if re.search(r"\bnumpy\b", source) else "plain"


@dataclass
class Sandbox:
    """Workers of one tier, started when needed and replaced when they die. One program at a time (a lock holds others back).

    `tier`: "auto" (A, else B, else SandboxRefused), "A", "B", or "unsafe" (said aloud on stderr; for hosts you can throw away).
    """

    tier: str = "auto"
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        self.lock, self.workers, self.why = threading.RLock(), {}, ""
        if self.tier == "unsafe":
            print("sandbox: UNSAFE by explicit setting: model-written code runs with rlimits only", file=sys.stderr, flush=True)
        self.tier, self.why = resolve(self.tier)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with self.lock:
            for worker in self.workers.values():
                worker.close()
            self.workers.clear()

    def worker(self, image: str, role: str = "solve") -> Worker:
        """The worker of `image`; tests (`role="check"`) have workers of their own, which model-written code never enters."""
        if (image, role) not in self.workers:
            self.workers[image, role] = Worker(self.tier, image)
        return self.workers[image, role]

    def start(self, image: str, job: dict[str, Any], stdin: bytes = b"", role: str = "solve", limits: Limits | None = None) -> Program:
        return Program(self.worker(image, role), job, limits or self.limits, stdin)

    def finish(self, program: Program) -> Run:
        """The program's end; a worker that died with it is forgotten, so that the next program gets a new one."""
        run = program.finish()
        if program.gone:
            self.workers = {k: w for k, w in self.workers.items() if w is not program.worker}
            program.worker.close()
        return run

    def run(self, source: str, stdin: str = "", limits: Limits | None = None) -> Run:
        """Run `source` as a script to its end."""
        if refusal := refuse(source):
            return Run("refused", detail=refusal)
        with self.lock:
            try:
                program = self.start(image_for(source), {"mode": "script", "source": source}, stdin.encode(errors="replace"), limits=limits)
            except OSError as e:
                return Run("infrastructure", detail=str(e))
            return self.finish(program)


def refuse(source: str) -> str:
    """Why `source` is not even started; empty if it is."""
    if len(source) > SOURCE_MOST:
        return f"source of {len(source)} characters, more than {SOURCE_MOST}"
    return "source with a null character" if "\0" in source else ""


CANARY = """
import ctypes, json, os, socket, sys
open_doors, libc = [], ctypes.CDLL(None)
def attempt(name, act):
    try:
        act()
    except OSError:
        return
    open_doors.append(name)
attempt("reads /etc/passwd", lambda: open("/etc/passwd").read())
attempt("writes", lambda: open("/tmp/sandbox_canary", "w"))
attempt("forks", lambda: os.fork() or os._exit(0))
attempt("executes", lambda: os.execv("/bin/true", ["true"]))
attempt("opens a socket", lambda: socket.socket())
attempt("signals its parent", lambda: os.kill(os.getppid(), 0))
if libc.unshare(0x10000000) == 0: open_doors.append("gets a user namespace")
if os.getuid() == 0 and not sys.argv[1:]: open_doors.append("is root")
print(json.dumps(open_doors))
"""
_known: dict[tuple[int, str], tuple[str, str]] = {}


def resolve(tier: str = "auto") -> tuple[str, str]:
    """The tier that holds on this host and why not a better one. It is tried, not guessed: a canary attempts what must not work."""
    if tier not in ("auto", "A", "B", "unsafe"):
        raise ValueError(f"sandbox tier {tier!r} is none of auto, A, B, unsafe")
    if (os.getpid(), tier) in _known:
        return _known[os.getpid(), tier]
    reasons = []
    for candidate in ("A", "B") if tier == "auto" else (tier,):
        if not (reason := _try(candidate)):
            _known[os.getpid(), tier] = candidate, "; ".join(reasons)
            return _known[os.getpid(), tier]
        reasons.append(f"tier {candidate}: {reason}")
    raise SandboxRefused(
        f"sandbox REFUSED: this host cannot contain a program ({'; '.join(reasons)}). Install bubblewrap or allow user namespaces, "
        "or name a SandboxFusion server (sandbox_url), or set tier = 'unsafe' on a host you can throw away"
    )


def _try(tier: str) -> str:
    """Empty when `tier` works and holds, else the reason."""
    sandbox = object.__new__(Sandbox)
    sandbox.tier, sandbox.limits, sandbox.lock, sandbox.workers = tier, Limits(wall_s=10.0), threading.RLock(), {}
    with sandbox:
        try:
            sandbox.worker("plain")
        except OSError as e:
            return str(e).strip().replace("\n", " ")
        if tier == "unsafe":
            return ""
        run = sandbox.run(CANARY)
        try:
            doors = json.loads(run.stdout)
        except ValueError:
            return f"the canary ended with {run.kind} {run.detail}"
        return f"a program still {', '.join(doors)}" if doors else ""


def tier() -> dict[str, str]:
    """For a run's metadata: {"tier": "A", "why": ""}; tier "none" with the reason where a sandbox is refused."""
    try:
        return dict(zip(("tier", "why"), resolve(), strict=True))
    except SandboxRefused as e:
        return {"tier": "none", "why": str(e)}


def main(argv: list[str]) -> int:
    import argparse

    parser = argparse.ArgumentParser(prog="python -m rewards.sandbox", description="Run one program in the sandbox.")
    parser.add_argument("file", nargs="?", help="the program")
    parser.add_argument("--stdin", help="file with its standard input")
    parser.add_argument("--probe", action="store_true", help="say which tier this host allows and why")
    parser.add_argument("--tier", default="auto", choices=("auto", "A", "B", "unsafe"))
    parser.add_argument("--wall", type=float, default=Limits.wall_s, help="seconds")
    parser.add_argument("--memory", type=int, default=Limits.memory_mb, help="MiB")
    given = parser.parse_args(argv)
    if not given.probe and not given.file:
        parser.error("give a FILE.py or --probe")
    try:
        if given.probe:
            return probe(given.tier)
        source = open(given.file, encoding="utf-8", errors="replace").read()
        stdin = open(given.stdin, encoding="utf-8", errors="replace").read() if given.stdin else ""
        with Sandbox(given.tier, Limits(wall_s=given.wall, memory_mb=given.memory)) as sandbox:
            run = sandbox.run(source, stdin)
    except (SandboxRefused, OSError) as e:
        print(e, file=sys.stderr)
        return 2
    sys.stdout.write(run.stdout)
    sys.stdout.flush()
    sys.stderr.write(run.stderr)
    print(f"[{run.kind}{': ' + run.detail if run.detail else ''}; {run.seconds:.3f} s; tier {sandbox.tier}]", file=sys.stderr)
    return {"ok": 0, "infrastructure": 2}.get(run.kind, 1)


def probe(wanted: str) -> int:
    found, why = resolve(wanted)
    about = {"A": "bubblewrap, Landlock and seccomp", "B": "Landlock and seccomp, no namespaces", "unsafe": "rlimits only"}[found]
    print(f"tier {found}: {about}" + (f"\nnot better because of {why}" if why else ""))
    for image in host.IMAGES:
        try:
            worker = Worker(found, image)
        except OSError as e:
            print(f"image {image}: {e}")
            continue
        loaded = {k: v for k, v in worker.about["versions"].items() if k in ("numpy", "sympy")}
        missing = [m for m in host.IMAGES[image] if m not in loaded]
        print(f"image {image}: {loaded or 'standard library'}{' (not installed: ' + ', '.join(missing) + ')' if missing else ''}, uid {worker.about['uid']}")
        worker.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))


__all__ = ["Limits", "Program", "Run", "Sandbox", "SandboxRefused", "Worker", "image_for", "replace", "tier"]
