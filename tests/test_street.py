"""From a config to everything that a run drives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes import street
from recipes.street import TOLERANCE, budget, load_task, nano_source, start_engine
from rl import config as configs
from rl.config import Config
from rl.policy import load_tokenizer
from rl.sync import SyncError, sync
from tests.tiny_run import write_recipe


@pytest.fixture
def config(tiny: str, tmp_path: Path) -> Config:
    return configs.load(write_recipe(tmp_path, tiny))


def test_the_largest_budget_of_a_run(config: Config) -> None:
    r = config.rollout
    assert budget(config) == 12
    assert budget(replace(config, rollout=replace(r, length_jumps=((3, 40), (5, 20))))) == 40
    assert budget(replace(config, evaluate=replace(config.evaluate, max_tokens=64))) == 64


def test_a_task(config: Config, tiny: str) -> None:
    tokenizer = load_tokenizer(tiny)
    task = load_task(config, tokenizer)
    assert [p.id for p in task.train] == [f"train/{i}" for i in range(10)]
    assert len(task.heldout) == 4
    assert load_task(replace(config, data=replace(config.data, limit=3)), tokenizer).train == task.train[:3]
    assert load_task(replace(config, evaluate=replace(config.evaluate, problems=0)), tokenizer).heldout == []
    few = replace(config, evaluate=replace(config.evaluate, problems=2))
    assert load_task(few, tokenizer).heldout == load_task(replace(few, run=replace(few.run, seed=5)), tokenizer).heldout
    assert len(load_task(few, tokenizer).heldout) == 2


def test_questions_in_both_sets_are_refused(config: Config, tiny: str) -> None:
    both = replace(config, data=replace(config.data, heldout=config.data.train))
    with pytest.raises(ValueError, match=r"held-out questions stand in data\.train too \(first: train/"):
        load_task(both, load_tokenizer(tiny))


def test_nano_rows_hold_no_solution() -> None:
    train, heldout = nano_source("train"), nano_source("heldout")
    assert (len(train), len(heldout)) == (street.NANO_TRAIN, street.NANO_HELDOUT)
    assert not {r["question"] for r in train} & {r["question"] for r in heldout}
    for row in train[:200] + heldout:
        assert {"id", "question", "gold", "kind"} <= set(row)
        assert not {"solution", "trace", "answer", "text"} & set(row)
        assert len(row["gold"]) < 20


def test_an_engine_is_proven_before_it_is_used(config: Config, tiny: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny)
    engine = start_engine(config, tmp_path / "run", load_task(config, tokenizer), tokenizer, sampling=True, learning=True)
    assert engine.tolerance == TOLERANCE[torch.float32]
    assert engine.learner.reference is not None  # kl is set
    assert len(engine.canaries) == 4
    assert engine.sampler is not None
    with torch.no_grad():
        next(engine.learner.policy.parameters()).add_(0.01)
    difference = sync(engine.learner.policy, engine.sampler, 1, engine.canaries, engine.tolerance.canary, torch.device("cpu"))
    assert difference <= 1e-5
    assert not (tmp_path / "run").exists()


def test_a_sampler_with_other_weights_is_refused(config: Config, tiny: str, tmp_path: Path, monkeypatch: Any) -> None:
    real = street.make_sampler

    def other(*args: Any) -> Any:
        sampler = real(*args)
        with torch.no_grad():
            next(sampler.model.parameters())[5, 5] += 1e-6
        return sampler

    monkeypatch.setattr(street, "make_sampler", other)
    tokenizer = load_tokenizer(tiny)
    with pytest.raises(SyncError, match="did not arrive whole"):
        start_engine(config, tmp_path / "run", load_task(config, tokenizer), tokenizer, sampling=True, learning=True)


def test_halves_make_only_what_they_need(config: Config, tiny: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny)
    task = load_task(config, tokenizer)
    engine = start_engine(config, tmp_path, task, tokenizer, sampling=False, learning=True)
    assert engine.sampler is None
    assert engine.tolerance.mean == float("inf")  # groups of a file may come from any weights
    assert start_engine(config, tmp_path, task, tokenizer, sampling=True, learning=False).learner.reference is None
