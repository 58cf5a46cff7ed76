"""The ladders of the repository: every stage's command is one that its door takes, with the published numbers where they are said to be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distill import config as distill_configs
from recipes import chain, reward_model
from recipes.street import make_scorer
from rewards.score import Text
from rl import config as configs
from rl.config import Config

LADDERS = ("r1_nano", "r1_exact")


def ladder(name: str) -> dict[str, chain.Stage]:
    return {s.name: s for s in chain.load(chain.ROOT / "recipes" / f"{name}.toml").stage}


def settings(stage: chain.Stage, out: Path) -> Any:
    """What the stage's door makes of its args."""
    recipe, *overrides = [chain.filled(arg, stage, out) for arg in stage.args]
    if stage.run == "recipes.run":
        return configs.load(chain.ROOT / recipe, overrides)
    if stage.run == "recipes.distill":
        return distill_configs.load(distill_configs.Traces, chain.ROOT / recipe, overrides)
    if stage.run == "recipes.sft":
        return distill_configs.load(distill_configs.Sft, chain.ROOT / recipe, overrides)
    if stage.run == "recipes.reward_model":
        return reward_model.load(chain.ROOT / recipe, overrides)
    return None


@pytest.mark.parametrize("name", LADDERS)
def test_every_stage_is_read_by_its_door_and_writes_into_its_folder(name: str, tmp_path: Path) -> None:
    stages = ladder(name)
    for stage in stages.values():
        made = settings(stage, tmp_path)
        if isinstance(made, reward_model.Preference):
            assert Path(made.out) == tmp_path / stage.name / "judge"
        elif made is not None:
            assert Path(made.run.out) == tmp_path / stage.name
        for needed in (arg for arg in stage.args if "/final" in arg and "{here}" not in arg):
            source = chain._NAME.search(needed)
            assert source is None or "final" in stages[source[1]].outputs
    rungs = [s.model for s in stages.values() if s.run == chain.RUNG]
    assert rungs[:6] == ["base", "r1_zero", "cold_start", "reasoning_rl", "sft", "all_rules"]
    assert "student" in rungs


def test_the_language_reward_is_in_every_reinforcement_after_the_cold_start(tmp_path: Path) -> None:
    """Without it, an answer that is right in two languages earns as much as one in the question's."""
    right = "<think>{} 2 and 2 are four</think> <answer>4</answer>"
    problem = {"id": "q", "question": "What are two and two?", "gold": "4", "kind": "math"}
    for name in LADDERS:
        stages = ladder(name)
        for stage in ("reasoning_rl", "all_rules", "all_preference"):
            config: Config = settings(stages[stage], tmp_path)
            rules = {k: v for k, v in config.rewards.items() if k != "preference"}
            with make_scorer(configs.from_dict({**configs.to_dict(config), "rewards": rules})) as scorer:
                texts = (right.format("so"), right.format("所以 答案"))
                pure, mixed = (scorer.submit(Text(text, 9), problem).result().value for text in texts)
            assert pure is not None and mixed is not None  # noqa: PT018
            assert pure > mixed, (name, stage)
        zero: Config = settings(stages["r1_zero"], tmp_path)
        assert "language" not in zero.rewards  # rules of accuracy and format only


def test_published_numbers(tmp_path: Path) -> None:
    made = {name: settings(stage, tmp_path) for name, stage in ladder("r1_exact").items()}
    for name in ("r1_zero", "reasoning_rl", "all_rules", "all_preference"):
        c: Config = made[name]
        assert (c.learn.lr, c.algorithm.kl, c.rollout.group) == (3e-6, 0.001, 16)
        assert c.rollout.prompts * c.rollout.group == 8192
        assert c.algorithm.minibatches == 16
        assert c.rollout.temperature == (0.7 if name.startswith("all") else 1.0)
        assert c.algorithm.clip_high == (0.2 if name == "r1_zero" else 10)
    updates = {name: made[name].run.steps * 16 for name in ("all_rules", "all_preference")}
    assert updates["all_preference"] == 400  # of 1,700, the only ones with preferences
    assert abs(sum(updates.values()) - 1700) < 16
    assert "preference" not in made["all_rules"].rewards
    assert made["all_preference"].rewards["preference"]["kinds"] == ["general"]
    for name in ("cold_start", "sft"):
        learn = made[name].learn
        assert (learn.lr, learn.final_ratio, learn.batch, learn.schedule) == (5e-5, 0.1, 128, "cosine")
    student = made["student"].learn
    assert (student.lr, student.batch, student.final_ratio) == (1e-4, 64, 0.1)


def test_the_chain_evaluates_every_rung_on_the_same_questions() -> None:
    stages = ladder("r1_nano")
    args = {s.args[2:] for s in stages.values() if s.run == chain.RUNG}
    assert len(args) == 1
    assert json.loads(json.dumps(stages["base"].args[0])) == "recipes/nano/base"
    assert stages["sft_eval"].args[0] == "{sft}/final"
