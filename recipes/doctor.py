"""The doctor: `python -m recipes.doctor recipes/X.toml key.sub=value ...`, or `make doctor`: what would go wrong, before it does.

Each line: verdict, what was looked at, what was seen; below it what to do. The last two lines load the model: sampler and learner must
agree on the log-probs of real samples, and two steps of the recipe must go through, with a checkpoint that loads again.
Every run begins with the lines that take no time (`doctor_checks.at_start`).
Exit code 0: a run may start. 1: it would be spent in vain. 2: the input cannot be used.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from recipes import doctor_checks as checks
from recipes import run as door
from recipes.doctor_checks import Line
from recipes.street import Engine, Task, load_task, make_feed, make_scorer, start_engine
from recipes.street import sandbox as find_sandbox
from rewards.scorer import Scorer
from rl import checkpoint
from rl import config as configs
from rl.batch import Counts, pack
from rl.config import Config
from rl.feed import sampling
from rl.guard import Stopped, Watch
from rl.policy import load_tokenizer, stop_ids
from rl.records import Group
from rl.report import Journal
from rl.rollout import RewardFailed, rollout
from rl.sync import SyncError
from rl.train import Street, train

PROMPTS = 4  # whose samples are compared
UNSEEN = Line("dry run", "skip", "not looked at before the above is mended")
MARKS = {"ok": "ok  ", "warn": "WARN", "fail": "FAIL", "skip": "-   "}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m recipes.doctor", description="What would go wrong, before it does.")
    parser.add_argument("recipe", help="a TOML file")
    parser.add_argument("overrides", nargs="*", help="key.sub=value")
    args = parser.parse_intermixed_args(argv)
    door.quiet_libraries()
    verdicts = []
    try:
        config = configs.load(args.recipe, args.overrides)
        for line in examine(config):
            print(shown(line), flush=True)
            verdicts.append(line.verdict)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return int("fail" in verdicts)


def shown(line: Line) -> str:
    return f"{MARKS[line.verdict]} {line.name:<10} {line.told}" + (f"\n     {'':<10} -> {line.remedy}" if line.remedy else "")


def examine(config: Config) -> Iterator[Line]:
    """Every line, as it is known. Raises ValueError for input that cannot be used."""
    yield checks.versions()
    found = find_sandbox(config)
    with make_scorer(config) as scorer:
        tokenizer = load_tokenizer(config.model.path, config.model.trust_remote_code)
        task, folder = load_task(config, tokenizer), door.run_folder(config)
        short = [
            checks.memory(config, task, sampling=True),
            checks.disk(config, folder, resume=False),
            checks.template(config, tokenizer, task),
            *checks.judged(config, task, scorer, 32 if config.reward_workers.processes else 2000),
            checks.sandbox(config, found),
        ]
        yield from short
        if any(line.verdict == "fail" for line in short):
            yield Line("agreement", "skip", "not looked at before the above is mended")
            yield UNSEEN
            return
        yield from with_engine(config, folder, task, tokenizer, scorer)


def with_engine(config: Config, folder: Path, task: Task, tokenizer: Any, scorer: Scorer) -> Iterator[Line]:
    """The lines that need the model."""
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, steps=2, save_every=0, trackers=()))
    near = next(p for p in folder.absolute().parents if p.is_dir())
    place = Path(tempfile.mkdtemp(prefix=".doctor-", dir=near))  # on the disk that the run writes on
    try:
        try:
            engine = start_engine(config, place, task, tokenizer, sampling=True, learning=True)
        except SyncError as error:
            yield Line(
                "agreement", "fail", str(error), "the sampler does not compute what the learner does: look at its options"
            )
            yield UNSEEN
            return
        gc.collect()
        try:
            agreed = agreement(config, engine, task, tokenizer)
            yield agreed
            yield UNSEEN if agreed.verdict == "fail" else dry_run(config, place, engine, task, tokenizer, scorer)
        finally:
            assert engine.sampler is not None
            engine.sampler.close()
            engine.learner.ranks.end()
            engine.learner.acc.end_training()
    finally:
        shutil.rmtree(place, ignore_errors=True)


def agreement(config: Config, engine: Engine, task: Task, tokenizer: Any) -> Line:
    """Log-probs of real samples at the recipe's temperature, learner against sampler; and the text and the end of each sample."""
    assert engine.sampler is not None
    settings = dataclasses.replace(sampling(config, 1), max_tokens=min(64, config.rollout.max_tokens))
    groups = rollout(engine.sampler, task.train[:PROMPTS], settings)
    mean = mismatch(config, engine, groups)
    stops = stop_ids(engine.learner.policy.model, tokenizer)
    for c in (c for g in groups for c in g.completions):
        if (c.finish == "stop") != (c.ids[-1] in stops):
            told = f"a sample ends with token {c.ids[-1]} and {c.finish!r}; the tokenizer and the model stop at {list(stops)}"
            return Line(
                "agreement", "fail", told, "sampler and learner must have the same tokenizer and generation_config.json"
            )
        if c.text != tokenizer.decode(c.ids, skip_special_tokens=True):
            told = f"the sampler reads its tokens as {c.text[:40]!r}, the learner's tokenizer reads them otherwise"
            return Line("agreement", "fail", told, "sampler and learner must have the same tokenizer")
    allowed = config.guard.mismatch or engine.tolerance.mean
    told = f"mean |log-prob difference| {mean:.2g} nats (allowed {allowed:.2g}), stop ids and texts are the same"
    if not mean <= allowed:
        return Line(
            "agreement", "fail", told, "another temperature, top_p, dtype or attention in the sampler; docs/step_one.md"
        )
    return Line("agreement", "ok", told)


@torch.no_grad()
def mismatch(config: Config, engine: Engine, groups: Sequence[Group]) -> float:
    """Mean |log-prob difference| of the samples' tokens, nats."""
    r, learner = config.rollout, engine.learner
    flat = [[0.0] * len(g.completions) for g in groups]
    batch = pack(groups, flat, loss="dapo", counts=Counts(1, 1), max_tokens=1, row_tokens=config.learn.row_tokens)
    total, tokens = 0.0, 0
    for row in (row.to(learner.acc.device) for row in batch.rows):
        with learner.acc.autocast():
            logprobs_T, _ = learner.policy(row, r.temperature, r.top_p, r.top_k)
        total += (logprobs_T - row.sampled_T).abs().sum().item()
        tokens += len(row.sampled_T)
    return total / tokens


def dry_run(config: Config, place: Path, engine: Engine, task: Task, tokenizer: Any, scorer: Scorer) -> Line:
    """Two steps as the recipe has them, and a checkpoint that loads again."""
    begun, steps = time.perf_counter(), list[str]()
    keeper = checkpoint.Keeper(place / "checkpoints", engine.learner, config.run)
    feed, journal = make_feed(config, task, engine, scorer, 0, 0, None), Journal(place)
    street = Street(
        config, place, feed, scorer, engine.sampler, engine.learner, journal,
        Watch(config.guard, engine.tolerance.mean, {}, config.rollout.max_staleness), engine.tolerance.canary, engine.canaries,
        tokenizer, steps.append, keeper,
    )  # fmt: skip
    try:
        train(street)
        _, damaged = keeper.load()
    except (Stopped, SyncError, RewardFailed, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return Line("dry run", "fail", f"{type(error).__name__}: {reason}", "the run would end here: mend it first")
    finally:
        feed.close()
        journal.close()
    if damaged:
        return Line("dry run", "fail", f"the checkpoint does not load: {damaged[0]}", "look at the disk")
    warned = [s for s in steps if s.startswith("warning: ")]
    took = time.perf_counter() - begun
    told = f"2 steps in {took:.0f} s, a checkpoint saved and loaded"
    return Line("dry run", "warn", f"{told}; {warned[0]}") if warned else Line("dry run", "ok", told)


if __name__ == "__main__":
    sys.exit(main())
