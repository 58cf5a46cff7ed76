"""The learner on one rank against two: the same numbers, and what sharding costs and saves. Random weights, nothing but torch, accelerate
and transformers (and this checkout) is needed.

    python -m bench.two_ranks                    # on a host with two GPUs: NCCL, a 1.5B Qwen2.5 shape
    python -m bench.two_ranks --cpu              # the same over gloo on a tiny model

Each setting is launched as a run is (accelerate's launcher, its environment); they take turns, `--rounds` times. Prints a table and
writes `--json`. Settings: one rank plain, one rank under FSDP2, two replicated, two under FSDP2 with gradients reduced row by row (what
the learner does), and held back to the last row.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

SETTINGS = {  # name: (ranks, sharded, gradients held back)
    "1 rank": (1, False, False),
    "1 rank, FSDP2": (1, True, False),
    "2 ranks, DDP": (2, False, False),
    "2 ranks, FSDP2": (2, True, False),
    "2 ranks, FSDP2, gradients held": (2, True, True),
}
SHAPES = {
    "1.5B": {
        "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2, "intermediate_size": 8960,
        "vocab_size": 151_936, "max_position_embeddings": 32_768, "tie_word_embeddings": True,
    },
    "tiny": {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 96,
        "vocab_size": 330, "max_position_embeddings": 4096, "tie_word_embeddings": True,
    },
}  # fmt: skip


def work(args: argparse.Namespace) -> None:
    """One rank of one setting; rank 0 writes metrics, times and peaks."""
    import torch

    from rl import ranks
    from rl.learn import Learner, accelerator
    from rl.policy import Policy, load_model

    _, _, held = SETTINGS[args.setting]
    config = settings(args)
    acc = accelerator(config, Path(args.folder))
    cuda = acc.device.type == "cuda"
    if held:
        ranks.accumulating = lambda acc, prepared, last: nullcontext() if last else acc.no_sync(prepared)  # type: ignore[assignment]
    reference = Policy(load_model(args.model, dtype=torch.bfloat16 if cuda else torch.float32)) if args.kl else None
    learner = Learner(config, Policy(load_model(args.model, dtype=torch.float32)), reference, acc)
    ranks.JOINT["peak"] = lambda *_: torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0
    ranks.JOINT["reset"] = lambda *_: torch.cuda.reset_peak_memory_stats() if cuda else None
    learner.begin()
    if learner.ranks.rank:
        learner.ranks.follow()
    else:
        result = measure(learner, args)
        learner.ranks.end()
        Path(args.folder, "result.json").write_text(json.dumps(result))
    acc.end_training()


def measure(learner: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Steps on the same groups in every setting: metrics of each, seconds, tokens/s of unique tokens, peak GiB by rank, gather seconds."""
    import torch

    from rl.sampler import fingerprint

    curve, seconds, made = [], [], [groups(args, step) for step in range(args.steps)]
    for step, (rollout, advantages) in enumerate(made):
        if step == args.warm:
            learner.ranks.collect("reset")
        began = time.perf_counter()
        curve.append(learner.step(rollout, advantages, args.longest))
        if learner.acc.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    peaks = learner.ranks.collect("peak")
    tokens = [sum(len(g.prompt.ids) + sum(c.tokens for c in g.completions) for g in rollout) for rollout, _ in made]
    began = time.perf_counter()
    prints = fingerprint(learner.policy.weights(torch.bfloat16))
    gathered = time.perf_counter() - began
    timed = statistics.median(seconds[args.warm :])
    return {
        "curve": curve, "seconds": seconds, "step_s": timed, "tokens_per_s": statistics.median(tokens[args.warm :]) / timed,
        "peak_gib": peaks, "gather_s": gathered, "fingerprint": sum(prints.values()) % (1 << 64),
    }  # fmt: skip


def settings(args: argparse.Namespace) -> Any:
    from rl import config

    return config.Config(
        model=config.Model(path=args.model, gradient_checkpointing=args.checkpointing),
        algorithm=config.Algorithm(loss="dapo", kl=args.kl),
        learn=config.Learn(lr=1e-6, row_tokens=args.row_tokens),
    )


def groups(args: argparse.Namespace, step: int) -> tuple[list[Any], list[list[float]]]:
    """Random prompts and completions of mixed lengths; log-probs are those of a nearly uniform policy, which random weights are."""
    import math
    import random

    from rl.records import Completion, Group, Prompt

    draw, vocabulary = random.Random(step), SHAPES[args.shape]["vocab_size"]
    even = -math.log(vocabulary)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(draw.randrange(vocabulary) for _ in range(n))

    made, advantages = [], []
    for p in range(args.prompts):
        lengths = [min(args.longest, max(1, int(draw.gammavariate(2.0, args.longest / 4.5)))) for _ in range(args.group)]
        completions = tuple(Completion(ids(n), (even,) * n, "stop", "", 0) for n in lengths)
        made.append(Group(Prompt(str(p), ids(args.prompt), {}), completions))
        advantages.append([draw.gauss(0, 1) for _ in range(args.group)])
    return made, advantages


def make_model(args: argparse.Namespace, folder: Path) -> str:
    """Random weights in files, so that every setting reads the same."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    torch.manual_seed(0)
    config = Qwen2Config(**SHAPES[args.shape])
    with torch.device("cuda" if torch.cuda.is_available() and not args.cpu else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder / "model")
    return str(folder / "model")


def launch(args: argparse.Namespace, setting: str, folder: Path) -> dict[str, Any]:
    """One setting in processes of its own, in the environment that accelerate's launcher makes."""
    ranks, sharded, _ = SETTINGS[setting]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    for rank in range(ranks):
        environment = os.environ | {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            "ACCELERATE_USE_FSDP": str(sharded).lower(), "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": str(sharded).lower(),
            "OMP_NUM_THREADS": "4", "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
        }  # fmt: skip
        if ranks == 1 and not sharded:
            for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
                environment.pop(name)
        if args.cpu:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        command = [sys.executable, "-m", "bench.two_ranks", *sys.argv[1:], "--setting", setting, "--folder", str(folder)]
        started.append(subprocess.Popen([*command, "--model", args.model], env=environment))
    while any(one.poll() is None for one in started):
        time.sleep(0.2)
        if any(one.poll() for one in started):  # the others would wait for it
            for one in started:
                one.kill()
    if any(codes := [one.wait() for one in started]):
        raise SystemExit(f"{setting}: the ranks ended with {codes}")
    return json.loads((folder / "result.json").read_text())


def apart(ours: dict[str, Any], theirs: dict[str, Any], name: str) -> float:
    """The largest relative difference of a metric over the steps."""
    pairs = zip(ours["curve"], theirs["curve"], strict=True)
    return max(abs(a[name] - b[name]) / max(abs(b[name]), 1e-6) for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cpu", action="store_true", help="gloo and a tiny model")
    parser.add_argument("--shape", choices=SHAPES, default="")
    parser.add_argument("--prompts", type=int, default=0)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=0, help="tokens of a prompt")
    parser.add_argument("--longest", type=int, default=0, help="tokens of the longest completion")
    parser.add_argument("--row-tokens", type=int, default=0)
    parser.add_argument("--kl", type=float, default=0.0, help="above 0: with a reference model")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--warm", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=list(SETTINGS), help="names of settings")
    parser.add_argument("--json", default="")
    for hidden in ("--setting", "--folder", "--model"):
        parser.add_argument(hidden, default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    large = {"shape": "1.5B", "prompts": 32, "prompt": 256, "longest": 1024, "row_tokens": 16_384}
    small = {"shape": "tiny", "prompts": 5, "prompt": 7, "longest": 24, "row_tokens": 256}
    for name, value in (small if args.cpu else large).items():
        setattr(args, name, getattr(args, name) or value)
    if args.setting:
        work(args)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        args.model = make_model(args, folder)
        found: dict[str, list[dict[str, Any]]] = {setting: [] for setting in args.only}
        for _ in range(args.rounds):
            for setting in args.only:
                found[setting].append(launch(args, setting, folder))
                print(f"{setting}: {found[setting][-1]['step_s']:.2f} s", flush=True)
    report(args, found)


def report(args: argparse.Namespace, found: dict[str, list[dict[str, Any]]]) -> None:
    base = found[args.only[0]][0]
    print(
        f"\n{args.shape}, {args.prompts} x {args.group}, rows of {args.row_tokens}, {args.steps - args.warm} steps of {args.rounds} rounds"
    )
    print(
        f"{'setting':<31} step s (range)        tok/s  peak GiB by rank  gather s   loss    norm    entropy (relative to the first)"
    )
    for setting, rounds in found.items():
        times = [s for r in rounds for s in r["seconds"][args.warm :]]
        peaks = "/".join(f"{p:.1f}" for p in rounds[0]["peak_gib"])
        rates = statistics.median(r["tokens_per_s"] for r in rounds)
        differences = "  ".join(f"{apart(rounds[0], base, m):.1e}" for m in ("loss", "grad_norm", "entropy"))
        print(
            f"{setting:<31} {statistics.median(times):6.2f} ({min(times):.2f}-{max(times):.2f}) {rates:9.0f}  {peaks:<16} "
            f"{statistics.median(r['gather_s'] for r in rounds):8.2f}   {differences}"
        )
    if args.json:
        Path(args.json).write_text(json.dumps({"arguments": vars(args), "found": found}, indent=1))


if __name__ == "__main__":
    main()
