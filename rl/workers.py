"""Many samplers as one: rollout workers in processes of their own, on this host or on a Ray cluster, behind the Sampler protocol.

A call's prompts are shared out by length (longest first, each to the worker with the least to do), so the shares follow from the prompts
alone and a step repeats bit for bit on a CPU. A worker that is lost loses only its groups: the others sample them anew, a new worker is
started in its place and joins with the next weights. With fewer than `rollout.min_workers` left the run stops.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol

from rl import transfer
from rl.guard import Stopped
from rl.records import Completion, Sampling
from rl.remote import Remote
from rl.sampler import Done, Prompts, Weights, WorkerLost

RESTARTS = 100  # of all workers in a run; what dies more often has another cause


class PoolStopped(Stopped):
    """Too few workers are left, or one did not take its weights in time."""

    guard = "workers"


class Start(Protocol):
    """Starts worker number `slot`, which need not be ready yet. Raises WorkerLost, ValueError."""

    def __call__(self, slot: int, attempt: int) -> Remote: ...


class Pool:
    """`count` workers. `window(workers)` makes what weights travel through (transfer.py); `vocabulary` is the learner's.

    One thread may generate while another loads and proves weights.
    """

    adapter = False  # workers take merged weights
    last = "none was lost"

    def __init__(
        self, start: Start, count: int, *, minimum: int, vocabulary: int, timeout_s: float, window: Callable[[int], transfer.Window]
    ) -> None:  # fmt: skip
        self.start, self.minimum, self.vocabulary, self.timeout_s = start, minimum, vocabulary, timeout_s
        self.make_window, self.members = window, list[Remote]()
        self.window: transfer.Window | None = None
        self.counts: dict[str, float] = {}
        self.restarts, self.closed = 0, False
        self.lock = threading.RLock()  # of everything above and below
        # A worker dies with the thread that started it (worker_child.die_with): these threads live as long as the pool.
        self.threads = ThreadPoolExecutor(4 * count + 4, thread_name_prefix="workers")
        self.begun: list[Remote] = []  # every worker whose process may live
        self.coming = {slot: self.threads.submit(self._start, slot, 0) for slot in range(count)}  # until they are ready
        self.joining: dict[int, Remote] = {}  # by slot: ready, but without the learner's weights
        self.active: dict[int, Remote] = {}  # by slot
        try:
            self._first(count)
        except BaseException:  # ctrl-C too
            self.close()
            raise
        self.version, self.dtype = 0, self.active[0].dtype

    def _first(self, count: int) -> None:
        failed: list[Exception] = []
        for slot in range(count):
            try:
                self.active[slot] = self.coming.pop(slot).result()
            except (WorkerLost, ValueError) as error:
                failed.append(error)
        if failed:
            raise ValueError(f"{len(failed)} of {count} rollout workers did not start: {failed[0]}")

    def _start(self, slot: int, attempt: int) -> Remote:
        worker = self.start(slot, attempt)
        with self.lock:
            self.begun = [w for w in self.begun if not w.lost] + [worker]
            closed = self.closed
        if closed:
            worker.close()
        worker.ready()
        if worker.vocabulary != self.vocabulary:
            worker.lose("a model of another vocabulary")
            raise ValueError(
                f"{worker.name} has a model of {worker.vocabulary} tokens, the learner one of {self.vocabulary}: they are different "
                "models; every worker must see the same files under model.path"
            )
        return worker

    def generate(self, prompts: Prompts, sampling: Sampling, done: Done | None = None) -> list[list[Completion]]:
        call, number = _Call(self, prompts, sampling, done), 0
        while waiting := call.waiting():
            alive = self._alive()
            shares = share([(i, len(call.prompts[i])) for i in waiting], len(alive))
            futures = [
                self.threads.submit(call.sample, worker, part, number + k)
                for k, (worker, part) in enumerate(zip(alive, shares, strict=True))
                if part
            ]
            for future in futures:
                future.result()
            number += len(alive)
        return [call.made[i] for i in range(len(call.prompts))]

    def load(self, weights: Weights, version: int) -> None:
        self._admit()
        with self.lock:
            members = self._alive() + [self.joining[slot] for slot in sorted(self.joining)]
        loads = self._post(members, {"op": "load", "version": version})
        # Who does not even begin hangs in what it did before: lost, like any other.
        members = list(self._each(loads, "begin to take weights", version, stop=False))
        self._alive()
        if members != self.members:
            self._open(members)
        assert self.window is not None
        for index, size in transfer.pack(iter(weights), self.window.bytes_):
            self._bucket(members, index, size, version)
        self._bucket(members, [], 0, version)
        for worker, answer in self._each({w: loads[w] for w in members}, "take the last weights", version).items():
            worker.version = answer["version"]
            worker.forget(loads[worker])
        self.version = version
        with self.lock:
            self._count("workers_new", len(self.joining))
            self.active |= self.joining
            self.joining.clear()

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
        """A window between the learner and these workers, who have begun to take weights."""
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
            with contextlib.suppress(WorkerLost):
                posts[worker] = worker.post(message)
        return posts

    def _each(self, posts: Mapping[Remote, int], what: str, version: int, stop: bool = True) -> dict[Remote, dict[str, Any]]:
        """Everyone's answer. A worker that died is left out from now on; with `stop`, one that is silent or refuses stops the run."""
        answers = {}
        for worker, me in posts.items():
            try:
                answers[worker] = worker.wait(me)
            except WorkerLost as error:
                if stop and not worker.died:
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
        """Ends every worker; nothing of them is left. Calls under way raise PoolStopped."""
        with self.lock:
            self.closed = True
            begun, coming = self.begun, list(self.coming.values())
        for future in coming:
            future.cancel()
        for worker in begun:
            worker.close()
        self.threads.shutdown()
        if self.window is not None:
            self.window.close()

    def _alive(self) -> list[Remote]:
        """The workers that can be used, by slot. Raises PoolStopped below the minimum."""
        with self.lock:
            if self.closed:
                raise PoolStopped("the rollout workers are closed")
            for worker in [*self.active.values(), *self.joining.values()]:
                if worker.lost:
                    self._lose(worker)
            if len(self.active) < self.minimum:
                raise PoolStopped(
                    f"{len(self.active)} rollout workers are left, rollout.min_workers = {self.minimum}: {self.last}"
                )
            return [self.active[slot] for slot in sorted(self.active)]

    def _lose(self, worker: Remote) -> None:
        """Count a lost worker, once, and start another in its place."""
        with self.lock:
            here = next(((d, s) for d in (self.active, self.joining) for s, w in d.items() if w is worker), None)
            if here is None or self.closed:
                return
            workers, slot = here
            del workers[slot]
            self.last = f"{worker.name}: {worker.lost}"
            print(f"rollout worker lost: {self.last}; a new one is being started", flush=True)
            self._count("workers_lost", 1)
            self._restart(slot)

    def _restart(self, slot: int) -> None:
        self.restarts += 1
        if self.restarts <= RESTARTS:
            self.coming[slot] = self.threads.submit(self._start, slot, self.restarts)

    def _admit(self) -> None:
        """Workers that have come up take part from the next weights on."""
        with self.lock:
            for slot, future in list(self.coming.items()):
                if not future.done():
                    continue
                del self.coming[slot]
                try:
                    self.joining[slot] = future.result()
                except (WorkerLost, ValueError) as error:
                    print(f"a rollout worker did not come up again: {error}", flush=True)
                    self._restart(slot)

    def _count(self, what: str, number: float) -> None:
        with self.lock:
            if number:
                self.counts[what] = self.counts.get(what, 0.0) + number


class _Call:
    """One `generate` over several workers: which groups are made, which still wait."""

    def __init__(self, pool: Pool, prompts: Prompts, sampling: Sampling, done: Done | None) -> None:
        self.pool, self.sampling, self.done = pool, sampling, done
        self.prompts, self.made = [list(p) for p in prompts], dict[int, list[Completion]]()
        self.lock = threading.Lock()

    def waiting(self) -> list[int]:
        return [i for i in range(len(self.prompts)) if i not in self.made]

    def sample(self, worker: Remote, part: Sequence[int], number: int) -> None:
        """Share `number` of the prompts on one worker; what is lost with the worker waits again."""
        mine, sampling = list(part), of_share(self.sampling, number)

        def done(index: int, completions: Sequence[Completion]) -> Prompts:
            with self.lock:  # one call at a time, as the protocol says
                at = mine[index]
                self.made[at] = list(completions)
                more = list(self.done(at, completions) or []) if self.done else []
                mine.extend(range(len(self.prompts), len(self.prompts) + len(more)))
                self.prompts += [list(p) for p in more]
                return more

        try:
            worker.generate([self.prompts[i] for i in mine], sampling, done)
        except WorkerLost:
            lost = [i for i in mine if i not in self.made]
            self.pool._lose(worker)
            self.pool._count("groups_lost", len(lost))


def of_share(sampling: Sampling, number: int) -> Sampling:
    """Each share draws numbers of its own (with the same ones, samples of different prompts would be alike); the first draws those
    that a single sampler would."""
    return replace(sampling, seed=sampling.seed + (number << 40))


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
