"""Config -> everything that a run drives. What a station needs from the left of the import order (nano's problems, the evaluation)
is put together here and handed in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from recipes.engines import make_sampler
from recipes.nano import problems as nano
from rewards.sandbox import tier
from rewards.scorer import InProcess, Scorer, needs_pool
from rewards.workers import RewardPool
from rl import adapters, curriculum, data, judge
from rl.ahead import Ahead
from rl.batch import Counts, pack
from rl.config import Config
from rl.feed import Feed, InTurn, Maker, Replay
from rl.guard import check_prompts
from rl.learn import Learner, accelerator
from rl.policy import Policy, check_head, load_model, resolve
from rl.records import Completion, Group, Prompt
from rl.sampler import Sampler
from rl.sync import prove, sync
from rl.teacher import load_teacher
from rl.train import updates_a_step

NANO_TRAIN, NANO_HELDOUT, NANO_SEED = 20_000, 500, 1
CANARIES = 4


def nano_source(split: str) -> list[data.Row]:
    """The nano task: problems and golds only."""
    if split == "train":
        return nano.problems("train", NANO_TRAIN, NANO_SEED)
    return nano.heldout(NANO_HELDOUT)


SOURCES: dict[str, data.Source] = {"nano": nano_source}


@dataclass(frozen=True)
class Task:
    """The questions of a run as prompts."""

    train: list[Prompt]
    heldout: list[Prompt]
    parts: list[list[int]] | None = None  # of train, easy to hard (data.curriculum)


def budget(config: Config) -> int:
    """The largest completion budget of the run, tokens."""
    return max([config.rollout.max_tokens, config.evaluate.max_tokens, *(tokens for _, tokens in config.rollout.length_jumps)])


def load_task(config: Config, tokenizer: Any) -> Task:
    """Rows -> prompts for training and, where evaluation is asked for, held-out ones. Raises ValueError."""
    if not config.data.train:
        raise ValueError('data.train is empty: name a data set, e.g. data.train="gsm8k"')
    render = (config.prompt.template, tokenizer, config.prompt.max_tokens)
    train = data.load_rows(config.data.train, "train", config.data.folder, SOURCES)
    train = train[: config.data.limit or None]
    heldout: list[data.Row] = []
    if config.data.heldout and config.evaluate.problems:
        heldout = data.load_rows(config.data.heldout, "heldout", config.data.folder, SOURCES)
        # An even draw over the set, the same in every run.
        heldout = [heldout[i] for i in sorted(data.Order(len(heldout), 0).take(0, min(config.evaluate.problems, len(heldout))))]
    seen = {r["question"] for r in train}
    both = [r["id"] for r in heldout if r["question"] in seen]
    if both:
        raise ValueError(
            f"{len(both)} held-out questions stand in data.train too (first: {both[0]}): the result would mean nothing"
        )
    task = Task(data.prompts(train, *render), data.prompts(heldout, *render))
    if not config.data.curriculum:
        return task
    parts, told = curriculum.load(config.data.curriculum, task.train)
    print(told, flush=True)
    return replace(task, parts=parts)


@dataclass(frozen=True)
class Tolerance:
    """Log-prob differences (nats) between sampler and learner that rounding explains: mean over a step, largest on the canaries."""

    mean: float
    canary: float


# fp32 on CPU: measured 1e-6 mean and 5e-6 at most; bf16 on an H200: 0.006 mean. Ten times that is something else.
TOLERANCE = {torch.float32: Tolerance(1e-5, 1e-4), torch.bfloat16: Tolerance(0.06, 0.5)}
FP8 = Tolerance(0.2, 2.0)  # three bits of mantissa in every matrix
ANY = Tolerance(math.inf, math.inf)  # groups of a file may come from any weights; the importance correction weighs them


def tolerance(config: Config, sampler: Sampler | None) -> Tolerance:
    if sampler is None:
        return ANY
    return FP8 if config.rollout.engine.get("quantization") else TOLERANCE[sampler.dtype]


@dataclass(frozen=True)
class Engine:
    """What computes: learner and sampler under the same weights, proven. `sampler` is None when groups come from a file."""

    learner: Learner
    sampler: Sampler | None
    tolerance: Tolerance
    canaries: Sequence[Prompt]  # fixed prompts for the proof after each sync


def start_engine(config: Config, folder: Path, task: Task, tokenizer: Any, *, sampling: bool, learning: bool) -> Engine:
    """Load model, learner and sampler, and check them against the prompts and each other before any token is spent."""
    trust = config.model.trust_remote_code
    acc = accelerator(config, folder)  # before the model: of several ranks that shard it, one reads it
    if acc.num_processes > 1 and sampling and config.rollout.sampler == "vllm" and config.rollout.placement == "colocated":
        raise ValueError(
            f"rollout.placement = 'colocated' on {acc.num_processes} ranks: vLLM cannot start in a process that belongs to several "
            "learners; set rollout.placement=processes"
        )
    model = learning_model(config, acc.device)
    context = config.prompt.max_tokens + budget(config)
    limit = getattr(model.config, "max_position_embeddings", context)
    check_prompts(task.train + task.heldout, tokenizer, model.get_input_embeddings().num_embeddings, limit, budget(config))
    acc.init_trackers(config.name)  # they make files: only for a run whose input is right
    leading = acc.is_main_process  # the only one that samples
    sampler = make_sampler(config, tokenizer, acc.device, min(context, limit), model) if sampling and leading else None
    with ExitStack() as failed:
        if sampler is not None:
            failed.callback(sampler.close)
        precision = torch.bfloat16 if acc.device.type == "cuda" else torch.float32  # of what is not trained
        reference = None
        if config.algorithm.kl and learning and not config.model.lora.rank:
            reference = Policy(load_model(config.model.path, dtype=precision, trust_remote_code=trust))
        teacher = None
        if config.teacher.path and learning:
            rows = model.get_input_embeddings().num_embeddings
            teacher = load_teacher(config.teacher.path, tokenizer, rows, precision, trust)
        learner = Learner(config, Policy(model, config.model.fp32_head), reference, acc, teacher)
        with acc.autocast():
            check_head(learner.policy, _probe(task.train[0]).to(acc.device))
        learner.begin()
        engine = Engine(learner, sampler, tolerance(config, sampler), canaries(task.train))
        if sampler is not None:
            # An engine of fewer bits can say what it was sent, not what it read from the file.
            check = sync if config.rollout.engine.get("quantization") else prove
            check(learner.policy, sampler, 0, engine.canaries, engine.tolerance.canary, acc.device)
        failed.pop_all()
    return engine


def learning_model(config: Config, device: torch.device) -> Any:
    """What the learner trains: every weight in fp32, or adapters in fp32 over a base in the precision it computes in."""
    m = config.model
    dtype = torch.bfloat16 if m.lora.rank and device.type == "cuda" else torch.float32
    quantization = adapters.four_bits(device) if m.qlora else None
    model = load_model(m.path, dtype=dtype, trust_remote_code=m.trust_remote_code, quantization=quantization)
    if m.lora.rank:
        adapters.attach(model, m.lora, resolve(m.path), config.run.seed)
    return model


def canaries(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The longest prompts: an engine caches whole blocks (vLLM on a CPU: 128 tokens), and a shorter canary would miss a stale one."""
    return sorted(prompts, key=lambda p: len(p.ids))[-CANARIES:]


def make_feed(
    config: Config,
    task: Task,
    engine: Engine,
    scorer: Scorer | None,
    done: int,
    cursor: int,
    replay: dict[int, list[Group]] | None,
) -> Feed:
    """Where the groups of the steps after `done` come from."""
    if replay is not None:
        return Replay(replay)
    assert engine.sampler is not None
    assert scorer is not None
    maker = Maker(config, engine.sampler, scorer, task.train, data.Order(len(task.train), config.run.seed, task.parts))
    r = config.rollout
    if not r.max_staleness:
        return InTurn(maker, cursor)
    return Ahead(
        maker,
        cursor,
        done,
        config.run.steps,
        bound=r.max_staleness,
        updates=updates_a_step(config),
        finish=r.in_flight == "finish",
    )


def make_scorer(config: Config) -> Scorer:
    """The recipe's [rewards] where [reward_workers] says. Raises ValueError for a table that cannot be built."""
    w, entry = config.reward_workers, config.rewards.get(judge.NAME, {})
    if ":" not in str(entry.get("model", ":")):  # the folder of a trained one, not a function
        rules = {name: table for name, table in config.rewards.items() if name != judge.NAME}
        return judge.Judged(make_scorer(replace(config, rewards=rules)) if rules else None, entry)
    if w.processes:
        return RewardPool(config.rewards, w.processes, w.wall_s, w.memory_mb)
    if need := [name for name in config.rewards if needs_pool(name)]:
        raise ValueError(
            f"rewards.{need[0]} can hang or die for reasons of its own and must not run in the trainer's process: "
            "set reward_workers.processes=2 (or more, up to the CPU's cores)"
        )
    return InProcess(config.rewards)


def sandbox(config: Config) -> dict[str, str] | None:
    """Where programs of a code reward run: {"tier": "A", "why": ""}; None without one. Raises ValueError where this host cannot."""
    if "code" not in config.rewards:
        return None
    options = config.rewards["code"]
    if url := options.get("sandbox_url"):
        return {"tier": "remote", "why": str(url)}
    found = tier(options.get("tier", "auto"))
    if found["tier"] == "none":
        raise ValueError(found["why"])
    return found


def _probe(prompt: Prompt) -> Any:
    """A row that only asks for log-probs: the prompt, and its own last tokens again as a completion."""
    tail = prompt.ids[-8:]
    group = Group(prompt, (Completion(tail, (0.0,) * len(tail), "stop", "", 0),))
    return pack([group], [[0.0]], loss="dapo", counts=Counts(1, 1), max_tokens=1, row_tokens=1).rows[0]
