"""The config trees of traces (recipes/distill.py) and supervised fine-tuning (recipes/sft.py): TOML and overrides, as in rl/config.py."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from distill.filter import Filters
from rl.config import Model, Prompting, RewardWorkers, Rollout
from rl.config_tree import build, read
from rl.schedule import learning_rate


@dataclass(frozen=True)
class TracesRun:
    out: str = ""  # the folder; empty: runs/NAME-seedSEED
    seed: int = 0
    shard: int = 512  # questions a file


@dataclass(frozen=True)
class Questions:
    train: str = ""  # what the teacher is asked: "nano", "gsm8k", a hub name, a .jsonl or .parquet file
    folder: str = ""  # where data sets and test sets lie as files; empty: the hub
    limit: int = 0  # first rows only; 0: all
    traces: tuple[str, ...] = ()  # files of traces in place of a teacher, in any form of distill/formats.py
    tests: tuple[str, ...] = ()  # test sets whose questions must not be in the traces; empty: every one of eval/tasks.py


@dataclass(frozen=True)
class Traces:
    """Teacher -> filtered, decontaminated traces."""

    name: str = "traces"
    run: TracesRun = field(default_factory=TracesRun)
    model: Model = field(default_factory=Model)  # the teacher
    data: Questions = field(default_factory=Questions)
    prompt: Prompting = field(default_factory=Prompting)
    rollout: Rollout = field(default_factory=Rollout)  # group: traces a question; placement and workers as in a run
    reward_workers: RewardWorkers = field(default_factory=RewardWorkers)  # where programs are verified
    filter: Filters = field(default_factory=Filters)


@dataclass(frozen=True)
class SftRun:
    out: str = ""  # the folder; empty: runs/NAME-seedSEED
    seed: int = 0
    save_every: int = 100  # updates; 0: at the end only
    keep: int = 2  # newest checkpoints


@dataclass(frozen=True)
class SftData:
    train: tuple[str, ...] = ()  # files of traces, in any form of distill/formats.py
    limit: int = 0  # first traces only; 0: all
    context: int = 4096  # tokens of prompt and trace; a longer one is dropped and counted, never cut


@dataclass(frozen=True)
class SftLearn:
    """Defaults: R1's supervised stage but for the batch (Nature s41586-025-09422-z: 2-3 epochs, 5e-5 -> 5e-6 cosine)."""

    lr: float = 5e-5
    final_ratio: float = 0.1  # the schedule ends at lr * final_ratio
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: int = 0  # updates
    epochs: float = 2.0
    batch: int = 64  # traces an update, over all ranks
    row_tokens: int = 32768  # a packed row holds at most this many positions
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    optimizer: Literal["adamw", "adamw8"] = "adamw"  # "adamw8": moments in 8 bits; see rl/optim.py


@dataclass(frozen=True)
class Sft:
    """Traces -> a student. `final/` is the whole model, or with model.lora the adapter alone."""

    name: str = "sft"
    run: SftRun = field(default_factory=SftRun)
    model: Model = field(default_factory=Model)
    rope_theta: float = (
        0.0  # base of the rotary embedding in place of the model's, for traces beyond its context; 0: the model's
    )
    data: SftData = field(default_factory=SftData)
    prompt: Prompting = field(default_factory=Prompting)
    filter: Filters = field(default_factory=lambda: Filters(similar=1.0, per_question=1_000_000))
    learn: SftLearn = field(default_factory=SftLearn)


Kind = TypeVar("Kind", Traces, Sft)


def load(kind: type[Kind], path: str | Path, overrides: Sequence[str] = ()) -> Kind:
    """Read a recipe of this kind. Raises ValueError in one line for an unreadable file, an unknown key or a value that cannot be."""
    tree = read(path, overrides)
    of_data = tree.get("data")
    for key in ("train",) if kind is Sft else ("traces", "tests"):
        if isinstance(of_data, dict) and isinstance(of_data.get(key), str):  # one file, as one writes it on a command line
            of_data[key] = [of_data[key]]
    if kind is Sft:  # diversity was judged where the traces were made
        tree["filter"] = {"similar": 1.0, "per_question": 1_000_000} | dict(tree.get("filter") or {})
    return from_dict(kind, tree)


def from_dict(kind: type[Kind], tree: Mapping[str, Any]) -> Kind:
    """The inverse of `dataclasses.asdict`. Raises ValueError."""
    config = typing.cast(Kind, build(kind, tree, ""))
    (check_sft if isinstance(config, Sft) else check_traces)(config)  # type: ignore[operator]
    return config


def to_dict(config: Traces | Sft) -> dict[str, Any]:
    return dataclasses.asdict(config)


def _least(pairs: Sequence[tuple[str, float, float]]) -> None:
    for name, value, least in pairs:
        if not value >= least:
            raise ValueError(f"{name} = {value}: must be at least {least:g}")


def _check_filter(f: Filters) -> None:
    _least([("filter.ngram", f.ngram, 1), ("filter.per_question", f.per_question, 1), ("filter.max_tokens", f.max_tokens, 0)])
    for name in ("language_share", "repetition", "similar"):
        if not 0 <= getattr(f, name) <= 1:
            raise ValueError(f"filter.{name} = {getattr(f, name)}: a share, from 0 to 1")


def check_traces(c: Traces) -> None:
    _check_filter(c.filter)
    r = c.rollout
    _least(
        [
            ("rollout.group", r.group, 1),
            ("rollout.max_tokens", r.max_tokens, 1),
            ("run.shard", c.run.shard, 1),
            ("run.seed", c.run.seed, 0),
        ]
    )
    if bool(c.data.train) == bool(c.data.traces):
        raise ValueError(
            "data.train (questions for a teacher) or data.traces (files that are there already): name one of the two"
        )
    if c.data.train and not c.model.path:
        raise ValueError("model.path is empty: name the teacher, or files of its traces with data.traces=[...]")


def check_sft(c: Sft) -> None:
    _check_filter(c.filter)
    learn = c.learn
    _least([
        ("learn.batch", learn.batch, 1), ("learn.row_tokens", learn.row_tokens, 1), ("learn.warmup", learn.warmup, 0),
        ("learn.weight_decay", learn.weight_decay, 0), ("learn.final_ratio", learn.final_ratio, 0), ("data.context", c.data.context, 2),
        ("data.limit", c.data.limit, 0), ("run.save_every", c.run.save_every, 0), ("run.keep", c.run.keep, 1),
        ("rope_theta", c.rope_theta, 0), ("run.seed", c.run.seed, 0),
    ])  # fmt: skip
    for name, value in [("lr", learn.lr), ("epochs", learn.epochs), ("max_grad_norm", learn.max_grad_norm)]:
        if not value > 0:
            raise ValueError(f"learn.{name} = {value}: must be above 0")
    if not c.data.train:
        raise ValueError("data.train is empty: name files of traces, e.g. data.train=runs/traces/kept.jsonl")
    if c.data.context > learn.row_tokens:
        raise ValueError(
            f"data.context = {c.data.context} does not fit into learn.row_tokens = {learn.row_tokens}: a row holds whole traces"
        )
    if not 0 <= c.model.lora.dropout < 1:
        raise ValueError(f"model.lora.dropout = {c.model.lora.dropout}: from 0 to below 1")
    if c.model.qlora and not c.model.lora.rank:
        raise ValueError("model.qlora holds frozen weights in 4 bits: say what is trained instead, e.g. model.lora.rank=16")


def rate_at(c: Sft, update: int, total: int) -> float:
    """The learning rate of an update (from 0) of `total`."""
    learn = c.learn
    return learning_rate(
        min(update, total - 1), kind=learn.schedule, base=learn.lr, total=total, warmup=min(learn.warmup, total),
        final_ratio=learn.final_ratio, milestones=(), factor=1.0,
    )  # fmt: skip
