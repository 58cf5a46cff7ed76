"""Where a recipe's rewards are computed: in this process (`InProcess`), or in others (`workers.RewardPool`). Both are a Scorer.

    with InProcess({"accuracy": {}, "format": {"weight": 0.1}}) as scorer:
        pending = [scorer.submit(completion, problem) for ...]
        scores = [p.result() for p in pending]
        scorer.stats()          # {"reward_ms_p50/accuracy": 0.02, ...}

In this process is for rules that look at the text alone: quick, deterministic, nothing to start. What can hang or die for reasons of
its own (`needs_pool`) belongs into a pool.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from rewards.combine import combine, parts
from rewards.score import Reward, Sampled, Score

DEPENDENT = ("code", "preference")  # slow or dead for reasons that need not be the sample's; so is "module:function"


class RewardError(RuntimeError):
    """A reward raised: a bad row or a bug. The message names the reward, the problem and what was raised."""


def needs_pool(name: str) -> bool:
    """Whether the reward depends on more than the text: programs, a model, a user's code."""
    return name in DEPENDENT or ":" in name


class Pending(Protocol):
    """A score to come."""

    def result(self) -> Score:
        """Wait for it. Raises RewardError."""
        ...

    def done(self) -> bool:
        """Whether `result` waits for nobody else."""
        ...


class Scorer(Protocol):
    """Takes samples as they are finished, gives their scores later."""

    def submit(self, completion: Sampled, problem: Mapping[str, Any]) -> Pending: ...

    def stats(self) -> dict[str, float]:
        """Metrics since the last call: of each reward, and of a sample as a whole ("all"), p50 and p99 in ms; a pool's accidents."""
        ...

    def close(self) -> None:
        """Nothing runs on afterwards."""
        ...

    def __enter__(self) -> Scorer: ...
    def __exit__(self, *_: object) -> None: ...


class Latency:
    """Seconds by reward, from any thread."""

    def __init__(self) -> None:
        self.lock, self.seen = threading.Lock(), defaultdict[str, list[float]](list)

    def add(self, seconds: Mapping[str, float]) -> None:
        with self.lock:
            for name, taken in seconds.items():
                self.seen[name].append(taken)

    def take(self) -> dict[str, float]:
        """`reward_ms_p50/NAME` and `reward_ms_p99/NAME` of what was added since the last call."""
        with self.lock:
            seen, self.seen = {name: sorted(s) for name, s in self.seen.items()}, defaultdict(list)
        return {
            f"reward_ms_p{q}/{name}": 1000.0 * s[min(len(s) - 1, len(s) * q // 100)]
            for name, s in seen.items()
            for q in (50, 99)
        }


class Timed:
    """A recipe's rewards, each with its time; `part` is the one that runs, `seconds` those of the sample being scored.

    `around` wraps every call: `around(name, call) -> Score`.
    """

    def __init__(self, spec: Mapping[str, Any], around: Callable[[str, Callable[[], Score]], Score] | None = None) -> None:
        self.around = around or (lambda name, call: call())
        self.parts = tuple(replace(part, reward=self._timed(part.name, part.reward)) for part in parts(spec))
        self.part, self.seconds = "", dict[str, float]()

    def score(self, completion: Sampled, problem: Mapping[str, Any]) -> Score:
        """Raises RewardError."""
        self.seconds = {}
        try:
            return combine(self.parts, completion, problem)
        except Exception as e:
            raise RewardError(f"{self.part} of {problem.get('id', '?')}: {type(e).__name__}: {e}"[:2000]) from e

    def _timed(self, name: str, reward: Reward) -> Reward:
        def run(completion: Sampled, problem: Mapping[str, Any]) -> Score:
            self.part, begin = name, time.perf_counter()
            try:
                return self.around(name, lambda: reward(completion, problem))
            finally:
                self.seconds[name] = time.perf_counter() - begin

        return run


class InProcess:
    """Scores in this process, when they are asked for: generation is not held up. Raises ValueError for a table that cannot be built."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.timed, self.latency = Timed(spec), Latency()
        self.lock = threading.Lock()  # the rewards are asked by the thread that samples ahead, and by the learner's

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, completion: Sampled, problem: Mapping[str, Any]) -> Pending:
        return _Later(lambda: self._score(completion, problem))

    def _score(self, completion: Sampled, problem: Mapping[str, Any]) -> Score:
        with self.lock:
            score = self.timed.score(completion, problem)
            self.latency.add({**self.timed.seconds, "all": sum(self.timed.seconds.values())})
        return score

    def stats(self) -> dict[str, float]:
        return self.latency.take()

    def close(self) -> None:
        pass


class _Later:
    """Computed when it is first asked for, and once."""

    def __init__(self, score: Callable[[], Score]) -> None:
        self.score = score
        self.made: Score | None = None

    def result(self) -> Score:
        self.made = self.made or self.score()
        return self.made

    def done(self) -> bool:
        return True
