"""Back to the last healthy checkpoint with a lower learning rate, in place of a stop (guard.rollbacks, guard.rollback_lr).

Only for what a lower rate may cure: a policy that fell apart. What a step shows are the weights that the step before left, so the last
checkpoint that is known to be healthy is of two steps before the first bad one. While a guard warns such a run saves none, so that it is
still there (run.keep >= 2). How often a run went back stands in its checkpoints, and a resumed run learns at the lower rate.
"""

from __future__ import annotations

import json
from dataclasses import replace

from recipes.street import Engine
from rl.checkpoint import STATE, Keeper, State
from rl.config import Config
from rl.guard import Stopped
from rl.sync import sync

CURABLE = ("nan", "entropy", "repetition", "language", "format", "kl", "length", "hacking")


def gone_back(config: Config, keeper: Keeper, engine: Engine, times: int, stopped: Exception) -> State | None:
    """Learner and sampler as they were in health, and that state; None where the run has to stop. `times` it has gone back already."""
    guard = config.guard
    if not isinstance(stopped, Stopped) or stopped.guard not in CURABLE or times >= guard.rollbacks:
        return None
    bad = keeper.state.guard.get("streaks", {}).get(stopped.guard, 0) * (guard.probe_every if stopped.guard == "hacking" else 1)
    last = keeper.state.step - bad - 1
    healthy = [step for step in steps(keeper) if step <= last]
    if not healthy:
        return None
    state, _ = keeper.load(healthy[-1])
    keeper.state = state = replace(state, guard={**state.guard, "rollbacks": times + 1})
    slow_down(config, engine, state)
    learner = engine.learner
    if engine.sampler is not None:
        sync(learner.policy, engine.sampler, learner.updates, engine.canaries, engine.tolerance.canary, learner.acc.device)
    rate = guard.rollback_lr ** (times + 1)
    told = f"gone back to step {state.step}, learn.lr times {rate:g} from there ({times + 1} of {guard.rollbacks} times)"
    print(f"{told}: {stopped}", flush=True)
    return state


def steps(keeper: Keeper) -> list[int]:
    """Of the checkpoints that were saved in health."""
    found = sorted(keeper.folder.glob("step-*"))
    return [
        int(p.name.removeprefix("step-")) for p in found if not json.loads((p / STATE).read_bytes())["guard"].get("streaks")
    ]


def slow_down(config: Config, engine: Engine, state: State) -> None:
    """The learning rate of a run that has gone back, on every rank."""
    if times := state.guard.get("rollbacks", 0):
        engine.learner.ranks.together("rate", config.guard.rollback_lr**times)
