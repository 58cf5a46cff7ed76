"""Rewards in processes of their own, scored while others still generate; what hangs or dies there is killed and restarted.

    with RewardPool({"accuracy": {}, "format": {"weight": 0.1}}, workers=2, wall_s=10) as pool:
        futures = [pool.submit(completion, problem) for ...]          # returns at once
        scores = [future.result() for future in futures]
        pool.stats()                                                   # latency of each reward, restarts, timeouts, deaths

Each worker is `python -m rewards.worker_child`: a fresh interpreter (never a fork of a process with torch), JSON frames over pipes (never
pickle), the clock kept in this process (never signal.alarm). What becomes of a sample that breaks its worker:
  a reward that judges text itself overruns the wall or the memory, or crashes twice    that reward is 0, the others still count
  a worker is killed, or a reward that depends on others (code, preference, a user's) overruns    retried twice, then masked (value None)
  a reward raises                                             the future raises RewardError: a bad row or a bug, which must be seen
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import queue
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from rewards.score import Sampled, Score
from rewards.scorer import DEPENDENT, Latency, RewardError, needs_pool
from rewards.worker_child import write_frame

ROOT = str(Path(__file__).resolve().parent.parent)
RETRIES = 2
START_S = 120.0


@dataclasses.dataclass
class _Task:
    request: dict[str, Any]  # text, tokens, truncated, problem, zero (reward -> why it is 0)
    future: Future
    tries: int = 0
    crashed: str = ""  # the reward in which a worker crashed before


class _Died(Exception):
    """The worker ended: `signal` that ended it or 0, the reward it was in."""

    def __init__(self, why: str, part: str):
        super().__init__(why)
        self.why, self.part = why, part


class _Process:
    """One worker process, used by one thread."""

    def __init__(self, spec: Mapping[str, Any], memory_mb: int):
        path = os.pathsep.join(dict.fromkeys([ROOT, *filter(None, sys.path)]))
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "rewards.worker_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        self.buffer = bytearray()
        try:
            self._write({"spec": spec, "memory_mb": memory_mb, "parent": os.getpid()})
            ready = self._frame(time.monotonic() + START_S, "")
        except _Died:
            self.close()
            raise
        if ready != ["ready"]:
            self.close()
            raise ValueError(ready[1] if ready else f"a reward worker was not ready after {START_S:g} s")

    def _write(self, data: Any) -> None:
        assert self.popen.stdin is not None
        try:
            write_frame(self.popen.stdin, data)
        except (OSError, ValueError):  # it is gone, or was never replaced
            raise _Died("closed its pipe", "") from None

    def _frame(self, deadline: float, part: str) -> Any:
        """The next frame; None at the deadline; _Died when the process ends."""
        assert self.popen.stdout is not None
        fd = self.popen.stdout.fileno()
        while True:
            if len(self.buffer) >= 4 and len(self.buffer) >= 4 + (size := struct.unpack_from("<I", self.buffer)[0]):
                frame = json.loads(self.buffer[4 : 4 + size])
                del self.buffer[: 4 + size]
                return frame
            if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return None
            data = os.read(fd, 1 << 16)
            if not data:
                code = self.popen.wait()
                raise _Died(signal.Signals(-code).name if code < 0 else f"exit status {code}", part)
            self.buffer += data

    def grade(self, request: dict[str, Any], wall_s: float) -> Any:
        """The worker's last frame for `request`, or the name of the reward that was still running at the wall."""
        self._write(request)
        deadline, part = time.monotonic() + wall_s, ""
        while frame := self._frame(deadline, part):
            if frame[0] != "part":
                return frame
            part = frame[1]
        return part

    def close(self) -> None:
        self.popen.kill()
        self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            try:
                if pipe:
                    pipe.close()
            except OSError:
                pass  # unsent bytes for a process that is gone


class RewardPool:
    """Scores completions with the rewards of a recipe's `[rewards]` table in `workers` processes.

    `wall_s` seconds for all rewards of one sample, `memory_mb` MiB of address space for each worker (0: no limit, for rewards that
    load CUDA). Raises ValueError at once when the table cannot be built.
    """

    def __init__(self, spec: Mapping[str, Any], workers: int = 2, wall_s: float = 10.0, memory_mb: int = 4096):
        if workers < 1 or wall_s <= 0:
            raise ValueError(
                f"a reward pool of {workers} workers with {wall_s} s each cannot score anything: give workers >= 1 and wall_s > 0"
            )
        self.spec, self.wall_s, self.memory_mb = json.loads(json.dumps(spec)), wall_s, memory_mb
        self.tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self.counts: collections.Counter[str] = collections.Counter()
        self.lock, self.latency, self.closed = threading.Lock(), Latency(), False
        self.processes: dict[int, _Process] = {}
        started: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self.threads = [
            threading.Thread(target=self._serve, args=(n, started), daemon=True, name=f"rewards-{n}") for n in range(workers)
        ]
        for thread in self.threads:
            thread.start()
        failed = [e for e in (started.get() for _ in self.threads) if e]
        if failed:
            self.close()
            raise ValueError(str(failed[0])) from None

    def __enter__(self) -> RewardPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, completion: Sampled, problem: Mapping[str, Any]) -> Future[Score]:
        """The score to come. Raises ValueError when the problem's row holds what JSON does not."""
        if self.closed:
            raise ValueError("the reward pool is closed: make a new one")
        request = {
            "text": completion.text,
            "tokens": completion.tokens,
            "truncated": completion.truncated,
            "problem": dict(problem),
            "zero": {},
        }
        try:
            json.dumps(request)
        except (TypeError, ValueError) as e:
            raise ValueError(
                f"problem {problem.get('id', '?')} cannot go to a reward worker, its row is not plain data: {e}"
            ) from None
        future: Future[Score] = Future()
        self.tasks.put(_Task(request, future))
        return future

    def close(self) -> None:
        """Kill the workers; scores that were not ready are cancelled or raise RewardError."""
        self.closed = True
        while not self.tasks.empty():
            if task := self.tasks.get():
                task.future.cancel()
        for _ in self.threads:
            self.tasks.put(None)
        while any(thread.is_alive() for thread in self.threads):
            for process in list(self.processes.values()):  # again and again: one may have been starting
                process.popen.kill()
            for thread in self.threads:
                thread.join(0.1)

    def _serve(self, slot: int, started: queue.SimpleQueue) -> None:
        """One worker's thread: it starts the process (whose life is bound to this thread) and carries tasks to it, one at a time."""
        try:
            self.processes[slot] = _Process(self.spec, self.memory_mb)
            started.put(None)
        except (_Died, ValueError, OSError) as e:
            started.put(e)
            return
        while task := self.tasks.get():
            if self.closed:
                task.future.cancel()
            if not task.future.set_running_or_notify_cancel():
                continue
            begin = time.monotonic()
            try:
                score = self._score(slot, task)
            except BaseException as e:
                task.future.set_exception(e)
                continue
            self.latency.add({"all": time.monotonic() - begin})
            task.future.set_result(score)
        self.processes.pop(slot).close()

    def _restart(self, slot: int) -> None:
        self.processes[slot].close()
        if self.closed:
            return
        self._count("restarts")  # until it succeeds the closed one stays: the next sample tries again
        self.processes[slot] = _Process(self.spec, self.memory_mb)

    def _score(self, slot: int, task: _Task) -> Score:
        while not self.closed:
            try:
                answer = self.processes[slot].grade(task.request, self.wall_s)
                fault = self._overran(task, answer) if isinstance(answer, str) else ""
            except _Died as died:
                answer, fault = "", self._died(task, died)
            if not isinstance(answer, str):
                return self._answered(answer)
            try:
                self._restart(slot)
            except (_Died, ValueError, OSError) as e:
                task.tries += 1
                fault = f"a reward worker does not start: {e}"
            if fault and task.tries > RETRIES:
                return Score(None, {}, f"infrastructure: {fault}")
        raise RewardError("the pool was closed")

    def _overran(self, task: _Task, part: str) -> str:
        """At the wall: the reward is 0, or it is a fault of the infrastructure, whose text is returned."""
        self._count("timeouts")
        self.latency.add({part or "worker": self.wall_s})
        if needs_pool(part) or not part:
            task.tries += 1
            return f"{part or 'worker'} over {self.wall_s:g} s"
        task.request["zero"][part] = f"timeout: over {self.wall_s:g} s"
        return ""

    def _died(self, task: _Task, died: _Died) -> str:
        self._count("deaths")
        if died.why not in ("SIGKILL", "SIGTERM") and died.part and died.part not in DEPENDENT:
            if task.crashed == died.part:
                task.request["zero"][died.part] = f"crash: {died.why}"
                return ""
            task.crashed = died.part
        task.tries += 1
        return f"a reward worker died ({died.why}) in {died.part or 'no reward'}"

    def _answered(self, answer: list) -> Score:
        kind, *rest = answer
        if kind == "error":
            raise RewardError(rest[0])
        value, parts, reason, seconds = rest
        self.latency.add(seconds)
        return Score(value, parts, reason)

    def stats(self) -> dict[str, float]:
        """Since the last call: `reward_ms_p50/NAME` and p99 (of "all": with retries, without the wait for a worker), and how many
        restarts, timeouts and deaths there were."""
        with self.lock:
            counts, self.counts = self.counts, collections.Counter()
        return self.latency.take() | {f"reward_{key}": float(counts[key]) for key in ("restarts", "timeouts", "deaths")}

    def _count(self, what: str) -> None:
        with self.lock:
            self.counts[what] += 1
