"""What this host allows: the interpreter and packages a sandbox can see, the command that starts a worker, and the tiers.

  A       bubblewrap: own user, process, network and IPC namespaces, a read-only tree of the interpreter alone; inside it all of B
  B       no namespaces: Landlock, seccomp and rlimits only (a program can still `stat` files of this host)
  unsafe  rlimits only; never chosen by itself
Below B a sandbox is refused with the reason; `sandbox_remote.py` is the way out.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass

from rewards import sandbox_limits

HERE = os.path.dirname(os.path.abspath(__file__))
OURS = [os.path.join(HERE, name) for name in ("sandbox_child.py", "sandbox_jobs.py", "sandbox_codec.py", "sandbox_limits.py")]
SYSTEM = ["/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/local/lib", "/etc/ld.so.cache", "/usr/share/zoneinfo"]
DEVICES = ["/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"]
ENVIRONMENT = {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
IMAGES = {"plain": [], "numpy": ["numpy"], "sympy": ["numpy", "sympy"]}  # what each worker has loaded before it forks
# Run once before the forks: what these do first (imports, caches) takes up to a second, which each program would pay anew
WARM = {
    "numpy": "import numpy as np; a = np.arange(6.0).reshape(2, 3); str(a @ a.T), a.sum(), np.linalg.det(np.eye(2)), np.random.rand()",
    "sympy": """from sympy import *
x, y = symbols("x y")
str([expand((x + 1) ** 2), factor(x**2 - 1), solve(x**2 - 4), solve([x + y - 1, x - y]), diff(sin(x), x), integrate(x * sin(x), x)])
str([simplify(sin(x) ** 2 + cos(x) ** 2), factorint(12), isprime(7), Rational(1, 3) + sqrt(2), Matrix([[1, 2], [3, 4]]).det(), N(pi)])
str([limit(sin(x) / x, x, 0), series(exp(x), x, 0, 3), sympify("x + 1"), Eq(x, 1), gcd(4, 6), Sum(x, (x, 1, 3)).doit()])""",
}
BESIDE = {"numpy": ["numpy.libs"], "sympy": ["mpmath"]}  # folders that a package needs beside its own


@dataclass(frozen=True)
class Python:
    """An interpreter as a sandbox sees it: `paths` are all that it must read."""

    executable: str
    version: tuple[int, int]
    paths: tuple[str, ...]


_ASK = """
import json, sys, sysconfig as s
base = getattr(sys, "_base_executable", sys.executable)
paths = [s.get_path("stdlib"), s.get_path("platstdlib"), s.get_config_var("LIBDIR"), s.get_config_var("INSTSONAME")]
print(json.dumps([base, sys.base_prefix, sys.version_info[:2], *paths]))
"""


def _describe(facts: list) -> Python:
    executable, prefix, version, stdlib, platstdlib, libdir, soname = facts
    paths = [os.path.realpath(executable), stdlib, platstdlib]
    if prefix not in ("/usr", "/usr/local"):
        paths.append(os.path.join(prefix, "lib"))  # conda and its like keep the C libraries there
    if libdir and soname and os.path.exists(os.path.join(libdir, soname)):
        paths.append(os.path.join(libdir, soname))
    return Python(paths[0], tuple(version), tuple(dict.fromkeys(paths)))


def others_can_read(path: str) -> bool:
    """May any uid read `path`? Every folder on the way must let others through."""
    while True:
        try:
            mode = os.stat(path).st_mode
        except OSError:
            return False
        if not mode & (0o001 if os.path.isdir(path) else 0o004):
            return False
        if path == "/":
            return True
        path = os.path.dirname(path)


@functools.cache
def find_python(for_any_uid: bool) -> Python:
    """This interpreter, or the system's when any uid must be able to read it and cannot read this one."""
    get = sysconfig.get_config_var
    base = sys._base_executable if hasattr(sys, "_base_executable") else sys.executable
    stdlib = [sysconfig.get_path(p) for p in ("stdlib", "platstdlib")]
    mine = _describe([base, sys.base_prefix, sys.version_info[:2], *stdlib, get("LIBDIR"), get("INSTSONAME")])
    if not for_any_uid or all(map(others_can_read, mine.paths)):
        return mine
    for name in (f"/usr/bin/python{mine.version[0]}.{mine.version[1]}", "/usr/bin/python3", "/usr/local/bin/python3"):
        if os.path.exists(name):
            asked = subprocess.run([name, "-I", "-c", _ASK], capture_output=True, text=True, timeout=30, check=False)
            if asked.returncode == 0:
                found = _describe(json.loads(asked.stdout))
                if found.version >= (3, 10) and all(map(others_can_read, found.paths)):
                    return found
    raise OSError(
        f"the interpreter lies under {mine.paths[1]}, which an unprivileged uid cannot read, and there is no other: "
        "install python3 in /usr, keep the environment outside root's home, or do not run as root"
    )


@functools.cache
def find_packages(names: tuple[str, ...]) -> dict[str, list[str]]:
    """Package -> the folders that hold it and what it needs beside it; packages that are not installed are left out."""
    found = {}
    for name in names:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            spec = None
        if spec is None or not spec.submodule_search_locations:
            continue
        folder = os.path.realpath(next(iter(spec.submodule_search_locations)))
        beside = [os.path.join(os.path.dirname(folder), b) for b in BESIDE.get(name, [])]
        found[name] = [folder, *filter(os.path.isdir, beside)]
    return found


def spare_uids() -> list[int]:
    """Uids for a worker started by root: one of its own if this namespace maps it, so that its tasks are counted alone; else nobody."""
    return [random.randrange(61184, 65520), 65534]  # above systemd's dynamic users, below nobody


def plan(tier: str, image: str, fd: int) -> tuple[list[str], dict]:
    """The command line and the setup message of a worker of `image` in `tier` that talks on `fd`. Raises OSError with the reason."""
    root = os.geteuid() == 0
    if tier != "unsafe" and not sandbox_limits.SUPPORTED:
        raise OSError("the system-call filter knows only x86_64")
    if tier == "B" and sandbox_limits.landlock_abi() < 1:
        raise OSError("this kernel has no Landlock (5.13 or newer has it, when it is in the lsm= list)")
    python = find_python(for_any_uid=root and tier == "B")
    packages = find_packages(tuple(IMAGES[image])) if python.version == sys.version_info[:2] else {}
    folders = [f for fs in packages.values() for f in fs]
    if tier == "B" and root and not all(map(others_can_read, folders)):
        packages, folders = {}, []
    readable = list(dict.fromkeys([*filter(os.path.exists, SYSTEM), *python.paths, *folders]))
    setup = {
        "isolate": tier != "unsafe",
        "landlock": tier != "unsafe" and sandbox_limits.landlock_abi() > 0,
        "parent": 0 if tier == "A" else os.getpid(),
        "readable": readable,
        "sites": list(dict.fromkeys(os.path.dirname(fs[0]) for fs in packages.values())),
        "preload": [*packages, *(["mpmath"] if "sympy" in packages else [])],
        "warm": [WARM[name] for name in packages if name in WARM],
        "uids": spare_uids(),
    }
    run = [python.executable, "-s", "-S", "-B", OURS[0], str(fd)]
    return (bubblewrap(readable, root) + run if tier == "A" else run), setup


def bubblewrap(readable: list[str], root: bool) -> list[str]:
    """The command prefix. Root needs no user namespace: it keeps just enough to change the uid, which the worker does first of all."""
    tool = shutil.which("bwrap")
    if tool is None:
        raise OSError("bubblewrap is not installed (apt-get install bubblewrap)")
    args = [
        tool,
        "--unshare-pid",
        "--unshare-net",
        "--unshare-ipc",
        "--unshare-uts",
        "--unshare-cgroup-try",
        "--die-with-parent",
    ]
    args += ["--new-session", "--hostname", "sandbox", "--cap-drop", "ALL"]
    args += (
        ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        if root
        else ["--unshare-user", "--uid", "65534", "--gid", "65534"]
    )
    real = [p for p in [*readable, *OURS] if not os.path.islink(p) and not any(p.startswith(r + "/") for r in readable)]
    for folder in sorted({f for p in real for f in parents(p)}):
        args += ["--dir", folder]  # 0755; bubblewrap's own choice would copy a private folder's mode
    for path in real:
        args += ["--ro-bind", path, path]
    for path in filter(os.path.islink, readable):
        args += ["--symlink", os.readlink(path), path]
    for device in DEVICES:
        args += ["--dev-bind", device, device]
    return [*args, "--remount-ro", "/", "--chdir", "/"]


def parents(path: str) -> list[str]:
    """`parents("/a/b/c") == ["/a/b", "/a"]`"""
    found = []
    while (path := os.path.dirname(path)) != "/":
        found.append(path)
    return found


@functools.cache
def _own_tasks(moment: int) -> int:
    """Threads of this uid on this host (RLIMIT_NPROC counts them where no namespace separates a sandbox from them)."""
    count = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{pid}").st_uid == os.getuid():
                count += len(os.listdir(f"/proc/{pid}/task"))
        except OSError:
            continue  # it ended meanwhile
    return count


def tasks_allowed(tier: str, threads: int, moment: int) -> int:
    """What RLIMIT_NPROC must be for a program to have `threads` threads; `moment` is a clock of a few seconds' ticks."""
    kernel = tuple(int("".join(filter(str.isdigit, x)) or 0) for x in os.uname().release.split(".")[:2])
    alone = os.geteuid() == 0 or (tier == "A" and kernel >= (5, 14))  # before 5.14 the count was not the namespace's own
    return threads + 8 if alone else threads + 8 + _own_tasks(moment)
