"""A preference model in the loop: its score by hand, in batches; what it does to a step; its guard; a run with one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from recipes import run as door
from rewards.combine import build
from rewards.score import Score, Text
from rewards.scorer import InProcess
from rl.config import Guard
from rl.guard import Stopped, Watch
from rl.judge import Judge, Judged, judged_text, of_preference
from rl.records import Completion, Group, Prompt
from tests.tiny_run import QUESTIONS, refused, timeless, write_recipe

PAIRS = [("2+2?", "<think>2 and 2</think> <answer>4</answer>"), ("Who?", "Mia."), ("A longer question?", "yes " * 30)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny: str) -> Path:
    """Two dimensions with random weights."""
    from rl.policy import load_tokenizer

    made = tmp_path_factory.mktemp("judge")
    dimensions = {}
    for n, (name, part) in enumerate((("helpfulness", "answer"), ("readability", "all"))):
        config = AutoConfig.from_pretrained(tiny, num_labels=1)
        torch.manual_seed(n)
        model = AutoModelForSequenceClassification.from_config(config)
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.1)
        model.save_pretrained(made / name)
        load_tokenizer(tiny).save_pretrained(made / name)
        dimensions[name] = {"weight": 3.0 - 2 * n, "part": part, "mean": 0.1 * n, "std": 2.0}
    (made / "judge.json").write_text(json.dumps({"dimensions": dimensions}))
    return made


def test_the_score_by_hand_and_in_batches_as_alone(folder: Path) -> None:
    judge = Judge(folder)
    together = judge.score(PAIRS)
    parts = {"helpfulness": "answer", "readability": "all"}
    raws = {name: judge.raw(name, [judged_text(q, r, part) for q, r in PAIRS]) for name, part in parts.items()}
    for i, pair in enumerate(PAIRS):
        help_, read = raws["helpfulness"][i], raws["readability"][i]
        assert help_ is not None and read is not None  # noqa: PT018
        assert together[i] == pytest.approx((3 * help_ / 2 + 1 * (read - 0.1) / 2) / 4, abs=1e-5)
        assert judge.score([pair])[0] == pytest.approx(together[i], abs=1e-5)
    assert len({round(x or 0, 6) for x in together}) == 3
    # As the model itself has it, with its own pooling.
    model, tokenizer = judge._model("readability")
    with torch.no_grad():
        plain = model(**tokenizer(judged_text(*PAIRS[0]), return_tensors="pt")).logits.item()
    assert raws["readability"][0] == pytest.approx(plain, abs=1e-5)
    tight = Judge(folder, bound=0.01)
    assert all(abs(x or 0) <= 0.01 for x in tight.score(PAIRS))


def test_what_is_too_long_has_no_verdict(folder: Path) -> None:
    assert Judge(folder).score([("Long?", "word " * 2000), PAIRS[0]])[0] is None


def submit(scorer: Any, rows: list[tuple[str, dict[str, Any]]]) -> list[Score]:
    waiting = [scorer.submit(Text(text), row) for text, row in rows]
    return [p.result() for p in waiting]


def test_beside_rules_by_kind_and_gate_in_one_batch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = Judge.score
    monkeypatch.setattr(Judge, "score", lambda self, pairs: asked.append(len(pairs)) or real(self, pairs))
    math_row, general = {"question": "2+2?", "gold": "4", "kind": "math"}, {"question": "Who?", "gold": "", "kind": "general"}
    text = "<think>2 and 2</think> <answer>4</answer>"
    rules = InProcess({"accuracy": {"kinds": ["math"]}, "format": {"weight": 0.1}})
    with Judged(rules, {"model": str(folder), "weight": 0.5, "kinds": ["general"]}) as scorer:
        found = submit(scorer, [(text, math_row), (text, general), ("no tags", general)])
    assert asked == [2]
    (a, b) = (s or 0.0 for s in real(Judge(folder), [("Who?", text), ("Who?", "no tags")]))
    assert found[0].value == pytest.approx(1.1)
    assert "preference" not in found[0].parts
    assert found[1].value == pytest.approx(0.1 + 0.5 * a)
    assert found[2].value == pytest.approx(0.5 * b)
    assert found[2].parts == pytest.approx({"format": 0.0, "preference": b})
    with Judged(InProcess({"format": {"weight": 0.1}}), {"model": str(folder), "gate": "format"}) as gated:
        assert [s.value for s in submit(gated, [(text, general), ("no tags", general)])] == pytest.approx([0.1 + a, 0.0])


def test_a_reward_may_be_for_some_kinds_only() -> None:
    reward = build({"accuracy": {"kinds": ["math"]}, "format": {"weight": 0.5}})
    text = Text("<think>so</think> <answer>4</answer>")
    assert reward(text, {"gold": "4", "kind": "math"}).parts.keys() == {"accuracy", "format"}
    assert reward(text, {"gold": "", "kind": "general"}).parts.keys() == {"format"}
    with pytest.raises(ValueError, match="kinds"):
        build({"accuracy": {"kinds": "math"}})


def step(preferences: list[float], lengths: list[int], rules: list[float], weight: float = 0.5) -> dict[str, float]:
    completions = tuple(Completion((1,) * n, (0.0,) * n, "stop", "", 0) for n in lengths)
    scores = tuple(
        Score(weight * p + r, {"preference": p, "accuracy": r}) for p, r in zip(preferences, rules, strict=True)
    )  # fmt: skip
    return of_preference([Group(Prompt("p", (1,), {}), completions, scores)], {"preference": {"weight": weight}})


def test_share_drift_and_length_by_hand() -> None:
    found = step([1.0, 3.0], [2, 4], [0.0, 1.0])  # rewards 0.5 and 2.5: deviations -1, 1; of the weighted preference -0.5, 0.5
    assert found == pytest.approx(
        {"preference_drift": 2.0, "preference_share": 0.5, "preference_length": 1.0, "preference_rest": 0.5, "preference_tokens": 3.0}
    )  # fmt: skip
    assert step([1.0, 1.0], [2, 4], [0.0, 1.0])["preference_share"] == 0.0
    assert of_preference([], {"accuracy": {}}) == {}


@pytest.mark.parametrize(
    ("later", "sign"),
    [
        (step([0.6, 1.4], [30, 60], [0.0, 1.0]), "pays for length"),
        (step([0.9, 1.1], [9, 8], [0.0, 0.0]), "other rewards of its answers fell"),
        (step([2.4, 2.6], [9, 8], [0.0, 1.0]), "above the answers it was trained on"),
    ],
)
def test_hacking_the_preference_model_is_a_named_warning_and_stops(later: dict[str, float], sign: str) -> None:
    watch = Watch(Guard(patience=3), 1.0)
    assert watch.check(step([-0.2, 0.2], [9, 8], [0.0, 1.0])) == []
    (told,) = watch.check(later)
    assert told.startswith("guard preference: ")
    assert sign in told
    assert "rewards.preference" in told
    watch.check(later)
    with pytest.raises(Stopped, match="guard preference"):
        watch.check(later)


def test_a_better_policy_is_no_hacking() -> None:
    watch = Watch(Guard(patience=1), 1.0)
    for p in (0.0, 0.4, 0.8, 1.2):
        assert watch.check(step([p - 0.1, p + 0.1], [9, 10], [p / 2, 1.0])) == []


def test_a_run_with_general_questions(tmp_path: Path, tiny: str, folder: Path) -> None:
    """Rules for sums, the judge for the rest: both stand in the metrics, and the update has a gradient."""
    recipe = write_recipe(tmp_path, tiny)
    general = [{"id": f"g/{i}", "question": f"Say hello to number {i}.", "kind": "general"} for i in range(10)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [*QUESTIONS, *general]))
    text = recipe.read_text().replace("[rewards.accuracy]", '[rewards.accuracy]\nkinds = ["math"]')
    recipe.write_text(f'{text}\n[rewards.preference]\nmodel = "{folder}"\nweight = 0.5\nkinds = ["general"]\n')
    args = [str(recipe), "run.steps=2", "evaluate.problems=0", f"run.out={tmp_path}/run"]
    assert door.main(args) == 0
    for line in timeless(tmp_path / "run"):
        assert 0 < line["preference_share"] <= 1.01
        assert -1 <= line["preference_length"] <= 1
        assert math.isfinite(line["preference_drift"])
        assert line["masked"] == 0
        assert line["grad_norm"] > 0
    rows = [json.loads(r) for r in (tmp_path / "run" / "rollouts" / "step-000001.jsonl").read_text().splitlines()]
    for group in rows:
        parts = {name for c in group["completions"] for name in c["parts"]}
        assert parts == ({"format", "preference"} if group["id"].startswith("g/") else {"accuracy", "format"})


def test_a_folder_without_a_judge_is_refused(tmp_path: Path, tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path, tiny)
    recipe.write_text(recipe.read_text() + f'\n[rewards.preference]\nmodel = "{tmp_path}"\n')
    assert "no judge.json" in refused(capsys, [str(recipe), f"run.out={tmp_path}/run"])
