"""Where model-written code runs, and nothing but its output comes back.

    with Sandbox() as sandbox:
        run = sandbox.run("print(int(input()) * 2)", stdin="21")     # Run(kind="ok", stdout="42\\n", ...)

    python -m rewards.sandbox FILE.py [--stdin F]     runs one program and prints outcome, output and time
    python -m rewards.sandbox --probe                 says which tier this host allows and why

A warm worker (`sandbox_child.py`) inside bubblewrap forks once per program (tiers: `sandbox_host.py`). No verdict is made in there: the
program gets its input and returns bytes or tagged plain data (`sandbox_codec.py`); expected values never enter its worker, tests that
hold them run in a second one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rewards import sandbox_host as host
from rewards.sandbox_run import Limits, Program, Run, Worker, WorkerKilled

SOURCE_MOST = 1 << 20


class SandboxRefused(RuntimeError):
    """This host cannot contain a program; the message says why and what to do."""


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
        self.lock = threading.RLock()
        self.workers: dict[tuple[str, str], Worker] = {}
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

    def start(
        self, image: str, job: dict[str, Any], stdin: bytes = b"", role: str = "solve", limits: Limits | None = None
    ) -> Program:
        return Program(self.worker(image, role), job, limits or self.limits, stdin)

    def finish(self, program: Any) -> Run:
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
                program = self.start(
                    image_for(source), {"mode": "script", "source": source}, stdin.encode(errors="replace"), limits=limits
                )
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
    reasons: list[str] = []
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
    reason = "it is killed each time"
    for _ in range(4):  # what was killed from outside says nothing about the tier
        with sandbox:
            try:
                sandbox.worker("plain")
            except WorkerKilled:
                continue
            except OSError as e:
                return str(e).strip().replace("\n", " ")
            if tier == "unsafe":
                return ""
            run = sandbox.run(CANARY)
            if run.kind == "infrastructure":
                reason = run.detail
                continue
            try:
                doors = json.loads(run.stdout)
            except ValueError:
                return f"the canary ended with {run.kind} {run.detail}"
            return f"a program still {', '.join(doors)}" if doors else ""
    return reason


def tier(wanted: str = "auto") -> dict[str, str]:
    """For a run's metadata: {"tier": "A", "why": ""}; tier "none" with the reason where a sandbox is refused."""
    try:
        return dict(zip(("tier", "why"), resolve(wanted), strict=True))
    except SandboxRefused as e:
        return {"tier": "none", "why": str(e)}


def main(argv: list[str]) -> int:
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
        source = Path(given.file).read_text("utf-8", "replace")
        stdin = Path(given.stdin).read_text("utf-8", "replace") if given.stdin else ""
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
    about = {"A": "bubblewrap, Landlock and seccomp", "B": "Landlock and seccomp, no namespaces", "unsafe": "rlimits only"}[
        found
    ]
    print(f"tier {found}: {about}" + (f"\nnot better because of {why}" if why else ""))
    for image in host.IMAGES:
        try:
            worker = Worker(found, image)
        except OSError as e:
            print(f"image {image}: {e}")
            continue
        loaded = {k: v for k, v in worker.about["versions"].items() if k in ("numpy", "sympy")}
        missing = [m for m in host.IMAGES[image] if m not in loaded]
        short = f" (not installed: {', '.join(missing)})" if missing else ""
        print(f"image {image}: {loaded or 'standard library'}{short}, uid {worker.about['uid']}")
        worker.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
