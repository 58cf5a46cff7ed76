"""The sandbox is attacked here, in both tiers, by programs of our own; what counts is what happened outside."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rewards import sandbox as sb
from rewards import sandbox_host
from rewards.sandbox_run import Limits, Run

LIMITS = Limits(wall_s=8.0)


def allowed(tier: str) -> str:
    try:
        sb.resolve(tier)
    except sb.SandboxRefused as e:
        return str(e)
    return ""


@pytest.fixture(scope="module", params=["A", "B"])
def sandbox(request: pytest.FixtureRequest):
    if reason := allowed(request.param):
        pytest.skip(reason)
    with sb.Sandbox(request.param, LIMITS) as made:
        yield made


def doors(sandbox: sb.Sandbox, attempts: str) -> list[str]:
    """Runs `attempts`, lines "name: expression"; those that raise nothing and give a true value are open doors."""
    lines = [line.strip().split(": ", 1) for line in attempts.strip().splitlines()]
    text = "import ctypes, fcntl, mmap, os, signal, socket, struct, sys, threading, time, resource\nc = ctypes.CDLL(None, use_errno=True)\n"
    text += "def ok(r): return r is None or r >= 0 if not isinstance(r, (bytes, str, list, object)) or isinstance(r, int) else True\n"
    for name, expression in lines:
        text += f"try:\n    r = {expression}\n    print({name!r}) if ok(r) else None\nexcept Exception: pass\n"
    run = sandbox.run(text + "print('end')")
    assert run.kind == "ok", run
    seen = run.stdout.split("\n")
    assert "end" in seen
    return seen[: seen.index("end")]


def test_an_honest_program_runs(sandbox: sb.Sandbox) -> None:
    source = """
import sys, threading, math, json, re, random, collections, itertools, heapq, decimal, fractions, datetime, asyncio, dataclasses, resource
resource.setrlimit(resource.RLIMIT_STACK, (resource.getrlimit(resource.RLIMIT_STACK)[1],) * 2)
sys.setrecursionlimit(1 << 20)
threading.stack_size(64 << 20)
async def later(): await asyncio.sleep(0.01); return 7
def deep(n): return 0 if n == 0 else 1 + deep(n - 1)
def work():
    block = bytearray(100 << 20)
    print(deep(20000), asyncio.run(later()), sum(map(int, sys.stdin.read().split())), __name__)
t = threading.Thread(target=work); t.start(); t.join()
exit()
"""
    run = sandbox.run(source, stdin="20 22\n")
    assert (run.kind, run.stdout, run.stderr) == ("ok", "20000 7 42 __main__\n", "")


def test_numpy_and_sympy(sandbox: sb.Sandbox) -> None:
    if {"numpy", "sympy"} - set(sandbox_host.find_packages(("numpy", "sympy"))):
        pytest.skip("numpy or sympy is not installed")
    run = sandbox.run("import numpy as np, sympy\nprint(np.linalg.det(np.eye(3)), sympy.factor('x**2 - 1'))")
    assert (run.kind, run.stdout) == ("ok", "1.0 (x - 1)*(x + 1)\n")


@pytest.mark.parametrize(
    ("source", "kind", "detail"),
    [
        ("print(1 / 0)", "crash", "ZeroDivisionError"),
        ("import sys; sys.exit(3)", "crash", "exit status 3"),
        ("x = [0] * (1 << 40)", "memory", "1024 MiB"),
        ("x = []\nwhile True: x.append(bytearray(64 << 20))", "memory", ""),
        ("import ctypes; ctypes.string_at(0)", "crash", "SIGSEGV"),
        ("import os\nwhile True: os.write(1, b'A' * 65536)", "output", "KiB"),
        ("import os\nwhile True: os.write(2, b'A' * 65536)", "output", "KiB"),
        ("import os\nwhile True: os.write(4, b'A' * 65536)", "output", ""),
        ("import os\nos.write(4, b'\\xff\\xff\\xff\\xff'); print(1)", "output", ""),
        ("def f(:", "crash", "SyntaxError"),
        ("print(1)\0", "refused", "null"),
        ("#" * (2 << 20), "refused", "characters"),
        ("import os; os._exit(0)", "ok", ""),
        ("raise SystemExit", "ok", ""),
        ("import os\nfor fd in range(64): \n  try: os.close(fd)\n  except OSError: pass", "ok", ""),
        ("print(", "crash", "SyntaxError"),
        ("print('(' * 10**5)\neval('(' * 10**5)", "crash", ""),
    ],
)
def test_how_it_ended(sandbox: sb.Sandbox, source: str, kind: str, detail: str) -> None:
    run = sandbox.run(source)
    assert run.kind == kind, run
    assert detail in run.detail


@pytest.mark.parametrize(
    "source",
    [
        "while True: pass",
        "import os; os.kill(os.getpid(), 19)",
        "import signal, time\nfor s in range(1, 65):\n  try: signal.signal(s, signal.SIG_IGN)\n  except Exception: pass\ntime.sleep(99)",
        "import threading\nfor _ in range(8): threading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()",
        "import atexit, time; atexit.register(time.sleep, 99)",
        "import sys\nwhile True:\n  try: sys.stdin.read(); input()\n  except BaseException: pass",
    ],
)
def test_time_is_kept_outside(sandbox: sb.Sandbox, source: str) -> None:
    begin = time.monotonic()
    run = sandbox.run(source, limits=Limits(wall_s=0.5))
    assert run.kind == "timeout"
    assert time.monotonic() - begin < 0.5 + 2.0


def test_no_process_no_network_no_shared_memory(sandbox: sb.Sandbox) -> None:
    assert not doors(
        sandbox,
        """
        fork: os.fork()
        vfork: c.vfork()
        exec: os.execv('/bin/true', ['true'])
        spawn: os.posix_spawn('/bin/true', ['true'], {})
        clone3: c.syscall(435, struct.pack('<11Q', 0, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0), 88)
        clone with new user namespace: c.syscall(56, 0x10000000 | 17, 0, 0, 0, 0)
        unshare: c.unshare(0x10000000)
        tcp: socket.socket()
        udp: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        unix: socket.socket(socket.AF_UNIX)
        netlink: socket.socket(16, 3)
        vsock: socket.socket(40, 1)
        alg: socket.socket(38, 5)
        datagram pair: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        pair with address: socket.socketpair()[0].sendto(b'x', '/run/x.sock')
        rights: socket.socketpair()[0].sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, b'\\0' * 4)])
        shmget: c.shmget(1, 4096, 0o1666)
        semget: c.semget(1, 1, 0o1666)
        msgget: c.msgget(1, 0o1666)
        mq_open: c.syscall(240, b'x', 0o102, 0o666, 0)
        memfd: c.syscall(319, b'x', 0)
        shm file: open('/dev/shm/x', 'w')
        keyring: c.syscall(248, b'user', b'x', b'y', 1, -3)
        """,
    )


def test_no_hold_on_others(sandbox: sb.Sandbox) -> None:
    assert not doors(
        sandbox,
        """
        kill parent: os.kill(os.getppid(), 0)
        kill all: os.kill(-1, 0)
        kill group: os.kill(0, 0)
        tkill: c.syscall(200, os.getppid(), 0)
        tgkill: c.syscall(234, os.getppid(), os.getppid(), 0)
        sigqueue: c.syscall(129, os.getppid(), 9, b'\\0' * 128)
        pidfd: os.pidfd_open(os.getppid())
        ptrace: c.ptrace(16, os.getppid(), None, None)
        ptrace me: c.ptrace(0, 0, None, None)
        vm_readv: c.syscall(310, os.getppid(), None, 0, None, 0, 0)
        prlimit: resource.prlimit(os.getppid(), resource.RLIMIT_CPU)
        own cpu limit: resource.setrlimit(resource.RLIMIT_CPU, (0, 0))
        own memory limit: resource.setrlimit(resource.RLIMIT_AS, (1 << 20, 1 << 20))
        affinity: os.sched_setaffinity(os.getppid(), {0})
        priority: os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)
        scheduler: os.sched_setscheduler(os.getppid(), os.SCHED_IDLE, os.sched_param(0))
        io priority: c.syscall(251, 1, os.getppid(), 0)
        session: os.setsid()
        group: os.setpgid(0, 0)
        owner of a pipe: fcntl.fcntl(1, 8, os.getppid())
        signal of a pipe: fcntl.fcntl(1, 10, 9)
        ioctl owner: fcntl.ioctl(1, 0x8901, struct.pack('i', os.getppid()))
        terminal input: fcntl.ioctl(0, 0x5412, b'x')
        outlive the worker: c.prctl(1, 0, 0, 0, 0)
        dumpable: c.prctl(4, 1, 0, 0, 0)
        own filter: c.prctl(22, 2, b'', 0, 0)
        kill self unseen: os.kill(os.getpid(), 9)
        kill thread unseen: c.syscall(234, os.getpid(), threading.get_native_id(), 9)
        timer with SIGKILL: c.syscall(222, 0, struct.pack('<qii48x', 0, 9, 0), (ctypes.c_char * 8)())
        """,
    )


def test_kernel_surface(sandbox: sb.Sandbox) -> None:
    calls = {
        "io_uring": 425,
        "bpf": 321,
        "keyctl": 250,
        "perf": 298,
        "userfaultfd": 323,
        "open_by_handle": 304,
        "name_to_handle": 303,
    }
    calls |= {
        "kexec": 246,
        "fsopen": 430,
        "open_tree": 428,
        "move_mount": 429,
        "mount": 165,
        "pivot_root": 155,
        "chroot": 161,
        "setns": 308,
    }
    calls |= {
        "personality": 135,
        "swapon": 167,
        "reboot": 169,
        "init_module": 175,
        "clock_settime": 227,
        "acct": 163,
        "quotactl": 179,
    }
    calls |= {
        "vmsplice": 278,
        "seccomp": 317,
        "landlock": 444,
        "wait4": 61,
        "setuid": 105,
        "capset": 126,
        "modify_ldt": 154,
        "inotify": 294,
    }
    text = "import ctypes\nc = ctypes.CDLL(None, use_errno=True)\n"
    for name, number in calls.items():
        text += f"r, e = c.syscall({number}, 0, 0, 0, 0, 0, 0), ctypes.get_errno()\nif r >= 0 or e not in (1, 38): print({name!r}, r, e)\n"
    assert sandbox.run(text).stdout == ""


def test_other_ways_into_the_kernel_are_death(sandbox: sb.Sandbox) -> None:
    """int 0x80 (32-bit calls) and x32 numbers would go past a filter that only knows 64-bit numbers."""
    code = {"int 0x80": b"\xb8\x14\x00\x00\x00\xcd\x80\xc3", "x32": b"\xb8\x27\x00\x00\x40\x0f\x05\xc3"}
    for name, machine_code in code.items():
        text = f"import ctypes, mmap\nm = mmap.mmap(-1, 4096, prot=7)\nm.write({machine_code!r})\n"
        text += "print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))())"
        run = sandbox.run(text)
        assert (run.kind, run.detail) == ("crash", "SIGSYS"), (name, run)


def test_files(sandbox: sb.Sandbox, tmp_path: Path) -> None:
    """A folder open to all: nothing in it can be read, made, changed or linked."""
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o777)
    secret = tmp_path / "secret"
    secret.write_text("TOKEN")
    secret.chmod(0o666)
    before = (secret.stat().st_mode, secret.stat().st_mtime_ns)
    at = str(tmp_path)
    assert not doors(
        sandbox,
        f"""
        read: open({at!r} + '/secret').read()
        read by descriptor: open('/proc/self/root' + {at!r} + '/secret').read()
        list: os.listdir({at!r})
        write: open({at!r} + '/new', 'w')
        append: open({at!r} + '/secret', 'a')
        truncate: os.truncate({at!r} + '/secret', 0)
        chmod: os.chmod({at!r} + '/secret', 0)
        utime: os.utime({at!r} + '/secret', (1, 1))
        xattr: os.setxattr({at!r} + '/secret', 'user.x', b'y')
        mkdir: os.mkdir({at!r} + '/d')
        fifo: os.mkfifo({at!r} + '/f')
        symlink: os.symlink('/etc/passwd', {at!r} + '/s')
        link: os.link({at!r} + '/secret', {at!r} + '/l')
        rename: os.rename({at!r} + '/secret', {at!r} + '/r')
        unlink: os.unlink({at!r} + '/secret')
        tmp: open('/tmp/x', 'w')
        here: open('x', 'w')
        home: os.listdir('/root') or os.listdir('/home')
        passwd: open('/etc/passwd').read()
        environment: open('/proc/self/environ').read()
        processes: os.listdir('/proc')
        memory: open('/proc/self/mem', 'rb')
        code of the judge: open({str(Path(sb.__file__).with_name("code_tests.py"))!r}).read()
        disks: os.listdir('/sys')
        terminal: open('/dev/tty')
        kernel log: open('/dev/kmsg')
        """,
    )
    assert os.listdir(tmp_path) == ["secret"]
    assert secret.read_text() == "TOKEN"
    assert (secret.stat().st_mode, secret.stat().st_mtime_ns) == before


def test_nothing_is_inherited(sandbox: sb.Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither descriptors, nor the environment, nor what the last program left."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    listener = socket.socket()
    listener.set_inheritable(True)
    plant = "import builtins, os, sys, json\nbuiltins.planted = json.planted = 'SEED'\n"
    plant += "os.environ['PLANT'] = 'SEED'\nsys.path.insert(0, 'SEED')"
    look = """
import builtins, ctypes, json, os, sys
found = []
for fd in range(3, 2000):
    try:
        os.fstat(fd); found.append(fd)
    except OSError: pass
print(found, dict(os.environ), hasattr(builtins, "planted"), hasattr(json, "planted"), "SEED" in sys.path, sys.argv)
"""
    with sb.Sandbox(sandbox.tier, LIMITS) as fresh:
        assert fresh.run(plant).kind == "ok"
        run = fresh.run(look)
    for end in (reader, writer):
        os.close(end)
    listener.close()
    assert run.stdout == "[3, 4] {} False False False ['solution.py']\n"


HUNT = """
import ctypes, gc
backwards = b"9XELDEEN"  # forwards it must stand nowhere in this text
seen = [o for o in gc.get_objects()] + [x for o in gc.get_objects() if type(o) in (tuple, list) for x in o]
pages = {id(o) >> 12 for o in seen}
print(sum(ctypes.string_at(page << 12, 4096)[::-1].count(backwards) for page in pages) > 0)
"""


def test_no_program_finds_anothers_text_in_memory(sandbox: sb.Sandbox) -> None:
    """The worker's heap is copied into each fork: no earlier program, input or output may be in it."""
    own = "kept = [''.join(['NEED', 'LEX', '9', str(i)]) for i in range(3)]\n"
    assert sandbox.run(own + HUNT).stdout == "True\n"  # the hunt finds what is there
    with sb.Sandbox(sandbox.tier, LIMITS) as fresh:
        assert fresh.run("print(input(), 'NEEDLEX9')", stdin="NEEDLEX9").stdout == "NEEDLEX9 NEEDLEX9\n"
        assert fresh.run(HUNT).stdout == "False\n"


def test_threads_and_memory_have_a_bound(sandbox: sb.Sandbox) -> None:
    bomb = """
import os, threading, time
threading.stack_size(32768)
n = 0
try:
    while n < 1000:
        threading.Thread(target=time.sleep, args=(3,), daemon=True).start()
        n += 1
except RuntimeError: pass
print(n, flush=True)
os._exit(0)
"""
    assert 8 <= int(sandbox.run(bomb).stdout) <= 256
    shared = """
import mmap
kept = []
try:
    while True:
        kept.append(mmap.mmap(-1, 64 << 20))
        kept[-1][::4096] = b"x" * (16 << 10)
except (OSError, MemoryError): print(len(kept) * 64)
"""
    assert int(sandbox.run(shared).stdout) <= 1024


def test_a_worker_that_dies_is_infrastructure_and_replaced(sandbox: sb.Sandbox) -> None:
    with sb.Sandbox(sandbox.tier, LIMITS) as fresh:
        assert fresh.run("print(1)").kind == "ok"
        program = fresh.start("plain", {"mode": "script", "source": "import time; time.sleep(5)"})
        fresh.workers["plain", "solve"].process.kill()
        assert fresh.finish(program).kind == "infrastructure"
        assert fresh.run("print(2)").stdout == "2\n"


def test_no_process_is_left(sandbox: sb.Sandbox) -> None:
    with sb.Sandbox(sandbox.tier, LIMITS) as fresh:
        fresh.run("while True: pass", limits=Limits(wall_s=0.3))
        program = fresh.start("plain", {"mode": "script", "source": "import time; time.sleep(60)"})
        time.sleep(0.2)
        worker = fresh.workers["plain", "solve"].process.pid
    assert not any(f"/{worker}/" in str(p) for p in Path("/proc").glob("[0-9]*/stat"))
    assert program.finish().kind == "infrastructure"


def test_the_tier_and_the_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sb, "_known", {})
    monkeypatch.setattr(sandbox_host.shutil, "which", lambda _: None)
    if not allowed("B"):
        tier, why = sb.resolve("auto")
        assert tier == "B"
        assert "bubblewrap is not installed" in why
    monkeypatch.setattr(sb, "_known", {})
    monkeypatch.setattr(sandbox_host.sandbox_limits, "landlock_abi", lambda: 0)
    with pytest.raises(sb.SandboxRefused, match=r"no Landlock.*sandbox_url"):
        sb.resolve("auto")
    assert sb.tier()["tier"] == "none"
    with pytest.raises(ValueError, match="none of auto, A, B, unsafe"):
        sb.Sandbox("C")


def test_unsafe_only_aloud(capfd: pytest.CaptureFixture[str]) -> None:
    with sb.Sandbox("unsafe") as made:
        assert made.run("print(6 * 7)").stdout == "42\n"
    assert "UNSAFE" in capfd.readouterr().err


DOCKER_LIKE = """
import os, sys
from rewards import sandbox_limits as s
refuse = {272: [s.DENY], 308: [s.DENY], 165: [s.DENY], 435: [s._op(s.RET, s.RET_ERRNO | s.ENOSYS)]}
refuse[56] = [s._low(0), s._op(s.JSET, s.NAMESPACES, 0, 1), s.DENY, s.ALLOW]
s.prctl(38, 1)
s.install_filter(b"".join([s.NUMBER, *s._cases(refuse), s.ALLOW]))
os.execv(sys.executable, [sys.executable, "-m", "rewards.sandbox", *sys.argv[1:]])
"""


def test_where_namespaces_are_refused_it_is_tier_b(root: Path, tmp_path: Path) -> None:
    """As docker's default profile does it: no namespaces, no mounts."""
    if reason := allowed("B"):
        pytest.skip(reason)
    (tmp_path / "p.py").write_text("import os\nprint(6 * 7)\nos.fork()")
    done = subprocess.run(
        [sys.executable, "-c", DOCKER_LIKE, str(tmp_path / "p.py")], capture_output=True, text=True, cwd=root, timeout=60
    )
    assert done.stdout == "42\n"
    assert "tier B" in done.stderr
    assert "PermissionError" in done.stderr


def test_the_command(root: Path, tmp_path: Path) -> None:
    if reason := allowed("auto"):
        pytest.skip(reason)
    (tmp_path / "p.py").write_text("print(int(input()) * 2)")
    (tmp_path / "in").write_text("21")
    command = [sys.executable, "-m", "rewards.sandbox"]
    done = subprocess.run(
        [*command, str(tmp_path / "p.py"), "--stdin", str(tmp_path / "in")],
        capture_output=True,
        text=True,
        cwd=root,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "42\n")
    assert done.stderr.startswith("[ok; ")
    probe = subprocess.run([*command, "--probe"], capture_output=True, text=True, cwd=root, timeout=60)
    assert probe.stdout.startswith("tier ")
    assert "image plain: standard library, uid" in probe.stdout


def test_root_does_not_stay_root(sandbox: sb.Sandbox) -> None:
    run = sandbox.run("import os\nprint(os.getuid() != 0 and os.getgid() != 0 and 0 not in os.getgroups())")
    assert run.stdout == "True\n" or os.getuid() != 0


def test_a_run_explains_itself() -> None:
    assert json.loads(json.dumps(Run("crash", detail="exit status 1").__dict__))["detail"] == "exit status 1"
