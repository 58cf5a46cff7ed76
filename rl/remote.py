"""One rollout worker as the learner sees it: a Sampler whose engine is in another process, behind a socket.

Every wait has a time-out. A worker that dies, falls silent or gives garbage raises WorkerLost, with its name and the reason, in every call
that waits for it.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import socket
import struct
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
    """A worker; its engine can be used when `ready` has returned. `timeout_s`: without any frame from it while it owes one."""

    def __init__(self, name: str, place: Placement, spec: Mapping[str, Any], timeout_s: float, start_s: float) -> None:
        self.name, self.place, self.timeout_s, self.start_s = name, place, timeout_s, start_s
        self.lost: str | None = None
        self.died = False  # by itself; else it is silent, refuses or gives garbage
        self.version, self.vocabulary, self.dtype = 0, 0, torch.float32
        self.seen = time.monotonic()
        self.sending, self.losing, self.numbers = threading.Lock(), threading.Lock(), itertools.count(1)
        self.replies: dict[int, queue.SimpleQueue[tuple[dict[str, Any], bytes]]] = {0: queue.SimpleQueue()}
        # A stopped process takes no bytes either: without this a large message would wait for ever.
        wait = struct.pack("ll", int(timeout_s), int(timeout_s % 1 * 1e6))
        place.link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, wait)
        threading.Thread(target=self._listen, daemon=True, name=f"listen-{name}").start()
        with contextlib.suppress(WorkerLost):  # `ready` says it
            self._send(spec)

    def ready(self) -> None:
        """Wait for the engine. Raises WorkerLost."""
        ready = self._next(0, self.start_s)[0]["ready"]
        self.dtype, self.vocabulary, self.start_s = (
            getattr(torch, ready["dtype"]),
            int(ready["vocabulary"]),
            float(ready["seconds"]),
        )

    def generate(self, prompts: Prompts, sampling: Sampling, done: Done | None = None) -> list[list[Completion]]:
        """Raises WorkerLost; what `done` was told until then stays told."""
        asked = [list(p) for p in prompts]
        made: list[list[Completion]] = [[] for _ in asked]
        me = self.post({"op": "generate", "prompts": asked, "sampling": asdict(sampling), "asks": done is not None})
        try:
            while not (answer := self._next(me))[0].get("finished"):
                index, completions = self._group(*answer, sampling)
                if not 0 <= index < len(made) or made[index]:
                    raise frames.Broken(f"an answer to prompt {index}, which does not wait for one")
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
            raise WorkerLost(f"{self.name}: {self.lost}") from None
        except WorkerLost:
            raise
        except BaseException:
            self.lose("given up in the middle of its work: the learner failed")  # it would wait for what `done` never said
            raise
        finally:
            self.forget(me)
        return made

    def _group(self, header: dict[str, Any], payload: bytes, sampling: Sampling) -> tuple[int, list[Completion]]:
        """The index of a prompt and its completions. Raises Broken."""
        index = header.get("group")
        if not isinstance(index, int):
            raise frames.Broken(f"a frame that is no group: {sorted(header)}")
        completions = frames.decode(header, payload)
        frames.check(completions, sampling.n, self.vocabulary, sampling.max_tokens)
        return index, completions

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
            return self.wait(me)
        finally:
            self.forget(me)

    def post(self, header: dict[str, Any]) -> int:
        """Send a message; its number is what `wait` takes."""
        me = next(self.numbers)
        self.replies[me] = queue.SimpleQueue()
        self._send(header | {"id": me})
        return me

    def wait(self, me: int) -> dict[str, Any]:
        """The next answer to message `me`. Raises WorkerLost."""
        return self._next(me)[0]

    def forget(self, me: int) -> None:
        self.replies.pop(me, None)

    def lose(self, reason: str, died: bool = False) -> None:
        """Give the worker up; it is killed, whatever state it is in. Nothing of it is left when this returns, whoever said it first."""
        with self.losing:
            if self.lost is None:
                self.died, self.lost = died, reason
                self.place.kill()

    def _send(self, header: Mapping[str, Any]) -> None:
        try:
            with self.sending:
                if self.lost:
                    raise WorkerLost(f"{self.name}: {self.lost}")
                self.seen = max(self.seen, time.monotonic())  # from here on it owes an answer
                frames.send(self.place.link, header)
        except BlockingIOError:
            self.lose(f"takes no message for {self.timeout_s:g} s (hung)")
            raise WorkerLost(f"{self.name}: {self.lost}") from None
        except OSError as error:
            self.lose(self.place.why() or str(error), died=True)
            raise WorkerLost(f"{self.name}: {self.lost}") from None

    def _next(self, me: int, within_s: float | None = None) -> tuple[dict[str, Any], bytes]:
        """The next answer to message `me`: as long as there are signs of life, or `within_s` seconds without any."""
        answers, begun = self.replies[me], time.monotonic()
        while True:
            try:
                return answers.get(timeout=0.2)
            except queue.Empty:
                if self.lost:
                    raise WorkerLost(f"{self.name}: {self.lost}") from None
                now = time.monotonic()
                if within_s is None and now - self.seen > self.timeout_s:
                    self.lose(f"no sign of life for {self.timeout_s:g} s (hung)")
                elif within_s is not None and now - begun > within_s:
                    self.lose(f"not ready after {within_s:.0f} s")

    def _listen(self) -> None:
        try:
            while (frame := frames.receive(self.place.link)) is not None:
                self.seen = time.monotonic()
                if "error" in frame[0]:
                    return self.lose(str(frame[0]["error"]))
                if waiting := self.replies.get(frame[0].get("id", -1)):
                    waiting.put(frame)
        except (frames.Broken, TypeError) as error:
            return self.lose(f"garbage: {error}")
        except OSError:
            pass
        if self.lost is None:
            self.lose(self.place.why() or "it closed its socket", died=True)
