"""The groups of each step, in the order of the data: sampled when the learner asks, or ahead of it within a bound.

Which prompts a step gets is a matter of the order alone, never of who finished first: with `rollout.refill`, the first P groups *in the
order* whose rewards differ (DAPO's dynamic sampling, arXiv 2503.14476, section 3.2); everything before the last of them has been waited
for. So answers that take long are as likely to be learned from as short ones. `cursor` is the position in the order up to which every
prompt has been used or judged useless; it is all a checkpoint needs, for what lies behind it is sampled again.

With refill and a reward pool the moment at which a refill begins depends on when scores arrive, so such a run does not repeat bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

from rewards.scorer import Pending, RewardError, Scorer
from rl.advantage import zero_variance
from rl.config import Config, max_tokens_at
from rl.data import Order
from rl.metrics import Clock
from rl.records import Group, Prompt, Sampling
from rl.rollout import scored_rollout
from rl.sampler import Sampler


@dataclass(frozen=True)
class Made:
    """What one step learns from."""

    groups: list[Group]
    cursor: int  # of the order, after this step
    numbers: dict[str, float] = field(default_factory=dict)  # for the step's metrics


class Maker:
    """Samples and scores the groups of a step. Used by one thread at a time."""

    def __init__(self, config: Config, sampler: Sampler, scorer: Scorer, prompts: Sequence[Prompt], order: Order) -> None:
        self.config, self.sampler, self.scorer, self.prompts, self.order = config, sampler, scorer, prompts, order
        self.spare: dict[int, Group] = {}  # finished groups behind the cursor, by position (rollout.oversample)

    def make(self, step: int, cursor: int, clock: Clock | None = None) -> Made:
        """The groups of `step`, from position `cursor` on. Raises rollout.RewardFailed, guard.Stopped."""
        r, clock = self.config.rollout, clock or Clock()
        refused = self._drop_old(step)
        wave = _Wave(self, cursor)
        groups = dict(self.spare)
        positions = [p for p in wave.positions if p not in groups]
        while positions:
            chosen, known = [self._prompt(p) for p in positions], len(wave.positions)
            sampled = scored_rollout(
                self.sampler, chosen, sampling(self.config, step), self.scorer, clock, wave.more if r.refill else None
            )
            groups |= dict(zip(positions + wave.positions[known:], sampled, strict=True))
            # Scores that came after the last sample may have found more that teaches nothing.
            positions = wave.missing(groups) if r.refill else []
        made = self._select(groups, wave)
        return replace(made, numbers=made.numbers | {"groups_refused": float(refused)}) if refused else made

    def _drop_old(self, step: int) -> int:
        """Spare groups that the learner of `step` would refuse are sampled anew; returns how many."""
        c = self.config
        oldest = (step - 1 - c.rollout.max_staleness) * c.algorithm.minibatches * c.algorithm.inner_epochs
        fresh = {p: g for p, g in self.spare.items() if min(c.version for c in g.completions) >= oldest}
        dropped, self.spare = len(self.spare) - len(fresh), fresh
        return dropped

    def again(self, step: int, groups: Sequence[Group]) -> list[Group]:
        """The same prompts under the weights of now."""
        return scored_rollout(self.sampler, [g.prompt for g in groups], sampling(self.config, step), self.scorer)

    def _prompt(self, position: int) -> Prompt:
        return self.prompts[self.order.take(position, 1)[0]]

    def _select(self, groups: dict[int, Group], wave: _Wave) -> Made:
        wanted, refill = self.config.rollout.prompts, bool(self.config.rollout.refill)
        positions = sorted(groups)
        useful = [p for p in positions if not refill or not zero_variance(groups[p].rewards)]
        idle = sorted(set(positions) - set(useful))
        if len(useful) >= wanted:
            kept = useful[:wanted]
            cursor = kept[-1] + 1
        else:  # the budget is spent: the step keeps its size, the rest carries no gradient
            kept, cursor = sorted(useful + idle[: wanted - len(useful)]), positions[-1] + 1
        self.spare = {p: groups[p] for p in positions if p >= cursor}
        numbers: dict[str, float] = {}
        if refill:
            before = [p for p in positions if p < cursor]
            numbers = {
                "refilled": float(len(wave.positions) - wave.begun),
                "groups_wasted": float(len(before) - len(kept)),
                "zero_variance_sampled": sum(p < cursor for p in idle) / len(before),
            }
        return Made([groups[p] for p in kept], cursor, numbers)


class _Wave:
    """The positions that one step samples; grows as groups turn out to teach nothing, up to the budget."""

    def __init__(self, maker: Maker, cursor: int) -> None:
        r = maker.config.rollout
        self.maker, self.wanted = maker, r.prompts
        begun = r.prompts + math.ceil(r.prompts * r.oversample)
        self.most = begun + math.floor(r.prompts * r.refill)
        self.positions = list(range(cursor, max([cursor + begun, *(p + 1 for p in maker.spare)])))
        self.begun = len(self.positions)
        self.useless = sum(zero_variance(g.rewards) for g in maker.spare.values())
        self.waiting: list[Sequence[Pending]] = []

    def more(self, scores: Sequence[Pending]) -> list[Prompt]:
        """A group is finished; which prompts take the place of those that are known to teach nothing."""
        self.waiting.append(scores)
        ready = [s for s in self.waiting if all(p.done() for p in s)]
        self.waiting = [s for s in self.waiting if not any(s is r for r in ready)]
        self.useless += sum(_useless(s) for s in ready)
        return [self.maker._prompt(p) for p in self._grow(self.wanted + self.useless)]

    def missing(self, groups: Mapping[int, Group]) -> list[int]:
        """Positions to sample in a further round."""
        self.useless, self.waiting = sum(zero_variance(g.rewards) for g in groups.values()), []
        return self._grow(self.wanted + self.useless)

    def _grow(self, wanted: int) -> list[int]:
        count = len(self.positions)
        new = list(range(self.positions[0] + count, self.positions[0] + max(count, min(wanted, self.most))))
        self.positions += new
        return new


def _useless(scores: Sequence[Pending]) -> bool:
    try:
        return zero_variance([p.result().value for p in scores])
    except RewardError:
        return False  # said when the groups are put together


def sampling(config: Config, step: int) -> Sampling:
    """A seed of its own for every step: what a resumed run samples does not depend on what came before."""
    r = config.rollout
    seed = config.run.seed * 1_000_003 + step
    return Sampling(r.group, max_tokens_at(config, step), r.temperature, seed, r.top_p, r.top_k, config.model.routing_replay)


class Feed(Protocol):
    """Where a learner's groups come from."""

    cursor: int  # after the step that was taken last

    def take(self, step: int, version: int, clock: Clock) -> Made:
        """The groups of `step` for a learner at weights `version`. Raises rollout.RewardFailed, guard.Stopped."""
        ...

    def pause(self) -> AbstractContextManager[None]:
        """While new weights are sent and proven."""
        ...

    def learned(self, step: int) -> None:
        """The learner has done `step`, and the samplers have its weights."""
        ...

    def close(self) -> None: ...


class _NothingAhead:
    """A feed that makes nothing beside the learner has nothing to hold back."""

    @contextmanager
    def pause(self) -> Iterator[None]:
        yield

    def learned(self, step: int) -> None:
        pass

    def close(self) -> None:
        pass


class InTurn(_NothingAhead):
    """Sampling and learning in turn: strictly on-policy."""

    def __init__(self, maker: Maker, cursor: int) -> None:
        self.maker, self.cursor = maker, cursor

    def take(self, step: int, version: int, clock: Clock) -> Made:
        made = self.maker.make(step, self.cursor, clock)
        self.cursor = made.cursor
        return made


class Replay(_NothingAhead):
    """Groups of a file."""

    def __init__(self, groups: dict[int, list[Group]]) -> None:
        self.groups, self.cursor = groups, 0

    def take(self, step: int, version: int, clock: Clock) -> Made:
        return Made(self.groups[step], 0)
