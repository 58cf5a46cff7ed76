"""One rung of a ladder on the questions of a recipe, and the page over all of them."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from eval.estimators import FEW, mean_at_k, student, t_quantile
from recipes import ladder_page, rung
from recipes import ladder_report as report
from recipes.chain import Stage
from rl.records import Completion, Group, Prompt
from tests.browser import browser
from tests.tiny_run import HELDOUT, write_recipe


def test_a_rung_is_judged_by_rules_and_repeats(tmp_path: Path, tiny: str) -> None:
    recipe = write_recipe(tmp_path, tiny)
    general = tmp_path / "general.jsonl"
    general.write_text(json.dumps({"id": "g/0", "question": "Say hello.", "kind": "general", "gold": "hello"}) + "\n")
    args = ["--recipe", str(recipe), "--general", str(general), "--truth", "tests.test_rung:short", "evaluate.samples=3"]
    told, questions = [], []
    for out in ("one", "two"):
        assert rung.main([tiny, str(tmp_path / out), *args]) == 0
        told.append(json.loads((tmp_path / out / "eval.json").read_text()))
        questions.append((tmp_path / out / "questions.json").read_text())
    assert told[0].pop("seconds") > 0
    told[1].pop("seconds")
    assert told[0] == told[1]
    assert questions[0] == questions[1]
    assert told[0]["problems"] == len(HELDOUT)
    assert {"greedy", "pass@1", "pass@3", "general", "tokens", "language", "scripts"} <= told[0].keys()
    assert told[0]["general"]["value"] == 1.0  # `short` holds for answers of twelve tokens
    every = json.loads(questions[0])
    assert [len(row) for row in every["pass@1"]] == [3] * len(HELDOUT)
    assert sum(map(sum, every["greedy"])) / len(HELDOUT) == told[0]["greedy"]["value"]
    assert every["shown"][0]["question"] == HELDOUT[0]["question"]
    assert every["shown"][-1]["question"] == "Say hello."
    assert rung.main([tiny, str(tmp_path / "three"), "--recipe", str(recipe), "evaluate.problems=0"]) == 2
    assert rung.main([tiny, str(tmp_path / "three"), "--recipe", str(recipe), "--judge", "nowhere"]) == 2  # of what answers?


class Halves:
    """A judge of answers' lengths; it does not read more than three letters."""

    bound = 3.0

    def score(self, pairs: Any) -> list[float | None]:
        return [len(response) / 2 if len(response) < 4 else None for _, response in pairs]


def test_a_judge_scores_every_answer_and_one_it_cannot_read_gets_the_worst() -> None:
    def group(*texts: str) -> Group:
        prompt = Prompt("g", (1,), {"id": "g", "question": "Say hello."})
        return Group(prompt, tuple(Completion((1,), (0.0,), "stop", text, 0) for text in texts))

    assert rung._scores(Halves(), [group("a", "abcd"), group("ab", "abc")]) == [[0.5, -3.0], [1.0, 1.5]]  # type: ignore[arg-type]


def short(row: Any, text: str) -> bool:
    return row["kind"] == "general" and len(text) < 400


def figure(values: list[list[float]]) -> dict[str, float]:
    return asdict(mean_at_k(values))


def entry(minutes: float, run: str, start: str = "", **metrics: Any) -> dict[str, Any]:
    return {"run": run, "minutes": minutes, "cpu_minutes": 2 * minutes, "args": [start, "{here}"], "metrics": metrics}


def judged(out: Path, name: str, right: int, start: str, judge: float) -> dict[str, Any]:
    """A rung that is right on the first `right` of 40 questions, greedily and in three of four samples; its files in `out`."""
    greedy = [[float(i < right)] for i in range(40)]
    drawn = [[one, one, one, 0.0] for (one,) in greedy]
    questions = {"greedy": greedy, "pass@1": drawn, "general": greedy[:10], "judge": [[judge], [judge + 1], [judge - 0.5]]}
    shown = [{"question": "What is <1> + 1?", "answer": f"{name} says <b>2</b>"}]
    (out / name).mkdir(parents=True)
    (out / name / "questions.json").write_text(json.dumps(questions | {"shown": shown}))
    return entry(
        0.5, report.RUNG, start, greedy=figure(greedy), problems=40, requests=10, samples=4, parameters=920_000, tokens=41.0,
        truncated=0.01, language=0.98, scripts={"latin": 0.98, "han": 0.02}, general=figure(greedy[:10]),
        judge=asdict(student([judge, judge + 1, judge - 0.5])), **{"pass@1": figure(drawn), "pass@4": figure(greedy)},
    )  # fmt: skip


STAGES = [
    Stage("base", title="Base", model="base"),
    Stage("zero", "recipes.run", ("model.path={base}/final",), title="R1-Zero <of nano>"),
    Stage("zero_eval", title="R1-Zero <of nano>", model="zero"),
    Stage("pick"),
    Stage("cold", "recipes.sft", ("model.path=bases/nano",), title="Cold start SFT", teacher="zero"),
    Stage("cold_eval", title="Cold start SFT", model="cold", teacher="zero"),
    Stage("later", title="Not there yet", model="later"),
]


@pytest.fixture
def told(tmp_path: Path) -> dict[str, Any]:
    out = tmp_path / "ladder"
    made = {
        "base": judged(out, "base", 8, "bases/nano", -1.0),
        "zero": entry(4.0, "recipes.run", steps=2),
        "zero_eval": judged(out, "zero_eval", 28, "{zero}/final", 0.0),
        "pick": entry(0.25, "recipes.pick"),
        "cold": entry(1.5, "recipes.sft", updates=9, traces=99),
        "cold_eval": judged(out, "cold_eval", 24, "{cold}/final", -0.5),
    }
    (out / "zero" / "traces").mkdir(parents=True)
    (out / "cold").mkdir()
    for name, more in (("zero", {"reward": 0.5}), ("cold", {"loss": 0.5})):
        steps = [(1, 700), (1, 600), (2, 500)]  # the first was killed and made again
        lines = (json.dumps({"step": step, "tokens": tokens} | more) + "\n" for step, tokens in steps)
        (out / name / "metrics.jsonl").write_text("".join(lines))
    return report.collect("tiny", STAGES, {"stages": made}, out)


def test_gains_and_costs_by_hand(told: dict[str, Any]) -> None:
    base, zero, cold = told["rungs"]
    assert [r["title"] for r in told["rungs"]] == ["Base", "R1-Zero <of nano>", "Cold start SFT"]
    assert [r["total"]["minutes"] for r in told["rungs"]] == [0, 4.0, 1.75]
    assert [[s["name"] for s in r["stages"]] for r in told["rungs"]] == [[], ["zero"], ["pick", "cold"]]
    assert [(s["sampled"], s["learned"]) for r in told["rungs"] for s in r["stages"]] == [(1100, 1100), (0, 0), (0, 1100)]
    assert told["rungs"][2]["stages"][1]["made"] == "9 updates on 99 traces"
    assert (told["total"]["minutes"], told["total"]["cpu_minutes"], told["judging"]["minutes"]) == (5.75, 11.5, 1.5)
    assert base.get("gain") is None
    assert zero["gain"]["greedy"]["value"] == pytest.approx(0.5)
    assert zero["gain"]["pass@1"]["value"] == pytest.approx(0.375)
    assert zero["gain"]["judge"]["value"] == pytest.approx(1.0)
    # The same 24 questions are right in both: the paired interval is far narrower than the two side by side.
    pair = cold["gain"]["greedy"]
    assert pair["value"] == pytest.approx(-0.1)
    assert pair["high"] - pair["low"] < 0.7 * math.hypot(*(r["greedy"]["high"] - r["greedy"]["low"] for r in (zero, cold)))
    assert "start" not in zero  # the rung above it
    assert (cold["start"]["title"], cold["start"]["gain"]["greedy"]["value"]) == ("Base", pytest.approx(0.4))
    assert "+37.5 [" in report.table(told)
    assert cold["kept"]["pass@1"]["value"] == pytest.approx(24 / 28)
    assert "Cold start SFT keeps of R1-Zero <of nano>: pass@1 85.7 [" in report.table(told)


def test_what_is_kept_is_of_the_same_questions() -> None:
    """By hand: 40 of 50 and 32 of these; at a share of 0.8 a question differs by 0.2 (32), -0.8 (8) or nothing (10)."""
    one, none = [1.0], [0.0]
    found = report.kept([one] * 40 + [none] * 10, [one] * 32 + [none] * 18)
    squares = 32 * 0.2**2 + 8 * 0.8**2  # with the two questions that eval/paired.py adds
    added = (40 * squares + FEW) / (40**2 + FEW)
    half = t_quantile(51) * math.sqrt((squares + 2 * added) / 52 / 51) / 0.8
    assert found == pytest.approx({"value": 0.8, "low": 0.8 - half, "high": 0.8 + half})
    assert found["high"] < 1  # nothing that the teacher could not do: no reason to think that it is as good
    assert report.kept([none], [one]) == {"value": 0.0, "low": 0.0, "high": 0.0}
    same = report.kept([one, none], [one, none])
    assert 0 <= same["low"] < same["value"] == 1 < same["high"]


@pytest.mark.parametrize(
    ("args", "start"),
    [
        (("recipes/a.toml", "model.path={zero}/final"), "zero"),
        (("model.path='{zero}/final'",), "zero"),
        (("model.path={zero}/",), "zero"),
        (("model.path=bases/nano/final",), "bases/nano/final"),
        (("model.path='recipes/nano/base'",), "recipes/nano/base"),
        (('model.path="a"', "model.path=b"), "b"),  # the last one counts
        (("recipes/a.toml", "model.path=''"), ""),
        (("recipes/a.toml",), ""),
    ],
)
def test_the_weights_that_a_stage_begins_from(args: tuple[str, ...], start: str) -> None:
    assert report._start(args) == start


def test_a_browser_draws_the_page(tmp_path: Path, told: dict[str, Any]) -> None:
    path = ladder_page.write(tmp_path / "report.html", told)
    text = path.read_text()
    assert "R1-Zero &lt;of nano&gt;" in text
    assert "<of nano>" not in text
    assert "<b>2</b>" not in text
    with browser(tmp_path) as tab:
        for width in (1200, 400):
            tab.size(width, 900)
            tab.open(path)
            assert tab.js("document.documentElement.scrollWidth <= window.innerWidth"), width
        tab.size(1200, 900)
        assert tab.js("document.querySelectorAll('svg circle').length") == 9  # greedy, pass@1 and requests of three rungs
        assert tab.js("document.querySelectorAll('table').length") == 5
        assert tab.js("document.querySelectorAll('tr.idle').length") == 1  # pick
        assert tab.js("[...document.querySelectorAll('span.more')].length") >= 3
        assert tab.js("document.body.innerText.includes('from Base: +40.0')")
        assert tab.errors == []


def test_a_ladder_without_rungs_has_a_page_too(tmp_path: Path) -> None:
    told = report.collect("tiny", STAGES, {"stages": {}}, tmp_path)
    assert "No rung was evaluated yet" in ladder_page.page(told)
    assert report.table(told)
