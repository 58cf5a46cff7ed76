"""Sampling ahead of the learner: while it learns from one step's groups, the workers sample the next ones, at most `max_staleness` = k
steps ahead. The groups of step s are begun under the weights of step s - 1 - k or later.

When the learner has new weights, the samples under way are finished first ("finish": no sample has two policies), or the weights go in
between two of the engine's steps and the samples go on under them or begin again ("continue", "restart"); every token knows its version.
Groups older than the bound are never learned from: their prompts are sampled anew. With k > 0 the truncated importance correction
(loss.py, tis) is what accounts for the difference of sampler and learner.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from queue import Empty, SimpleQueue

from rl.feed import Made, Maker
from rl.metrics import Clock
from rl.records import Completion, Group

WAIT_S = 0.5  # between two looks whether the other thread still lives


class Ahead:
    """A Feed with a thread of its own that samples. `bound` in steps, `updates` optimiser updates a step."""

    def __init__(self, maker: Maker, cursor: int, done: int, steps: int, *, bound: int, updates: int, finish: bool) -> None:
        self.maker, self.cursor, self.steps, self.bound = maker, cursor, steps, bound
        self.updates, self.finish = updates, finish
        self.done, self.making, self.pausing, self.closed = done, False, False, False
        self.state = threading.Condition()
        self.queue: SimpleQueue[Made | BaseException] = SimpleQueue()
        self.thread = threading.Thread(target=self._run, args=(cursor, done + 1), daemon=True, name="ahead")
        self.thread.start()

    def take(self, step: int, version: int, clock: Clock) -> Made:
        """Waits for the groups of `step`; the clock's "rollout" is this wait, not the sampling."""
        with clock("rollout"):
            made = self._next()
            old = [i for i, g in enumerate(made.groups) if self._age(g, version) > self.bound]
            if old:
                with self.pause():
                    new = self.maker.again(step, [made.groups[i] for i in old])
                groups = list(made.groups)
                for i, group in zip(old, new, strict=True):
                    groups[i] = group
                refused = made.numbers.get("groups_refused", 0.0) + len(old)
                made = Made(groups, made.cursor, made.numbers | {"groups_refused": refused})
        self.cursor = made.cursor
        return made

    def _age(self, group: Group, version: int) -> float:
        """Of the group's oldest token, in steps."""
        return max((version - c.version) / self.updates for c in group.completions)

    def _next(self) -> Made:
        while True:
            try:
                made = self.queue.get(timeout=WAIT_S)
            except Empty:
                if not self.thread.is_alive() and self.queue.empty():
                    raise RuntimeError("the thread that samples has ended without a word") from None
                continue
            if isinstance(made, BaseException):
                raise made
            return made

    @contextmanager
    def pause(self) -> Iterator[None]:
        """No new groups are begun inside; with `finish` those under way are waited for."""
        with self.state:
            self.pausing = True
            while self.finish and self.making:
                self.state.wait(WAIT_S)
        try:
            yield
        finally:
            with self.state:
                self.pausing = False
                self.state.notify_all()

    def learned(self, step: int) -> None:
        with self.state:
            self.done = step
            self.state.notify_all()

    def close(self) -> None:
        """Nothing new is begun. What is under way ends with the sampler, which the caller closes next; nobody waits for it here."""
        with self.state:
            self.closed = True
            self.state.notify_all()
            busy = self.making
        if not busy:
            self.thread.join()

    def _run(self, cursor: int, step: int) -> None:
        try:
            while step <= self.steps and self._may(step):
                clock = Clock()
                try:
                    made = self.maker.make(step, cursor, clock)
                finally:
                    with self.state:
                        self.making = False
                        self.state.notify_all()
                cursor = made.cursor
                self.queue.put(Made(made.groups, cursor, made.numbers | {"seconds_sampling": clock.total()}))
                step += 1
        except BaseException as error:
            self.queue.put(error)

    def _may(self, step: int) -> bool:
        """Wait until `step` may be begun; False when there is nothing left to do."""
        with self.state:
            while self.pausing or step > self.done + 1 + self.bound:
                if self.closed:
                    return False
                self.state.wait(WAIT_S)
            self.making = not self.closed
            return not self.closed


def staleness(groups: list[Group], version: int, updates: int) -> dict[str, float]:
    """Steps between the weights that sampled a token and the learner's: mean over tokens, largest; and the share of samples that saw
    more than one version."""
    total = tokens = 0
    worst, mixed, samples = 0, 0, 0
    for c in (c for g in groups for c in g.completions):
        for sampled, count in versions(c):
            total += (version - sampled) * count
            tokens += count
        worst = max(worst, version - c.version)
        mixed, samples = mixed + bool(c.switches), samples + 1
    return {
        "staleness": total / tokens / updates,
        "staleness_max": worst / updates,
        "mixed_versions": mixed / samples,
    }


def versions(c: Completion) -> Iterator[tuple[int, int]]:
    """(version, tokens sampled under it), in order.

    >>> list(versions(Completion((5, 6, 7), (0.0, 0.0, 0.0), "stop", "", 3, ((1, 4),))))
    [(3, 1), (4, 2)]
    """
    marks = [(0, c.version), *c.switches, (c.tokens, 0)]
    for (start, version), (stop, _) in pairwise(marks):
        yield version, stop - start
