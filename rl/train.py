"""The loop, on one screen: each line is a station of the street that a sample goes down (HOUSE: prompt -> ... -> weights v+1)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rewards.scorer import Scorer
from rl import checkpoint, metrics, stop
from rl.advantage import ADVANTAGES, one_each
from rl.ahead import staleness
from rl.config import Config, max_tokens_at
from rl.feed import Feed
from rl.guard import Stopped, Watch, check_rewards
from rl.guard_text import of_texts
from rl.judge import of_preference
from rl.learn import Learner
from rl.records import Prompt
from rl.report import Journal, console_line
from rl.rollout import RewardFailed
from rl.sampler import Sampler
from rl.sync import sync


@dataclass
class Street:
    """Everything a run drives, made by recipes/run.py. `sampler` and `scorer` None: scored groups come from a file (--replay)."""

    config: Config
    folder: Path
    feed: Feed
    scorer: Scorer | None
    sampler: Sampler | None
    learner: Learner
    journal: Journal
    watch: Watch
    tolerance: float  # of the canaries' log-probs after a sync, nats
    canaries: Sequence[Prompt]  # fixed prompts for the proof after each sync
    tokenizer: Any
    say: Callable[[str], None]
    keeper: checkpoint.Keeper
    probe: Callable[[], list[float]] | None = None  # accuracy on each of a few held-out problems, of the weights in the sampler

    @property
    def device(self) -> torch.device:
        return self.learner.acc.device


def train(street: Street, done: int = 0) -> None:
    """Steps done+1 .. run.steps. Raises guard.Stopped, sync.SyncError or rollout.RewardFailed with the reason."""
    s, config = street, street.config
    started = metrics.Clock()
    for source in (s.scorer, s.sampler):
        if source:
            source.stats()  # what the evaluation took is not the first step's
    with s.feed.pause():
        probed = _probed(s, done + 1, metrics.Clock())
    for step in range(done + 1, config.run.steps + 1):
        clock = metrics.Clock()
        try:
            with stop.opened():  # from here to the next step's sampling a run is not left
                made = s.feed.take(step, s.learner.updates, clock)
        except RewardFailed as failed:  # what it raised on must be seen
            s.journal.rollouts(step, failed.groups, [[None] * len(g.scores) for g in failed.groups], s.tokenizer.decode)
            raise
        groups, ages = made.groups, staleness(made.groups, s.learner.updates, updates_a_step(config))
        if s.sampler is not None:
            s.sampler.rest()
        with clock("reward"):
            check_rewards(groups)
            of = one_each if config.teacher.path else ADVANTAGES[config.algorithm.advantage]
            advantages = [of(g.rewards) for g in groups]
        with clock("learn"):
            try:
                learned = s.learner.step(groups, advantages, max_tokens_at(config, step))
            except FloatingPointError as error:
                raise Stopped(str(error), "nan") from None
        with ExitStack() as held:
            with clock("rollout"):  # one that samples ahead is waited for
                held.enter_context(s.feed.pause())
            with clock("sync"):
                if s.sampler is not None:
                    learned["canary"] = sync(s.learner.policy, s.sampler, s.learner.updates, s.canaries, s.tolerance, s.device)
            next_probed = _probed(s, step + 1, clock)
        s.feed.learned(step)
        numbers = (
            {"step": step}
            | metrics.of_groups(groups)
            | of_texts(groups)
            | of_preference(groups, config.rewards)
            | ages
            | made.numbers
            | learned
            | probed
        )
        probed = next_probed
        numbers |= clock.seconds | {"seconds": clock.total()}
        for source in (s.scorer, s.sampler):
            numbers |= source.stats() if source else {}
        numbers["tokens_per_s"] = numbers["tokens"] / numbers["seconds"]
        numbers["eta_s"] = started.total() / (step - done) * (config.run.steps - step)
        if step in (1, config.run.steps) or step % config.run.rollouts_every == 0:
            s.journal.rollouts(step, groups, advantages, s.tokenizer.decode)
        s.journal.step(numbers)
        s.say(console_line(numbers, step, config.run.steps))
        s.learner.acc.log(_scalars(numbers), step=step)
        every = config.algorithm.reference_every
        if every and step % every == 0:
            s.learner.replace_reference()
        try:
            for warning in s.watch.check(numbers | room(s.folder)):
                s.say(f"warning: {warning}")
        finally:  # a step that is stopped for is a whole one, too
            s.keeper.note(checkpoint.State(step, s.learner.updates, s.watch.memory(), made.cursor), numbers)
        s.keeper.due(s.watch.healthy or not config.guard.rollbacks)  # a run that may go back keeps what it would go back to


def _probed(s: Street, step: int, clock: metrics.Clock) -> dict[str, Any]:
    """Held-out accuracy under the weights that sample for `step`, where it is time to look: so it stands beside the reward they earn."""
    every = s.config.guard.probe_every
    if s.probe is None or not every or (step > 1 and step % every) or step > s.config.run.steps:
        return {}
    with clock("probe"):
        right = s.probe()
    return {"heldout": sum(right) / len(right), "heldout_right": right}


def room(folder: Path) -> dict[str, float]:
    """Free bytes where the run writes, and those of its largest checkpoint so far."""
    sizes = [sum(f.stat().st_size for f in p.iterdir()) for p in (folder / "checkpoints").glob("step-*")]
    return {"disk_free": float(shutil.disk_usage(folder).free), "checkpoint_bytes": float(max(sizes, default=0))}


def updates_a_step(config: Config) -> int:
    return config.algorithm.minibatches * config.algorithm.inner_epochs


def _scalars(numbers: dict[str, Any]) -> dict[str, float]:
    return {k: v for k, v in numbers.items() if isinstance(v, int | float)}
