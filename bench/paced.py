"""Runs that take one step at a time, in turn: what `python -m bench` measures with.

A paced run waits at a gate once it has imported what it needs, and after each line of its steps; then all its processes are stopped
(SIGSTOP), so that a run that samples ahead does nothing while another is measured, and what it holds of the GPU stays. A run empties
PyTorch's cache of free memory before it waits, or several would not fit on one card; taking that memory again belongs to the step, for
every run alike.

    python -m bench.paced recipes/X.toml key=value ...        recipes.run, with a gate after each step
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

GATE = "BENCH_GATE"  # "read,write": file descriptors of the run's end
GIB = 2**30


def gate() -> None:
    """In a paced run: the step is over; wait for the next turn. Nothing in any other."""
    if GATE not in os.environ:
        return
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():  # asking for more would begin to use CUDA, before MPS is there
        torch.cuda.empty_cache()
    go, done = map(int, os.environ[GATE].split(","))
    os.write(done, b".")
    if not os.read(go, 1):  # whoever paced it is gone
        os._exit(1)


class Paced:
    """A run that waits at its gate. `name.log` in `folder` has what it says."""

    def __init__(self, name: str, command: Sequence[str], folder: Path, limit: float) -> None:
        self.name, self.limit, self.held, self.peak, self.failed = name, limit, 0.0, 0.0, ""
        self.log = folder / f"{name}.log"
        self.command = list(command)
        self.process: Any = None

    def start(self) -> None:
        """Start it, up to its first gate: what it imports is there. Several may start side by side (`arrive`)."""
        theirs_in, self.go = os.pipe()
        self.done, theirs_out = os.pipe()
        environment = {**os.environ, GATE: f"{theirs_in},{theirs_out}"}
        with self.log.open("w") as log:
            self.process = psutil.Popen(
                self.command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment,
                pass_fds=(theirs_in, theirs_out), cwd=Path(__file__).resolve().parent.parent,
            )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        os.set_blocking(self.done, False)

    def step(self) -> None:
        """Let it take one step."""
        self._measured(self._let_go)

    def _let_go(self) -> None:
        for p in self._tree():
            _quietly(p.resume)
        os.write(self.go, b".")

    def _measured(self, begin: Callable[[], None]) -> None:
        """Until it is at its gate again; its own memory is what came on top of the others', who stand still."""
        others = (gpu_gib() or self.held) - self.held  # on a CPU a process has memory of its own
        watch = _Watch(lambda: memory_in_use([self._tree()]))
        begin()
        try:
            self.arrive()
        finally:
            most = watch.end()
        for p in self._tree():
            if not _is_service(p):
                _quietly(p.suspend)
        self.held = memory_in_use([self._tree()]) - others
        self.peak = max(self.peak, most - others, self.held)

    def arrive(self) -> None:
        """Wait until it stands at its gate."""
        end = time.monotonic() + self.limit
        while time.monotonic() < end:
            try:
                if os.read(self.done, 1):
                    return
                break  # it has closed its end
            except BlockingIOError:
                time.sleep(0.001)
            if self.process.poll() is not None:
                break
        else:
            self._fail(f"no step within {self.limit:g} s")
        self._fail(f"exit {self.process.poll()}: " + " | ".join(self.log.read_text(errors="replace").splitlines()[-3:])[-500:])

    def _fail(self, why: str) -> None:
        self.end()
        self.failed = self.failed or why
        raise RuntimeError(self.failed)

    def end(self) -> None:
        """All its processes are gone."""
        if self.process is None:
            return
        children = self._tree()[1:]
        for p in children:
            _quietly(p.resume)
        _quietly(self.process.kill)
        self.process.wait()
        # Workers end when they see that, and Python's keeper of shared memory clears away what is left.
        for p in psutil.wait_procs(children, timeout=30)[1]:
            _quietly(p.kill)
        for fd in (self.go, self.done):
            os.close(fd)
        self.process = None

    def _tree(self) -> list[Any]:
        if self.process is None or self.process.poll() is not None:
            return []
        try:
            return [self.process, *self.process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def memory_in_use(trees: Sequence[Sequence[Any]]) -> float:
    """GiB of the first GPU in use by all processes; on a machine without one, resident memory of these."""
    if (used := gpu_gib()) is not None:
        return used
    total = 0
    for p in (p for tree in trees for p in tree):
        try:
            total += p.memory_info().rss
        except psutil.Error:
            continue
    return total / GIB


def gpu_gib() -> float | None:
    """GiB in use on the first GPU; None without one."""
    try:
        return float(gpu("memory.used")) / 1024
    except ValueError:
        return None


def gpu(what: str) -> str:
    """What nvidia-smi says of the first GPU, "" without one; PyTorch would take memory of its own to say it."""
    ask = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(ask, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return said.stdout.splitlines()[0].strip() if said.returncode == 0 and said.stdout.strip() else ""


class _Watch:
    """The largest value of `look`, every half second, until `end`."""

    def __init__(self, look: Callable[[], float]) -> None:
        self.look, self.most, self.over = look, 0.0, threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while not self.over.wait(0.5):
            self.most = max(self.most, self.look())

    def end(self) -> float:
        self.over.set()
        self.thread.join()
        return self.most


def _is_service(process: Any) -> bool:
    """NVIDIA's own (MPS, see recipes/mps.py): without work of its own between turns, and the driver may want to hear from it."""
    try:
        return process.name().startswith("nvidia-")
    except psutil.Error:
        return False


def _quietly(act: Callable[[], Any]) -> None:
    with suppress(psutil.Error):  # it ended
        act()


def main(argv: Sequence[str]) -> int:
    from recipes import run
    from rl.report import Journal

    if "rollout.placement=processes" not in argv and importlib.util.find_spec("vllm"):  # else only its workers need it
        importlib.import_module("vllm")  # now, while the other runs do the same
    gate()
    plain = Journal.step

    def step(self: Journal, metrics: Mapping[str, Any]) -> None:
        plain(self, metrics)
        gate()

    Journal.step = step  # type: ignore[method-assign]
    return run.main(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
