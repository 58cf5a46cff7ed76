"""The warm worker: preloads modules once, then runs each program in a fork of itself that can do nothing but compute.

Started by `sandbox.py` as a program of its own (inside bubblewrap where the host allows it). On the socket given as argv[1] it gets
one JSON setup, answers when ready, then for each program a JSON line with five pipe ends: the program's standard input, output and
error, and a channel in and out. The worker itself reads none of them, so no program can find another's text in its memory; it only
forks, waits, kills when told ("kill"), and reports the exit status that the kernel gives. It ends when the socket closes.

In the fork the channel carries frames (4 bytes of length, JSON). The first one is the job:
  script     run the source as __main__; nothing else
  functions  run the source, then answer the operations of `answer`, one reply each: ["v", data] or ["e", exception type, text]
  checks     run trusted tests against a stand-in for the program's names, whose operations go out on the channel
"""

from __future__ import annotations

import atexit
import builtins
import fcntl
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import threading
import types
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import sandbox_codec as codec  # noqa: E402
import sandbox_limits as limits  # noqa: E402

FIRST_FD = 10  # pipe ends are moved here before they become 0..4


def read_frame() -> Any:
    """The next frame of the channel; ends the process when there is none."""

    def take(n: int) -> bytes:
        data = b""
        while len(data) < n:
            part = os.read(3, min(n - len(data), 1 << 20))
            if not part:
                os._exit(0)
            data += part
        return data

    return json.loads(take(struct.unpack("<I", take(4))[0]))


def write_frame(data: Any) -> None:
    text = json.dumps(data).encode()
    text = struct.pack("<I", len(text)) + text
    while text:
        text = text[os.write(4, text) :]


def flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass


def complain(error: BaseException) -> None:
    """The traceback on standard error; a program may have broken anything that this needs."""
    try:
        import traceback

        traceback.print_exception(type(error), error, error.__traceback__, limit=-8)
    except BaseException:
        pass


def module(name: str) -> dict[str, Any]:
    made = types.ModuleType(name)
    made.__dict__.update(__file__="solution.py", __builtins__=builtins)
    sys.modules[name] = made
    return made.__dict__


def run_script(source: str) -> int:
    """As the interpreter would: exit status 0, 1 after an uncaught exception, or what sys.exit was given."""
    status = 0
    try:
        exec(compile(source, "solution.py", "exec"), module("__main__"))
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException as e:
        status = 1
        complain(e)
        write_frame(["e", type(e).__name__[:80], str(e)[:200]])
    try:
        threading._shutdown()
        atexit._run_exitfuncs()
    except BaseException:
        status = status or 1
    return status


class Answers:
    """Operations on a program's names and on the objects that it handed out: name, call, get, set, iter, item, len, str."""

    def __init__(self, names: dict[str, Any]):
        self.names, self.kept = names, []

    def keep(self, value: Any) -> int:
        self.kept.append(value)
        return len(self.kept) - 1

    def name(self, dotted: str) -> Any:
        """`f`, `Class.f` (a method of a new instance), or `f` as a method of the class Solution, as contest sites have it."""
        first, *rest = dotted.split(".")
        if first not in self.names and not rest and hasattr(self.names.get("Solution"), first):
            first, rest = "Solution", [first]
        if first not in self.names:
            raise NameError(f"name {first!r} is not defined")
        found = self.names[first]
        for attribute in rest:
            found = getattr(found() if isinstance(found, type) else found, attribute)
        return found

    def find(self, target: int | str) -> Any:
        return self.name(target) if type(target) is str else self.kept[target]

    def operate(self, op: str, target: Any, *data: Any) -> Any:
        held = self.find(target)
        args = [codec.decode(x, lambda i, _: self.find(i)) for x in data]
        if op == "name":
            return held
        if op == "call":
            return held(*args[0], **args[1])
        if op == "get":
            return getattr(held, args[0])
        if op == "set":
            return setattr(held, args[0], args[1])
        if op == "iter":
            return [x for x, _ in zip(held, range(1_000_000), strict=False)]
        return {"item": lambda: held[args[0]], "len": lambda: len(held), "str": lambda: str(held)}[op]()


def run_functions(source: str) -> int:
    names = module("solution")
    try:
        exec(compile(source, "solution.py", "exec"), names)
    except BaseException as e:
        complain(e)
        flush()
        write_frame(["e", type(e).__name__[:80], str(e)[:200]])
        return 1
    write_frame(["v", None])
    answers = Answers(names)
    while True:
        frame = read_frame()
        try:
            reply = ["v", codec.encode(answers.operate(*frame), answers.keep)]
        except BaseException as e:
            reply = ["e", type(e).__name__[:80], str(e)[:200]]
        flush()
        write_frame(reply)


class ProgramError(Exception):
    """An exception of the program that is not a builtin one."""


def ask(op: str, target: Any, *args: Any) -> Any:
    write_frame(["ask", op, target, *(codec.encode(a, held_id) for a in args)])
    kind, *rest = read_frame()
    if kind == "v":
        return codec.decode(rest[0], Held)
    known = getattr(builtins, str(rest[0]), None)
    if not (isinstance(known, type) and issubclass(known, Exception)):
        raise ProgramError(": ".join(map(str, rest)))
    raise (ProgramError(str(rest[1])) if known in (UnicodeDecodeError, UnicodeEncodeError) else known(str(rest[1])))


def held_id(value: Any) -> int | str:
    if type(value) is not Held:
        raise TypeError(f"the test passes a {type(value).__name__}, which is not plain data")
    return value._id


class Held:
    """Stands in the tests for an object or a name of the program. Equal to nothing but itself, and neither true nor false."""

    def __init__(self, target: int | str, kind: str = ""):
        object.__setattr__(self, "_id", target)
        object.__setattr__(self, "_kind", kind)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return ask("call", self._id, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return ask("get", self._id, name)

    def __setattr__(self, name: str, value: Any) -> None:
        ask("set", self._id, name, value)

    def __iter__(self) -> Any:
        return iter(ask("iter", self._id))

    def __getitem__(self, key: Any) -> Any:
        return ask("item", self._id, key)

    def __len__(self) -> int:
        return ask("len", self._id)

    def __str__(self) -> str:
        return ask("str", self._id)

    def __bool__(self) -> bool:
        raise TypeError(f"the program returned an object of type {self._kind}, which is neither true nor false")


class Names(dict):
    """The tests' own names; what they do not define, and neither Python nor its library has, is the program's."""

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name):
            raise KeyError(name)
        return importlib.import_module(name) if name in sys.stdlib_module_names else Held(name)


def run_checks(setup: list[str], asserts: list[str], entry: str, check: str, every: bool) -> int:
    """Trusted tests. `setup` sources first; then each of `asserts`, or `check(candidate)`; a frame each, then "done"."""
    names = Names(__name__="tests")
    try:
        for source in setup:
            exec(compile(source, "tests", "exec"), names)
        if entry:
            names[entry] = Held(entry)
        tests = [lambda a=a: exec(compile(a, "tests", "exec"), names) for a in asserts]
        tests += [lambda: names[check](names[entry])] if check else []
    except BaseException as e:
        write_frame(["result", False, f"{type(e).__name__}: {e}"[:200]])
        tests = []
    for test in tests:
        try:
            test()
            write_frame(["result", True, ""])
        except BaseException as e:
            write_frame(["result", False, f"{type(e).__name__}: {e}"[:200]])
            if not every:
                break
    write_frame(["done"])
    return 0


def confine(order: dict[str, Any], ruleset: int) -> None:
    """Everything that takes rights away, in the order in which it must happen."""
    parent = order["worker"]
    limits.prctl(1, signal.SIGKILL)  # die with the worker
    if os.getppid() != parent:
        raise OSError("the worker is gone")
    limits.prctl(4, 0)  # no core, and nobody of the same uid may look in
    limits.limit(order["wall_s"], order["memory_mb"], order["tasks"])
    if order["isolate"]:
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
        complain(e)
        os.kill(os.getpid(), signal.SIGKILL)  # what the program itself cannot do: it tells our fault from the program's
    try:
        gc.enable()
        job = read_frame()
        run = {"script": run_script, "functions": run_functions, "checks": run_checks}[job.pop("mode")]
        os.environ.clear()
        status = run(**job)
    except BaseException as e:
        complain(e)
    finally:
        flush()
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
    sys.path[:] = base
    sys.argv = ["solution.py"]
    uid = limits.drop_root(setup["uids"]) if os.getuid() == 0 and setup["isolate"] else os.getuid()
    limits.prctl(1, signal.SIGKILL)  # a change of uid clears it
    ruleset = high_fd(limits.landlock_ruleset(setup["readable"])) if setup["landlock"] else -1
    os.chdir("/")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    sys.modules["__main__"].__dict__.pop("__annotations__", None)
    sys.setswitchinterval(0.005)
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
    *"array bisect collections copy dataclasses datetime decimal enum fractions functools hashlib heapq io itertools".split(),
    *"json math operator queue random re statistics string textwrap time traceback typing".split(),
]

if __name__ == "__main__":
    main()
