"""The page is made from whole, broken and hostile runs; the runs here are synthetic, shaped like the nano recipe's."""

from __future__ import annotations

import json
import math
import random
import re
import struct
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from rewards.score import Score
from rl.records import Completion, Group, Prompt
from rl.report import Journal
from rl.report_findings import findings
from rl.report_html import write_report
from rl.report_plots import Line, curves, number, percent
from rl.report_rollouts import FAILURES, best_and_worst, kind_of
from tests.browser import browser

STEPS = 60
HOSTILE = (
    "<script>alert(1)</script>",
    '</textarea><img src=x onerror="alert(2)">',
    "</pre></style><iframe src='//evil.example'>",
)


def measure(value: float, n: int = 500) -> dict[str, float]:
    half = 1.96 * math.sqrt(value * (1 - value) / n)
    return {"value": value, "low": max(0.0, value - half), "high": min(1.0, value + half)}


def evaluation(skill: float) -> dict[str, Any]:
    """A made-up evaluation; `skill` 0 is a base, 1 a trained model."""

    def entry(hard: float, n: int) -> dict[str, Any]:
        chance = (0.22 + 0.42 * skill) * hard
        values = {"greedy": min(0.98, chance + 0.2), "pass@1": chance, "pass@16": min(0.99, 0.45 + 0.5 * chance + 0.1 * hard)}
        return {"n": n} | {k: measure(v, n) for k, v in values.items()}

    whole = {k: v for k, v in entry(1.0, 500).items() if k != "n"}
    return {
        "problems": 500, "samples": 16, "temperature": 1.0, **whole,
        "format": measure(0.08 + 0.9 * skill), "truncated": 0.06 - 0.05 * skill, "mean_tokens": 61.0 + 22 * skill,
        "by_part": {"seen": entry(1.08, 250), "unseen": entry(0.9, 250)},
        "by_steps": {str(s): entry(1.5 / (0.6 + 0.4 * s), 84) for s in range(1, 7)},
    }  # fmt: skip


def step_metrics(step: int, rng: random.Random) -> dict[str, Any]:
    done = step / STEPS
    climb = 1 / (1 + math.exp(-8 * (done - 0.35)))
    accuracy = min(1.0, max(0.0, 0.2 + 0.5 * climb + rng.gauss(0, 0.03)))
    mismatch = 4e-7 * math.exp(rng.gauss(0, 0.15))
    return {
        "step": step, "reward": accuracy + 0.1 * climb, "reward_std": 0.42 - 0.1 * climb, "accuracy": accuracy,
        "format": 0.08 + 0.9 * climb, "length": 61 + 24 * done + rng.gauss(0, 1.5), "length_max": 118 + rng.randrange(10),
        "truncated": max(0.0, 0.06 - 0.08 * done + rng.gauss(0, 0.01)), "zero_variance": 0.2 + 0.2 * done + rng.gauss(0, 0.04),
        "masked": 0.0, "kl": 0.09 * climb + abs(rng.gauss(0, 0.002)), "entropy": 0.62 - 0.35 * climb + rng.gauss(0, 0.01),
        "clip_low": 0.002 * rng.random(), "clip_high": 0.004 * rng.random(), "ratio": 1.0, "mismatch": mismatch,
        "mismatch_max": 12 * mismatch, "tis": 1.0, "loss": -0.01, "grad_norm": 0.6 + 0.2 * rng.random(), "lr": 4e-4,
        "tokens": 16000, "tokens_per_s": 5400 + rng.gauss(0, 150), "seconds": 3.6, "seconds_rollout": 1.2 + 0.2 * rng.random(),
        "seconds_reward": 0.06, "seconds_learn": 2.2 + 0.2 * rng.random(), "seconds_sync": 0.01, "eta_s": (STEPS - step) * 3.6,
        "by_steps": {str(s): min(1.0, max(0.0, accuracy * 1.5 / (0.6 + 0.4 * s) + rng.gauss(0, 0.03))) for s in range(1, 7)},
    }  # fmt: skip


def completion(text: str, score: Score, tokens: int = 40, finish: str = "stop") -> tuple[Completion, Score]:
    return Completion((1,) * tokens, (-0.1,) * tokens, finish, text, 7), score


def groups(rng: random.Random) -> list[Group]:
    """One group with a right answer and every kind of failure, and one with only wrong ones."""
    a, b = rng.randrange(12, 60), rng.randrange(3, 9)
    ask = f"A baker fills {a} trays with {b} rolls each. {a} rolls are given away. How many rolls are left?"
    gold = a * b - a
    think = f"<think>The trays hold {a} * {b} = {a * b} rolls.\nGiven away: {a * b} - {a} = {gold}.</think>\n"
    prompt = Prompt(
        f"nano/train/{a}", (7, 8), {"id": "x", "question": ask, "gold": str(gold), "kind": "math", "steps": 2, "part": "seen"}
    )
    both = {"accuracy": 1.0, "format": 1.0}
    pairs = [
        completion(f"{think}<answer>{gold}</answer>", Score(1.1, both, f"right: {gold}; format kept"), 52),
        completion(
            f"<think>{a} * {b} = {a * b + 10}</think> <answer>{a * b + 10 - a}</answer>",
            Score(0.1, both | {"accuracy": 0.0}, "wrong"),
        ),
        completion(f"So the answer is {gold}.", Score(1.0, both | {"format": 0.0}, f"right: {gold}; no <answer> tag"), 9),
        completion("I like rolls. " * 2, Score(0.0, {"accuracy": 0.0, "format": 0.0}, "no answer"), 14),
        completion(
            "<think>" + f"{a} + {b} = {a + b}, and then " * 400,
            Score(0.0, {"accuracy": 0.0, "format": 0.0}, "no answer"),
            128,
            "length",
        ),
        completion(
            "<answer>\\frac{1}{0}</answer>", Score(None, {"format": 1.0}, "no verdict: the grader's process was killed"), 8
        ),
    ]
    wrong = [
        completion(f"<answer>{i}</answer>", Score(0.0, {"accuracy": 0.0, "format": 0.0}, "wrong"), 5 + i) for i in range(2)
    ]
    return [Group(prompt, *map(tuple, zip(*p, strict=True))) for p in (pairs, wrong)]


def write_run(folder: Path, steps: int = STEPS, finished: bool = True) -> Path:
    rng = random.Random(3)
    journal = Journal(folder)
    for step in range(1, steps + 1):
        journal.step(step_metrics(step, rng))
        if step == 1 or step % 10 == 0:
            made = groups(rng)
            advantages = [[0.5 if s.value else -0.5 if s.value is not None else None for s in g.scores] for g in made]
            journal.rollouts(
                step, made, advantages, lambda ids: "A conversation between User and Assistant. User: … Assistant:"
            )
    journal.close()
    config = {
        "name": "zero_nano",
        "model": {"path": "recipes/nano/base"},
        "data": {"train": "nano"},
        "run": {"seed": 0, "steps": STEPS},
    }
    (folder / "config.json").write_text(json.dumps(config))
    if finished:
        (folder / "result.json").write_text(json.dumps(result()))
    return folder


def result(skill: float = 1.0) -> dict[str, Any]:
    return {
        "name": "zero_nano", "seed": 0, "model": "recipes/nano/base", "data": {"train": "nano", "heldout": "nano-test"},
        "minutes": {"total": 5.4, "before": 0.8, "train": 3.7, "after": 0.9},
        "versions": {"python": "3.11.2", "torch": "2.13.0", "transformers": "5.17.0", "vllm": "0.31.0"},
        "commit": "69383f6a2b9c+changes", "steps": STEPS, "before": evaluation(0.0), "after": evaluation(skill),
    }  # fmt: skip


class Page(HTMLParser):
    """Tags, their attributes and balance, as a browser's parser sees them."""

    VOID = ("meta", "br", "img", "link", "hr", "input")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, k, v or "") for k, v in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, k, v or "") for k, v in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(write_report(write_run(tmp_path_factory.mktemp("runs") / "zero_nano-seed0")))


def test_the_page_stands_alone(whole: Page) -> None:
    assert whole.open == []
    assert len(whole.source) < 3_000_000
    assert not set(whole.tags) & {"script", "link", "img", "iframe", "object", "embed", "textarea"}
    assert not [a for a in whole.attributes if a[1] in ("src", "href", "srcset", "action") or a[1].startswith("on")]
    assert "url(" not in whole.source
    assert "@import" not in whole.source
    assert ("meta", "content", "default-src 'none'; style-src 'unsafe-inline'") in whole.attributes
    assert "nan" not in re.sub(r"nano", "", whole.source).lower().split()
    assert not re.search(r'(points|d|[xy][12]?|c[xy])="[^"]*(nan|inf|None)', whole.source)


def test_the_page_says_the_result(whole: Page) -> None:
    for text in (
        "zero_nano",
        "22.0 % → 64.0 %",
        "+42.0 points",
        "Sampled pass@1",
        "pass@16",
        "Part: seen",
        "Part: unseen",
        "nano, held out: nano-test",
        "69383f6a2b9c+changes",
    ):
        assert text in whole.text.replace("\n", ""), text
    assert "5.4 (0.8 before + 3.7 train + 0.9 after)" in whole.text
    assert "not finished" not in whole.text
    for title in (
        "Reward",
        "Accuracy by number of steps",
        "Entropy",
        "Sampler against learner",
        "Seconds a step",
        "Clipped tokens",
    ):
        assert f"<b>{title}</b>" in whole.source
    assert "not recorded" not in whole.text


def test_the_page_shows_rollouts_and_every_kind_of_failure(whole: Page) -> None:
    for text in (
        "First recorded step: 1",
        "Middle recorded step: 30",
        "Last recorded step: 60",
        "Best",
        "Worst",
        "reward 1.1",
        "128 tokens",
    ):
        assert text in whole.text, text
    for name in FAILURES.values():
        assert f"<b>{name}</b>" in whole.source
    assert "Not found" not in whole.text
    assert "characters left out" in whole.text


@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_model_writes_is_shown_never_run(tmp_path: Path, text: str) -> None:
    problem = {"id": text, "question": text, "gold": text, "part": text, "steps": text}
    score = Score(1.0, {"accuracy": 1.0, text: 1.0}, text)
    group = Group(Prompt(text, (1,), problem), (Completion((1,), (0.0,), "stop", text, 0),), (score,))
    journal = Journal(tmp_path)
    journal.step({"step": 1, "reward": 1.0, f"part/{text}": 1.0, "by_steps": {text: 1.0}, "by_part": {text: 0.5}})
    journal.rollouts(1, [group], [[0.0]], lambda ids: text)
    entry = evaluation(1.0) | {
        "by_part": {text: evaluation(0.5)},
        "by_steps": {text: {"n": text, "pass@1": measure(0.5), f"pass@{text}": measure(0.5)}},
    }
    hostile = result() | dict.fromkeys(("name", "seed", "model", "data", "commit", "steps"), text) | {"versions": {text: text}}
    (tmp_path / "result.json").write_text(
        json.dumps(hostile | {"before": entry, "after": entry | {"problems": text, "samples": text}})
    )
    (tmp_path / "config.json").write_text(json.dumps({"name": text, "model": {"path": text}}))
    page = Page(write_report(tmp_path))
    assert page.open == []
    assert not set(page.tags) & {"script", "img", "iframe", "textarea"}
    assert not [a for a in page.attributes if a[1].startswith("on") or a[1] == "src"]
    assert page.text.count(text) >= 8
    assert text not in page.source


def test_an_interrupted_run_gets_its_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "cut", steps=17, finished=False)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 18, "rew')
    page = Page(write_report(folder))
    assert "not finished: step 17 of 60" in page.text
    assert "No held-out result" in page.text
    assert page.open == []
    (folder / "before.json").write_text(json.dumps(evaluation(0.0)))
    page = Page(write_report(folder))
    assert "22.0 % → -" in page.text
    assert "not finished: step 17 of 60" in page.text


def test_a_run_without_a_sampler_is_finished_without_a_result(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "replayed")
    (folder / "result.json").write_text(json.dumps(result() | {"before": None, "after": None}))
    page = Page(write_report(folder))
    assert "not finished" not in page.text
    assert "No held-out result" in page.text


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_very_short_runs(tmp_path: Path, steps: int) -> None:
    page = Page(write_report(write_run(tmp_path / "run", steps=steps, finished=False)))
    assert page.open == []
    assert f"step {steps} of 60" in page.text


def test_an_empty_folder_and_sparse_files(tmp_path: Path) -> None:
    assert "No rollouts" in Page(write_report(tmp_path)).text
    (tmp_path / "result.json").write_text(
        '{"before": {"pass@1": {"value": 0.2}, "by_steps": {"1": {}}, "by_part": {"seen": {}}}}'
    )
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward": null, "loss": null}\n{"step": 2}\n')
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "rollouts" / "step-000001.jsonl").write_text(
        '{"step": 1, "id": "a", "completions": [{"text": "x", "reward": 0.0}]}\n'
    )
    page = Page(write_report(tmp_path))
    assert page.open == []
    assert "20.0 %" in page.text
    assert "NaN or infinite in 1 step(s): 1" in page.text


def test_damaged_files_and_missing_folders_get_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        write_report(tmp_path / "absent")
    (tmp_path / "result.json").write_text('{"name": ')
    with pytest.raises(ValueError, match=r"result\.json is no JSON object"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_long_run_stays_small(tmp_path: Path) -> None:
    rng = random.Random(1)
    with (tmp_path / "metrics.jsonl").open("w") as file:
        for step in range(1, 10_401):
            file.write(json.dumps(step_metrics(min(step, STEPS), rng) | {"step": step}) + "\n")
    path = write_report(tmp_path)
    assert path.stat().st_size < 3_000_000
    assert "10000" in Page(path).text


@pytest.mark.parametrize(
    ("kind", "completion"),
    [
        ("right", {"reward": 1.1, "finish": "stop", "parts": {"accuracy": 1.0, "format": 1.0}}),
        ("unformatted", {"reward": 1.0, "finish": "stop", "parts": {"accuracy": 1.0, "format": 0.0}}),
        ("wrong", {"reward": 0.1, "finish": "stop", "parts": {"accuracy": 0.0, "format": 1.0}, "reason": "wrong: 3, gold 4"}),
        ("other", {"reward": 0.0, "finish": "stop", "parts": {"accuracy": 0.0, "format": 0.0}, "reason": "wrong: 3, gold 4"}),
        (
            "silent",
            {"reward": 0.1, "finish": "stop", "parts": {"accuracy": 0.0, "format": 1.0}, "reason": "no answer; format kept"},
        ),
        ("truncated", {"reward": 1.0, "finish": "length", "parts": {"accuracy": 1.0, "format": 0.0}}),
        ("masked", {"reward": None, "finish": "length", "parts": {}}),
        ("right", {"reward": 1.0, "finish": "stop", "parts": {"code": 1.0}}),
    ],
)
def test_kinds_of_failure(kind: str, completion: dict[str, Any]) -> None:
    assert kind_of(completion) == kind


def test_best_and_worst_leave_out_the_masked() -> None:
    answers = [{"reward": r, "tokens": t} for r, t in ((None, 1), (1.0, 30), (1.0, 20), (0.0, 9), (0.0, 4))]
    pair = best_and_worst([{"completions": answers}])
    assert pair is not None
    assert (pair[0][1]["tokens"], pair[1][1]["tokens"]) == (20, 4)
    assert best_and_worst([{"completions": [{"reward": None}]}]) is None


def states(change: dict[str, tuple[float, float]], outcome: dict[str, Any] | None = None) -> dict[str, str]:
    """Findings of a ten-step run whose numbers move evenly from the first to the second value."""
    healthy = {
        "reward": (0.2, 0.8), "accuracy": (0.2, 0.7), "format": (0.1, 1.0), "truncated": (0.05, 0.01), "entropy": (0.6, 0.3),
        "mismatch": (1e-6, 1e-6), "zero_variance": (0.2, 0.4), "loss": (0.0, 0.0), "grad_norm": (1.0, 1.0), "kl": (0.0, 0.1),
    }  # fmt: skip
    pairs = healthy | change
    metrics = [{"step": i + 1} | {k: a + (b - a) * i / 9 for k, (a, b) in pairs.items()} for i in range(10)]
    return {f.title: f.state for f in findings(metrics, result() if outcome is None else outcome)}


def test_a_healthy_run_has_nothing_to_look_for() -> None:
    assert set(states({}).values()) == {"fine"}


@pytest.mark.parametrize(
    ("title", "change", "outcome"),
    [
        ("Reward without learning", {}, result(skill=0.05)),
        ("Reward without learning", {"reward": (0.5, 0.4)}, None),
        ("Sharper, but not better", {}, result() | {"after": evaluation(1.0) | {"pass@16": measure(0.5)}}),
        ("Format without accuracy", {"accuracy": (0.2, 0.2)}, None),
        ("Truncation", {"truncated": (0.1, 0.9)}, None),
        ("Entropy", {"entropy": (0.6, 0.0)}, None),
        ("Entropy", {"entropy": (0.6, 3.0)}, None),
        ("Sampler against learner", {"mismatch": (0.08, 0.08)}, None),
        ("Sampler against learner", {"mismatch": (1e-5, 0.01)}, None),
        ("Groups that teach nothing", {"zero_variance": (0.3, 0.9)}, None),
        ("Numbers that are none", {"loss": (math.nan, math.nan)}, None),
    ],
)
def test_each_fault_is_found_alone(title: str, change: dict[str, tuple[float, float]], outcome: dict[str, Any] | None) -> None:
    found = states(change, outcome)
    assert {t for t, s in found.items() if s != "fine"} == {title}
    assert found[title] == "look"


def test_without_numbers_nothing_is_claimed() -> None:
    assert {f.state for f in findings([], {})} == {"unknown"}


def test_a_curve_is_drawn_where_its_values_are() -> None:
    svg = curves("Reward", "mean", [Line("", [(0, 0.0), (10, 1.0), (20, None), (30, 0.5)])])
    path = re.findall(r'<path class="line main" d="([^"]+)"', svg)
    assert path == ["M44.0,170.0L145.3,10.0M348.0,90.0L348.0,90.0"]  # 0 at the floor, 1 at the top, a gap, a lone point
    log = curves("Mismatch", "log", [Line("", [(0, 1e-6), (1, 0.0), (2, 1e-4)])], log=True)
    assert re.findall(r'<path class="line main" d="([^"]+)"', log) == ["M44.0,170.0L196.0,170.0L348.0,10.0"]


def test_long_curves_keep_peaks_where_asked() -> None:
    points = [(float(i), 9.0 if i == 777 else 1.0) for i in range(3000)]
    assert "step" in curves("x", "", [Line("a", points, peak=True)])
    assert "a: 9<" in curves("x", "", [Line("a", points, peak=True)])
    assert "a: 9<" not in curves("x", "", [Line("a", points)])


def test_numbers_read_well() -> None:
    assert [percent(v) for v in (0, 0.205, 1.0, 0.0004, 0.9996)] == ["0 %", "20.5 %", "100 %", "0.04 %", "100 %"]
    assert [number(v) for v in (0, 1312.7, 0.5234, 3.1e-6, 41234, -2.5)] == ["0", "1313", "0.523", "3.1e-06", "41.2k", "-2.5"]


def test_a_browser_draws_the_page(tmp_path: Path, whole: Page) -> None:
    (tmp_path / "report.html").write_text(whole.source)
    with browser(tmp_path) as tab:
        tab.size(1200, 900)
        tab.open(tmp_path / "report.html")
        picture = tab.picture(tmp_path / "page.png").read_bytes()
        assert tab.errors == []
    assert struct.unpack(">II", picture[16:24]) == (1200, 900)
    assert len(picture) > 20_000  # a blank page compresses to less
