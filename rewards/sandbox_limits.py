"""What a sandboxed program may ask of the kernel: seccomp, Landlock, rlimits and the uid drop, by ctypes only.

Used inside the sandbox's worker (`sandbox_child.py`), on both sides of its fork: it confines itself once, then each program
more. The system-call filter is a list of what is allowed:
everything unknown gets ENOSYS (so that libc falls back), everything named in `REFUSED` gets EPERM. Threads are allowed, processes
are not: no fork, exec, network, shared memory, ptrace, signals to others, nor limits of others. A program can neither send itself
SIGKILL nor lower its own CPU limit, so that a SIGKILL which the worker did not send is a fault of the machine and not a trick to
have a sample masked.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct

SUPPORTED = platform.machine() == "x86_64"  # the tables below are this architecture's
_libc = ctypes.CDLL(None, use_errno=True)

# x86_64 system calls a single-process Python program with threads, files to read, pipes and an event loop needs
ALLOWED = {
    "read": 0, "write": 1, "open": 2, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7, "lseek": 8, "mmap": 9,
    "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "pread64": 17,
    "pwrite64": 18, "readv": 19, "writev": 20, "access": 21, "pipe": 22, "select": 23, "sched_yield": 24, "mremap": 25, "madvise": 28,
    "dup": 32, "dup2": 33, "pause": 34, "nanosleep": 35, "getitimer": 36, "alarm": 37, "setitimer": 38, "getpid": 39, "recvfrom": 45,
    "shutdown": 48, "getsockname": 51, "getpeername": 52, "exit": 60, "uname": 63, "getcwd": 79, "chdir": 80, "readlink": 89,
    "umask": 95, "gettimeofday": 96, "getrlimit": 97, "getrusage": 98, "sysinfo": 99, "times": 100, "getuid": 102, "getgid": 104,
    "geteuid": 107, "getegid": 108, "getppid": 110, "getpgrp": 111, "getgroups": 115, "getresuid": 118, "getresgid": 120,
    "rt_sigpending": 127, "rt_sigtimedwait": 128, "rt_sigsuspend": 130, "sigaltstack": 131, "sched_getparam": 143,
    "sched_getscheduler": 145, "sched_get_priority_max": 146, "sched_get_priority_min": 147, "gettid": 186, "time": 201, "futex": 202,
    "sched_getaffinity": 204, "getdents64": 217, "set_tid_address": 218, "restart_syscall": 219, "fadvise64": 221,
    "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230, "exit_group": 231, "epoll_wait": 232, "epoll_ctl": 233,
    "openat": 257, "newfstatat": 262, "readlinkat": 267, "faccessat": 269, "pselect6": 270, "ppoll": 271, "set_robust_list": 273,
    "epoll_pwait": 281, "eventfd2": 290, "epoll_create1": 291, "dup3": 292, "pipe2": 293, "getcpu": 309, "getrandom": 318,
    "membarrier": 324, "statx": 332, "rseq": 334, "close_range": 436, "faccessat2": 439,
}  # fmt: skip
REFUSED = {
    "socket": 41, "connect": 42, "accept": 43, "sendmsg": 46, "bind": 49, "listen": 50, "fork": 57, "vfork": 58,
    "execve": 59, "shmget": 29, "ptrace": 101, "chmod": 90, "chown": 92, "rename": 82, "mkdir": 83, "rmdir": 84, "link": 86,
    "unlink": 87, "symlink": 88, "setpgid": 109, "setsid": 112, "setuid": 105, "setgid": 106, "setrlimit": 160, "setpriority": 141,
    "sched_setaffinity": 203, "tkill": 200, "unlinkat": 263, "renameat2": 316, "mkdirat": 258, "memfd_create": 319, "execveat": 322,
    "unshare": 272, "setns": 308, "mount": 165, "bpf": 321, "io_uring_setup": 425, "process_vm_readv": 310, "process_vm_writev": 311,
    "pidfd_getfd": 438, "pidfd_send_signal": 424,
}  # fmt: skip
# what the worker does besides: fork, wait, signal and hear its programs, and take their rights away
WORKER = {"recvmsg": 47, "clone": 56, "wait4": 61, "kill": 62, "prctl": 157, "tgkill": 234, "prlimit64": 302,
          "seccomp": 317, "pidfd_open": 434, "landlock_restrict_self": 446}  # fmt: skip
IOCTL, SENDTO, SOCKETPAIR, FCNTL = 16, 44, 53, 72
NAMESPACES = 0x7E020080  # every CLONE_NEW* flag
CLONE_THREAD = 0x00010000
EPERM, ENOSYS = 1, 38
RET_ALLOW, RET_ERRNO, RET_KILL = 0x7FFF0000, 0x00050000, 0x80000000
LD, JEQ, JGE, JSET, AND, RET = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06  # BPF_{LD|W|ABS, JMP|*|K, ALU|AND|K, RET|K}


def _op(code: int, k: int, jt: int = 0, jf: int = 0) -> bytes:
    return struct.pack("<HBBI", code, jt, jf, k)


def _low(arg: int) -> bytes:
    return _op(LD, 16 + 8 * arg)


ALLOW, DENY, NUMBER = _op(RET, RET_ALLOW), _op(RET, RET_ERRNO | EPERM), _op(LD, 0)


def _any_of(arg: int, values: tuple[int, ...]) -> list[bytes]:
    """Allow when the low word of `arg` is one of `values`, else EPERM."""
    return [_low(arg), *(op for v in values for op in (_op(JEQ, v, 0, 1), ALLOW)), DENY]


def _cases(blocks: dict[int, list[bytes]]) -> list[bytes]:
    """For each system call its block; every path of a block returns."""
    return [op for number, block in blocks.items() for op in (_op(JEQ, number, 0, len(block)), *block)]


def worker_filter() -> bytes:
    """BPF for the worker and all it forks: the allowed calls, the worker's own, and nothing else."""
    blocks = {number: [ALLOW] for number in [*ALLOWED.values(), *WORKER.values()]}
    blocks |= {
        # no F_SETOWN, F_SETSIG, FIOSETOWN (signals to others by way of a pipe), no F_SETPIPE_SZ, no leases, no terminal tricks
        FCNTL: _any_of(1, (0, 1, 2, 3, 4, 1030)),
        IOCTL: _any_of(1, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),
        # an event loop wakes itself through a pair of connected stream sockets: no address can be given to them
        SOCKETPAIR: [_low(0), _op(JEQ, 1, 1, 0), DENY, _low(1), _op(AND, 0xF), _op(JEQ, 1, 1, 0), DENY, ALLOW],
        SENDTO: [_low(4), _op(JEQ, 0, 1, 0), DENY, _op(LD, 52), _op(JEQ, 0, 1, 0), DENY, ALLOW],
    }
    blocks |= {n: [DENY] for n in REFUSED.values() if n not in blocks}
    head = [_op(LD, 4), _op(JEQ, 0xC000003E, 1, 0), _op(RET, RET_KILL), NUMBER, _op(JGE, 0x40000000, 0, 1), _op(RET, RET_KILL)]
    return b"".join([*head, *_cases(blocks), _op(RET, RET_ERRNO | ENOSYS)])


def program_filter(pid: int) -> bytes:
    """BPF on top of `worker_filter` for the process `pid`: takes the worker's own calls away. It may signal nobody but itself."""
    me = [_low(0), _op(JEQ, pid, 1, 0), DENY]
    blocks = {number: [DENY] for number in WORKER.values()}
    blocks |= {
        WORKER["clone"]: [_low(0), _op(JSET, NAMESPACES, 0, 1), DENY, _op(JSET, CLONE_THREAD, 1, 0), DENY, ALLOW],
        WORKER["kill"]: [*me, _low(1), _op(JEQ, 9, 0, 1), DENY, ALLOW],
        WORKER["tgkill"]: [*me, _low(2), _op(JEQ, 9, 0, 1), DENY, ALLOW],
        WORKER["prctl"]: _any_of(0, (15, 16, 0x53564D41)),  # names of threads, and malloc's of memory
        # own limits may be read; of the limits only the stack's may be set (programs do that before deep recursion)
        WORKER["prlimit64"]: [
            _low(0),
            _op(JEQ, 0, 1, 0),
            DENY,
            _low(2),
            _op(JEQ, 0, 0, 3),
            _op(LD, 36),
            _op(JEQ, 0, 0, 1),
            ALLOW,
        ]
        + _any_of(1, (resource.RLIMIT_STACK,)),
    }
    return b"".join([NUMBER, *_cases(blocks), ALLOW])


def prctl(option: int, value: int = 0) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) refused")


def install_filter(program: bytes) -> None:
    """Bind this thread (the only one) and all it starts to `program`; cannot be undone."""

    class Fprog(ctypes.Structure):
        _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))

    fprog = Fprog(len(program) // 8, program)
    if _libc.prctl(22, ctypes.c_ulong(2), ctypes.byref(fprog), 0, 0) != 0:  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        raise OSError(ctypes.get_errno(), "seccomp filter refused")


# Landlock: create_ruleset 444, add_rule 445, restrict_self 446 (the same on every architecture)
READ_FILE, READ_DIR, WRITE_FILE = 1 << 2, 1 << 3, 1 << 1


def landlock_abi() -> int:
    """0 where the kernel has none."""
    return max(0, _libc.syscall(444, None, ctypes.c_size_t(0), ctypes.c_uint(1)))


def landlock_ruleset(readable: list[str]) -> int:
    """A file descriptor of rules: `readable` trees may be read, /dev/null written, nothing else touched."""
    abi = landlock_abi()
    if abi < 1:
        raise OSError(ENOSYS, "this kernel has no Landlock")
    fs = (1 << 13) - 1 | (1 << 13 if abi >= 2 else 0) | (1 << 14 if abi >= 3 else 0) | (1 << 15 if abi >= 5 else 0)
    attr = struct.pack("<QQQ", fs, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0)[: 24 if abi >= 6 else 16 if abi >= 4 else 8]
    ruleset = _libc.syscall(444, attr, ctypes.c_size_t(len(attr)), ctypes.c_uint(0))
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), "Landlock rules refused")
    rules = [(p, READ_FILE | READ_DIR if os.path.isdir(p) else READ_FILE) for p in readable]
    rules += [(p, READ_FILE) for p in ("/dev/zero", "/dev/random", "/dev/urandom")] + [("/dev/null", READ_FILE | WRITE_FILE)]
    for path, access in rules:
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue  # not on this host: nothing to allow
        if _libc.syscall(445, ruleset, 1, struct.pack("<Qi", access, fd), ctypes.c_uint(0)) != 0:
            raise OSError(ctypes.get_errno(), f"Landlock rule for {path} refused")
        os.close(fd)
    return ruleset


def landlock_enter(ruleset: int) -> None:
    if _libc.syscall(446, ruleset, ctypes.c_uint(0)) != 0:
        raise OSError(ctypes.get_errno(), "Landlock refused")


def drop_root(uids: list[int]) -> int:
    """Become the first of `uids` that this host maps, for good; returns it. Raises OSError when none can be had."""
    os.setgroups([])
    for uid in uids:
        try:
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            return uid
        except OSError:
            continue  # not in the map of this user namespace
    raise OSError(EPERM, f"could not drop root to any of the uids {uids}")


def limit(wall_s: float, memory_mb: int, tasks: int) -> None:
    """The rlimits of one program; `tasks` counts every task of this uid in this user namespace."""
    mib = 1 << 20
    cpu = int(2 * wall_s) + 2  # only a backstop: time is kept outside
    for what, soft, hard in (
        (resource.RLIMIT_AS, memory_mb * mib, memory_mb * mib),
        (resource.RLIMIT_CPU, cpu, cpu + 1),
        (resource.RLIMIT_NPROC, tasks, tasks),
        (resource.RLIMIT_NOFILE, 64, 64),
        (resource.RLIMIT_FSIZE, 0, 0),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_MEMLOCK, 0, 0),
        (resource.RLIMIT_MSGQUEUE, 0, 0),
        (resource.RLIMIT_SIGPENDING, 256, 256),
    ):
        most = resource.getrlimit(what)[1]
        if most != resource.RLIM_INFINITY:
            soft, hard = min(soft, most), min(hard, most)
        resource.setrlimit(what, (soft, hard))
    stack_most = resource.getrlimit(resource.RLIMIT_STACK)[1]
    stack = 64 * mib if stack_most == resource.RLIM_INFINITY else min(64 * mib, stack_most)
    resource.setrlimit(resource.RLIMIT_STACK, (stack, stack_most))
