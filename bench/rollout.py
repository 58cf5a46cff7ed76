"""Throughput of the sampler against bare `vllm.LLM.generate` of the same engine, in turn, in one process:

    python -m bench.rollout MODEL [--prompts 64 --group 8 --tokens 512 --rounds 3] [--engine JSON] [--out FILE]
    python -m bench.rollout MODEL --workers 2 [--devices 0,1]        dedicated workers, one against all

Bare: token ids in, no detokenising, no log-probs, no statistics. Ours: the same with log-probs of every token, as a step of training asks
for it. Prompts are random ids of 192 to 256 tokens; the model's weights do not matter (see bench/model.py).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from recipes.engines import START_S, environment, spec, visible
from rl.config import Config, Model, Rollout
from rl.places import ProcessPlace
from rl.policy import load_tokenizer
from rl.records import Sampling
from rl.remote import Remote
from rl.sampler_vllm import VllmSampler
from rl.transfer import SharedWindow
from rl.workers import Pool

Timed = dict[str, list[float]]


def prompts(count: int, vocabulary: int, shortest: int, longest: int) -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(vocabulary // 2) for _ in range(draw.randint(shortest, longest))] for _ in range(count)]


def clocked(work: Callable[[], int]) -> tuple[float, float]:
    """Seconds, and tokens a second."""
    start = time.perf_counter()
    tokens = work()
    seconds = time.perf_counter() - start
    return seconds, tokens / seconds


def bare(sampler: VllmSampler, asked: Sequence[Sequence[int]], sampling: Sampling, **options: Any) -> int:
    """What vLLM itself does with the same prompts; returns the tokens it made."""
    from vllm import SamplingParams

    sampler.llm.reset_prefix_cache()
    params = SamplingParams(
        temperature=1.0, max_tokens=sampling.max_tokens, detokenize=False, stop_token_ids=list(sampler.stops), **options
    )
    inputs = [{"prompt_token_ids": list(p)} for p in asked for _ in range(sampling.n)]
    return sum(len(r.outputs[0].token_ids) for r in sampler.llm.generate(inputs, params, use_tqdm=False))


def ours(sampler: Any, asked: Sequence[Sequence[int]], sampling: Sampling) -> int:
    return sum(c.tokens for made in sampler.generate(asked, sampling) for c in made)


def compare_engine(args: argparse.Namespace, tokenizer: Any, device: torch.device) -> dict[str, Any]:
    """One engine in this process."""
    start = time.perf_counter()
    sampler = VllmSampler(args.model, tokenizer, device=device, max_model_len=args.context, engine=json.loads(args.engine))
    ready = time.perf_counter() - start
    sampling = Sampling(args.group, args.tokens, seed=1)
    asked = prompts(args.prompts, len(tokenizer), args.shortest, args.longest)
    start = time.perf_counter()
    ours(sampler, asked[:1], replace(sampling, n=1, max_tokens=1))
    first = time.perf_counter() - start
    ways: dict[str, Callable[[], int]] = {
        "bare": lambda: bare(sampler, asked, sampling),
        "bare with flat log-probs": lambda: bare(sampler, asked, sampling, logprobs=0, flat_logprobs=True),
        "ours, with log-probs": lambda: _fresh(sampler, asked, sampling),
    }
    rounds: dict[str, Timed] = {name: {"seconds": [], "tokens_per_s": []} for name in ways}
    for n in range(args.rounds + 1):
        for name, work in ways.items():
            seconds, rate = clocked(work)
            if n:  # the first round warms up
                rounds[name]["seconds"].append(seconds)
                rounds[name]["tokens_per_s"].append(rate)
    sampler.close()
    return {"ready_s": ready, "first_token_s": first, "ways": rounds}


def _fresh(sampler: VllmSampler, asked: Sequence[Sequence[int]], sampling: Sampling) -> int:
    sampler.llm.reset_prefix_cache()
    return ours(sampler, asked, sampling)


def compare_workers(args: argparse.Namespace, tokenizer: Any, device: torch.device) -> dict[str, Any]:
    """One worker against all of them, each with the whole work. There is no learner, so every GPU is a worker's."""
    rollout = Rollout(placement="processes", workers=args.workers, timeout_s=300, engine=json.loads(args.engine))
    config = Config(model=Model(path=args.model), rollout=rollout)
    cards = [visible()[d] for d in args.devices] or [None]
    words = AutoConfig.from_pretrained(args.model).get_text_config().vocab_size

    def begin(slot: int, attempt: int) -> Remote:
        place = ProcessPlace(environment(config, cards[slot % len(cards)]))
        told = spec(config, device, args.context, os.getpid(), slot)
        return Remote(f"worker {slot}", place, told, rollout.timeout_s, START_S)

    start = time.perf_counter()
    pool = Pool(begin, args.workers, minimum=1, vocabulary=words, timeout_s=rollout.timeout_s, window=lambda n: SharedWindow(1))
    ready = time.perf_counter() - start
    sampling = Sampling(args.group, args.tokens, seed=1)
    asked = prompts(args.prompts, len(tokenizer), args.shortest, args.longest)
    one = pool.active[0]
    rounds: dict[str, Timed] = {name: {"seconds": [], "tokens_per_s": []} for name in ("one worker", f"{args.workers} workers")}
    for n in range(args.rounds + 1):
        for name, sampler in zip(rounds, (one, pool), strict=True):
            varied = replace(sampling, seed=n)
            seconds, rate = clocked(lambda s=sampler, v=varied: ours(s, asked, v))  # type: ignore[misc]
            if n:
                rounds[name]["seconds"].append(seconds)
                rounds[name]["tokens_per_s"].append(rate)
    pool.close()
    return {"ready_s": ready, "ways": rounds}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.rollout", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", help="folder or hub name")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--shortest", type=int, default=192)
    parser.add_argument("--longest", type=int, default=256)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engine", default="{}", help="JSON, handed to vllm.LLM")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--devices", type=lambda text: [int(n) for n in text.split(",")], default=[])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = load_tokenizer(args.model)
    result = (compare_workers if args.workers else compare_engine)(args, tokenizer, device)
    base = statistics.median(next(iter(result["ways"].values()))["tokens_per_s"])
    print(f"ready after {result['ready_s']:.1f} s, first token {result.get('first_token_s', 0):.2f} s later")
    for name, timed in result["ways"].items():
        seconds, rate = timed["seconds"], statistics.median(timed["tokens_per_s"])
        took = f"{statistics.median(seconds):6.2f} s [{min(seconds):.2f}, {max(seconds):.2f}]"
        print(f"{name:26} {took}  {rate:8.0f} tokens/s  {rate / base:.2f} x")
    if args.out:
        args.out.write_text(json.dumps({"model": args.model, **result}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
