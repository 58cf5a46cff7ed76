"""A forked child under ptrace: which system calls it makes, and what becomes of it when one of them is its last, or finds the disk full.

strace's `-e inject=all:signal=KILL:when=N` and `:error=ENOSPC` for a process that need not start anew for each N, by index over all
calls, and without strace (tests/faults/ holds both against each other). x86-64 Linux.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

from rewards.sandbox_limits import ALLOWED, REFUSED, SUPPORTED, WORKER

__all__ = ["CHANGES", "SUPPORTED", "Call", "Ended", "trace"]

TRACEME, PEEKUSER, POKEUSER, CONT, SYSCALL, SETOPTIONS = 0, 3, 6, 7, 24, 0x4200
EXITKILL, SYSGOOD = 0x100000, 1
NUMBER, RESULT, RDI, RSI, RDX, R10 = 120, 80, 112, 104, 96, 56  # in user_regs_struct
CHANGES = {  # system calls that change files, or make sure that a change lasts; the others' numbers are for their names
    "write": 1, "open": 2, "pwrite64": 18, "writev": 20, "fsync": 74, "fdatasync": 75, "truncate": 76, "ftruncate": 77, "rename": 82,
    "mkdir": 83, "rmdir": 84, "creat": 85, "link": 86, "unlink": 87, "openat": 257, "mkdirat": 258, "unlinkat": 263, "renameat": 264,
    "fallocate": 285, "renameat2": 316, "copy_file_range": 326,
}  # fmt: skip
NAMES = {n: name for table in (WORKER, REFUSED, ALLOWED, CHANGES) for name, n in table.items()}
NAMES |= {16: "ioctl", 72: "fcntl", 81: "fchdir"}
PATHS = {"open": RDI, "truncate": RDI, "rename": RDI, "mkdir": RDI, "rmdir": RDI, "unlink": RDI}
PATHS |= {"openat": RSI, "mkdirat": RSI, "unlinkat": RSI, "renameat": RSI, "renameat2": RSI}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


@dataclass(frozen=True)
class Call:
    """`Call("fsync", "model.safetensors")`: a system call, and the last part of the path that it is about where it changes one."""

    name: str
    path: str = ""


@dataclass(frozen=True)
class Ended:
    """`code` is the exit code, negative for a signal; `reached` whether the call that was aimed at was made."""

    calls: list[Call]
    code: int
    reached: bool


def trace(work: Callable[[], int], at: int = -1, full: bool = False) -> Ended:
    """Run `work` in a fork, which exits with what it returns. Its call number `at` (from 0) is answered by SIGKILL before it happens or,
    with `full`, by ENOSPC instead of happening. OSError where ptrace is not allowed."""
    child = os.fork()
    if not child:
        code = 70
        try:
            if not _libc.ptrace(TRACEME, 0, None, None):
                os.kill(os.getpid(), signal.SIGSTOP)
                code = work()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if not os.WIFSTOPPED(status):
        raise PermissionError(errno.EPERM, "this host does not allow ptrace")
    _ptrace(SETOPTIONS, child, 0, EXITKILL | SYSGOOD)
    calls: list[Call] = []
    inside, reached, passed = False, False, 0
    while True:
        _ptrace(CONT if full and reached and not inside else SYSCALL, child, 0, passed)
        _, status = os.waitpid(child, 0)
        if not os.WIFSTOPPED(status):
            return Ended(calls, os.waitstatus_to_exitcode(status), reached)
        passed = 0
        if (stopped := os.WSTOPSIG(status)) != signal.SIGTRAP | 0x80:
            passed = stopped  # a signal that is the child's own
        elif inside:
            inside = False
            if full and len(calls) == at + 1:
                _ptrace(POKEUSER, child, RESULT, -errno.ENOSPC)
        else:
            inside = True
            calls.append(_call(child))
            if len(calls) == at + 1:
                reached = True
                if not full:
                    os.kill(child, signal.SIGKILL)
                    _, status = os.waitpid(child, 0)
                    return Ended(calls, os.waitstatus_to_exitcode(status), reached)
                _ptrace(POKEUSER, child, NUMBER, -1)


def _call(child: int) -> Call:
    number = _ptrace(PEEKUSER, child, NUMBER)
    name = NAMES.get(number, str(number))
    if name not in CHANGES:
        return Call(name)
    if name in PATHS:
        path = _text(child, _ptrace(PEEKUSER, child, PATHS[name]))
    else:
        try:
            path = os.readlink(f"/proc/{child}/fd/{_ptrace(PEEKUSER, child, RDI)}")
        except OSError:
            path = ""
    return Call(name, os.path.basename(path))


def _text(child: int, address: int) -> str:
    with open(f"/proc/{child}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        return os.fsdecode(memory.read(4096).split(b"\0", 1)[0])


def _ptrace(request: int, child: int, address: int, data: int = 0) -> int:
    ctypes.set_errno(0)
    result = _libc.ptrace(request, child, address, data)
    if request == PEEKUSER:  # the C library hands its third form's result back as the value
        return int(result)
    if result < 0 and ctypes.get_errno():
        raise OSError(ctypes.get_errno(), f"ptrace({request}): {os.strerror(ctypes.get_errno())}")
    return int(result)
