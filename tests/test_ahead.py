"""Sampling ahead of the learner: the bound, what is refused, what a pause excludes, and how it ends.

A simulated sampler in real threads: it gives a token at a time, each under the weights of that moment, while the learner's thread loads new
ones. At the end a whole run with a real worker, interrupted and resumed.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from recipes import run as door
from rewards.score import Score
from rl import checkpoint, train
from rl.ahead import Ahead, staleness, versions
from rl.config import Config
from rl.data import Order
from rl.feed import Maker
from rl.guard import Stopped
from rl.metrics import Clock
from rl.records import Completion, Group, Prompt, Sampling
from rl.sampler import Done, Prompts, WorkerLost
from tests import tiny
from tests.tiny_run import timeless, write_recipe

COUNT, PROMPTS, UPDATES, PAUSE = 60, 3, 2, 0.001


class Live:
    """A sampler that is busy for a while; weights may come in between two tokens, as `in_flight` says."""

    def __init__(self, in_flight: str = "finish") -> None:
        self.in_flight, self.version, self.lock = in_flight, 0, threading.Lock()
        self.draw = random.Random(3)
        self.busy, self.overlaps, self.closed = 0, 0, False
        self.gate: threading.Event | None = None  # what a call waits for before its first token
        self.began = threading.Semaphore(0)
        self.plant: Callable[[int, Completion], Completion] = lambda number, c: c
        self.fail: BaseException | None = None

    def generate(self, prompts: Prompts, sampling: Sampling, done: Done | None = None) -> list[list[Completion]]:
        with self.lock:
            self.busy += 1
        self.began.release()
        try:
            if self.fail:
                raise self.fail
            while self.gate and not self.gate.wait(0.01):
                self._living()
            return [self._group(i, p, sampling, done) for i, p in enumerate(prompts)]
        finally:
            with self.lock:
                self.busy -= 1

    def _group(self, index: int, prompt: Sequence[int], sampling: Sampling, done: Done | None) -> list[Completion]:
        made = [self.plant(prompt[0], self._one(self.draw.randint(2, 9))) for _ in range(sampling.n)]
        if done:
            done(index, made)
        return made

    def _one(self, length: int) -> Completion:
        seen: list[int] = []
        while len(seen) < length:
            self._living()
            with self.lock:
                if self.in_flight == "restart" and seen and seen[-1] != self.version:
                    seen = []
                seen.append(self.version)
            time.sleep(PAUSE)
        switches = tuple((i, v) for i, v in enumerate(seen) if i and v != seen[i - 1])
        return Completion((5,) * length, (-1.0,) * length, "stop", "", seen[0], switches)

    def _living(self) -> None:
        if self.closed:
            raise WorkerLost("closed")

    def load(self, version: int) -> None:
        with self.lock:
            self.overlaps += self.busy > 0
            self.version = version


class Judge:
    def submit(self, completion: Completion, problem: Any) -> Any:
        class Known:
            def result(self) -> Score:
                return Score(1.0)

            def done(self) -> bool:
                return True

        return Known()


def settings(bound: int, **rollout: Any) -> Config:
    return tiny.config(
        rollout={"group": 2, "prompts": PROMPTS, "max_staleness": bound, "placement": "processes"} | rollout,
        algorithm={"minibatches": UPDATES},
    )


def maker(sampler: Live, bound: int, **rollout: Any) -> Maker:
    prompts = [Prompt(str(n), (n,), {"id": str(n)}) for n in range(COUNT)]
    return Maker(settings(bound, **rollout), sampler, Judge(), prompts, Order(COUNT, 0))  # type: ignore[arg-type]


@pytest.fixture
def feeds() -> Iterator[Callable[..., Ahead]]:
    """Makes feeds, and ends them: no thread is left by any test."""
    made: list[tuple[Ahead, Live]] = []

    def make(sampler: Live, bound: int, *, steps: int = 8, done: int = 0, cursor: int = 0, **rollout: Any) -> Ahead:
        feed = Ahead(
            maker(sampler, bound, **rollout), cursor, done, steps, bound=bound, updates=UPDATES, finish=sampler.in_flight == "finish"
        )  # fmt: skip
        made.append((feed, sampler))
        return feed

    yield make
    for feed, sampler in made:
        feed.close()
        sampler.closed = True
        feed.thread.join(10)
        assert not feed.thread.is_alive()


def numbers(groups: Sequence[Group]) -> list[int]:
    return [int(g.prompt.id) for g in groups]


def learn(feed: Ahead, sampler: Live, step: int, seconds: float = 0.01) -> None:
    """What the loop does after `take`."""
    time.sleep(seconds)
    with feed.pause():
        sampler.load(step * UPDATES)
    feed.learned(step)


@pytest.mark.parametrize("in_flight", ["finish", "continue", "restart"])
@pytest.mark.parametrize("bound", [1, 2])
def test_the_bound_is_held_for_every_token(feeds: Callable[..., Ahead], bound: int, in_flight: str) -> None:
    """With a learner that is slow, quick, and anything between."""
    sampler = Live(in_flight)
    feed, met, worst, mixed = feeds(sampler, bound, steps=16), list[int](), 0.0, 0.0
    for step in range(1, 17):
        made = feed.take(step, (step - 1) * UPDATES, Clock())
        for c in (c for g in made.groups for c in g.completions):
            spans = list(versions(c))
            assert sum(count for _, count in spans) == c.tokens
            # Nothing older than the bound; weights that are still to come nobody has.
            assert all((step - 1 - bound) * UPDATES <= v <= (step - 1) * UPDATES for v, _ in spans)
        told = staleness(made.groups, (step - 1) * UPDATES, UPDATES)
        assert 0 <= told["staleness"] <= told["staleness_max"] <= bound
        worst, mixed = max(worst, told["staleness_max"]), mixed + told["mixed_versions"]
        assert "groups_refused" not in made.numbers
        met += numbers(made.groups)
        learn(feed, sampler, step, (0.0, 0.02, 0.15)[step % 3])
    assert met == Order(COUNT, 0).take(0, len(met))  # none skipped, none twice
    assert worst == bound  # it really ran ahead
    assert (mixed > 0) == (in_flight == "continue")
    assert (sampler.overlaps > 0) == (in_flight != "finish")


def test_a_resume_skips_and_repeats_nothing(feeds: Callable[..., Ahead]) -> None:
    """What was sampled ahead is lost with the process; the cursor is that of the step learned from, not of the sampler's."""
    first, sampler = list[int](), Live()
    feed = feeds(sampler, 2)
    for step in (1, 2, 3):
        first += numbers(feed.take(step, (step - 1) * UPDATES, Clock()).groups)
        learn(feed, sampler, step, 0.05)
    again = Live()
    again.load(3 * UPDATES)
    resumed, second = feeds(again, 2, done=3, cursor=feed.cursor), list[int]()
    for step in range(4, 9):
        made = resumed.take(step, (step - 1) * UPDATES, Clock())
        assert staleness(made.groups, (step - 1) * UPDATES, UPDATES)["staleness_max"] <= step - 4  # none from before the resume
        second += numbers(made.groups)
        learn(resumed, again, step)
    assert first + second == Order(COUNT, 0).take(0, 8 * PROMPTS)


@pytest.mark.parametrize("in_flight", ["finish", "continue"])
def test_groups_that_are_too_old_are_sampled_anew_and_counted(feeds: Callable[..., Ahead], in_flight: str) -> None:
    sampler = Live(in_flight)
    victim = Order(COUNT, 0).take(4 * PROMPTS + 1, 1)[0]  # of step 5
    planted: list[int] = []

    def plant(number: int, c: Completion) -> Completion:
        if number == victim and not planted:  # one of the two
            planted.append(number)
            return Completion(c.ids, c.logprobs, "stop", "", 0, ((1, c.version),))  # its first token is of the first weights
        return c

    sampler.plant = plant
    feed = feeds(sampler, 1)
    for step in range(1, 9):
        made = feed.take(step, (step - 1) * UPDATES, Clock())
        assert made.numbers.get("groups_refused", 0) == (step == 5)
        assert numbers(made.groups) == Order(COUNT, 0).take((step - 1) * PROMPTS, PROMPTS)
        assert staleness(made.groups, (step - 1) * UPDATES, UPDATES)["staleness_max"] <= 1
        if step == 5:
            new = next(g for g in made.groups if int(g.prompt.id) == victim)
            assert {c.version for c in new.completions} == {(step - 1) * UPDATES}
            assert new.scores
        learn(feed, sampler, step)


@pytest.mark.parametrize("error", [Stopped("too few workers"), ValueError("a bug")])
def test_what_the_sampling_thread_raises_arrives_in_take(feeds: Callable[..., Ahead], error: Exception) -> None:
    sampler = Live()
    feed = feeds(sampler, 1)
    feed.take(1, 0, Clock())
    feed.take(2, 0, Clock())
    sampler.fail = error
    learn(feed, sampler, 1)
    with pytest.raises(type(error), match=str(error)):
        feed.take(3, UPDATES, Clock())
    with feed.pause():  # nobody waits for a thread that is gone
        pass
    with pytest.raises(RuntimeError, match="ended without a word"):
        feed.take(4, UPDATES, Clock())


def test_a_pause_waits_for_what_is_under_way_and_nothing_begins_in_it(feeds: Callable[..., Ahead]) -> None:
    sampler = Live()
    sampler.gate = threading.Event()
    feed, inside, leave = feeds(sampler, 2), threading.Event(), threading.Event()
    sampler.began.acquire(timeout=10)

    def pausing() -> None:
        with feed.pause():
            inside.set()
            leave.wait(10)

    other = threading.Thread(target=pausing)
    other.start()
    assert not inside.wait(0.3)  # step 1 is being sampled
    sampler.gate.set()
    assert inside.wait(10)
    assert sampler.busy == 0
    assert not sampler.began.acquire(timeout=0.3)  # step 2 might begin, but for the pause
    leave.set()
    assert sampler.began.acquire(timeout=10)
    other.join(10)


@pytest.mark.parametrize("in_flight", ["continue", "restart"])
def test_a_pause_under_samples_under_way_does_not_wait(feeds: Callable[..., Ahead], in_flight: str) -> None:
    sampler = Live(in_flight)
    sampler.gate = threading.Event()
    feed = feeds(sampler, 1)
    sampler.began.acquire(timeout=10)
    with feed.pause():  # comes back though nothing has finished
        assert sampler.busy == 1
        sampler.load(0)
    sampler.gate.set()
    assert len(feed.take(1, 0, Clock()).groups) == PROMPTS


def test_closed_while_it_waits_for_the_learner(feeds: Callable[..., Ahead]) -> None:
    sampler = Live()
    feed = feeds(sampler, 1)
    for step in (1, 2):
        feed.take(step, 0, Clock())  # step 3 waits for the learner
    feed.close()
    assert not feed.thread.is_alive()
    feed.close()


def test_closed_while_it_samples(feeds: Callable[..., Ahead]) -> None:
    """Nobody can take a sample out of a worker's hands: closing comes back at once, the thread ends with its sampler."""
    sampler = Live()
    sampler.gate = threading.Event()
    feed = feeds(sampler, 1)
    sampler.began.acquire(timeout=10)
    before = time.monotonic()
    feed.close()
    assert time.monotonic() - before < 5
    assert feed.thread.is_alive()
    sampler.closed = True
    feed.thread.join(10)
    assert not feed.thread.is_alive()


def test_it_ends_by_itself_after_the_last_step(feeds: Callable[..., Ahead]) -> None:
    sampler = Live()
    feed = feeds(sampler, 2, steps=3)
    for step in (1, 2, 3):
        feed.take(step, (step - 1) * UPDATES, Clock())
        learn(feed, sampler, step)
    feed.thread.join(10)
    assert not feed.thread.is_alive()


def completion(tokens: int, version: int, *switches: tuple[int, int]) -> Completion:
    return Completion((5,) * tokens, (-1.0,) * tokens, "stop", "", version, switches)


def test_staleness_by_hand() -> None:
    """Learner at update 12, two updates a step.

    a: 4 tokens of 12 -> 0.       b: 2 tokens of 8, 3 of 10, 1 of 12 -> 2*4 + 3*2 + 0 = 14 updates, oldest 4.       c: 5 tokens of 10 -> 10.
    All: 24 updates over 15 tokens = 1.6 a token = 0.8 steps; oldest 4 updates = 2 steps; one of three saw several versions.
    """
    p = Prompt("a", (1,), {})
    b = completion(6, 8, (2, 10), (5, 12))
    assert list(versions(b)) == [(8, 2), (10, 3), (12, 1)]
    made = [Group(p, (completion(4, 12), b)), Group(p, (completion(5, 10),))]
    assert staleness(made, 12, 2) == {
        "staleness": pytest.approx(0.8),
        "staleness_max": 2.0,
        "mixed_versions": pytest.approx(1 / 3),
    }
    assert staleness([Group(p, (completion(4, 12),))], 12, 2) == {"staleness": 0, "staleness_max": 0, "mixed_versions": 0}


def ids(run: Path, steps: int) -> list[str]:
    return [json.loads(line)["id"] for s in range(1, steps + 1) for line in (run / f"rollouts/step-{s:06d}.jsonl").open()]


@pytest.mark.slow
def test_a_run_ahead_with_a_real_worker_resumes(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = str(write_recipe(tmp_path, tiny))
    args = [
        recipe,
        f"run.out={tmp_path / 'run'}",
        "rollout.placement=processes",
        "rollout.max_staleness=1",
        "evaluate.problems=0",
    ]
    real = checkpoint.save

    def save(*given: Any) -> Path:
        real(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train.checkpoint, "save", save)
        assert door.main(args) == 130
    assert door.main([*args, "--resume"]) == 0
    lines = timeless(tmp_path / "run")
    assert [m["step"] for m in lines] == [1, 2, 3, 4, 5, 6]
    assert ids(tmp_path / "run", 6) == [f"train/{i}" for i in Order(10, seed=0).take(0, 24)]
    # Step 1 has no choice, nor has the first after the resume; the others are one step old: the worker did not wait for the learner.
    assert [m["staleness_max"] for m in lines] == [0, 1, 1, 0, 1, 1]
    assert all(m["mismatch"] > 1e-5 for m in lines if m["staleness_max"])
    assert all(m["mismatch"] <= 1e-5 for m in lines if not m["staleness_max"])
    assert all(m["canary"] <= 1e-5 for m in lines)
    assert not [t for t in threading.enumerate() if t.name == "ahead"]
