"""Groups: sampled, scored, and to a file and back without losing a bit."""

import json
import random
import struct
import time

import pytest

from rewards import combine
from rewards.score import Score
from rewards.scorer import InProcess
from rewards.workers import RewardPool
from rl.metrics import Clock
from rl.records import Completion, Group, Prompt, Sampling
from rl.rollout import RewardFailed, dump, load, rollout, scored_rollout
from tests import tiny


class Echo:
    """A sampler that says what it was asked; enough for `rollout`, which only puts things together."""

    version = 7

    def generate(self, prompts, sampling, done=None):
        made = [
            [Completion(tuple(p), (-float(g),) * len(p), "stop", str(len(p)), 7) for g in range(sampling.n)] for p in prompts
        ]
        for i in reversed(range(len(made))):
            self.finished(i, made[i], done)
        return made

    def finished(self, index, completions, done):
        if done:
            done(index, completions)


def groups(texts=("42", "no")) -> list[Group]:
    draw = random.Random(0)
    made = []
    for p in range(3):
        problem = {"id": f"p{p}", "question": "2+2?", "gold": "4", "kind": "math", "steps": 2, "deep": {"list": [1, None, "ä"]}}
        completions = tuple(
            Completion((5, 9, 2), tuple(-draw.expovariate(1) for _ in range(3)), f, t, 3)
            for t, f in zip(texts, ("stop", "length"), strict=True)
        )
        scores = (Score(draw.random(), {"accuracy": 1 / 3}, "right"), Score(None, {}, "worker died"))
        made.append(Group(Prompt(f"p{p}", (1, 2, p), problem), completions, scores))
    return made


def write(tmp_path, lines):
    path = tmp_path / "groups.jsonl"
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def test_a_group_a_prompt_in_order():
    prompts = [g.prompt for g in groups()]
    made = rollout(Echo(), prompts, Sampling(n=4, max_tokens=5))
    assert [g.prompt for g in made] == prompts
    assert [c.ids for c in made[2].completions] == [(1, 2, 2)] * 4
    assert made[0].scores == ()
    assert made[0].completions[0].version == 7


def test_scores_stand_with_their_completions(monkeypatch):
    def reward(completion, problem):
        return Score(problem["steps"] + completion.logprobs[0], {}, completion.text)

    monkeypatch.setitem(combine.REWARDS, "spy", lambda: reward)
    prompts = [Prompt(str(n), (1,) * n, {"id": str(n), "steps": 10 * n}) for n in (1, 2, 3)]
    made = scored_rollout(Echo(), prompts, Sampling(n=2, max_tokens=5), InProcess({"spy": {}}))
    assert [g.rewards for g in made] == [(10.0, 9.0), (20.0, 19.0), (30.0, 29.0)]
    assert [s.reason for g in made for s in g.scores] == ["1", "1", "2", "2", "3", "3"]


def test_a_reward_that_raises_is_seen_with_all_groups(monkeypatch):
    def reward(completion, problem):
        if problem["id"] == "p1" and completion.logprobs[0]:
            raise KeyError("units")
        return Score(1.0)

    monkeypatch.setitem(combine.REWARDS, "spy", lambda: reward)
    with pytest.raises(RewardFailed, match=r"raised on 1 of the samples, first in spy of p1: KeyError: 'units'") as caught:
        scored_rollout(Echo(), [g.prompt for g in groups()], Sampling(n=2, max_tokens=5), InProcess({"spy": {}}))
    assert [g.rewards for g in caught.value.groups] == [(1.0, 1.0), (1.0, None), (1.0, 1.0)]
    assert caught.value.groups[1].scores[1].reason == "reward raised: spy of p1: KeyError: 'units'"


# Scores by events, not by the clock: each sample says that its reward has begun, and its reward ends when all those named in `after` have.
EVENTS = """
import pathlib, time
def act(prompts, completions, folder=None, name=None, after=None, **columns):
    place = pathlib.Path(folder[0])
    (place / name[0]).touch()
    while not all((place / other).exists() for other in after[0]):
        time.sleep(0.005)
    (place / f"{name[0]} scored").touch()
    return [1.0]
"""


@pytest.fixture
def events(tmp_path, monkeypatch):
    (tmp_path / "reward_of_events.py").write_text(EVENTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return lambda name, *after: Prompt(name, (1,), {"id": name, "folder": str(tmp_path), "name": name, "after": list(after)})


def wait_for(path):
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} did not happen"
        time.sleep(0.005)


def test_rewards_run_while_others_are_sampled(tmp_path, events):
    """The second prompt is not finished before the first has its scores: one after the other this would never end."""

    class Slow(Echo):
        def finished(self, index, completions, done):
            if index == 0:  # the last to be finished
                wait_for(tmp_path / "second scored")
            done(index, completions)
            if index == 0:
                (tmp_path / "sampled").touch()

    prompts = [events("first", "sampled"), events("second")]
    clock = Clock()
    with RewardPool({"reward_of_events:act": {}}, workers=2, wall_s=30) as pool:
        made = scored_rollout(Slow(), prompts, Sampling(n=1, max_tokens=5), pool, clock)
    assert [g.rewards for g in made] == [(1.0,), (1.0,)]
    assert set(clock.seconds) == {"seconds_rollout", "seconds_reward"}


def test_rewards_run_beside_each_other(events):
    """Each of two rewards ends only when the other has begun: one after the other neither would."""
    with RewardPool({"reward_of_events:act": {}}, workers=2, wall_s=30) as pool:
        made = scored_rollout(Echo(), [events("a", "b"), events("b", "a")], Sampling(n=1, max_tokens=5), pool)
    assert [g.rewards for g in made] == [(1.0,), (1.0,)]


def test_a_pool_gives_the_scores_of_this_process(sampler):
    """On a real rollout, bit for bit, reasons and parts included."""
    spec = {"accuracy": {}, "format": {"weight": 0.1}, "repetition": {"n": 2}, "cosine_length": {"limit": 30}, "language": {}}
    prompts = [
        Prompt(p.id, p.ids, {"id": p.id, "question": "2+2?", "gold": "4", "kind": "math"})
        for p in (g.prompt for g in tiny.groups([(n, []) for n in (5, 7, 30, 4, 9)]))
    ]
    sampling = Sampling(n=6, max_tokens=20, seed=2)
    ours = scored_rollout(sampler, prompts, sampling, InProcess(spec))
    with RewardPool(spec, workers=2, wall_s=30) as pool:
        theirs = scored_rollout(sampler, prompts, sampling, pool)
    assert theirs == ours
    values = [v for g in ours for v in g.rewards]
    assert None not in values
    assert len(set(values)) > 10


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


def test_to_a_file_and_back_exactly(tmp_path):
    made = groups()
    path = write(tmp_path, [*dump(made[:2], 5), *dump(made[2:], 4)])
    assert load(path) == [(4, made[2:]), (5, made[:2])]
    back = [g for _, part in sorted(load(path), reverse=True) for g in part]
    for ours, theirs in zip(made, back, strict=True):
        for a, b in zip(ours.completions, theirs.completions, strict=True):
            assert [bits(x) for x in a.logprobs] == [bits(x) for x in b.logprobs]
        assert bits(ours.scores[0].value) == bits(theirs.scores[0].value)


def test_the_same_from_a_real_sampler(tmp_path, sampled):
    path = write(tmp_path, dump(sampled, 1))
    assert load(path) == [(1, sampled)]


@pytest.fixture(scope="module")
def sampler():
    import torch

    from rl.sampler import TransformersSampler

    return TransformersSampler(tiny.path(), tiny.tokenizer(), device=torch.device("cpu"), batch=8)


@pytest.fixture
def sampled(sampler, monkeypatch):
    monkeypatch.setitem(combine.REWARDS, "spy", lambda: lambda c, p: Score(1 / c.tokens))
    prompts = [g.prompt for g in tiny.groups([(5, []), (7, [])])]
    return scored_rollout(sampler, prompts, Sampling(n=3, max_tokens=9), InProcess({"spy": {}}))


@pytest.mark.parametrize("text", ["a\u2028b", "a\u0085b", "a\x0bb\x1cc", 'q"\\n\n', "\ufffd \U0001f600", ""])
def test_no_text_breaks_a_line(tmp_path, text):
    made = groups((text, "x"))
    path = write(tmp_path, dump(made, 1))
    assert load(path) == [(1, made)]


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: "{",
        lambda tree: "",
        lambda tree: "5",
        lambda tree: json.dumps({k: v for k, v in tree.items() if k != "prompt"}),
        lambda tree: json.dumps(tree | {"scores": None}),
        lambda tree: json.dumps(tree | {"completions": [dict(tree["completions"][0], logprobs=[-1.0])]}),
        lambda tree: json.dumps(tree | {"completions": [{"ids": [1]}]}),
    ],
)
def test_the_first_bad_line_is_named(tmp_path, change):
    lines = list(dump(groups(), 1))
    lines[1] = change(json.loads(lines[1]))
    path = write(tmp_path, lines)
    with pytest.raises(ValueError, match=r"groups\.jsonl, line 2: ") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_empty_or_no_text(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        load(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="no groups"):
        load(tmp_path / "empty.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="cannot be read"):
        load(tmp_path / "binary.jsonl")
