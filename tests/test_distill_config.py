"""The recipes of traces and students are read; what cannot be is refused with the key; published numbers are held."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from distill import config as configs
from distill.config import Sft, Traces, rate_at
from recipes import plan
from recipes import sft as door
from recipes.plan_memory import GIB
from rl.policy import ROOT

STUDENTS = sorted((ROOT / "recipes").glob("student_*.toml"))
SHAPES = {
    "student_1_5b": "qwen2.5-math-1.5b",
    "student_7b": "qwen2.5-math-7b",
    "student_20b": "internlm2-20b",
    "student_67b": "deepseek-llm-67b",
}
R1 = {"student_1_5b": 1e-4, "student_7b": 8e-5}  # published start rates (Nature s41586-025-09422-z)
LAYOUT = {"student_1_5b": 1, "student_7b": 2, "student_20b": 8, "student_67b": 32}  # H200s on which the recipe says it fits


@pytest.mark.parametrize("path", STUDENTS, ids=lambda p: p.stem)
def test_students(path: Path) -> None:
    c = configs.load(Sft, path)
    assert c.name == path.stem
    assert configs.from_dict(Sft, configs.to_dict(c)) == c
    if path.stem == "student_nano":
        return
    assert (c.data.context, c.learn.batch, c.learn.schedule, c.learn.final_ratio) == (32768, 64, "cosine", 0.1)
    assert 2 <= c.learn.epochs <= 3
    assert c.learn.lr == R1.get(path.stem, c.learn.lr)
    assert rate_at(c, 10_000, 10_001) == pytest.approx(c.learn.lr / 10, rel=1e-3)
    known = plan.shape(SHAPES[path.stem]).max_position_embeddings
    assert (c.rope_theta > 0) == (known < c.data.context)


@pytest.mark.parametrize("name", ["student_1_5b", "student_67b"])
def test_a_step_is_planned_and_refused_where_it_cannot_fit(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(ROOT / f"recipes/{name}.toml")
    assert door.main([recipe, "--plan", "--shape", SHAPES[name], "--ranks", str(LAYOUT[name])]) == 0
    assert "It fits." in capsys.readouterr().out
    assert door.main([recipe, "--plan", "--shape", SHAPES[name], "--card", "4090"]) == 1
    assert "does not fit" in capsys.readouterr().out


def test_a_run_that_cannot_fit_here_does_not_start(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    c = configs.from_dict(Sft, {"model": {"path": tiny}, "data": {"train": ["x"]}})
    door.refuse(c, 300.0)
    monkeypatch.setattr(plan, "host_memory", lambda: 0.5 * GIB)
    with pytest.raises(ValueError, match="does not fit"):
        door.refuse(c, 300.0)


@pytest.mark.parametrize(
    ("kind", "tree", "why"),
    [
        (Sft, {"learn": {"rate": 1}}, r"unknown key learn\.rate; did you mean"),
        (Sft, {}, r"data\.train is empty"),
        (Sft, {"data": {"train": ["x"]}, "learn": {"row_tokens": 100}}, r"data\.context = 4096 does not fit"),
        (Sft, {"data": {"train": ["x"]}, "learn": {"epochs": 0}}, r"learn\.epochs = 0.0"),
        (Sft, {"data": {"train": ["x"]}, "model": {"qlora": True}}, r"model\.lora\.rank"),
        (Sft, {"data": {"train": ["x"]}, "filter": {"similar": 2}}, r"filter\.similar = 2.0: a share"),
        (Traces, {}, r"name one of the two"),
        (Traces, {"data": {"train": "nano", "traces": ["x"]}, "model": {"path": "m"}}, r"name one of the two"),
        (Traces, {"data": {"train": "nano"}}, r"name the teacher"),
        (Traces, {"data": {"traces": ["x"]}, "filter": {"form": "xml"}}, r"'think', 'tags'"),
    ],
)
def test_what_cannot_be_is_refused_with_its_key(kind: Any, tree: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        configs.from_dict(kind, tree)


def test_overrides_and_one_file_as_a_word() -> None:
    c = configs.load(Sft, ROOT / "recipes/student_nano.toml", ["data.train=a.jsonl", "learn.lr=1e-4"])
    assert (c.data.train, c.learn.lr) == (("a.jsonl",), 1e-4)
    t = configs.load(Traces, ROOT / "recipes/traces_nano.toml", ["data.train=", "data.traces=a.jsonl"])
    assert t.data.traces == ("a.jsonl",)
    assert tomllib.loads((ROOT / "recipes/traces_nano.toml").read_text())["name"] == t.name


def test_diversity_is_not_judged_twice() -> None:
    c = configs.load(Sft, ROOT / "recipes/student_nano.toml")
    assert (c.filter.similar, c.filter.form) == (1.0, "tags")
    assert c.filter.per_question > 1000
