"""What is taken inside vLLM: every token with its log-prob and the version behind it, whatever happens while it is sampled.

One engine serves the module. Its cache is so small that requests are preempted all the time: everything here holds with that.
Bit for bit the same as vLLM's own `generate`: test_sampler_vllm.py.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed: `make setup` installs it")

from rl import engine_tap
from rl.engine_tap import LOOP_ROUNDS, Request, goes_round
from rl.learn import Learner
from rl.records import Completion, Group, Sampling
from rl.sampler_vllm import VllmSampler
from rl.sync import canary
from tests import sampler_laws as laws
from tests import tiny

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the bounds are those of fp32 on a CPU")
BLOCKS = 16  # of 32 tokens; the longest request alone needs 12


@pytest.fixture(scope="module")
def engine() -> Iterator[VllmSampler]:
    options = {"block_size": 32, "num_gpu_blocks_override": BLOCKS}
    made = VllmSampler(tiny.path(), tiny.tokenizer(), device=laws.CPU, max_model_len=384, engine=options)
    yield made
    made.close()


@pytest.fixture
def sampler(engine: VllmSampler) -> Iterator[VllmSampler]:
    """The engine, as it was before afterwards; nothing is left in it by any test."""
    yield engine
    vars(engine).pop("between", None)  # the class has its own
    engine.restart, engine.tap.stop_loops = False, 0
    assert left(engine) == NOTHING
    laws.restore(engine)


@pytest.fixture(scope="module")
def learners() -> list[Learner]:
    """At updates 0, 1 and 2, far from each other."""
    made = []
    for number in range(3):
        made.append(tiny.learner(tiny.config(learn={"lr": 3e-2})))
        tiny.updates(made[-1], number, laws.prompts())
    return made


NOTHING = {"engine": 0, "running": 0, "under way": 0, "finished": 0, "loops": 0, "outputs": 0, "blocks": 0}


def left(engine: VllmSampler) -> dict[str, int]:
    """What an engine holds when it should hold nothing."""
    tap, core = engine.tap, engine.llm.llm_engine
    pool = tap.scheduler.kv_cache_manager.block_pool
    return {
        "engine": len(tap.scheduler.requests),
        "running": len(tap.scheduler.running),
        "under way": len(tap.requests),
        "finished": len(tap._finished),
        "loops": len(tap._loops),
        "outputs": core.output_processor.get_num_unfinished_requests(),
        "blocks": pool.num_gpu_blocks - 1 - pool.get_num_free_blocks(),
    }


def at_step(number: int, act) -> object:
    """A `between` that acts once, after so many of the engine's steps."""
    steps = [0]

    def between() -> None:
        steps[0] += 1
        if steps[0] == number:
            act()

    return between


def groups(made: Sequence[Sequence[Completion]]) -> list[Group]:
    return [Group(p, tuple(c)) for p, c in zip(laws.prompts(), made, strict=True)]


def logprobs_under(learner: Learner, made: list[Group]) -> list[list[float]]:
    """Of each completion's tokens, by the plain forward pass."""
    model = tiny.plain()
    model.load_state_dict(learner.policy.model.state_dict())
    with torch.no_grad():
        return [lps.tolist() for g in made for lps in tiny.padded(model, g)[0]]


def preemptions(engine: VllmSampler, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    scheduler, seen = engine.tap.scheduler, []
    real = scheduler._preempt_request
    monkeypatch.setattr(scheduler, "_preempt_request", lambda r, *a, **k: seen.append(r.request_id) or real(r, *a, **k))
    return seen


def test_preempted_requests_have_whole_and_right_log_probs(
    sampler: VllmSampler, learners: list[Learner], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = preemptions(sampler, monkeypatch)
    made = sampler.generate(laws.ids(), Sampling(n=6, max_tokens=90, seed=1))
    assert len(seen) > 5
    assert {c.version for m in made for c in m} == {0}
    assert all(len(c.ids) == len(c.logprobs) and not c.switches for m in made for c in m)
    assert max(c.tokens for m in made for c in m) == 90
    assert tiny.parity(learners[0], groups(made), 1.0) <= laws.BOUND


def test_continue_each_token_knows_the_weights_that_sampled_it(
    sampler: VllmSampler, learners: list[Learner], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two updates while 24 samples are under way: before and after each the log-probs are those of another learner."""
    steps = [0]

    def between() -> None:
        steps[0] += 1
        for version, step in ((1, 8), (2, 20)):
            if steps[0] == step:
                sampler.load(learners[version].policy.weights(), version)

    sampler.between = between
    preemptions(sampler, monkeypatch)
    made = groups(sampler.generate(laws.ids(), Sampling(n=4, max_tokens=60, seed=2)))
    samples = [c for g in made for c in g.completions]
    under = [logprobs_under(learner, made) for learner in learners]
    compared, told = [0, 0, 0], 0.0
    for k, c in enumerate(samples):
        marks = [(0, c.version), *c.switches, (c.tokens, -1)]
        assert [i for i, _ in marks] == sorted({i for i, _ in marks}), marks
        assert [v for _, v in marks[:-1]] == sorted(v for _, v in marks[:-1])
        for (start, version), (stop, _) in pairwise(marks):
            for i in range(start, stop):
                compared[version] += 1
                assert c.logprobs[i] == pytest.approx(under[version][k][i], abs=laws.BOUND)
                told = max(told, abs(c.logprobs[i] - under[(version + 1) % 3][k][i]))
    assert min(compared) > 50
    assert told > 0.5  # another version's would have been noticed
    assert {len(c.switches) for c in samples} == {0, 1, 2}
    assert sampler.version == 2


def test_restart_every_token_is_of_the_new_weights(sampler: VllmSampler, learners: list[Learner]) -> None:
    sampler.restart = True
    sampler.between = at_step(8, lambda: sampler.load(learners[1].policy.weights(), 1))
    sampling = Sampling(n=4, max_tokens=60, seed=2)
    made = groups(sampler.generate(laws.ids(), sampling))
    samples = [c for g in made for c in g.completions]
    assert not any(c.switches for c in samples)
    old, new = (logprobs_under(learner, made) for learner in learners[:2])
    for k, c in enumerate(samples):
        assert c.logprobs == pytest.approx((old, new)[c.version][k], abs=laws.BOUND)
    assert {c.version for c in samples} == {0, 1}
    assert all(c.tokens <= 8 for c in samples if c.version == 0)  # they had finished
    assert sum(c.tokens > 8 for c in samples) > 5


def test_weights_between_two_calls_are_no_switch(sampler: VllmSampler, learners: list[Learner]) -> None:
    """A request that has no token yet takes the new version as its first."""
    sampler.between = at_step(1, lambda: sampler.load(learners[1].policy.weights(), 1))
    long = [tuple(laws.ids()[4]) for _ in range(8)]  # 290 tokens each: one at a time fits
    made = sampler.generate(long, Sampling(n=1, max_tokens=4, seed=3))
    assert {(c.version, len(c.switches)) for (c,) in made} >= {(1, 0)}
    assert made[-1][0].version == 1


def test_switch_before_and_after_the_first_token() -> None:
    request = Request((1, 2), None, 3)
    request.switch(4)
    assert (request.version, request.switches) == (4, [])
    request.ids = [9]
    request.switch(5)
    request.switch(6)  # twice without a token between them
    assert (request.version, request.switches) == (4, [(1, 6)])
    request.ids = [9, 9]
    request.switch(7)
    assert request.switches == [(1, 6), (2, 7)]


def test_a_call_within_a_call(sampler: VllmSampler, learners: list[Learner]) -> None:
    """Canaries while others run: both are right, and the outer call's samples are those it would have had (greedy)."""
    sampling = Sampling(n=1, max_tokens=40, temperature=0.0)
    alone = sampler.generate(laws.ids(), sampling)
    differences = []
    sampler.between = at_step(5, lambda: differences.append(canary(learners[0].policy, sampler, laws.prompts(), laws.CPU)))
    made = sampler.generate(laws.ids(), sampling)
    assert differences[0] <= laws.BOUND
    assert [[c.ids for c in m] for m in made] == [[c.ids for c in m] for m in alone]
    assert tiny.parity(learners[0], groups(made), 0.0) <= laws.BOUND


def test_an_inner_call_that_outlives_the_outer_one(sampler: VllmSampler) -> None:
    """All that the outer one waits for is finished in the inner one's steps."""
    inner: list[list[Completion]] = []
    sampler.between = at_step(2, lambda: inner.extend(sampler.generate(laws.ids(), Sampling(n=2, max_tokens=64, seed=5))))
    outer = sampler.generate(laws.ids()[:2], Sampling(n=1, max_tokens=5, seed=4))
    assert [len(m) for m in outer] == [1, 1]
    assert [len(m) for m in inner] == [2] * len(laws.ids())


class Stop(Exception):
    pass


def test_an_interrupted_call_leaves_nothing(sampler: VllmSampler) -> None:
    """Whether interrupted between two steps, by `done`, or while an inner call runs, which has finished some of it."""

    def stop() -> None:
        raise Stop

    def inner() -> None:
        sampler.generate(laws.ids()[:2], Sampling(n=4, max_tokens=64, seed=1))
        raise Stop

    for number, act in ((1, stop), (3, stop), (30, stop), (3, inner)):
        sampler.between = at_step(number, act)
        with pytest.raises(Stop):
            sampler.generate(laws.ids(), Sampling(n=4, max_tokens=64, seed=1))
        assert left(sampler) == NOTHING
    del sampler.between
    with pytest.raises(Stop):
        sampler.generate(laws.ids(), Sampling(n=4, max_tokens=64, seed=1), lambda *_: stop())
    assert left(sampler) == NOTHING


def test_an_inner_call_that_fails_leaves_the_outer_one_whole(sampler: VllmSampler) -> None:
    def inner() -> None:
        real, sampler.between = sampler.between, at_step(2, lambda: (_ for _ in ()).throw(Stop))
        try:
            with pytest.raises(Stop):
                sampler.generate(laws.ids()[:2], Sampling(n=2, max_tokens=64, seed=1))
        finally:
            sampler.between = real

    sampler.between = at_step(3, inner)
    made = sampler.generate(laws.ids(), Sampling(n=2, max_tokens=24, seed=1))
    assert [len(m) for m in made] == [2] * len(laws.ids())


def test_prompts_added_while_others_are_sampled(sampler: VllmSampler, learners: list[Learner]) -> None:
    asked, heard = [list(p) for p in laws.ids()[:3]], []
    more = {0: [laws.ids()[3], laws.ids()[4]], 2: [], 4: [laws.ids()[5]]}

    def done(index: int, completions: Sequence[Completion]) -> list[Sequence[int]]:
        heard.append(index)
        asked.extend(list(p) for p in more.get(index, []))
        return more.get(index, [])

    made = sampler.generate(laws.ids()[:3], Sampling(n=3, max_tokens=24, seed=6), done)
    assert sorted(heard) == list(range(6))
    assert [len(m) for m in made] == [3] * 6
    order = [laws.ids().index(tuple(p)) for p in asked]
    whole = [Group(laws.prompts()[i], tuple(m)) for i, m in zip(order, made, strict=True)]
    assert order == [0, 1, 2, 3, 4, 5]
    assert tiny.parity(learners[0], whole, 1.0) <= laws.BOUND


def test_other_prompt_ids_than_asked_stop_the_run(sampler: VllmSampler, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an engine with a tokenizer of its own may add a BOS."""
    real = sampler.llm.enqueue

    def adds_bos(inputs, params, **options):
        return real([{"prompt_token_ids": [2, *i["prompt_token_ids"]]} for i in inputs], params, **options)

    with monkeypatch.context() as patch:
        patch.setattr(sampler.llm, "enqueue", adds_bos)
        with pytest.raises(RuntimeError, match=r"other prompt ids than it was given \(a BOS added"):
            sampler.generate(laws.ids(), Sampling(n=2, max_tokens=4))
    assert left(sampler) == NOTHING


def naive(ids: Sequence[int], window: int) -> bool:
    tail = ids[-window:]
    periods = range(1, window // LOOP_ROUNDS + 1)
    return len(ids) >= window and any(all(tail[i] == tail[i - p] for i in range(p, window)) for p in periods)


def test_goes_round_is_its_definition() -> None:
    draw, seen = random.Random(0), [0, 0]
    for _ in range(4000):
        window = draw.randint(1, 40)
        cycle = [draw.randrange(3) for _ in range(draw.randint(1, 10))]
        ids = [draw.randrange(3) for _ in range(draw.randrange(30))] + cycle * draw.randint(1, 12)
        if draw.random() < 0.3:
            ids[draw.randrange(len(ids))] = 7
        ids = ids[: len(ids) - draw.randrange(len(cycle))]
        seen[naive(ids, window)] += 1
        assert goes_round(ids, window) == naive(ids, window), (ids, window)
    assert min(seen) > 500
    assert goes_round([5] * 8, 8)
    assert not goes_round([5] * 7, 8)
    assert goes_round([1, 2] * 4, 8)
    assert not goes_round([1, 2, 3] * 3, 9)  # three rounds are a habit, four are a loop


def test_loops_end_early_and_nothing_else_does(sampler: VllmSampler, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cold tiny model goes round soon. Whoever does not is sampled as without the option."""
    monkeypatch.setattr(engine_tap, "LOOK_EVERY", 8)
    window, sampling = 16, Sampling(n=1, max_tokens=90, temperature=0.0)
    prompts = [g.prompt.ids for g in tiny.groups([(n, []) for n in range(3, 43)], seed=21)]
    whole = [c for (c,) in sampler.generate(prompts, sampling)]
    sampler.tap.stop_loops = window
    made = [c for (c,) in sampler.generate(prompts, sampling)]
    assert {c.finish for c in whole} == {"stop", "length"}
    assert {c.finish for c in made} >= {"loop", "stop"}
    for free, c in zip(whole, made, strict=True):
        looks = [n for n in range(8, free.tokens, 8) if naive(free.ids[:n], window)]
        if not looks:
            assert (c.ids, c.finish) == (free.ids, free.finish)
            continue
        assert (c.finish, c.truncated, c.ids) == ("loop", True, free.ids[: looks[0]])
        assert c.logprobs == pytest.approx(free.logprobs[: c.tokens], abs=1e-5)
    assert sum(c.tokens for c in made) < sum(c.tokens for c in whole)


def test_several_tokens_a_step_do_not_jump_over_the_looks(sampler: VllmSampler) -> None:
    """As with speculative decoding: 30 tokens, then 34; a look at multiples alone would miss it."""
    tap, request = sampler.tap, Request((1,), None, 0, name="x", ids=[4] * 30, logprobs=[0.0] * 30)
    tap.stop_loops, tap.requests["x"] = 16, request
    flat = torch.arange(8.0)[:, None].numpy()

    class Output:
        request_id, new_token_ids, finish_reason = "x", [4] * 4, None

    class Logprobs:
        logprobs, cu_num_generated_tokens = flat, [0, 3, 7]

    class Model:
        req_id_to_index = {"x": 1}  # noqa: RUF012

    try:
        assert tap._take([Output()], Model(), Logprobs()) == []
        assert tap._loops == [request]
        assert (len(request.ids), request.logprobs[30:]) == (34, [3.0, 4.0, 5.0, 6.0])
    finally:
        tap.requests.clear()
        tap._loops.clear()
