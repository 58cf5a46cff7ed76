"""What a reward is: a function of (completion, problem) that returns a Score.

`completion` is anything with `.text`, `.tokens` and `.truncated` (see `Sampled`); `problem` is the mapping of one data row:
`id`, `question`, `gold`, `kind` and whatever else the row carries. No torch in this package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


class Sampled(Protocol):
    """The part of a completion that a reward may look at."""

    @property
    def text(self) -> str: ...
    @property
    def tokens(self) -> int: ...
    @property
    def truncated(self) -> bool: ...


@dataclass(frozen=True)
class Text:
    """A completion that is only text: `Text("<think>2+2</think> <answer>4</answer>", tokens=12)`."""

    text: str
    tokens: int = 0
    truncated: bool = False


@dataclass(frozen=True)
class Score:
    """One verdict.

    `value` is the reward; None says that no verdict was possible (a worker died, a sandbox was unavailable): such a sample
    is masked out of the update and counted, it is never a zero. `parts` holds every reward under its own name before
    weighting, `reason` says in a few words why.

    >>> Score(1.2, {"accuracy": 1.0, "format": 1.0}, "right: 42")
    Score(value=1.2, parts={'accuracy': 1.0, 'format': 1.0}, reason='right: 42')
    """

    value: float | None
    parts: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""


Reward = Callable[[Sampled, Mapping[str, Any]], Score]
