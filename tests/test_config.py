"""Recipes are read strictly: what is misspelt, of the wrong type or cannot fit together is said in one line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from rl import config as configs
from rl.config import Config, check, difference, from_dict, load, max_tokens_at, to_dict

MINIMAL = "[rewards.accuracy]\nweight = 1.0\n"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "r.toml"
    path.write_text('name = "r"\n[run]\nsteps = 7\n' + MINIMAL)
    return path


def refused(path: Path | str, *overrides: str) -> str:
    with pytest.raises(ValueError) as caught:
        load(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_recipe_and_its_defaults(recipe: Path) -> None:
    config = load(recipe)
    assert (config.name, config.run.steps, config.run.seed) == ("r", 7, 0)
    assert config.rewards == {"accuracy": {"weight": 1.0}}


@pytest.mark.parametrize(
    ("override", "reads"),
    [
        ("run.steps=3", lambda c: c.run.steps == 3),
        ("learn.lr=1e-5", lambda c: c.learn.lr == 1e-5),
        ("learn.lr=1", lambda c: c.learn.lr == 1.0 and isinstance(c.learn.lr, float)),
        ("model.path=Qwen/Qwen2.5-0.5B", lambda c: c.model.path == "Qwen/Qwen2.5-0.5B"),
        ('model.path="a b"', lambda c: c.model.path == "a b"),
        ("model.gradient_checkpointing=true", lambda c: c.model.gradient_checkpointing is True),
        ("run.trackers=['tensorboard']", lambda c: c.run.trackers == ("tensorboard",)),
        ("rollout.length_jumps=[[5, 64], [9, 128]]", lambda c: c.rollout.length_jumps == ((5, 64), (9, 128))),
        ("learn.betas=[0.9, 0.95]", lambda c: c.learn.betas == (0.9, 0.95)),
        ("rollout.engine.gpu_memory_utilization=0.4", lambda c: c.rollout.engine == {"gpu_memory_utilization": 0.4}),
        ("reward_workers.processes=2", lambda c: c.reward_workers.processes == 2 and c.reward_workers.wall_s == 10.0),
        ("rewards.format.weight=0.1", lambda c: c.rewards["format"] == {"weight": 0.1}),
        ("name=x", lambda c: c.name == "x"),
    ],
)
def test_overrides(recipe: Path, override: str, reads) -> None:
    assert reads(load(recipe, [override]))


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("run.step=3", "unknown key run.step; did you mean run.steps?"),
        ("reward_workers.proceses=2", "did you mean reward_workers.processes?"),
        ("rolout.group=3", "unknown key rolout; did you mean rollout?"),
        ("algorithm.clip_hgih=0.3", "did you mean algorithm.clip_high?"),
        ("run.zzzzzz=1", "unknown key run.zzzzzz; known: out, seed, steps"),
        ("run.steps=many", "run.steps = 'many': must be a whole number"),
        ("run.steps=2.5", "run.steps = 2.5: must be a whole number"),
        ("run.steps=true", "run.steps = True: must be a whole number"),
        ("run.out=5", "run.out = 5: must be a text"),
        ("learn.lr=fast", "learn.lr = 'fast': must be a number"),
        ("learn.lr=true", "learn.lr = True: must be a number"),
        ("model.trust_remote_code=1", "must be true or false"),
        ("learn.betas=[0.9]", "learn.betas = [0.9]: must have 2 entries"),
        ("learn.betas=0.9", "learn.betas = 0.9: must be a list"),
        ("run.trackers=tensorboard", "run.trackers = 'tensorboard': must be a list"),
        ("rollout.length_jumps=[[5, 'x']]", "rollout.length_jumps[0][1] = 'x': must be a whole number"),
        ("rollout.sampler=sglang", "must be one of 'vllm', 'transformers'"),
        ("algorithm.loss=ppo", "must be one of 'grpo'"),
        ("run=5", "run = 5: must be a table"),
        ("rewards.accuracy=1.0", "rewards.accuracy = 1.0: must be a table"),
        ("run.steps", "'run.steps': not of the form key.sub=value"),
        ("=5", "not of the form key.sub=value"),
        ("name.sub=5", "'name' is a value, not a table"),
    ],
)
def test_what_cannot_be_read_is_named(recipe: Path, override: str, told: str) -> None:
    assert told in refused(recipe, override)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["run.steps=-1"], "run.steps = -1: must be at least 0"),
        (["run.save_every=-1"], "run.save_every"),
        (["run.keep=0"], "run.keep = 0: must be at least 1"),
        (["run.seed=-1"], "run.seed"),
        (["data.limit=-1"], "data.limit"),
        (["rollout.prompts=0"], "rollout.prompts"),
        (["rollout.group=1"], "rollout.group = 1: must be at least 2"),
        (["rollout.max_tokens=0"], "rollout.max_tokens"),
        (["rollout.length_jumps=[[5, 0]]"], "rollout.length_jumps"),
        (["prompt.max_tokens=0"], "prompt.max_tokens"),
        (["algorithm.minibatches=0"], "algorithm.minibatches"),
        (["algorithm.inner_epochs=0"], "algorithm.inner_epochs"),
        (
            ["rollout.prompts=10", "algorithm.minibatches=4"],
            "rollout.prompts = 10 does not divide by algorithm.minibatches = 4",
        ),
        (["rollout.temperature=0"], "rollout.temperature = 0.0"),
        (["rollout.temperature=nan"], "rollout.temperature = nan"),
        (["rollout.temperature=inf"], "rollout.temperature = inf: must be a finite number"),
        (["evaluate.temperature=inf"], "evaluate.temperature = inf: must be a finite number"),
        (["model.lora.alpha=nan"], "model.lora.alpha = nan: must be a finite number"),
        (["model.lora.alpha=inf"], "model.lora.alpha = inf: must be a finite number"),
        (["guard.entropy=nan"], "guard.entropy = nan: must be a finite number"),
        (["guard.hacking=inf"], "guard.hacking = inf: must be a finite number"),
        (["rollout.length_jumps=[[5, 64], [9, 96], [5, 128]]"], "two budgets from step 5 on"),
        (["model.checkpoint_share=0.5"], "model.checkpoint_share = 0.5 without model.gradient_checkpointing"),
        (["rollout.in_flight=restart"], "rollout.in_flight = 'restart' with rollout.max_staleness = 0"),
        (["rollout.sampler=transformers", "rollout.engine.dtype=half"], "rollout.engine with rollout.sampler = 'transformers'"),
        (
            ["rollout.engine.tensor_parallel_size=0"],
            "rollout.engine.tensor_parallel_size = 0: must be a whole number of at least 1",
        ),
        (["rollout.engine.tensor_parallel_size=two"], "rollout.engine.tensor_parallel_size = 'two'"),
        (["rollout.engine.max_num_seqs=0"], "rollout.engine.max_num_seqs = 0: must be"),
        (["rollout.engine.gpu_memory_utilization=half"], "rollout.engine.gpu_memory_utilization = 'half'"),
        (["rollout.engine.gpu_memory_utilization=nan"], "rollout.engine.gpu_memory_utilization = nan"),
        (["learn.lr=0"], "learn.lr"),
        (["learn.lr=nan"], "learn.lr"),
        (["learn.lr=inf"], "rate inf"),
        (["learn.row_tokens=0"], "learn.row_tokens"),
        (["learn.warmup=-1"], "learn.warmup"),
        (["learn.max_grad_norm=0"], "learn.max_grad_norm"),
        (["learn.betas=[0.9, 1.0]"], "learn.betas"),
        (["learn.schedule=steps"], "needs milestones"),
        (["learn.milestones=[3]"], "has no milestones"),
        (["learn.final_ratio=0.1"], "final_ratio"),
        (["evaluate.samples=0"], "evaluate.samples"),
        (["evaluate.problems=-1"], "evaluate.problems"),
        (["evaluate.max_tokens=-1"], "evaluate.max_tokens"),
        (["evaluate.temperature=-1"], "evaluate.temperature"),
        (["algorithm.clip_low=-0.1"], "algorithm.clip_low"),
        (["algorithm.clip_low=1"], "must stay above 0"),
        (["algorithm.clip_high=-0.1"], "algorithm.clip_high"),
        (["algorithm.kl=-1"], "algorithm.kl"),
        (["algorithm.kl=nan"], "algorithm.kl"),
        (["algorithm.importance_cap=-1"], "algorithm.importance_cap"),
        (["algorithm.reference_every=400"], "algorithm.reference_every is set but algorithm.kl = 0"),
        (["algorithm.reference_every=-1", "algorithm.kl=1"], "algorithm.reference_every"),
        (["reward_workers.processes=-1"], "reward_workers.processes = -1: must be at least 0"),
        (["reward_workers.wall_s=0"], "reward_workers.wall_s = 0.0: must be above 0"),
        (["reward_workers.memory_mb=-1"], "reward_workers.memory_mb = -1: must be at least 0"),
        (["guard.patience=0"], "guard.patience = 0: must be at least 1"),
        (["model.lora.rank=4", "model.lora.dropout=0.1"], "model.lora.dropout = 0.1: the sampler drops nothing"),
    ],
)
def test_what_cannot_fit_is_refused(recipe: Path, overrides: list[str], told: str) -> None:
    assert told in refused(recipe, *overrides)


def test_a_run_without_reward_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bare.toml"
    path.write_text("")
    assert "no [rewards.NAME] table" in refused(path)


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "absent.toml")
    assert "cannot be read" in refused(tmp_path)
    torn = tmp_path / "torn.toml"
    torn.write_text("[run\nsteps = 1")
    assert f"recipe {torn}: cannot be read" in refused(torn)
    torn.write_bytes(b"\xff\xfe")
    assert "cannot be read" in refused(torn)


def test_the_tree_survives_json(recipe: Path) -> None:
    config = load(recipe, ["rollout.length_jumps=[[5, 64]]", 'run.trackers=["wandb"]', "rewards.accuracy.mode=strict"])
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert from_dict(to_dict(Config())) == Config()


def test_difference_names_keys_with_both_values(recipe: Path) -> None:
    old, new = load(recipe), load(recipe, ["learn.lr=1e-5", "rewards.format.weight=0.5"])
    assert difference(old, old) == []
    assert difference(old, new) == ["learn.lr: 1e-06 -> 1e-05", "rewards.format.weight: None -> 0.5"]


def test_every_field_is_reached_by_the_nearest_name() -> None:
    """Dropping a key's last letter proposes that key: no field is out of reach of its neighbour's name."""
    for section in dataclasses.fields(Config):
        kind = section.default_factory
        if not dataclasses.is_dataclass(kind):
            continue
        names = [field.name for field in dataclasses.fields(kind)]
        for name in names:
            near = "|".join(n for n in names if n[:-1] == name[:-1])  # top_p and top_k are equally near to top_
            with pytest.raises(ValueError, match=rf"did you mean {section.name}\.({near})\?"):
                from_dict({section.name: {name[:-1]: 1}})


def test_the_budget_jumps_at_its_step(recipe: Path) -> None:
    config = load(recipe, ["rollout.max_tokens=32", "rollout.length_jumps=[[9, 128], [5, 64]]"])
    assert [max_tokens_at(config, s) for s in (1, 4, 5, 8, 9, 100)] == [32, 32, 64, 64, 128, 128]


def test_check_is_what_load_calls(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(configs, "check", seen.append)
    config = load(recipe)
    assert seen == [config]
    check(config)
