"""Groups: sampled, scored, and to a file and back without losing a bit."""

import json
import random
import struct

import pytest

from rewards.score import Score
from rl.records import Completion, Group, Prompt, Sampling
from rl.rollout import dump, load, rollout, score
from tests import tiny


class Echo:
    """A sampler that says what it was asked; enough for `rollout`, which only puts things together."""

    version = 7

    def generate(self, prompts, sampling):
        return [[Completion(tuple(p), (-float(g),) * len(p), "stop", "", 7) for g in range(sampling.n)] for p in prompts]


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


def test_scores_are_filled_in_and_a_reward_that_fails_masks_its_sample_with_a_reason():
    def reward(completion, problem):
        if completion.truncated:
            raise KeyError("units")
        return Score(float(problem["steps"]), {}, completion.text)

    for group in score(groups(), reward):
        assert group.rewards == (2.0, None)
        assert group.scores[1].reason == "reward failed: KeyError: 'units'"


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


@pytest.fixture
def sampled():
    import torch

    from rl.sampler import TransformersSampler

    sampler = TransformersSampler(tiny.path(), tiny.tokenizer(), device=torch.device("cpu"))
    prompts = [g.prompt for g in tiny.groups([(5, []), (7, [])])]
    return score(rollout(sampler, prompts, Sampling(n=3, max_tokens=9)), lambda c, p: Score(1 / c.tokens))


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
