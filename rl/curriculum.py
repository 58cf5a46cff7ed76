"""From easy to hard: each epoch in the order of pass rates that were measured before.

The rates are those of a file: `groups.jsonl` of `--only rollout` (the mean of "accuracy" or "code" over a prompt's samples), or lines
{"id": ..., "pass_rate": ..., "samples": ...} of one's own. Prompts are put into a few buckets by rate and shuffled inside each, anew in
every epoch, so the order is still a function of (seed, position) alone and a resume is exact, as long as the file stays what it is.

What differs from others: Kimi k1.5 (arXiv 2501.12599, section 2.3.4) goes from easy to hard by labelled difficulty and draws by measured
success; Light-R1 (arXiv 2503.10460) trains in stages of rising difficulty; Skywork-OR1 (arXiv 2505.22312) drops prompts that are always
or never right. Here nothing is dropped: prompts that 8 samples or more found always or never right come last, for a group whose rewards
are all equal has no gradient; by then the policy may have changed.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rl.records import Prompt

BUCKETS = 4  # of like size, easy to hard; a further one for what teaches nothing yet
SURE = 8  # samples from which on "always" and "never" are believed
RIGHT = ("accuracy", "code")  # the parts that say that an answer, or a program, is right


@dataclass(frozen=True)
class Rate:
    """How often a prompt was answered rightly: `Rate(0.25, 8)`."""

    value: float
    samples: int

    @property
    def settled(self) -> bool:
        return self.samples >= SURE and self.value in (0.0, 1.0)


def read(path: str | Path) -> dict[str, Rate]:
    """Pass rates by prompt id. Raises ValueError in one line for a file that has none."""
    right: dict[str, list[float]] = defaultdict(list)
    rates: dict[str, Rate] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")  # not splitlines: JSON does not escape U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"data.curriculum = {str(path)!r}: cannot be read: {error}") from None
    for n, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            tree = json.loads(line)
            if "pass_rate" in tree:
                rates[str(tree["id"])] = _given(tree)
            else:
                right[tree["prompt"]["id"]] += _judged(tree["scores"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"data.curriculum = {str(path)!r}, line {n}: neither a group of --only rollout nor an id with a pass_rate from 0 to 1 "
                f"({error!r})"
            ) from None
    return rates | {name: Rate(sum(r) / len(r), len(r)) for name, r in right.items() if r}


def _given(tree: Mapping[str, Any]) -> Rate:
    value = float(tree["pass_rate"])
    if not 0 <= value <= 1:
        raise ValueError(f"pass_rate {value}")
    return Rate(value, int(tree.get("samples", SURE)))


def _judged(scores: Sequence[Mapping[str, Any]]) -> list[float]:
    """1.0 or 0.0 for each sample that was judged; one without a verdict says nothing about the prompt."""
    parts = [s["parts"] for s in scores if s["value"] is not None]
    return [float(any(p.get(name) == 1.0 for name in RIGHT)) for p in parts if any(name in p for name in RIGHT)]


def buckets(prompts: Sequence[Prompt], rates: Mapping[str, Rate]) -> list[list[int]]:
    """Indices of the prompts, easy buckets first; equal rates share one. A prompt without a rate counts as the median.

    >>> three = [Prompt(name, (1,), {}) for name in "abc"]
    >>> buckets(three, {"a": Rate(0.2, 4), "b": Rate(0.9, 4), "c": Rate(1.0, 8)})
    [[1], [0], [2]]
    """
    known = {i: rates[p.id] for i, p in enumerate(prompts) if p.id in rates}
    learnable = [r.value for r in known.values() if not r.settled]
    middle = Rate(median(learnable or [0.5]), 0)
    of = [known.get(i, middle) for i in range(len(prompts))]
    ranked = sorted(-r.value for r in of if not r.settled)
    easier = {value: i for i, value in reversed(list(enumerate(ranked)))}  # how many are easier than this rate
    parts: list[list[int]] = [[] for _ in range(BUCKETS + 1)]
    for i, r in enumerate(of):
        parts[BUCKETS if r.settled else BUCKETS * easier[-r.value] // len(ranked)].append(i)
    return [part for part in parts if part]


def load(path: str | Path, prompts: Sequence[Prompt]) -> tuple[list[list[int]], str]:
    """The buckets by a file's rates, and in one line what came of it. Raises ValueError."""
    rates = read(path)
    known = [rates[p.id] for p in prompts if p.id in rates]
    if not known:
        theirs = f"its first is {next(iter(rates))!r}" if rates else "it holds no judged sample"
        raise ValueError(
            f"data.curriculum = {str(path)!r}: a pass rate for none of the {len(prompts)} training prompts ({theirs}, ours "
            f"{prompts[0].id!r}); measure them with --only rollout on the same data.train"
        )
    made = buckets(prompts, rates)
    told = f"curriculum: {len(prompts)} prompts in {len(made)} parts, easy to hard"
    if settled := sum(r.settled for r in known):
        told += f"; {settled} always or never right come last"
    if missing := len(prompts) - len(known):
        told += f"; {missing} without a pass rate count as the median"
    return made, told
