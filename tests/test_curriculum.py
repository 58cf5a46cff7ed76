"""Easy to hard by measured pass rates: where the rates come from, the buckets, and the order over epochs and a resume."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from recipes import run as door
from rewards.score import Score
from rl.curriculum import BUCKETS, Rate, buckets, load, read
from rl.data import Order
from rl.records import Completion, Group, Prompt
from rl.rollout import dump
from tests.tiny_run import QUESTIONS, refused, write_recipe


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"p{n}", (n,), {}) for n in range(count)]


def group(name: str, *scores: Score, text: str = "") -> Group:
    c = Completion((5,), (-1.0,), "stop", text, 0)
    return Group(Prompt(name, (1,), {"gold": "4"}), (c,) * len(scores), scores)


def right(value: float, part: str = "accuracy") -> Score:
    return Score(value + 0.1, {part: value, "format": 1.0}, "")


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def test_rates_of_a_rollout(tmp_path: Path) -> None:
    """Over all of a prompt's samples, whatever step they are of; samples without a verdict say nothing."""
    first = [group("a", right(1.0), right(0.0), right(0.0), right(0.0)), group("b", right(1.0), Score(None, {}, "worker died"))]
    second = [
        group("a", right(1.0), right(1.0), right(0.0), right(0.0), text="x\u2028y"),
        group("c", right(1.0, "code"), right(0.5, "code")),
        group("d", Score(None, {"accuracy": 0.0}, "part without a verdict")),
        group("e", Score(1.0, {"format": 1.0}, "nothing that says right")),
    ]
    path = write(tmp_path / "groups.jsonl", *dump(first, 1), *dump(second, 2))
    assert read(path) == {"a": Rate(3 / 8, 8), "b": Rate(1.0, 1), "c": Rate(0.5, 2)}


def test_rates_of_ones_own(tmp_path: Path) -> None:
    path = write(tmp_path / "rates", '{"id": "a", "pass_rate": 0.25}', "", '{"id": "b", "pass_rate": 1, "samples": 4}')
    assert read(path) == {"a": Rate(0.25, 8), "b": Rate(1.0, 4)}


@pytest.mark.parametrize(
    "line", ["{", "5", "[]", '"x"', '{"id": "a", "pass_rate": 1.5}', '{"id": "a", "pass_rate": NaN}', '{"pass_rate": 1}', '{"id": "a"}']
)  # fmt: skip
def test_the_first_bad_line_is_named(tmp_path: Path, line: str) -> None:
    path = write(tmp_path / "rates", '{"id": "a", "pass_rate": 1}', line)
    with pytest.raises(ValueError, match=r"data\.curriculum = '.*rates', line 2: neither a group") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_always_and_never_are_believed_from_eight_samples_on() -> None:
    assert Rate(1.0, 8).settled
    assert Rate(0.0, 9).settled
    assert not Rate(1.0, 7).settled
    assert not Rate(0.99, 100).settled


def test_buckets_by_hand() -> None:
    """Rates .9 .7 .7 .6 .5 .3 .2 .1: of 8 the easier ones number 0 1 1 3 4 5 6 7, times 4 over 8 = 0 0 0 1 2 2 3 3."""
    values = [0.5, 0.9, 0.1, 0.7, 0.3, 0.7, 0.2, 0.6]
    rates = {f"p{i}": Rate(v, 8) for i, v in enumerate(values)}
    assert buckets(prompts(8), rates) == [[1, 3, 5], [7], [0, 4], [2, 6]]
    rates |= {"p8": Rate(0.0, 8), "p9": Rate(1.0, 16)}
    assert buckets(prompts(10), rates)[-1] == [8, 9]
    # One without a rate counts as .55, the median of those that are not settled: of 9 four are easier, 16 / 9 = 1.
    assert 10 in buckets(prompts(11), rates)[1]


def test_buckets_of_anything() -> None:
    """Each prompt once; no bucket has an easier one than the bucket before; equal rates stand together."""
    draw = random.Random(0)
    for _ in range(300):
        count = draw.randint(1, 40)
        rates = {
            f"p{i}": Rate(draw.randint(0, n) / n, n)
            for i in range(count)
            if draw.random() < 0.8
            for n in [draw.choice([1, 4, 8])]
        }
        made = buckets(prompts(count), rates)
        assert sorted(i for part in made for i in part) == list(range(count))
        assert 1 <= len(made) <= BUCKETS + 1
        known = [[r for i in part if (r := rates.get(f"p{i}"))] for part in made]
        last = known.pop() if any(r.settled for part in known for r in part) else []
        assert all(r.settled for r in last)
        assert not any(r.settled for part in known for r in part)
        values = [[r.value for r in part] for part in known if part]
        assert all(min(a) > max(b) for k, a in enumerate(values) for b in values[k + 1 :])


def test_an_epoch_goes_through_the_buckets_shuffled_inside_each() -> None:
    parts = [[4, 1, 7], [0, 2], [3, 5, 6]]
    order = Order(8, seed=3, parts=parts)
    epochs = [order.take(8 * e, 8) for e in range(30)]
    for epoch in epochs:
        assert [sorted(epoch[:3]), sorted(epoch[3:5]), sorted(epoch[5:])] == [sorted(p) for p in parts]
    assert {tuple(e[:3]) for e in epochs} == {
        (a, b, c) for a in (1, 4, 7) for b in (1, 4, 7) for c in (1, 4, 7) if len({a, b, c}) == 3
    }
    assert Order(8, seed=4, parts=parts).take(0, 80) != order.take(0, 80)


def test_a_resume_is_exact() -> None:
    parts = [[4, 1, 7], [0, 2], [3, 5, 6]]
    whole = Order(8, seed=3, parts=parts).take(0, 100)
    for start in range(0, 97):
        assert Order(8, seed=3, parts=parts).take(start, 3) == whole[start : start + 3]


def test_without_parts_the_order_is_the_old_one() -> None:
    assert Order(8, seed=0, parts=[range(8)]).take(0, 16) == Order(8, seed=0).take(0, 16)


def test_what_is_said(tmp_path: Path) -> None:
    lines = [f'{{"id": "p{i}", "pass_rate": {v}}}' for i, v in enumerate((0.5, 0.25, 1, 0))]
    parts, told = load(write(tmp_path / "r", *lines), prompts(7))
    assert told == (
        "curriculum: 7 prompts in 3 parts, easy to hard; 2 always or never right come last; 3 without a pass rate count as the median"
    )
    assert parts[-1] == [2, 3]
    assert load(tmp_path / "r", prompts(2))[1] == "curriculum: 2 prompts in 2 parts, easy to hard"


@pytest.mark.parametrize(
    ("lines", "why"), [(['{"id": "train/3", "pass_rate": 0.5}'], "its first is 'train/3', ours 'p0'"), ([], "it holds no judged sample")]
)  # fmt: skip
def test_a_file_that_matches_no_prompt(tmp_path: Path, lines: list[str], why: str) -> None:
    with pytest.raises(ValueError, match=r"a pass rate for none of the 4 training prompts") as caught:
        load(write(tmp_path / "r", *lines), prompts(4))
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def ids(file: Path) -> list[str]:
    return [json.loads(line)["prompt"]["id"] for line in file.open()]


def test_measured_and_used_through_the_door(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--only rollout measures; what it wrote is a curriculum; and so is a table of one's own."""
    recipe = write_recipe(tmp_path, tiny)
    small = [
        str(recipe),
        "--only",
        "rollout",
        "rollout.prompts=5",
        "rollout.max_tokens=4",
        "rollout.group=2",
        "algorithm.minibatches=1",
    ]
    assert door.main([*small, f"run.out={tmp_path / 'a'}", "run.steps=2"]) == 0
    groups = tmp_path / "a/groups.jsonl"
    assert sorted(ids(groups)) == sorted(r["id"] for r in QUESTIONS)
    assert door.main([*small, f"run.out={tmp_path / 'b'}", "run.steps=1", f"data.curriculum={groups}"]) == 0
    assert "curriculum: 10 prompts in" in capsys.readouterr().out
    rates = write(tmp_path / "r", *(json.dumps({"id": f"train/{i}", "pass_rate": (i + 1) / 11}) for i in range(10)))
    assert door.main([*small, f"run.out={tmp_path / 'c'}", "run.steps=2", f"data.curriculum={rates}"]) == 0
    met = [int(name.removeprefix("train/")) for name in ids(tmp_path / "c/groups.jsonl")]
    assert [sorted(met[:3]), sorted(met[3:5]), sorted(met[5:8]), sorted(met[8:])] == [[7, 8, 9], [5, 6], [2, 3, 4], [0, 1]]
    told = refused(capsys, [recipe, f"run.out={tmp_path / 'd'}", f"data.curriculum={tmp_path / 'none'}"])
    assert "data.curriculum = " in told
    assert "cannot be read" in told
