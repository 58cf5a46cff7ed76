"""One rollout worker as the learner sees it: a Sampler whose engine is in another process, behind a socket.

Every wait has a time-out. A worker that dies, falls silent or gives garbage raises WorkerLost, with its name and the reason, in every call
that waits for it.
"""

from __future__ import annotations

import itertools
import queue
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import torch

from rl import frames
from rl.records import Completion, Sampling
from rl.sampler import Alone, Done, Prompts, Weights, WorkerLost


class Placement(Protocol):
    """Where a worker runs: how it is ended there, and what became of it."""

    link: socket.socket

    def why(self) -> str:
        """What is known of its end, e.g. "killed by SIGKILL"."""
        ...

    def kill(self) -> None:
        """End it, at once and for certain."""
        ...


class Remote(Alone):
    """A worker; `start` has returned when its engine is ready. `timeout_s`: without any frame from it while it owes one."""

    def __init__(self, name: str, place: Placement, spec: Mapping[str, Any], timeout_s: float, start_s: float) -> None:
        self.name, self.place, self.timeout_s = name, place, timeout_s
        self.lost: str | None = None
        self.died = False  # by itself; else it is silent, refuses or gives garbage
        self.version = 0
        self.seen = time.monotonic()
        self.sending, self.numbers = threading.Lock(), itertools.count(1)
        self.replies: dict[int, queue.SimpleQueue[tuple[dict[str, Any], bytes]]] = {0: queue.SimpleQueue()}
        threading.Thread(target=self._listen, daemon=True, name=f"listen-{name}").start()
        try:
            frames.send(place.link, spec)
            first = self._reply(0, start_s, f"not ready after {start_s:.0f} s")
        except (OSError, WorkerLost) as error:
            self.lose(str(error))
            raise WorkerLost(f"{name}: {error}") from None
        ready = first["ready"]
        self.dtype: torch.dtype = getattr(torch, ready["dtype"])
        self.vocabulary, self.start_s = int(ready["vocabulary"]), float(ready["seconds"])

    def generate(self, prompts: Prompts, sampling: Sampling, done: Done | None = None) -> list[list[Completion]]:
        """Raises WorkerLost; what `done` was told until then stays told."""
        asked = [list(p) for p in prompts]
        made: list[list[Completion]] = [[] for _ in asked]
        me = self.post({"op": "generate", "prompts": asked, "sampling": asdict(sampling), "asks": done is not None})
        try:
            while not (answer := self._next(me))[0].get("finished"):
                header, payload = answer
                if "group" not in header:
                    raise WorkerLost(f"a frame that is no group: {sorted(header)}")
                index = header["group"]
                if not 0 <= index < len(made) or made[index]:
                    raise frames.Broken(f"an answer to prompt {index}, which does not wait for one")
                completions = frames.decode(header, payload)
                frames.check(completions, sampling.n, self.vocabulary, sampling.max_tokens)
                made[index] = completions
                if done is None:
                    continue
                more = [list(p) for p in done(index, completions) or []]
                made += [[] for _ in more]
                self._send({"op": "more", "of": me, "prompts": more})
            if not all(made):
                raise frames.Broken("it says it has finished, but groups are missing")
        except frames.Broken as error:
            self.lose(f"garbage: {error}")
            raise WorkerLost(f"{self.name}: garbage: {error}") from None
        finally:
            self.replies.pop(me, None)
        return made

    def load(self, weights: Weights, version: int) -> None:
        raise AssertionError("weights go to all workers at once: workers.Pool.load")

    def fingerprint(self) -> dict[str, int]:
        answer = self.call({"op": "fingerprint"})
        self.version = answer["version"]
        return {name: int(value) for name, value in answer["sums"].items()}

    def replicas(self) -> Sequence[tuple[str, Any]]:
        return [(self.name, self)]

    def close(self) -> None:
        self.lose("closed")

    def call(self, header: dict[str, Any]) -> dict[str, Any]:
        """One message, one answer."""
        me = self.post(header)
        try:
            return self._next(me)[0]
        finally:
            self.replies.pop(me, None)

    def post(self, header: dict[str, Any]) -> int:
        """Send a message; its number is what `wait` takes."""
        me = next(self.numbers)
        self.replies[me] = queue.SimpleQueue()
        self._send(header | {"id": me})
        return me

    def wait(self, me: int) -> dict[str, Any]:
        """The next answer to message `me`."""
        return self._next(me)[0]

    def forget(self, me: int) -> None:
        self.replies.pop(me, None)

    def _send(self, header: dict[str, Any]) -> None:
        try:
            with self.sending:
                if self.lost:
                    raise WorkerLost(f"{self.name}: {self.lost}")
                self.seen = max(self.seen, time.monotonic())  # from here on it owes an answer
                frames.send(self.place.link, header)
        except OSError as error:
            self.died = self.lost is None
            self.lose(self.place.why() or str(error))
            raise WorkerLost(f"{self.name}: {self.lost}") from None

    def _next(self, me: int) -> tuple[dict[str, Any], bytes]:
        answers = self.replies[me]
        while True:
            try:
                header, payload = answers.get(timeout=0.2)
            except queue.Empty:
                if self.lost:
                    raise WorkerLost(f"{self.name}: {self.lost}") from None
                if time.monotonic() - self.seen > self.timeout_s:
                    self.lose(f"no sign of life for {self.timeout_s:g} s (hung)")
                continue
            if "error" in header:
                self.lose(header["error"])
                raise WorkerLost(f"{self.name}: {header['error']}")
            return header, payload

    def _reply(self, me: int, within_s: float, late: str) -> dict[str, Any]:
        end = time.monotonic() + within_s
        while True:
            try:
                header, _ = self.replies[me].get(timeout=0.2)
                break
            except queue.Empty:
                if self.lost:
                    raise WorkerLost(self.lost) from None
                if time.monotonic() > end:
                    raise WorkerLost(late) from None
        if "error" in header:
            raise WorkerLost(header["error"])
        return header

    def _listen(self) -> None:
        reason = ""
        try:
            while (frame := frames.receive(self.place.link)) is not None:
                self.seen = time.monotonic()
                if waiting := self.replies.get(frame[0].get("id", -1)):
                    waiting.put(frame)
        except frames.Broken as error:
            reason = f"garbage: {error}"
        except OSError:
            pass
        if self.lost is None:
            self.died = not reason
            self.lose(reason or self.place.why() or "it closed its socket")

    def lose(self, reason: str) -> None:
        """Give the worker up; it is killed, whatever state it is in."""
        if self.lost is None:
            self.lost = reason
            self.place.kill()
