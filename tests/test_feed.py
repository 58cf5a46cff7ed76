"""Which groups a step learns from: a matter of the data's order and of the rewards, never of who finished first.

The laws are about order, so the sampler here is simulated: answers of known length finish when so many tokens have gone by.
"""

from __future__ import annotations

import heapq
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from rewards import combine
from rewards.score import Score
from rewards.scorer import InProcess, Scorer
from rewards.workers import RewardPool
from rl.config import Config
from rl.data import Order
from rl.feed import InTurn, Made, Maker
from rl.metrics import Clock
from rl.records import Completion, Group, Prompt, Sampling
from rl.rollout import RewardFailed
from rl.sampler import Done, Prompts
from tests import tiny

GROUP = 2
COUNT = 600  # questions: more than any test here meets


class Simulated:
    """Every prompt is its number; its answers are `length(number)` tokens and it is finished when those have gone by."""

    def __init__(self, length: Callable[[int], int] = lambda number: 1 + number * 7 % 5) -> None:
        self.length, self.version = length, 0
        self.asked: list[int] = []  # numbers, in the order of the calls
        self.calls: list[Sampling] = []

    def generate(self, prompts: Prompts, sampling: Sampling, done: Done | None = None) -> list[list[Completion]]:
        self.calls.append(sampling)
        made: list[list[Completion]] = []
        under_way: list[tuple[int, int]] = []

        def begin(new: Prompts, now: int) -> None:
            for (number,) in new:
                self.asked.append(number)
                c = Completion((number,) * self.length(number), (-1.0,) * self.length(number), "stop", "", self.version)
                made.append([c] * sampling.n)
                heapq.heappush(under_way, (now + c.tokens, len(made) - 1))

        begin(prompts, 0)
        while under_way:
            now, index = heapq.heappop(under_way)
            begin((done(index, made[index]) if done else None) or [], now)
        return made


class Judge:
    """A group is useful when `useful(number)`: one answer right, one wrong. Scores are known at once, or `late` submissions later."""

    def __init__(self, useful: Callable[[int], bool], late: int = 0) -> None:
        self.useful, self.late, self.seen = useful, late, dict[int, int]()
        self.submitted = 0

    def submit(self, completion: Completion, problem: Mapping[str, Any]) -> Any:
        number = problem["number"]
        self.seen[number] = self.seen.get(number, 0) + 1
        self.submitted += 1
        right = self.useful(number) and self.seen[number] % GROUP == 0
        return _Score(self, self.submitted + self.late, Score(float(right)))


class _Score:
    def __init__(self, judge: Judge, ready: int, score: Score) -> None:
        self.judge, self.ready, self.result = judge, ready, lambda: score

    def done(self) -> bool:
        return self.judge.submitted >= self.ready


def prompts(count: int) -> list[Prompt]:
    return [Prompt(str(n), (n,), {"id": str(n), "number": n}) for n in range(count)]


def settings(**rollout: Any) -> Config:
    return tiny.config(rollout={"group": GROUP, "max_staleness": 100} | rollout)


def maker(config: Config, scorer: Any, count: int = COUNT, seed: int = 0, sampler: Simulated | None = None) -> Maker:
    return Maker(config, sampler or Simulated(), scorer, prompts(count), Order(count, seed))  # type: ignore[arg-type]


def numbers(made: Made) -> list[int]:
    return [g.prompt.ids[0] for g in made.groups]


def naive(
    config: Config, order: Sequence[int], cursor: int, spare: int, useful: Callable[[int], bool]
) -> tuple[list[int], int, int]:
    """The law by itself: positions kept, cursor and number of positions sampled after a step that begins with `spare` known ones."""
    r = config.rollout
    begun = r.prompts + -int(-r.prompts * r.oversample // 1)
    window, most = max(begun, spare), begun + int(r.prompts * r.refill)
    if r.refill:
        while sum(useful(order[cursor + i]) for i in range(window)) < r.prompts and window < most:
            window += 1
    seen = range(cursor, cursor + window)
    good = [p for p in seen if not r.refill or useful(order[p])]
    if len(good) >= r.prompts:
        return good[: r.prompts], good[r.prompts - 1] + 1, window
    idle = [p for p in seen if p not in good]
    return sorted(good + idle[: r.prompts - len(good)]), cursor + window, window


@pytest.mark.parametrize("late", [0, 3, 10_000])
def test_each_step_has_the_first_useful_groups_in_the_order(late: int) -> None:
    """Over random sizes, budgets and shares of useful groups; with `late` scores too. Nothing is skipped or used twice."""
    draw = random.Random(late)
    refilled = exhausted = carried = 0
    for trial in range(60):
        share, salt = draw.choice([0.1, 0.3, 0.6, 1.0]), draw.random()
        useful = lambda n, share=share, salt=salt: random.Random(f"{salt}/{n}").random() < share  # noqa: E731
        config = settings(
            prompts=draw.randint(1, 9), refill=draw.choice([0.0, 0.5, 1.0, 4.0]), oversample=draw.choice([0.0, 0.0, 0.3, 1.5])
        )
        one = maker(config, Judge(useful, late), seed=trial)
        order, cursor, spare = Order(COUNT, trial).take(0, COUNT), 0, 0
        for step in range(1, 7):
            kept, after, window = naive(config, order, cursor, spare, useful)
            made = one.make(step, cursor)
            assert numbers(made) == [order[p] for p in kept]
            assert made.cursor == after
            assert all(cursor <= p < after for p in kept)
            if config.rollout.refill:  # what is passed over teaches nothing
                passed = set(range(cursor, after)) - set(kept)
                assert not any(useful(order[p]) for p in passed)
                assert made.numbers["groups_wasted"] == len(passed)
                wasted = sum(not useful(order[p]) for p in range(cursor, after))
                assert made.numbers["zero_variance_sampled"] == pytest.approx(wasted / (after - cursor))
                refilled += made.numbers["refilled"] > 0
                exhausted += sum(useful(order[p]) for p in kept) < len(kept)
            spare, cursor = cursor + window - after, after
            assert sorted(one.spare) == list(range(cursor, cursor + spare))
            carried += spare > 0
        # Each position was sampled once, and none but these.
        assert sorted(one.sampler.asked) == sorted(order[: cursor + spare])  # type: ignore[attr-defined]
    assert min(refilled, exhausted, carried) > 10


@pytest.mark.parametrize("refill", [0.0, 2.0])
def test_a_resume_from_any_cursor_goes_on_as_if_nothing_had_happened(refill: float) -> None:
    """Over epochs of a small data set: 7 questions, 4 a step."""
    useful = lambda n: n % 3 != 0  # noqa: E731
    config = settings(prompts=4, refill=refill)
    feed, steps, cursors = InTurn(maker(config, Judge(useful), count=7), 0), [], [0]
    for step in range(1, 12):
        steps.append(feed.take(step, 0, Clock()))
        cursors.append(feed.cursor)
    order = Order(7, 0).take(0, cursors[-1])
    kept = [n for made in steps for n in numbers(made)]
    assert kept == (order if not refill else [n for n in order if useful(n)])
    for done in range(1, 11):
        again = InTurn(maker(config, Judge(useful), count=7), cursors[done])
        for step in range(done + 1, 12):
            made = again.take(step, 0, Clock())
            assert (numbers(made), made.cursor) == (numbers(steps[step - 1]), steps[step - 1].cursor)


def test_a_resume_with_groups_to_spare_skips_and_repeats_nothing() -> None:
    """The spare groups are lost with the process and sampled again."""
    useful = lambda n: random.Random(f"u{n}").random() < 0.5  # noqa: E731
    config = settings(prompts=6, refill=3.0, oversample=0.5)
    one, cursor, met = maker(config, Judge(useful)), 0, list[int]()
    for step in range(1, 21):
        if step % 3 == 0:
            one = maker(config, Judge(useful))
        made = one.make(step, cursor)
        met, cursor = met + numbers(made), made.cursor
    assert met == [n for n in Order(COUNT, 0).take(0, cursor) if useful(n)]
    assert len(met) == 120


def test_seeds_and_budgets_are_the_steps() -> None:
    one = maker(settings(prompts=4, refill=2.0), Judge(lambda n: n % 2 == 0, late=10_000))
    one.make(3, 0)
    sampler = one.sampler
    assert len(sampler.calls) > 1  # type: ignore[attr-defined] # scores that come late need further rounds
    assert {s.seed for s in sampler.calls} == {3}  # type: ignore[attr-defined]


def lengths_kept(pick: Callable[[Maker], list[int]], refill: float) -> list[int]:
    """Of 400 steps of 8 groups: the answers' lengths, log-normal; half of the groups are useful, whatever their length."""
    draw = random.Random(5)
    length = {n: max(1, int(draw.lognormvariate(3, 1))) for n in range(20_000)}
    useful = {n: draw.random() < 0.5 for n in range(20_000)}
    sampler = Simulated(length.__getitem__)
    one = maker(settings(prompts=8, refill=refill), Judge(useful.__getitem__), count=20_000, sampler=sampler)
    return [length[n] for n in pick(one)]


def in_order(one: Maker) -> list[int]:
    kept, cursor = list[int](), 0
    for step in range(1, 401):
        made = one.make(step, cursor)
        kept, cursor = kept + numbers(made), made.cursor
    return kept


def first_finished(one: Maker) -> list[int]:
    """What must not be: of each step, the first useful groups that were finished."""
    kept, cursor = list[int](), 0
    for step in range(1, 401):
        finished: list[int] = []
        one.sampler.generate(
            [one._prompt(p).ids for p in range(cursor, cursor + 24)],
            Sampling(GROUP, 1),
            lambda i, c, finished=finished: finished.append(c[0].ids[0]),
        )
        kept += [n for n in finished if one.scorer.useful(n)][:8]  # type: ignore[attr-defined]
        cursor += 24
        assert step
    return kept


def kolmogorov(one: Sequence[int], other: Sequence[int]) -> float:
    """Largest distance of the two distribution functions, over what chance has at p = 0.001."""
    a, b = sorted(one), sorted(other)
    distance = max(abs(sum(x <= v for x in a) / len(a) - sum(x <= v for x in b) / len(b)) for v in {*a[::10], *b[::10]})
    return distance / (1.95 * (1 / len(a) + 1 / len(b)) ** 0.5)


def test_refill_keeps_the_distribution_of_lengths() -> None:
    plain = lengths_kept(in_order, 0.0)
    refilled = lengths_kept(in_order, 3.0)
    biased = lengths_kept(first_finished, 0.0)
    assert kolmogorov(plain, refilled) < 1
    assert kolmogorov(plain, biased) > 3  # the test would see it
    assert statistics.mean(biased) < 0.8 * statistics.mean(plain)


def test_refills_begin_as_soon_as_a_group_is_known_to_teach_nothing() -> None:
    """Beside the others, not after them: numbers 0 and 1 are short and useless, 2 and 3 long."""
    length = {0: 2, 1: 4, 2: 50, 3: 60}
    happened: list[str] = []

    class Told(Simulated):
        def generate(self, asked: Prompts, sampling: Sampling, done: Done | None = None) -> list[list[Completion]]:
            assert done is not None

            def told(index: int, completions: Sequence[Completion]) -> Prompts | None:
                more = done(index, completions)
                happened.append(f"{completions[0].ids[0]} done" + (f", {[p[0] for p in more]} begun" if more else ""))
                return more

            return super().generate(asked, sampling, told)

    class InARow(Order):
        def _permutation(self, epoch: int) -> list[int]:
            return list(range(self.count))

    told = Told(lambda n: length.get(n, 10))
    one = Maker(settings(prompts=4, refill=1.0), told, Judge(lambda n: n >= 2), prompts(100), InARow(100, 0))  # type: ignore[arg-type]
    assert numbers(one.make(1, 0)) == [2, 3, 4, 5]
    assert happened == ["0 done, [4] begun", "1 done, [5] begun", "4 done", "5 done", "2 done", "3 done"]


LATE = """
import time
def right(prompts, completions, number=None, **columns):
    time.sleep(0.02)
    right.calls = getattr(right, "calls", 0) + 1
    return [float(number[0] % 3 == 0 and right.calls % 2)]
"""


def test_a_reward_pools_late_scores_still_lead_to_refills(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reward_late.py").write_text(LATE)
    monkeypatch.syspath_prepend(str(tmp_path))
    config, order = settings(prompts=3, refill=5.0), Order(60, 0).take(0, 60)
    with RewardPool({"reward_late:right": {}}, workers=1, wall_s=30) as pool:
        one, cursor, met = maker(config, pool, count=60), 0, list[int]()
        for step in (1, 2, 3):
            made = one.make(step, cursor)
            met, cursor = met + numbers(made), made.cursor
    assert met == [n for n in order[:cursor] if n % 3 == 0]
    assert len(met) == 9


def raising(completion: Completion, problem: Mapping[str, Any]) -> Score:
    if problem["number"] == 3:
        raise KeyError("units")
    return Score(float(problem["number"] % 2))


@pytest.mark.parametrize("refill", [0.0, 1.0])
def test_a_reward_that_raises_comes_through(monkeypatch: pytest.MonkeyPatch, refill: float) -> None:
    monkeypatch.setitem(combine.REWARDS, "spy", lambda: raising)
    scorer: Scorer = InProcess({"spy": {}})
    with pytest.raises(RewardFailed, match=r"raised on [24] of the samples, first in spy of 3: KeyError: 'units'") as caught:
        maker(settings(prompts=30, refill=refill), scorer, count=33).make(1, 0)
    assert len(caught.value.groups) >= 30


def test_every_reward_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refill looks at the scores before the groups are put together."""
    calls: list[str] = []
    monkeypatch.setitem(combine.REWARDS, "spy", lambda: lambda c, p: calls.append(p["id"]) or Score(float(len(calls) % 2)))
    maker(settings(prompts=8, refill=1.0), InProcess({"spy": {}})).make(1, 0)
    assert len(calls) == 8 * GROUP


def test_samples_without_a_verdict_make_a_group_useless() -> None:
    class Silent(Judge):
        def submit(self, completion: Completion, problem: Mapping[str, Any]) -> Any:
            pending = super().submit(completion, problem)
            if problem["number"] % 2:
                pending.result = lambda: Score(None, {}, "worker died")
            return pending

    made = maker(settings(prompts=4, refill=3.0), Silent(lambda n: True)).make(1, 0)
    assert len(made.groups) == 4
    assert not any(n % 2 for n in numbers(made))


def test_spare_groups_that_would_be_too_old_are_sampled_anew() -> None:
    """At `max_staleness` = 2 the groups of step s are two steps old at most, spare ones of the step before too."""
    config = settings(prompts=4, oversample=1.0, max_staleness=2)
    for lag, refused in ((1, 0), (2, 4)):  # steps between the weights that sample and those that learn
        one, sampler = maker(config, Judge(lambda n: True)), Simulated()
        one.sampler = sampler  # type: ignore[assignment]
        cursor = 0
        for step in range(1, 6):
            sampler.version = max(0, step - 1 - lag)
            made = one.make(step, cursor)
            assert all(step - 1 - c.version <= 2 for g in made.groups for c in g.completions)
            assert made.numbers.get("groups_refused", 0.0) == (refused if step > 3 else 0), (lag, step)
            assert numbers(made) == Order(COUNT, 0).take(cursor, 4)
            cursor = made.cursor


def test_again_is_the_same_prompts() -> None:
    one = maker(settings(prompts=4), Judge(lambda n: True))
    made = one.make(2, 0)
    one.sampler.version = 9
    new = one.again(2, made.groups[1:3])
    assert [g.prompt for g in new] == [g.prompt for g in made.groups[1:3]]
    assert {c.version for g in new for c in g.completions} == {9}
    assert all(isinstance(g, Group) and g.scores for g in new)
