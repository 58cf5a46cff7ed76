"""One worker process of the sandbox and one program in it, seen from outside: pipes, time, and how it ended.

The worker (`sandbox_child.py`) gets five pipe ends for each program; the other ends are here. Time and amounts of output are kept here, and
how a run ended is told by the kernel's exit status, never by what the program says.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import queue
import select
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rewards import sandbox_host as host

START_S = 60.0  # a worker with numpy and sympy on a cold, busy disk
GRACE_S = 2.0  # for a worker to report after it was told to kill


@dataclass(frozen=True)
class Limits:
    """Of one program: seconds on the clock, MiB of address space, KiB of output (and as much again of errors), threads."""

    wall_s: float = 6.0
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


class WorkerKilled(OSError):
    """The worker could not start because something outside killed it: try again."""


class _Spawner:
    """Starts processes from one thread that never ends: the kernel's die-with-parent is bound to the starting thread, not its process."""

    def __init__(self) -> None:
        self.pid, self.lock = 0, threading.Lock()
        self.jobs: queue.SimpleQueue = queue.SimpleQueue()

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
            start = functools.partial(subprocess.Popen, argv, pass_fds=(theirs.fileno(),), env=dict(host.ENVIRONMENT), cwd="/")
            quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
            self.process = spawn(lambda: start(start_new_session=True, **quiet))
        except BaseException:
            self.control.close()
            raise
        finally:
            theirs.close()
        self.control.settimeout(START_S)
        ready = b""
        with contextlib.suppress(OSError):
            self.control.send(json.dumps(setup).encode())
            ready = self.control.recv(65536)
        if not ready:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(1.0)
            ended = self.process.returncode
            self.close()
            if not self.complaint and ended in (-signal.SIGKILL, 128 + signal.SIGKILL):  # bubblewrap reports as a shell does
                raise WorkerKilled("its worker was killed while it started")
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
        control = self.worker.control.fileno()
        if control < 0:  # it was closed meanwhile
            self.gone = True
            return
        poller = select.poll()
        poller.register(control, select.POLLIN)
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
            elif fd == control:
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
        out, err = (self.text[k].decode(errors="replace") for k in ("out", "err"))
        return Run(kind, out, err, time.monotonic() - self.start, detail)

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
