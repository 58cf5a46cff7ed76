"""The warm worker: preloads modules once, then runs each program in a fork of itself that can do nothing but compute.

Started by `sandbox.py` as a program of its own (inside bubblewrap where the host allows it). On the socket given as argv[1] it gets
one JSON setup, answers when ready, then for each program a JSON line with five pipe ends: the program's standard input, output and
error, and a channel in and out. The worker itself reads none of them, so no program can find another's text in its memory; it only
forks, waits, kills when told ("kill"), and reports the exit status that the kernel gives. It ends when the socket closes.
"""

from __future__ import annotations

import fcntl
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import sys
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import sandbox_jobs as jobs
import sandbox_limits as limits

FIRST_FD = 10  # pipe ends are moved here before they become 0..4


def confine(order: dict[str, Any], ruleset: int) -> None:
    """Everything that takes rights away, in the order in which it must happen."""
    parent = order["worker"]
    limits.prctl(1, signal.SIGKILL)  # die with the worker
    if os.getppid() != parent:
        raise OSError("the worker is gone")
    limits.prctl(4, 0)  # no core, and nobody of the same uid may look in
    limits.limit(order["wall_s"], order["memory_mb"], order["tasks"])
    if ruleset >= 0:
        limits.landlock_enter(ruleset)
    os.closerange(5, 4096)
    if order["isolate"]:
        limits.install_filter(limits.program_filter(os.getpid()))


def run_child(order: dict[str, Any], fds: list[int], ruleset: int) -> None:
    status = 1
    try:
        for want, fd in enumerate(fds):
            os.dup2(fd, want)
        confine(order, ruleset)
    except BaseException as e:
        jobs.complain(e)
        os.kill(os.getpid(), signal.SIGKILL)  # what the program itself cannot do: it tells our fault from the program's
    try:
        gc.enable()
        job = jobs.read_frame()
        run = jobs.JOBS[job.pop("mode")]
        os.environ.clear()
        status = run(**job)
    except BaseException as e:
        jobs.complain(e)
    finally:
        jobs.flush()
        os._exit(status & 255 if isinstance(status, int) else 1)


def serve(control: socket.socket, setup: dict[str, Any], ruleset: int) -> None:
    """One program at a time, until the socket closes."""
    while True:
        message, received, _, _ = socket.recv_fds(control, 65536, 5)
        if not message:
            os._exit(0)
        if message == b"kill":
            continue  # too late: it had ended
        order = {**setup, **json.loads(message), "worker": os.getpid()}
        fds = [high_fd(fd) for fd in received]
        pid = os.fork()
        if pid == 0:
            run_child(order, fds, ruleset)
        for fd in fds:
            os.close(fd)
        pidfd = os.pidfd_open(pid)
        poller = select.poll()
        poller.register(control, select.POLLIN)
        poller.register(pidfd, select.POLLIN)
        killed = False
        while pidfd not in (ready := [fd for fd, _ in poller.poll()]):
            message = control.recv(65536)
            os.kill(pid, signal.SIGKILL)
            killed = True
            if control.fileno() in ready and not message:
                os._exit(0)
        _, status, usage = os.wait4(pid, 0)
        os.close(pidfd)
        report = {"status": status, "killed": killed, "rss_mb": usage.ru_maxrss >> 10, "cpu_s": usage.ru_utime + usage.ru_stime}
        control.send(json.dumps(report).encode())


def high_fd(fd: int) -> int:
    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_FD)
    os.close(fd)
    return high


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    limits.prctl(1, signal.SIGKILL)
    setup = json.loads(control.recv(65536))
    if setup["parent"] and os.getppid() != setup["parent"]:
        os._exit(0)
    sys.path[:] = [p for p in sys.path[1:] if os.path.isdir(p)]
    base = list(sys.path)
    sys.path += setup["sites"]
    import site

    site.setquit()
    site.sethelper()
    versions = {}
    for name in [*STANDARD, *setup["preload"]]:
        versions[name] = getattr(importlib.import_module(name), "__version__", "")
    for code in setup["warm"]:
        exec(code, {})
    sys.path[:] = base
    sys.argv = ["solution.py"]
    uid = limits.drop_root(setup["uids"]) if os.getuid() == 0 and setup["isolate"] else os.getuid()
    limits.prctl(1, signal.SIGKILL)  # a change of uid clears it
    ruleset = high_fd(limits.landlock_ruleset(setup["readable"])) if setup["landlock"] else -1
    os.chdir("/")
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    if setup["isolate"]:
        limits.prctl(38, 1)  # no new privileges
        limits.install_filter(limits.worker_filter())
    gc.collect()
    gc.freeze()
    gc.disable()
    control.send(json.dumps({"ready": True, "uid": uid, "versions": versions}).encode())
    serve(control, setup, ruleset)


# what programs import most, loaded once (socket and asyncio stay out: they cost more than they are used)
STANDARD = [
    "array",
    "bisect",
    "collections",
    "copy",
    "dataclasses",
    "datetime",
    "decimal",
    "enum",
    "fractions",
    "functools",
    "hashlib",
]
STANDARD += [
    "heapq",
    "io",
    "itertools",
    "json",
    "math",
    "operator",
    "queue",
    "random",
    "re",
    "statistics",
    "string",
    "textwrap",
    "time",
]
STANDARD += ["traceback", "typing"]

if __name__ == "__main__":
    main()
