"""Many samplers as one: rollout workers in processes of their own, on this host or on a Ray cluster, behind the Sampler protocol.

A call's prompts are shared out by length (longest first, each to the worker with the least to do), so the shares follow from the prompts
alone and a step repeats bit for bit on a CPU. A worker that is lost loses only its groups: the others sample them anew, a new worker is
started in its place and joins with the next weights. With fewer than `rollout.min_workers` left the run stops.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from rl import transfer
from rl.guard import Stopped
from rl.records import Completion, Sampling
from rl.remote import Remote
from rl.sampler import Done, Prompts, Weights, WorkerLost

RESTARTS = 100  # of all workers in a run; what dies more often has another cause


class PoolStopped(Stopped):
    """Too few workers are left, or one did not take its weights in time."""


class Start(Protocol):
    """Starts worker number `slot` and returns when its engine is ready. Raises WorkerLost, ValueError."""

    def __call__(self, slot: int, attempt: int) -> Remote: ...


class Pool:
    """`count` workers. `window(workers)` makes what weights travel through (transfer.py); `vocabulary` is the learner's."""

    last = "none was lost"

    def __init__(
        self, start: Start, count: int, *, minimum: int, vocabulary: int, timeout_s: float, window: Callable[[int], transfer.Window]
    ) -> None:  # fmt: skip
        self.start, self.minimum, self.vocabulary, self.timeout_s = start, minimum, vocabulary, timeout_s
        self.make_window, self.members = window, list[Remote]()
        self.window: transfer.Window | None = None
        self.counts: dict[str, float] = {}
        self.lock = threading.Lock()
        self.threads = ThreadPoolExecutor(4 * count + 4, thread_name_prefix="workers")
        self.coming: dict[int, Future[Remote]] = {}  # by slot, in place of one that was lost
        self.restarts = 0
        starting = [self.threads.submit(start, slot, 0) for slot in range(count)]
        self.active: dict[int, Remote] = {}
        failed: list[Exception] = []
        for slot, future in enumerate(starting):
            try:
                self.active[slot] = future.result()
            except (WorkerLost, ValueError) as error:
                failed.append(error)
        try:
            if failed:
                raise ValueError(f"{len(failed)} of {count} rollout workers did not start: {failed[0]}")
            for worker in self.active.values():
                self._same_vocabulary(worker)
        except ValueError:
            self.close()
            raise
        self.version, self.dtype = 0, self.active[0].dtype

    def _same_vocabulary(self, worker: Remote) -> None:
        if worker.vocabulary != self.vocabulary:
            raise ValueError(
                f"{worker.name} has a model of {worker.vocabulary} tokens, the learner one of {self.vocabulary}: they are different "
                "models; every worker must see the same files under model.path"
            )

    def generate(self, prompts: Prompts, sampling: Sampling, done: Done | None = None) -> list[list[Completion]]:
        call = _Call(self, prompts, sampling, done)
        while waiting := call.waiting():
            shares = share([(i, len(call.prompts[i])) for i in waiting], len(self._alive()))
            alive = self._alive()
            futures = [
                self.threads.submit(call.sample, worker, part) for worker, part in zip(alive, shares, strict=False) if part
            ]
            for future in futures:
                future.result()
        return [call.made[i] for i in range(len(call.prompts))]

    def load(self, weights: Weights, version: int) -> None:
        self._admit()
        members = self._alive()
        if members != self.members:
            self._open(members)
        assert self.window is not None
        loads = self._post(members, {"op": "load", "version": version})
        self._each(loads, "begin to take weights", version)
        for index, size in transfer.pack(iter(weights), self.window.bytes_):
            self._bucket(members, index, size, version)
        self._bucket(members, [], 0, version)
        for worker, answer in self._each(loads, "take the last weights", version).items():
            worker.version = answer["version"]
            worker.forget(loads[worker])
        self.version = version

    def _bucket(self, members: list[Remote], index: transfer.Index, size: int, version: int) -> None:
        assert self.window is not None
        posts = self._post(members, {"op": "bucket", "index": index, "size": size})
        if size:
            try:
                self.window.publish(size)
            except RuntimeError as error:
                raise PoolStopped(f"weights {version} were not broadcast within {self.timeout_s:g} s: {error}") from None
        for worker in self._each(posts, "take a bucket", version):
            worker.forget(posts[worker])

    def _open(self, members: list[Remote]) -> None:
        if self.window is not None:
            self.window.close()
        self.window, self.members = self.make_window(len(members)), members
        posts: dict[Remote, int] = {}
        for i, worker in enumerate(members):
            posts |= self._post([worker], {"op": "window", "window": self.window.opened(i)})
        try:
            self.window.join()
        except RuntimeError as error:
            raise PoolStopped(f"the workers did not meet the learner within {self.timeout_s:g} s: {error}") from None
        for worker in self._each(posts, "open the way for weights", self.version):
            worker.forget(posts[worker])

    def _post(self, workers: Sequence[Remote], message: dict[str, Any]) -> dict[Remote, int]:
        """The message's number at each worker; a lost one is left out."""
        posts = {}
        for worker in workers:
            if not worker.lost:
                with contextlib.suppress(WorkerLost):
                    posts[worker] = worker.post(message)
        return posts

    def _each(self, posts: Mapping[Remote, int], what: str, version: int) -> dict[Remote, dict[str, Any]]:
        """Everyone's answer. A worker that died is left out from now on; one that is silent or refuses stops the run."""
        answers = {}
        for worker, me in posts.items():
            try:
                answers[worker] = worker.wait(me)
            except WorkerLost as error:
                if not worker.died:
                    raise PoolStopped(f"weights {version}: a worker did not {what}: {error}") from None
                self._lose(worker)
        return answers

    def fingerprint(self) -> dict[str, int]:
        return self._alive()[0].fingerprint()

    def replicas(self) -> Sequence[tuple[str, Any]]:
        return [(w.name, w) for w in self._alive()]

    def rest(self) -> None:
        pass

    def stats(self) -> dict[str, float]:
        with self.lock:
            counts, self.counts = self.counts, {}
        return {"workers": float(len(self.active))} | counts

    def close(self) -> None:
        """Ends every worker; nothing of them is left."""
        for future in self.coming.values():
            future.cancel()
        for worker in self.active.values():
            worker.close()
        for future in self.coming.values():
            if not future.cancelled():
                with contextlib.suppress(Exception):  # it did not even start
                    future.result().close()
        self.threads.shutdown()
        if self.window is not None:
            self.window.close()

    def _alive(self) -> list[Remote]:
        """The workers that can be used, by slot. Raises PoolStopped below the minimum."""
        for worker in [w for w in self.active.values() if w.lost]:
            self._lose(worker)
        alive = [self.active[slot] for slot in sorted(self.active)]
        if len(alive) < self.minimum or not alive:
            raise PoolStopped(f"{len(alive)} rollout workers are left, rollout.min_workers = {self.minimum}: {self.last}")
        return alive

    def _lose(self, worker: Remote) -> None:
        """Count a lost worker, once, and start another in its place."""
        with self.lock:
            slot = next((s for s, w in self.active.items() if w is worker), None)
            if slot is None:
                return
            del self.active[slot]
            self.last = f"{worker.name}: {worker.lost}"
            print(f"rollout worker lost: {self.last}; a new one is being started", flush=True)
            self._count_locked("workers_lost", 1)
            self.restarts += 1
            if self.restarts <= RESTARTS:
                self.coming[slot] = self.threads.submit(self.start, slot, self.restarts)

    def _admit(self) -> None:
        """Workers that have come up take part from these weights on."""
        for slot, future in list(self.coming.items()):
            if not future.done():
                continue
            del self.coming[slot]
            try:
                worker = future.result()
                self._same_vocabulary(worker)
            except (WorkerLost, ValueError) as error:
                print(f"a rollout worker did not come up again: {error}", flush=True)
                continue
            self.active[slot] = worker
            self._count("workers_new", 1)

    def _count(self, what: str, number: float) -> None:
        with self.lock:
            self._count_locked(what, number)

    def _count_locked(self, what: str, number: float) -> None:
        self.counts[what] = self.counts.get(what, 0.0) + number


class _Call:
    """One `generate` over several workers: which groups are made, which still wait."""

    def __init__(self, pool: Pool, prompts: Prompts, sampling: Sampling, done: Done | None) -> None:
        self.pool, self.sampling, self.done = pool, sampling, done
        self.prompts, self.made = [list(p) for p in prompts], dict[int, list[Completion]]()
        self.lock = threading.Lock()

    def waiting(self) -> list[int]:
        return [i for i in range(len(self.prompts)) if i not in self.made]

    def sample(self, worker: Remote, part: Sequence[int]) -> None:
        """Some of the prompts on one worker; what is lost with the worker waits again."""
        mine = list(part)

        def done(index: int, completions: Sequence[Completion]) -> Prompts:
            with self.lock:  # one call at a time, as the protocol says
                at = mine[index]
                self.made[at] = list(completions)
                more = list(self.done(at, completions) or []) if self.done else []
                mine.extend(range(len(self.prompts), len(self.prompts) + len(more)))
                self.prompts += [list(p) for p in more]
                return more

        try:
            worker.generate([self.prompts[i] for i in mine], self.sampling, done)
        except WorkerLost:
            lost = [i for i in mine if i not in self.made]
            self.pool._lose(worker)
            self.pool._count("groups_lost", len(lost))


def share(items: Sequence[tuple[int, int]], count: int) -> list[list[int]]:
    """(index, length) -> for each of `count` workers the indices of its share, in the indices' order.

    Longest first, each to the share with the least work so far; every prompt also weighs what its answers will be, which nobody
    knows: the mean length of the prompts.

    >>> share([(0, 9), (1, 1), (2, 1), (3, 8)], 2)
    [[0, 1], [2, 3]]
    """
    extra = sum(length for _, length in items) / max(1, len(items))
    shares: list[list[int]] = [[] for _ in range(count)]
    work = [0.0] * count
    for index, length in sorted(items, key=lambda item: (-item[1], item[0])):
        at = work.index(min(work))
        shares[at].append(index)
        work[at] += length + extra
    return [sorted(s) for s in shares]
