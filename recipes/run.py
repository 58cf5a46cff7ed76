"""The one door: `python -m recipes.run recipes/X.toml key.sub=value ... [--dry-run] [--resume] [--only rollout] [--replay FILE]`.

Exit code 0: done, or ended by SIGTERM with everything saved. 2: the input cannot be used, said in one line. 1: the run stopped itself,
said in one line with the reason. 130: ended by ctrl-C, likewise saved. 143: SIGTERM before there was a run to go on with. Launched on
several ranks (`accelerate launch`, recipes/accelerate/), rank 0 does all of this and the others follow it (rl/ranks.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import gc
import json
import logging
import math
import os
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is imported

import torch
import transformers

from eval.heldout import evaluate
from recipes import folder as folders
from recipes import mps, result
from recipes.doctor_checks import at_start
from recipes.probe import make_probe
from recipes.rollback import gone_back, slow_down
from recipes.street import SOURCES, Engine, Task, load_task, make_feed, make_scorer, sandbox, start_engine
from rewards.scorer import Scorer
from rl import adapters, checkpoint, data, metrics, stop
from rl import config as configs
from rl.config import Config, max_tokens_at
from rl.guard import Stopped, Watch
from rl.learn import Learner, state_of
from rl.policy import load_tokenizer, save_model
from rl.ranks import rank
from rl.records import Group
from rl.report import STOPPED, Journal
from rl.report_html import write_report
from rl.rollout import RewardFailed, dump, load
from rl.sync import SyncError, sync
from rl.train import Street, train

Replay = dict[int, list[Group]]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m recipes.run", description="Run a recipe.")
    parser.add_argument("recipe", help="a TOML file, e.g. recipes/zero_nano.toml")
    parser.add_argument("overrides", nargs="*", help="key.sub=value")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and what follows from it, and stop")
    parser.add_argument("--resume", action="store_true", help="go on from the newest whole checkpoint of run.out")
    parser.add_argument("--allow-changes", action="store_true", help="--resume although the config or the data have changed")
    parser.add_argument("--only", choices=["rollout"], help="sample and score, write groups.jsonl, learn nothing")
    parser.add_argument("--replay", metavar="FILE", help="learn from a groups.jsonl instead of sampling")
    args = parser.parse_intermixed_args(argv)
    if rank():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    try:
        # The ranks that follow rank 0 leave when it says so; until they follow, a signal ends them as it always did.
        with nullcontext() if rank() else stop.listening():
            return _main(args)
    except ValueError as error:
        return _say_why(2, error)
    except (Stopped, SyncError, RewardFailed, FloatingPointError, ConnectionError) as error:
        return _say_why(1, f"stopped: {error}")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _say_why(2, f"the disk is full ({error.filename or 'while writing'}): free space, then go on with --resume")
        return _say_why(2, error)
    except stop.Ended as ended:
        return _say_why(128 + ended.number, f"ended by {signal.Signals(ended.number).name} before there was anything to save")
    except KeyboardInterrupt:
        return _say_why(130, "interrupted; go on with --resume")


def _main(args: argparse.Namespace) -> int:
    if args.only and (args.replay or args.resume):
        raise ValueError("--only rollout makes groups.jsonl from the start: it goes with neither --replay nor --resume")
    if args.allow_changes and not args.resume:
        raise ValueError("--allow-changes is for --resume: a new run takes any config")
    config = configs.load(args.recipe, args.overrides)
    if args.dry_run:
        print(describe(config))
        return 0
    return run(config, resume=args.resume, allow_changes=args.allow_changes, only=args.only, replay=args.replay)


def _say_why(code: int, reason: object) -> int:
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:  # what is wrong on a host all its ranks find
        print(f"error: {' '.join(str(reason).split())}", file=sys.stderr, flush=True)
    return code


def run_folder(config: Config) -> Path:
    return Path(config.run.out or f"runs/{config.name}-seed{config.run.seed}")


def describe(config: Config) -> str:
    """The resolved config and the numbers that follow from it."""
    r, a = config.rollout, config.algorithm
    sandbox(config)
    make_scorer(config).close()
    rows = len(data.load_rows(config.data.train, "train", config.data.folder, SOURCES)[: config.data.limit or None])
    updates = a.minibatches * a.inner_epochs
    longest = max(max_tokens_at(config, step) for step in range(config.run.steps + 1))
    derived = {
        "training questions": rows,
        "steps an epoch": f"{rows / r.prompts:.1f}",
        "epochs": f"{config.run.steps * r.prompts / rows:.2f}",
        "completions a step": r.prompts * r.group,
        "completions in all": r.prompts * r.group * config.run.steps,
        "completion tokens a step, at most": r.prompts * r.group * longest,
        "updates a step": updates,
        "completions an update": r.prompts * r.group // a.minibatches,
        "updates in all": updates * config.run.steps,
        "evaluation completions, before and after": 2 * config.evaluate.problems * (config.evaluate.samples + 1),
        "folder": run_folder(config),
    }
    width = max(map(len, derived))
    return json.dumps(configs.to_dict(config), indent=1) + "\n\n" + "\n".join(f"{k:<{width}}  {v}" for k, v in derived.items())


def run(
    config: Config, *, resume: bool = False, allow_changes: bool = False, only: str | None = None, replay: str | None = None
) -> int:
    """One run in its folder, from the first check to the report."""
    folder = run_folder(config)
    if resume:
        folders.check(folder, config, resume, allow_changes)  # a wrong name makes no folder
    with nullcontext() if rank() else folders.claimed(folder), mps.service(config):
        return _run(config, folder, resume, allow_changes, only, replay)


def _run(config: Config, folder: Path, resume: bool, allow_changes: bool, only: str | None, replay: str | None) -> int:
    started = time.time()
    quiet_libraries()
    groups = dict(enumerate((g for _, g in load(replay)), 1)) if replay else None
    if groups is not None:
        config = dataclasses.replace(config, run=dataclasses.replace(config.run, steps=len(groups)))
    where = sandbox(config) if groups is None else None
    # First of all, so that an unknown reward is said before anything is loaded; groups of a file have their scores.
    scoring: AbstractContextManager[Scorer | None] = make_scorer(config) if groups is None and not rank() else nullcontext()
    with scoring as scorer:
        if not resume:
            folders.check(folder, config, resume, allow_changes)
        tokenizer = load_tokenizer(config.model.path, config.model.trust_remote_code)
        task = load_task(config, tokenizer)
        if resume:
            folders.check_inputs(folder, task, allow_changes)
        counts = f"{len(task.train)} training questions, {len(task.heldout)} held out"
        print(f"{config.name}: {counts}, seed {config.run.seed}", flush=True)
        if config.learner == "trl":
            from recipes import trl_learner  # TRL, and with it vLLM, is imported for this alone

            if scorer is None or resume or only:
                raise ValueError("learner = 'trl' runs from its start to its end: it goes with no --resume, --only or --replay")
            return trl_learner.run(config, folder, task, tokenizer, scorer, started, evaluated)
        at_start(config, folder, task, tokenizer, scorer, learning=only is None, sampling=groups is None, resume=resume)
        if where:
            print(f"sandbox tier {where['tier']}" + (f" ({where['why']})" if where["why"] else ""), flush=True)
        torch.manual_seed(config.run.seed * 1_000_003 + rank())  # dropout's draws; sampling has seeds of its own
        engine = start_engine(config, folder, task, tokenizer, sampling=groups is None, learning=only is None)
        gc.collect()
        gc.freeze()  # what a run holds from its start to its end need not be looked at again and again while it samples
        took, device = time.time() - started, engine.learner.acc.device
        print(f"model, learner and sampler ready after {took:.0f} s on {device}", flush=True)
        try:
            if rank():
                engine.learner.ranks.follow()
                return 0
            if only == "rollout":
                return only_rollout(config, folder, task, engine, scorer)
            with stop.closed():  # but for where it samples and evaluates
                return climb(Climb(config, folder, task, tokenizer, engine, scorer, groups), started, resume)
        finally:
            if engine.sampler is not None:
                engine.sampler.close()
            engine.learner.ranks.end()
            engine.learner.acc.end_training()  # trackers write out what they hold; ends torch.distributed too: after the engine


@dataclass(frozen=True)
class Climb:
    """What a run is made of, once everything is ready. `groups`: to learn from in place of sampling."""

    config: Config
    folder: Path
    task: Task
    tokenizer: Any
    engine: Engine
    scorer: Scorer | None
    groups: Replay | None

    def evaluated(self, when: str, minutes: dict[str, float]) -> dict[str, Any] | None:
        return evaluated(self.config, self.folder, self.task, self.engine, self.scorer, when, minutes)


def climb(run: Climb, started: float, resume: bool) -> int:
    """Evaluate, train, evaluate, report."""
    config, folder, learner = run.config, run.folder, run.engine.learner
    minutes = {"setup": (time.time() - started) / 60}
    folders.record(folder, config, run.task)
    keeper = checkpoint.Keeper(folder / "checkpoints", learner, config.run)
    try:
        before = run.evaluated("before", minutes)
        state = resumed(config, keeper, run.engine) if resume else keeper.state
        begun, since = time.time(), state if resume else None
        while (since := trained(run, keeper, since)) is not None:
            pass
        minutes["train"] = (time.time() - begun) / 60
        save_final(learner, run.tokenizer, folder / "final")
        after = run.evaluated("after", minutes)
    except stop.Ended as ended:
        keeper.save()
        name, step = signal.Signals(ended.number).name, f"{keeper.state.step} of {config.run.steps}"
        print(f"{name}: saved after step {step}; go on with the same command and --resume", flush=True)
        return 0 if ended.number == signal.SIGTERM else 128 + ended.number
    minutes["total"] = (time.time() - started) / 60
    tree = result.result(config, config.run.steps, before, after, minutes, sandbox(config) if run.scorer else None)
    result.write_json(folder / "result.json", tree)
    page = write_report(folder)
    print(f"\n{result.line(tree)}\nmodel  {folder / 'final'}\nreport {page}", flush=True)
    return 0


def trained(run: Climb, keeper: checkpoint.Keeper, since: checkpoint.State | None) -> checkpoint.State | None:
    """The steps after `since` (None: a new run), to the end; or to a stop in place of which the run has gone back to what is returned."""
    config, folder, engine, scorer = run.config, run.folder, run.engine, run.scorer
    state, learner = since or keeper.state, engine.learner
    (folder / STOPPED).unlink(missing_ok=True)
    journal = Journal(folder, since.step if since else None)
    feed = make_feed(config, run.task, engine, scorer, state.step, state.cursor, run.groups)
    watch = Watch(config.guard, engine.tolerance.mean, state.guard, config.rollout.max_staleness if scorer else math.inf)
    street = Street(
        config, folder, feed, scorer, engine.sampler, learner, journal, watch, engine.tolerance.canary, engine.canaries, run.tokenizer,
        _say, keeper, make_probe(config, run.task, engine.sampler, scorer),
    )  # fmt: skip
    try:
        train(street, state.step)
    except (Stopped, SyncError, RewardFailed) as stopped:
        if (back := gone_back(config, keeper, engine, watch.rollbacks, stopped)) is not None:
            return back
        if learner.updates == keeper.state.updates:  # the weights are still the last whole step's
            with suppress(OSError):  # a full disk is not the reason, or says so itself
                keeper.save()
        with suppress(OSError):
            result.write_json(folder / STOPPED, {"reason": str(stopped)})
        with suppress(OSError):
            print(f"report {write_report(folder)}", flush=True)  # the page says how far it came, and why no further
        raise
    finally:
        feed.close()
        journal.close()
    return None


def resumed(config: Config, keeper: checkpoint.Keeper, engine: Engine) -> checkpoint.State:
    """Learner and sampler as the newest whole checkpoint has them; as they are where none was ever written."""
    state, damaged = keeper.load()
    for reason in damaged:
        print(f"checkpoint passed over: {reason}", flush=True)
    print(f"resumed after step {state.step} of {config.run.steps}", flush=True)
    slow_down(config, engine, state)
    learner = engine.learner
    if engine.sampler is not None:
        sync(learner.policy, engine.sampler, learner.updates, engine.canaries, engine.tolerance.canary, learner.acc.device)
    return state


def evaluated(
    config: Config, folder: Path, task: Task, engine: Engine, scorer: Scorer | None, when: str, minutes: dict[str, float]
) -> dict[str, Any] | None:
    """The held-out figures of the weights in the sampler; before.json is kept, so that a resumed run has it still."""
    kept = folder / f"{when}.json"
    if when == "before" and kept.exists():
        return json.loads(kept.read_text())
    if engine.sampler is None or scorer is None or not task.heldout:
        return None
    begun = time.time()
    e = config.evaluate
    with stop.opened():
        figures = evaluate(
            engine.sampler, task.heldout, scorer, samples=e.samples, temperature=e.temperature,
            max_tokens=e.max_tokens or config.rollout.max_tokens,
        )  # fmt: skip
    minutes[when] = (time.time() - begun) / 60
    result.write_json(kept, figures)
    print(f"{when:<6} {result.figures(figures)}  ({60 * minutes[when]:.0f} s)", flush=True)
    return figures


def only_rollout(config: Config, folder: Path, task: Task, engine: Engine, scorer: Scorer | None) -> int:
    """The rollout half alone: groups.jsonl with token ids, log-probs and scores, for --replay."""
    folder.mkdir(parents=True, exist_ok=True)
    path, feed = folder / "groups.jsonl", make_feed(config, task, engine, scorer, 0, 0, None)
    temporary = path.with_name(".groups.jsonl.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        for step in range(1, config.run.steps + 1):
            groups = feed.take(step, 0, metrics.Clock()).groups
            feed.learned(step)
            file.writelines(line + "\n" for line in dump(groups, step))
            print(f"{step}/{config.run.steps} reward {metrics.of_groups(groups)['reward']:.3f}", flush=True)
    temporary.replace(path)
    print(f"groups {path}", flush=True)
    return 0


def save_final(learner: Learner, tokenizer: Any, folder: Path) -> None:
    """The policy as transformers saves it, in the precision it was evaluated in; of adapters these alone, as peft saves them."""
    model = learner.policy.model
    dtype = torch.bfloat16 if learner.acc.device.type == "cuda" else torch.float32
    with checkpoint.whole(folder) as temporary:
        if adapters.attached(model):
            adapters.save(model, temporary, learner.fetch)
        else:
            save_model(model, {n: w.cpu() for n, w in learner.fetch(list(state_of(model)), dtype)}, dtype, temporary)
        tokenizer.save_pretrained(temporary)


def quiet_libraries() -> None:
    """Progress bars of libraries are not the user's run."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
