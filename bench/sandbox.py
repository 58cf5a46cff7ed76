"""How fast the sandbox is and whether it stays clean.

    python -m bench.sandbox                    programs/s against a bare subprocess for each program, in the same run
    python -m bench.sandbox --soak 20000       5 % hostile programs among honest ones: what is left behind, and are the verdicts right
    python -m bench.sandbox --kill 2000        gradings while reward workers and sandbox processes are killed at random

Programs run from `--threads` threads (2). One row a case; exit status 1 when a soak or kill run finds a fault.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from rewards.sandbox import Sandbox
from rewards.sandbox_run import Limits, Run
from rewards.score import Text
from rewards.workers import RewardPool

TINY = "n = {i}\nprint(sum(k * k for k in range(n % 50)))"
ALGEBRA = (
    "import numpy as np, sympy\nx = sympy.Symbol('x')\nprint(sympy.expand((x + {i} % 7) ** 2), int(np.arange({i} % 50).sum()), "
    "sympy.factorint({i} + 2))"
)
HOSTILE = [
    "while True: pass",
    "import os\nos.kill(os.getpid(), 19)",
    "import ctypes\nctypes.string_at(0)",
    "import os\nwhile True: os.write(1, b'A' * 65536)",
    "x = []\nwhile True: x.append(b'x' * (64 << 20))",
    "import threading, time\nfor _ in range(500): threading.Thread(target=time.sleep, args=(9,)).start()",
    "import os\nfor _ in range(200): os.fork()",
    "import os\nfor p in (os.getppid(), 0, -1, 1): \n    try: os.kill(p, 9)\n    except OSError: pass\nos._exit(0)",
    "open('/tmp/left', 'w').write('x')",
    "import ctypes\nc = ctypes.CDLL(None)\nprint(c.shmget(1, 4096, 0o1666), c.syscall(319, b'x', 0))",
    "import sys\nsys.setrecursionlimit(10**9)\ndef f(n): return str(f(n))\nf(0)",
    "import os\nfor fd in range(64):\n    try: os.write(fd, b'\\xff' * 100)\n    except OSError: pass",
]


def rate(run: Callable[[int], object], seconds: float, threads: int) -> float:
    """Calls of run(i) a second from `threads` threads, after one warm call each."""
    done = 0
    counter, lock = iter(range(1 << 30)), threading.Lock()

    def loop(_: int) -> int:
        run(0)
        barrier.wait()
        count, end = 0, time.monotonic() + seconds
        while time.monotonic() < end:
            with lock:
                i = next(counter)
            run(i)
            count += 1
        return count

    barrier = threading.Barrier(threads)
    with ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(loop, range(threads)))
    return done / seconds


def each_thread(tier: str, limits: Limits) -> tuple[Callable[[str], Run], list[Sandbox]]:
    """A runner with one sandbox for each thread that calls it."""
    local, made = threading.local(), []

    def run(source: str) -> Run:
        if not hasattr(local, "sandbox"):
            local.sandbox = Sandbox(tier, limits)
            made.append(local.sandbox)
        return local.sandbox.run(source)

    return run, made


def bare(source: str) -> bytes:
    return subprocess.run([sys.executable, "-I", "-c", source], capture_output=True, timeout=60, check=True).stdout


def throughput(seconds: float, threads: int, tiers: list[str]) -> None:
    print(f"{'programs':<14}{'runner':<18}{'programs/s':>11}{'ratio':>8}")
    for name, text in (("tiny", TINY), ("numpy + sympy", ALGEBRA)):
        base = rate(lambda i, text=text: bare(text.format(i=i)), seconds, threads)
        print(f"{name:<14}{'bare subprocess':<18}{base:>11.1f}{1.0:>8.2f}")
        for tier in tiers:
            run, made = each_thread(tier, Limits())
            speed = rate(lambda i, text=text, run=run: run(text.format(i=i)), seconds, threads)
            print(f"{name:<14}{'sandbox tier ' + tier:<18}{speed:>11.1f}{speed / base:>8.2f}", flush=True)
            for sandbox in made:
                sandbox.close()


def family(pid: int) -> dict[int, str]:
    """Processes of this user's tree under `pid` and their state."""
    parent: dict[int, tuple[int, str]] = {}
    for p in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{p}/stat") as stat:
                state, up = stat.read().rpartition(")")[2].split()[:2]
            parent[int(p)] = int(up), state
        except OSError:
            continue
    found = {pid: "R"}
    while more := {p: s for p, (up, s) in parent.items() if up in found and p not in found}:
        found |= more
    return found


def resident_mib(pids: list[int]) -> float:
    total = 0
    for p in pids:
        try:
            with open(f"/proc/{p}/statm") as statm:
                total += int(statm.read().split()[1])
        except OSError:
            continue
    return total * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def traces() -> dict[str, set[str]]:
    """What a program could leave on this host: files in shared folders, System V objects, descriptors of this process."""
    seen: dict[str, set[str]] = {}
    for folder in filter(os.path.isdir, ("/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue")):
        with os.scandir(folder) as entries:  # a root's own files are not a program's, which has dropped to another uid
            seen[folder] = {e.name for e in entries if (e.stat(follow_symlinks=False).st_uid != 0) or os.getuid() != 0}
    for kind in ("shm", "sem", "msg"):
        if os.path.exists(f"/proc/sysvipc/{kind}"):
            with open(f"/proc/sysvipc/{kind}") as table:
                seen[kind] = {line.split()[1] for line in table.readlines()[1:]}
    return seen


def soak(count: int, threads: int, tier: str) -> int:
    """`count` programs, 5 % hostile. Faults: anything left, growth of 20 MiB, an honest verdict unlike the clean run's."""
    random.seed(1)
    honest = [TINY.format(i=i) for i in range(100)] + ["print(1 / 0)", "import sys\nsys.exit(3)", ALGEBRA.format(i=5)]
    run, made = each_thread(tier, Limits(wall_s=1.0))

    def brief(run_: Run) -> tuple[str, str]:
        return run_.kind, run_.stdout if len(run_.stdout) < 1000 else ""

    clean = {source: brief(run(source)) for source in honest}
    order = [random.choice(HOSTILE if random.random() < 0.05 else honest) for _ in range(count)]
    wrong: list[str] = []
    kinds: dict[str, int] = {}

    def one(source: str) -> None:
        got = brief(run(source))
        kinds[got[0]] = kinds.get(got[0], 0) + 1
        # a loaded machine can make an honest program late: it must then say so, and be right when it is run again
        if source in clean and got != clean[source] and (got[0] != "timeout" or brief(run(source)) != clean[source]):
            wrong.append(f"{got} for {source[:60]!r}")

    before = traces()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, [ALGEBRA.format(i=5), "import numpy"] * 4 * threads + order[: count // 10]))  # every image is up
        start_mib, fds = resident_mib(list(family(os.getpid()))), len(os.listdir("/proc/self/fd"))
        begin = time.monotonic()
        for at in range(count // 10, count, 500):  # the futures of all at once would be the growth
            list(pool.map(one, order[at : at + 500]))
        taken = time.monotonic() - begin
        growth = resident_mib(list(family(os.getpid()))) - start_mib
        fds = len(os.listdir("/proc/self/fd")) - fds
    for sandbox in made:
        sandbox.close()
    time.sleep(0.5)
    left = set(family(os.getpid())) - {os.getpid()}
    new = {k: sorted(v - before[k]) for k, v in traces().items() if v - before[k]}
    print(f"{count} programs in tier {made[0].tier}, {taken:.0f} s for the last 90 %: {dict(sorted(kinds.items()))}")
    print(f"processes left {len(left)}, descriptors left {fds}, growth {growth:.1f} MiB, new files or segments {new or 'none'}")
    print(f"honest verdicts unlike the clean run: {len(wrong)} {wrong[:3] if wrong else ''}")
    return int(bool(left or new or fds or wrong or growth > 20))


def kill(count: int) -> int:
    """`count` gradings, while every 0.5 s some process below this one is killed. Fault: a wrong verdict, or a sample without one."""
    random.seed(2)
    right = [i % 3 != 0 for i in range(count)]
    pool = RewardPool({"code": {}}, workers=2)
    futures = [
        pool.submit(
            Text(f"```python\ndef f(x):\n    return x + {1 if ok else 2}\n```"),
            {"id": str(i), "asserts": [f"assert f({i}) == {i + 1}"]},
        )
        for i, ok in enumerate(right)
    ]
    stop, killed = threading.Event(), 0

    def killer() -> None:
        nonlocal killed
        while not stop.wait(0.5):
            victims = [p for p in family(os.getpid()) if p != os.getpid()]
            if victims:
                try:
                    os.kill(random.choice(victims), signal.SIGKILL)
                    killed += 1
                except ProcessLookupError:
                    continue

    thread = threading.Thread(target=killer)
    thread.start()
    scores = [f.result(600) for f in futures]
    stop.set()
    thread.join()
    stats = pool.stats()
    pool.close()
    masked = sum(s.value is None for s in scores)
    wrong = [(i, s) for i, (s, ok) in enumerate(zip(scores, right, strict=True)) if s.value not in (None, float(ok))]
    print(f"{count} gradings, {killed} processes killed: {masked} masked, {len(wrong)} wrong {wrong[:3] if wrong else ''}")
    print({k: round(v, 3) for k, v in stats.items()})
    time.sleep(0.5)
    left = set(family(os.getpid())) - {os.getpid()}
    print(f"processes left {len(left)}")
    return int(bool(wrong or left))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.sandbox", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="for each throughput row")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tier", default="auto", help="auto, A or B; throughput: A,B for both")
    parser.add_argument("--soak", type=int, default=0, metavar="N")
    parser.add_argument("--kill", type=int, default=0, metavar="N")
    given = parser.parse_args()
    if given.soak:
        return soak(given.soak, given.threads, given.tier)
    if given.kill:
        return kill(given.kill)
    throughput(given.seconds, given.threads, given.tier.split(","))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
