"""Many workers as one sampler: shares, accidents, and the end. The workers answer from a script (faulty_worker.Scripted), so that a start
costs little; everything else is real. With real engines: test_rl_workers_sync.py."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter

import pytest
import torch

from rl.records import Sampling
from rl.workers import Pool, PoolStopped, of_share, share
from tests import tiny_pool as pools
from tests.faulty_worker import scripted

PROMPTS = [[k] * (1 + k * 7 % 11) for k in range(24)]
SAMPLING = Sampling(n=2, max_tokens=4, seed=3)


@pytest.fixture
def start():
    made = []

    def started(*given, **options) -> Pool:
        made.append(pools.pool(*given, **options))
        return made[-1]

    yield started
    for pool in made:
        numbers = [pools.pid(w) for w in pool.begun]
        pool.close()
        pool.close()
        assert pools.gone(numbers, 0)


def expected(prompts, number=0):
    return [scripted(p, of_share(SAMPLING, number), 0) for p in prompts]


def either(prompts, made, numbers):
    """Every group is what one of these shares' workers answers."""
    choices = [expected(prompts, n) for n in numbers]
    return all(group in [c[i] for c in choices] for i, group in enumerate(made))


def test_shares_follow_from_the_prompts_lengths_alone():
    lengths = [(i, len(p)) for i, p in enumerate(PROMPTS)]
    for count in (1, 2, 3, 5, 30):
        shares = share(lengths, count)
        assert len(shares) == count
        assert sorted(i for s in shares for i in s) == list(range(24))
        assert all(s == sorted(s) for s in shares)
        assert shares == share(lengths[::-1], count)
        work = [sum(len(PROMPTS[i]) for i in s) for s in shares]
        assert max(work) - min(work) <= max(n for _, n in lengths)
    assert share([(0, 1000)] + [(i, 1) for i in range(1, 9)], 2) == [[0], [1, 2, 3, 4, 5, 6, 7, 8]]
    assert share([(i, 50) for i in range(9)], 2) == [[0, 2, 4, 6, 8], [1, 3, 5, 7]]
    assert share([], 2) == [[], []]


def test_the_first_share_draws_what_a_single_sampler_draws():
    assert of_share(SAMPLING, 0) == SAMPLING
    assert len({of_share(Sampling(1, 1, seed=s), k).seed for s in range(2_000_000, 2_000_100) for k in range(50)}) == 5000


def test_every_prompt_is_answered_once_by_its_share(start):
    pool = start(2)
    shares = share([(i, len(p)) for i, p in enumerate(PROMPTS)], 2)
    heard, busy, at_once = Counter(), threading.Lock(), []

    def done(index, completions):
        at_once.append(busy.acquire(blocking=False))
        time.sleep(0.002)
        heard[index] += 1
        busy.release()

    made = pool.generate(PROMPTS, SAMPLING, done)
    for number, part in enumerate(shares):
        assert [made[i] for i in part] == expected([PROMPTS[i] for i in part], number)
    assert heard == Counter(range(24))
    assert all(at_once)
    assert pool.generate(PROMPTS, SAMPLING) == made
    assert pool.generate(PROMPTS[:1], SAMPLING) == expected(PROMPTS[:1])
    assert pool.generate([], SAMPLING) == []
    assert pool.stats() == {"workers": 2.0}


def test_further_prompts_take_the_next_indices(start):
    pool, names = start(2), {}

    def done(index, completions):
        more = [[index + 100], [index + 200]] if index < 24 and index % 5 == 0 else []
        names.update({24 + len(names) + k: p for k, p in enumerate(more)})
        return more

    made = pool.generate(PROMPTS, SAMPLING, done)
    assert len(made) == 24 + 10
    assert either(PROMPTS + [names[i] for i in range(24, 34)], made, [0, 1])


LOST = {
    "group:killed": "killed by SIGKILL",
    "group:stopped": "no sign of life for 3 s",
    "group:memory": "MemoryError: cannot allocate",
    "answer:nan": "garbage: log-probs that are no log-probs",
}


@pytest.mark.parametrize("fault", LOST)
def test_a_lost_worker_loses_its_groups_alone(start, fault, capfd):
    pool = start(2, {1: fault}, after=3, timeout_s=3)
    heard, told = Counter(), 3 if fault.startswith("group") else 0
    made = pool.generate(PROMPTS, SAMPLING, lambda i, _: heard.update([i]))
    mine = share([(i, len(p)) for i, p in enumerate(PROMPTS)], 2)[1]
    again = expected(PROMPTS, 2)  # shares are numbered on
    assert [made[i] for i in mine[:told]] == [expected(PROMPTS, 1)[i] for i in mine[:told]]
    assert [made[i] for i in mine[told:]] == [again[i] for i in mine[told:]]
    assert heard == Counter(range(24))
    assert pool.stats() == {"workers": 1.0, "workers_lost": 1.0, "groups_lost": float(len(mine) - told)}
    assert f"rollout worker lost: worker 1.0: {LOST[fault]}" in capfd.readouterr().out
    assert pool.stats() == {"workers": 1.0}


def test_below_the_minimum_the_run_stops(start):
    pool = start(2, {0: "group:killed"}, minimum=2)
    with pytest.raises(
        PoolStopped, match=r"1 rollout workers are left, rollout.min_workers = 2: worker 0.0: killed by SIGKILL"
    ):
        pool.generate(PROMPTS, SAMPLING)


def test_all_workers_lost_stops_the_run(start):
    pool = start(2, {0: "group:cuda", 1: "group:killed"})
    with pytest.raises(PoolStopped, match=r"0 rollout workers are left, rollout.min_workers = 1: worker"):
        pool.generate(PROMPTS, SAMPLING)


@pytest.mark.parametrize(
    ("faults", "options", "reason"),
    [
        ({1: "start:dies"}, {}, "1 of 2 rollout workers did not start: worker 1.0: ended with exit status 3"),
        ({0: "start:hangs"}, {"start_s": 2}, "1 of 2 rollout workers did not start: worker 0.0: not ready after 2 s"),
        ({}, {"vocabulary": 331}, "worker 0.0 has a model of 330 tokens, the learner one of 331: they are different models"),
    ],
    ids=["dies", "hangs", "vocabulary"],
)
def test_a_pool_that_does_not_come_up_leaves_nothing(faults, options, reason):
    before = set(pools.below(os.getpid()))
    with pytest.raises(ValueError) as caught:
        pools.pool(2, faults, **options)
    assert reason in str(caught.value)
    assert pools.gone([*set(pools.below(os.getpid())) - before])


def test_an_interrupt_while_workers_start_ends_them():
    before, begun = set(pools.below(os.getpid())), time.monotonic()
    threading.Timer(1.5, os.kill, [os.getpid(), signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        pools.pool(2, {0: "start:hangs", 1: "start:hangs"})
    assert pools.gone([*set(pools.below(os.getpid())) - before])
    assert time.monotonic() - begun < 60  # not the time that a start may take


def test_a_failing_learner_does_not_lose_the_pool(start):
    pool = start(2)
    with pytest.raises(ZeroDivisionError):
        pool.generate(PROMPTS, SAMPLING, lambda *_: 1 / 0)
    with pytest.raises(PoolStopped, match="the learner failed"):  # both were in the middle of their work
        pool.generate(PROMPTS, SAMPLING)


def test_closed_under_a_call_it_ends_and_starts_nobody(start, capfd):
    pool, ended = start(2, scripted="0.2"), []
    numbers = [pools.pid(w) for w in pool.begun]

    def call():
        try:
            pool.generate(PROMPTS, SAMPLING)
        except PoolStopped as error:
            ended.append(str(error))

    thread = threading.Thread(target=call)
    thread.start()
    time.sleep(0.5)
    pool.close()
    thread.join()
    assert ended == ["guard workers: the rollout workers are closed"]
    assert pools.gone(numbers, 0)
    assert not pool.coming
    assert "rollout worker lost" not in capfd.readouterr().out


def weights(version):
    torch.manual_seed(version)
    return {"a": torch.randint(0, 9, (300, 30)), "b": torch.randint(0, 9, (4,)), "c": torch.randint(0, 9, (16_000,))}


def load(pool, version):
    """The weights of `version`, and that every worker has them."""
    made = weights(version)
    pool.load(iter(made.items()), version)
    for _, worker in pool.replicas():
        assert worker.fingerprint() == {name: int(w.sum()) for name, w in made.items()}
        assert worker.version == version


def test_a_new_worker_joins_with_the_next_weights(start, capfd):
    pool = start(2, {1: "group:killed"}, after=0)
    load(pool, 1)
    real = pool.start
    pool.start = lambda slot, attempt: pools.worker("start:dies", name="bad") if attempt == 1 else real(slot, attempt)
    pool.generate(PROMPTS, SAMPLING)
    assert pool.stats() == {"workers": 1.0, "workers_lost": 1.0, "groups_lost": 12.0}
    pool.coming[1].exception()
    load(pool, 2)  # the first to be started in its place did not come up
    assert "a rollout worker did not come up again: bad: ended with exit status 3" in capfd.readouterr().out
    pool.coming[1].result()
    made = pool.generate(PROMPTS, SAMPLING)  # the new one has no weights yet
    assert {c.version for group in made for c in group} == {2}
    assert pool.stats() == {"workers": 1.0}
    load(pool, 3)
    assert [name for name, _ in pool.replicas()] == ["worker 0.0", "worker 1.2"]
    made = pool.generate(PROMPTS, SAMPLING)
    assert {c.version for group in made for c in group} == {3}
    assert pool.stats() == {"workers": 2.0, "workers_new": 1.0}


def test_killed_while_it_takes_weights_it_is_left_out(start):
    pool = start(2, {0: "load:killed"})
    load(pool, 1)
    assert [name for name, _ in pool.replicas()] == ["worker 1.0"]
    assert pool.stats() == {"workers": 1.0, "workers_lost": 1.0}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("load:hangs", r"weights 1: a worker did not take .*: worker 0.0: no sign of life for 6 s \(hung\)"),
        ("load:raises", r"weights 1: a worker did not take .*: worker 0.0: RuntimeError: CUDA out of memory"),
    ],
)
def test_a_weight_update_that_does_not_end_stops_the_run(start, fault, reason):
    pool = start(1, {0: fault}, timeout_s=6, loads=True)
    with pytest.raises(PoolStopped, match=reason):
        load(pool, 1)


def test_a_hung_worker_that_does_not_begin_to_take_weights_is_lost(start):
    pool = start(2, timeout_s=6, loads=True)
    load(pool, 1)
    os.kill(pools.pid(pool.active[0]), signal.SIGSTOP)
    load(pool, 2)
    assert pool.stats() == {"workers": 1.0, "workers_lost": 1.0}


def test_two_threads_and_dying_workers(start):
    """One generates, one loads and proves, a third kills: every call ends, with all its groups, and every worker that is left is right."""
    pool, stop, failed = start(2, scripted="0.003"), threading.Event(), []
    load(pool, 0)

    def generate():
        try:
            while not stop.is_set():
                made = pool.generate(PROMPTS, SAMPLING)
                assert len(made) == 24
                assert all(len(g) == 2 for g in made)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=generate)
    thread.start()
    lost = 0.0
    for version in range(1, 9):
        if version % 4 == 2 and len(pool.active) > 1:
            os.kill(pools.pid(pool.active[max(pool.active)]), signal.SIGKILL)
        pool.load(iter(weights(version).items()), version)
        for _, worker in pool.replicas():
            if not worker.lost:
                assert worker.fingerprint()["a"] == int(weights(version)["a"].sum())
        lost += pool.stats().get("workers_lost", 0)
        if version % 4 == 0:
            for future in list(pool.coming.values()):
                future.exception()
    stop.set()
    thread.join()
    assert not failed
    assert lost == 2
    assert pool.version == 8
