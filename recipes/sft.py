"""Traces -> a student: `python -m recipes.sft recipes/student_X.toml key.sub=value ... [--dry-run] [--resume] [--plan]`.

Drops what cannot be learned from, each with a counted reason, packs the rest (distill/rows.py), trains with TRL's SFTTrainer
(distill/sft.py), and writes `final/`, which loads in transformers and vLLM. A run that cannot fit on this machine is refused before
anything is loaded; `--plan --card H200 --ranks 8` says the same of cards that are not here. Several processes: accelerate launch
(recipes/accelerate/). Exit code 0: done, or ended by SIGTERM with a checkpoint. 1: --plan says it does not fit. 2: the input cannot be
used. 130: ended by ctrl-C, saved.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import numpy as np
import torch

from distill import config as configs
from distill import filter, formats, rows
from distill.config import Sft
from distill.traces import Trace, to_json, write
from eval.provenance import commit, versions
from recipes import folder as folders
from recipes import plan, result
from recipes.plan_memory import GIB, Setup, Use, use
from recipes.plan_time import cards
from recipes.plan_trace import Untraceable
from recipes.run import quiet_libraries
from rewards.score import Score
from rl import config as rl_configs
from rl.config_tree import flat
from rl.policy import load_tokenizer
from rl.ranks import rank

CONFIG, INPUTS, DROPPED = "config.json", "inputs.json", "dropped.jsonl"
FREE = ("run.out", "run.save_every", "run.keep")  # may change between stop and resume


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m recipes.sft", description="Supervised fine-tuning on traces.")
    parser.add_argument("recipe", help="a TOML file, e.g. recipes/student_nano.toml")
    parser.add_argument("overrides", nargs="*", help="key.sub=value")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and stop")
    parser.add_argument("--resume", action="store_true", help="go on from the newest whole checkpoint of run.out")
    parser.add_argument("--plan", action="store_true", help="memory on --card, and stop")
    parser.add_argument("--card", default="H200", choices=list(cards()), help="of --plan; default: H200")
    parser.add_argument("--ranks", type=int, default=1, help="of --plan: cards, the state sharded over them (FSDP2)")
    parser.add_argument("--shape", help="of --plan: sizes in place of model.path's, a name of recipes/shapes or a file")
    args = parser.parse_intermixed_args(argv)
    if rank():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    try:
        config = configs.load(Sft, args.recipe, args.overrides)
        if args.dry_run:
            print(json.dumps(configs.to_dict(config), indent=1))
            return 0
        if args.plan:
            return planned(config, args.card, args.ranks, args.shape)
        folder = Path(config.run.out or f"runs/{config.name}-seed{config.run.seed}")
        if args.resume and not (folder / CONFIG).exists():
            raise ValueError(f"--resume: {folder} holds no run; start it without --resume")
        with nullcontext() if rank() else folders.claimed(folder):
            return run(config, folder, args.resume)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 2


def run(config: Sft, folder: Path, resume: bool = False) -> int:
    """One supervised stage in its folder."""
    started = time.time()
    quiet_libraries()
    check_folder(config, folder, resume)
    tokenizer = load_tokenizer(config.model.path, config.model.trust_remote_code)
    samples, dropped, read = load_samples(config, tokenizer)
    if resume:
        check_inputs(samples, folder)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    refuse(config, float(samples.lengths.mean()))
    learn = config.learn
    count = rows.updates(len(samples), learn.batch, learn.epochs)
    packed, each = rows.plan(samples, count, learn.batch, learn.row_tokens, ranks, config.run.seed)
    print(f"{config.name}: {len(samples):,} of {read:,} traces; dropped: {rows.told(dropped)}", flush=True)
    epochs = count * learn.batch / len(samples)  # the last update is filled
    positions, shared = int(samples.lengths.sum()), samples.shared
    used = float(np.mean([shared + sum(samples.lengths[i] - shared for i in row) for row in packed])) / learn.row_tokens
    print(
        f"{positions:,} tokens, {samples.targets:,} of them learned from; {count} updates of {learn.batch} traces "
        f"({epochs:.3g} epochs) in {each} rows, {used:.0%} full; {shared} tokens of every prompt once a row", flush=True,
    )  # fmt: skip
    from distill import sft  # TRL is imported for this alone

    made = sft.trainer(config, folder, tokenizer, samples, packed, each, ranks)
    if not rank():
        gone = (
            json.dumps({"dropped": by, "reason": why} | json.loads(to_json(t)), ensure_ascii=False)
            for t, by, why in dropped.traces
        )
        write(folder / DROPPED, gone)
        record(config, samples, folder)
    if ended := sft.learn(made, folder, samples, packed, each):
        where = f"{made.state.global_step} of {count}"
        print(f"{signal.Signals(ended).name}: saved after update {where}; go on with the same command and --resume", flush=True)
        return 0 if ended == signal.SIGTERM else 128 + ended
    sft.save_final(made, tokenizer, folder / "final")
    if not rank():
        told = {
            "name": config.name, "seed": config.run.seed, "model": config.model.path, "data": list(config.data.train),
            "traces": len(samples),
            "dropped": dict(dropped.counts), "updates": count, "tokens": int(sum(samples.lengths[i] for r in packed for i in r)),
            "minutes": round((time.time() - started) / 60, 2), **sft.tail(folder), "versions": versions(), "commit": commit(),
        }  # fmt: skip
        result.write_json(folder / "result.json", told)
        print(
            f"{config.name}: loss {told.get('loss', 0):.4f}, {told['minutes']:.1f} minutes\nmodel  {folder / 'final'}",
            flush=True,
        )
    return 0


def check_folder(config: Sft, folder: Path, resume: bool) -> None:
    """Whether the run may begin, or go on, here. Raises ValueError."""
    path = folder / CONFIG
    if not path.exists() or rank():
        return
    if not resume:
        raise ValueError(f"{folder} already holds a run: go on with --resume, or choose another folder with run.out=")
    old, new = flat(json.loads(path.read_text())), flat(json.loads(json.dumps(configs.to_dict(config))))
    if changed := [
        f"{k}: {old.get(k)!r} -> {new.get(k)!r}" for k in sorted({*old, *new} - {*FREE}) if old.get(k) != new.get(k)
    ]:
        raise ValueError(f"--resume: the config is not the run's ({'; '.join(changed)})")


def check_inputs(samples: rows.Samples, folder: Path) -> None:
    """On resume: whether the samples are what the run began with, for a position in the data would mean others. Raises ValueError."""
    if rank():
        return
    try:
        old = json.loads((folder / INPUTS).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"--resume: {folder / INPUTS} cannot be read ({error}): begin anew in another run.out") from None
    if old != (new := inputs(samples)):
        raise ValueError(
            f"--resume: the traces are not what the run began with ({old.get('traces')} then, {new['traces']} now, of other content): a "
            "file of data.train, the template or the tokenizer was changed. Put it back, or begin anew in another run.out"
        )


def record(config: Sft, samples: rows.Samples, folder: Path) -> None:
    """What the run is begun with. config.json last: a folder with it has all."""
    result.write_json(folder / INPUTS, inputs(samples))
    result.write_json(folder / CONFIG, configs.to_dict(config))


def inputs(samples: rows.Samples) -> dict[str, Any]:
    """How many traces are learned from, and a SHA-256 of their token ids."""
    found = hashlib.sha256()
    for array in (samples.ids, samples.starts, samples.prompts):
        found.update(array.tobytes())
    return {"traces": len(samples), "sha256": found.hexdigest()}


def load_samples(config: Sft, tokenizer: Any) -> tuple[rows.Samples, filter.Dropped, int]:
    """All traces that can be learned from as token ids, what was dropped, and how many were read. Raises ValueError."""
    traces: list[Trace] = []
    for path in config.data.train:
        traces += formats.read(path)
    traces = traces[: config.data.limit or None]
    if not traces:
        raise ValueError(f"data.train = {list(config.data.train)}: no traces")
    kept, dropped = filter.sieve(traces, config.filter, _judge)
    if not kept:
        raise ValueError(f"no trace is left of {len(traces)}: dropped {rows.told(dropped)}; see the [filter] table")
    samples, long = rows.encode(kept, tokenizer, config.prompt.template, config.data.context, config.prompt.max_tokens)
    dropped.counts.update(long.counts)
    dropped.traces += long.traces
    return samples, dropped, len(traces)


def _judge(trace: Trace) -> Score:
    """Programs were run where the traces were made (recipes/distill.py), and are not again."""
    return Score(1.0) if trace.kind == "code" else filter.right(trace)


def setup_of(config: Sft, mean: float, memory: float, cuda: bool, ranks: int, sharded: bool, shape: Any = None) -> Setup:
    """A supervised step in the planner's terms: one completion a prompt, no sampler, nothing compiled."""
    learn = config.learn
    prompt = int(min(256, mean / 2))
    base = rl_configs.Config(
        name=config.name,
        model=config.model,
        prompt=config.prompt,
        rollout=rl_configs.Rollout(prompts=learn.batch, group=1, max_tokens=max(1, config.data.context - prompt)),
        learn=rl_configs.Learn(row_tokens=learn.row_tokens, optimizer=learn.optimizer, compile="never"),
    )
    sizes = shape or plan.shape_of(base)
    return Setup(
        base,
        sizes,
        memory,
        cuda=cuda,
        ranks=ranks,
        sharded=sharded,
        shared=False,
        prompt=prompt,
        completion=int(mean) - prompt,
        tiled_head=True,
    )


def refuse(config: Sft, mean: float) -> None:
    """Raises ValueError where the step cannot fit on this machine, with what would make it fit."""
    cuda = torch.cuda.is_available()
    memory = torch.cuda.get_device_properties(0).total_memory if cuda else plan.host_memory()
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    try:
        setup = setup_of(config, mean, memory, cuda, ranks, sharded)
        uses = use(setup, sampling=False)
    except Untraceable as error:
        print(f"not planned: {error}", flush=True)
        return
    if not plan.fits(setup, uses):
        helps = remedy(config, mean, memory, cuda, ranks, sharded, setup.shape)
        raise ValueError(f"this run does not fit: {plan.problem(setup, uses)}. {helps}")


def remedy(config: Sft, mean: float, memory: float, cuda: bool, ranks: int, sharded: bool, shape: Any) -> str:
    """What to change, cheapest first, each on top of those before."""
    changes: list[tuple[str, str, dict[str, Any]]] = [
        ("model.gradient_checkpointing=true", "model", {"gradient_checkpointing": True}),
        (f"learn.row_tokens={config.data.context}", "learn", {"row_tokens": config.data.context}),
        ("learn.optimizer=adamw8", "learn", {"optimizer": "adamw8"}),
        ("model.lora.rank=32", "model", {"lora": rl_configs.Lora(rank=32)}),
        ("model.qlora=true", "model", {"qlora": True}),
    ]
    given: list[str] = []
    for text, name, values in changes if cuda else changes[:2]:
        changed = dataclasses.replace(config, **{name: dataclasses.replace(getattr(config, name), **values)})
        if changed == config or (name == "model" and "lora" in values and config.model.lora.rank):
            continue
        config = changed
        given.append(text)
        setup = setup_of(config, mean, memory, cuda, ranks, sharded, shape)
        if plan.fits(setup, uses := use(setup, sampling=False)):
            return f"Fits with {' '.join(given)} ({uses[0].peak / GIB:.1f} GiB)"
    return "More cards help: PROCESSES=8 shards weights, gradients and moments (recipes/accelerate/fsdp2.yaml)"


def planned(config: Sft, card: str, ranks: int, shape: str | None) -> int:
    """Print the plan; 0 where it fits, else 1. The mean trace is taken for half of the context."""
    memory = cards()[card].memory_gib * GIB
    sizes = plan.shape(shape) if shape else None
    setup = setup_of(config, config.data.context / 2, memory, True, ranks, ranks > 1, sizes)
    found: Use = use(setup, sampling=False)[0]
    print(f"{config.name} on {ranks} x {card} ({memory / GIB:.0f} GiB each): {found.peak / GIB:.1f} GiB while learning")
    print("\n".join(f"  {name:<42}{size / GIB:8.1f}" for name, size in found.learn.items()))
    if plan.fits(setup, [found]):
        print("It fits.")
        return 0
    print(f"It does not fit. {remedy(config, config.data.context / 2, memory, True, ranks, ranks > 1, setup.shape)}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
