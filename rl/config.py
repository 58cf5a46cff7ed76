"""The config tree: one TOML file plus `key.sub=value` overrides -> frozen dataclasses. An unknown key is an error."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rl.config_tree import build, flat, read
from rl.schedule import learning_rate


@dataclass(frozen=True)
class Run:
    out: str = ""  # the run's folder; empty: runs/NAME-seedSEED
    seed: int = 0
    steps: int = 100  # rollouts; a step has `minibatches * inner_epochs` optimiser updates
    save_every: int = 20  # steps; 0 saves only at the end
    keep: int = 2  # newest checkpoints kept
    best: str = ""  # a metric of metrics.jsonl: the checkpoint before which its mean was highest is kept too
    rollouts_every: int = 1  # steps; every answer as text in rollouts/ (and always the first and the last step's)
    trackers: tuple[str, ...] = ()  # "tensorboard", "wandb", "trackio": through accelerate


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters through peft; see adapters.py."""

    rank: int = 0  # 0: every weight is trained
    alpha: float = 32.0  # the adapter's output is scaled by alpha / rank
    dropout: float = 0.0  # for supervised stages; in a run the sampler has none
    targets: str | tuple[str, ...] = "all-linear"  # names of linear layers, or all of them but the head


@dataclass(frozen=True)
class Model:
    path: str = ""  # hub name or folder; relative folders are looked up from here, then from the repository
    trust_remote_code: bool = False
    gradient_checkpointing: bool = False  # layers are run again in the backward pass: less memory, more time
    checkpoint_share: float = 1.0  # of the layers, where gradient_checkpointing is on
    fp32_head: bool = False  # logits are computed in fp32 on a GPU too, not in bf16
    lora: Lora = field(default_factory=Lora)
    routing_replay: bool = True  # mixture of experts: the learner uses the experts that the sampler chose; see routing.py
    qlora: bool = False  # CUDA: the frozen weights below `lora` are held in 4 bits (bitsandbytes)


@dataclass(frozen=True)
class Data:
    train: str = ""  # "nano", "gsm8k", a hub name, or a .jsonl/.parquet file
    heldout: str = ""  # the same; never trained on
    folder: str = ""  # where the data sets lie as files; empty: the hub
    limit: int = 0  # first rows of `train` only; 0: all
    curriculum: str = (
        ""  # a groups.jsonl of `--only rollout`: each epoch goes from easy to hard by the pass rates measured there
    )


@dataclass(frozen=True)
class Prompting:
    template: Literal["r1_zero", "chat"] = "r1_zero"
    max_tokens: int = 1024  # longer prompts are an error, not a truncation


@dataclass(frozen=True)
class Rollout:
    sampler: Literal["vllm", "transformers"] = "vllm"
    prompts: int = 32  # P, questions a step
    group: int = 8  # G, completions a question
    max_tokens: int = 1024
    length_jumps: tuple[tuple[int, int], ...] = ()  # (from step, max_tokens): a longer budget from there on, as R1-Zero had
    temperature: float = 1.0
    top_p: float = 1.0  # nucleus sampling; the learner's log-probs are of the same truncated distribution
    top_k: int = 0  # 0: all tokens
    placement: Literal["colocated", "processes", "ray"] = (
        "colocated"  # in the learner's process, in others here, on a Ray cluster
    )
    workers: int = 1  # engines, for "processes" and "ray"
    min_workers: int = 1  # with fewer left alive the run stops
    devices: tuple[int, ...] = ()  # "processes": GPU of each worker in turn; empty: those the learner does not use, or its own
    timeout_s: float = 120.0  # without a sign of life from a worker, or from a weight update
    max_staleness: int = 0  # steps the rollouts may be ahead of the learner; 0: strictly on-policy
    in_flight: Literal["finish", "continue", "restart"] = "finish"  # samples under way when new weights come
    refill: float = 0.0  # prompts a step may sample in place of groups without variance, as a multiple of `prompts` (DAPO)
    oversample: float = 0.0  # prompts begun beyond `prompts`, as a share; what is not used goes into the next step
    stop_loops: int = 0  # ends a sample whose last so many tokens go round in a circle of at most a quarter of them; 0: never
    sleep: bool = False  # colocated, CUDA: the engine's memory is the learner's while it learns
    engine: Mapping[str, Any] = field(default_factory=dict)  # handed to vllm.LLM as they are


@dataclass(frozen=True)
class RewardWorkers:
    """Where the rewards are computed; see rewards/scorer.py and rewards/workers.py."""

    processes: int = 0  # 0: in this process, for rules that look at text alone; code, preference, module:function need some
    wall_s: float = 10.0  # seconds for all rewards of one sample
    memory_mb: int = 4096  # MiB of address space of each process; 0: no limit, for rewards that load CUDA


@dataclass(frozen=True)
class Algorithm:
    loss: Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo"] = "grpo"
    advantage: Literal["group_std", "group_mean", "leave_one_out"] = "group_std"
    clip_low: float = 0.2  # of the ratio around 1; gspo's is a mean over the sample and wants about 3e-4 and 4e-4
    clip_high: float = 0.2
    kl: float = 0.0  # beta of k3 against the reference model
    reference_every: int = 0  # steps between hard replacements of the reference by the policy; 0: never
    minibatches: int = 1  # optimiser updates a rollout is split into
    inner_epochs: int = 1  # mu, passes over a rollout
    importance_cap: float = 2.0  # of the truncated sampler-learner correction; 0: off
    overlong: Literal["keep", "mask"] = "keep"  # "mask": truncated completions carry no gradient (DAPO)


@dataclass(frozen=True)
class Teacher:
    """On-policy distillation: a teacher's log-probs in place of the reward; see teacher.py."""

    path: str = ""  # hub name or folder, with the student's tokenizer; empty: none


@dataclass(frozen=True)
class Learn:
    lr: float = 1e-6
    schedule: Literal["constant", "cosine", "linear", "steps"] = "constant"
    warmup: int = 0  # updates
    final_ratio: float = 0.0  # cosine and linear end at lr * final_ratio
    milestones: tuple[int, ...] = ()  # "steps": updates at which lr is multiplied by `factor`
    factor: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    row_tokens: int = 8192  # a packed row holds at most this many positions (a larger group is split)
    optimizer: Literal["adamw", "adamw8"] = "adamw"  # "adamw8": moments in 8 bits; see optim.py
    offload: bool = False  # CUDA: the moments lie in the host's memory between updates
    balance_rate: float = 0.001  # of the routers' biases after an update, by the load of their experts (DeepSeek-V3); 0: off
    compile: Literal["cuda", "always", "never"] = "cuda"  # the decoder's layers


@dataclass(frozen=True)
class Evaluate:
    problems: int = 500
    samples: int = 16
    temperature: float = 1.0
    max_tokens: int = 0  # 0: rollout.max_tokens


@dataclass(frozen=True)
class Guard:
    """Thresholds that stop a run; see guard_rules.py. One that cannot be reached switches its guard off."""

    mismatch: float = 0.0  # mean |log-prob difference| (nats) allowed, sampler against learner; 0: by precision
    drift: float = 0.5  # the same for stale samples (rollout.max_staleness), whose policies do differ
    masked: float = 0.02  # share of samples without a verdict in a step
    disk: float = 1.0  # checkpoints that must fit on the disk before each step's end
    truncated: float = 0.9  # share of truncated completions
    zero_variance: float = 0.98  # share of groups with one reward only
    entropy: float = 0.03  # least share of the first step's entropy (nano's healthy runs end at 0.13)
    repetition: float = 0.5  # share of an answer's 16-token stretches that stood in it before
    language: float = 0.2  # fall of the share of words in the question's script, since the first step
    format: float = 0.2  # rise of the format reward without accuracy, since the first step
    kl: float = 1.0  # nats a token from the reference model, where algorithm.kl asks for one
    length: float = 3.0  # times the usual length without more reward
    throughput: float = 0.25  # least share of the usual tokens/s
    preference: float = 2.0  # standard deviations above its training answers that a preference model may give in the mean
    hacking: float = 3.0  # standard errors by which held-out accuracy may fall while the reward rises
    patience: int = 20  # bad steps in a row that stop the run, from `truncated` on
    probe_every: int = 10  # steps between two looks at held-out accuracy; 0: none
    probe_problems: int = 64
    rollbacks: int = 0  # times a run may go back to its last healthy checkpoint instead of stopping
    rollback_lr: float = 0.5  # of learn.lr after each of them


@dataclass(frozen=True)
class Config:
    name: str = "run"
    learner: Literal["own", "trl"] = "own"  # "trl": the same recipe through TRL's GRPOTrainer, for comparison
    run: Run = field(default_factory=Run)
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    prompt: Prompting = field(default_factory=Prompting)
    rollout: Rollout = field(default_factory=Rollout)
    rewards: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # see rewards/combine.py
    reward_workers: RewardWorkers = field(default_factory=RewardWorkers)
    algorithm: Algorithm = field(default_factory=Algorithm)
    teacher: Teacher = field(default_factory=Teacher)
    learn: Learn = field(default_factory=Learn)
    evaluate: Evaluate = field(default_factory=Evaluate)
    guard: Guard = field(default_factory=Guard)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a recipe and apply `key.sub=value` overrides (values in TOML syntax; a bare word is a string).

    Raises ValueError in one line for an unreadable file, an unknown key (with the nearest name) or a value of the wrong type.
    """
    tree = read(path, overrides)
    config = build(Config, tree, "")
    check(config)
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """The resolved tree as plain JSON types."""
    return dataclasses.asdict(config)


def from_dict(tree: Mapping[str, Any]) -> Config:
    """The inverse of `to_dict`."""
    return build(Config, tree, "")


def difference(old: Config, new: Config) -> list[str]:
    """`key.sub: old -> new` for every value that differs."""
    a, b = flat(to_dict(old)), flat(to_dict(new))
    return [f"{k}: {a.get(k)!r} -> {b.get(k)!r}" for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)]


def check(config: Config) -> None:
    """What no single field can know: sizes that do not divide, values out of range. Raises ValueError."""
    r, a, e, learn, g = config.rollout, config.algorithm, config.evaluate, config.learn, config.guard
    w = config.reward_workers
    for name, value, least in [
        ("run.steps", config.run.steps, 0), ("run.save_every", config.run.save_every, 0), ("run.keep", config.run.keep, 1),
        ("run.rollouts_every", config.run.rollouts_every, 1), ("run.seed", config.run.seed, 0), ("data.limit", config.data.limit, 0),
        ("prompt.max_tokens", config.prompt.max_tokens, 1),
        ("rollout.prompts", r.prompts, 1), ("rollout.group", r.group, 2), ("rollout.max_tokens", r.max_tokens, 1),
        *((f"rollout.length_jumps = {[start, tokens]}, max_tokens", tokens, 1) for start, tokens in r.length_jumps),
        ("algorithm.minibatches", a.minibatches, 1), ("algorithm.inner_epochs", a.inner_epochs, 1),
        ("algorithm.clip_low", a.clip_low, 0), ("algorithm.clip_high", a.clip_high, 0), ("algorithm.kl", a.kl, 0),
        ("algorithm.importance_cap", a.importance_cap, 0), ("algorithm.reference_every", a.reference_every, 0),
        ("learn.row_tokens", learn.row_tokens, 1), ("learn.warmup", learn.warmup, 0), ("learn.weight_decay", learn.weight_decay, 0),
        ("learn.balance_rate", learn.balance_rate, 0),
        ("evaluate.samples", e.samples, 1), ("evaluate.problems", e.problems, 0), ("evaluate.max_tokens", e.max_tokens, 0),
        ("evaluate.temperature", e.temperature, 0), ("guard.patience", g.patience, 1), ("guard.mismatch", g.mismatch, 0),
        ("guard.probe_every", g.probe_every, 0), ("guard.probe_problems", g.probe_problems, 1), ("guard.rollbacks", g.rollbacks, 0),
        ("reward_workers.processes", w.processes, 0), ("reward_workers.memory_mb", w.memory_mb, 0),
    ]:  # fmt: skip
        if not value >= least:  # so that nan is refused too
            raise ValueError(f"{name} = {value}: must be at least {least}")
    for name, value in [
        ("rollout.temperature", r.temperature), ("learn.lr", learn.lr), ("learn.max_grad_norm", learn.max_grad_norm),
        ("reward_workers.wall_s", w.wall_s), ("guard.rollback_lr", g.rollback_lr),
    ]:  # fmt: skip
        if not value > 0:
            raise ValueError(f"{name} = {value}: must be above 0, or nothing is explored, scored or learned")
    for name, value in [
        ("model.lora.alpha", config.model.lora.alpha), ("rollout.temperature", r.temperature),
        ("evaluate.temperature", e.temperature), *((f"guard.{f.name}", getattr(g, f.name)) for f in dataclasses.fields(g)),
    ]:  # fmt: skip
        if not math.isfinite(value):  # nothing is above or below nan: a guard would never stop
            raise ValueError(f"{name} = {value}: must be a finite number")
    _check_rollout(r)
    _check_model(config)
    if g.rollbacks and r.max_staleness:
        raise ValueError(
            "guard.rollbacks with rollout.max_staleness: a run that samples ahead cannot go back; set one of them to 0"
        )
    _check_teacher(config)
    if r.prompts % a.minibatches:
        raise ValueError(
            f"rollout.prompts = {r.prompts} does not divide by algorithm.minibatches = {a.minibatches}: groups would be torn; "
            f"use a divisor of {r.prompts}"
        )
    if a.clip_low >= 1:
        raise ValueError(f"algorithm.clip_low = {a.clip_low}: the ratio's lower bound 1 - clip_low must stay above 0")
    if a.reference_every and not a.kl:
        raise ValueError(
            "algorithm.reference_every is set but algorithm.kl = 0: no reference model is in use; set kl or drop it"
        )
    if not all(0 <= beta < 1 for beta in learn.betas):
        raise ValueError(f"learn.betas = {list(learn.betas)}: each must be from 0 to below 1")
    learning_rate_at(config, 0)  # the schedule's own checks, before a model is loaded
    if not config.rewards:
        raise ValueError("no [rewards.NAME] table: a run without a reward learns nothing; see recipes/zero_nano.toml")


def _check_model(config: Config) -> None:
    m, lora = config.model, config.model.lora
    if not 0 < m.checkpoint_share <= 1:
        raise ValueError(f"model.checkpoint_share = {m.checkpoint_share}: a share of the layers, above 0 and at most 1")
    if lora.rank < 0 or lora.alpha <= 0:
        raise ValueError(f"model.lora = {lora}: rank must be at least 0, alpha above 0")
    if lora.dropout:
        raise ValueError(
            f"model.lora.dropout = {lora.dropout}: the sampler drops nothing, so the learner's log-probs would not be its own: leave it out"
        )
    if m.checkpoint_share < 1 and not m.gradient_checkpointing:
        raise ValueError(
            f"model.checkpoint_share = {m.checkpoint_share} without model.gradient_checkpointing: no layer is checkpointed; "
            "set gradient_checkpointing or drop it"
        )
    if m.qlora and not lora.rank:
        raise ValueError("model.qlora holds frozen weights in 4 bits: say what is trained instead, e.g. model.lora.rank=16")
    if lora.rank and config.algorithm.reference_every:
        raise ValueError(
            "algorithm.reference_every with model.lora: the reference is the base without the adapter and cannot be replaced"
        )


def _check_teacher(config: Config) -> None:
    r = config.rollout
    if not config.teacher.path:
        return
    if r.top_p < 1 or r.top_k:
        raise ValueError(
            "teacher.path with rollout.top_p or top_k: a token that the teacher cuts off has no log-prob; sample from all"
        )
    if r.refill:
        raise ValueError(
            "teacher.path with rollout.refill: groups of equal reward are not useless here, the teacher judges each token"
        )
    if config.learner == "trl":
        raise ValueError("teacher.path with learner = 'trl': TRL's GRPOTrainer takes no teacher; use learner = 'own'")


def _check_rollout(r: Rollout) -> None:
    for name, value, least in [
        ("top_k", r.top_k, 0), ("workers", r.workers, 1), ("min_workers", r.min_workers, 1), ("max_staleness", r.max_staleness, 0),
        ("refill", r.refill, 0), ("oversample", r.oversample, 0), ("stop_loops", r.stop_loops, 0), ("timeout_s", r.timeout_s, 1),
    ]:  # fmt: skip
        if not value >= least:
            raise ValueError(f"rollout.{name} = {value}: must be at least {least}")
    if not 0 < r.top_p <= 1:
        raise ValueError(f"rollout.top_p = {r.top_p}: the mass that is kept must be above 0 and at most 1")
    starts = [start for start, _ in r.length_jumps]
    if twice := [start for start in starts if starts.count(start) > 1]:
        raise ValueError(
            f"rollout.length_jumps = {[list(j) for j in r.length_jumps]}: two budgets from step {twice[0]} on; keep one of them"
        )
    _check_engine(r)
    if r.in_flight != "finish" and not r.max_staleness:
        raise ValueError(
            f"rollout.in_flight = {r.in_flight!r} with rollout.max_staleness = 0: no sample is under way when new weights come; "
            "set max_staleness or drop it"
        )
    if r.min_workers > r.workers:
        raise ValueError(
            f"rollout.min_workers = {r.min_workers} exceeds rollout.workers = {r.workers}: the run could never go on"
        )
    colocated = r.placement == "colocated"
    if colocated and (r.workers > 1 or r.max_staleness or r.devices):
        raise ValueError(
            "rollout.workers > 1, max_staleness > 0 and devices need workers of their own: set rollout.placement=processes (or ray)"
        )
    if r.sleep and (not colocated or r.sampler != "vllm"):
        raise ValueError(
            "rollout.sleep gives the memory of a colocated vLLM engine to the learner: other samplers hold none here"
        )
    if r.oversample and r.max_staleness < 2:
        raise ValueError(
            f"rollout.oversample with rollout.max_staleness = {r.max_staleness}: what a step leaves over is older still in the next one "
            "and would be sampled anew; set rollout.max_staleness >= 2"
        )


def _check_engine(r: Rollout) -> None:
    """Those of vLLM's options that this project calculates with; the others are vLLM's to judge."""
    if r.sampler != "vllm" and r.engine:
        raise ValueError(
            f"rollout.engine with rollout.sampler = {r.sampler!r}: these are vLLM's options and would do nothing; set rollout.engine={{}}"
        )
    for name in ("tensor_parallel_size", "max_num_seqs", "max_num_batched_tokens"):
        value = r.engine.get(name, 1)
        if type(value) is not int or value < 1:
            raise ValueError(f"rollout.engine.{name} = {value!r}: must be a whole number of at least 1")
    share = r.engine.get("gpu_memory_utilization", 1)
    if type(share) not in (int, float) or not 0 < share <= 1:
        raise ValueError(f"rollout.engine.gpu_memory_utilization = {share!r}: a share of the card, above 0 and at most 1")


def updates(config: Config) -> int:
    """Optimiser updates of the whole run, at least 1."""
    return max(1, config.run.steps * config.algorithm.minibatches * config.algorithm.inner_epochs)


def learning_rate_at(config: Config, update: int) -> float:
    """The rate of an update (from 0); those after the run's last have the last one's."""
    c, total = config.learn, updates(config)
    return learning_rate(
        min(update, total - 1), kind=c.schedule, base=c.lr, total=total, warmup=min(c.warmup, total),
        final_ratio=c.final_ratio, milestones=c.milestones, factor=c.factor,
    )  # fmt: skip


def max_tokens_at(config: Config, step: int) -> int:
    """The completion budget of a step (1-based) after the length jumps."""
    budget = config.rollout.max_tokens
    for start, tokens in sorted(config.rollout.length_jumps):
        if step >= start:
            budget = tokens
    return budget
