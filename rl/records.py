"""What flows down the street: Problem row -> Prompt -> Completion -> Group -> Row -> Batch. Everything is frozen.

Axes, used in names all over `rl/`:
  P prompts of a step        G completions of a group       S samples (completions) of a row
  L positions of a row       T completion tokens of a row   V vocabulary
A *row* is one packed sequence: per group the prompt once, then its completions. The T completion tokens are the ones a loss
is computed on, in the order in which they stand in the row. Tensors appear only in Row (made by `batch.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from rewards.score import Score

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """One question as the sampler gets it.

    >>> Prompt("gsm8k/train/7", (12, 40, 9), {"id": "gsm8k/train/7", "question": "2+2?", "gold": "4", "kind": "math"}).gold
    '4'
    """

    id: str
    ids: tuple[int, ...]  # the exact token ids given to the sampler and trained on
    problem: Mapping[str, Any]  # the data row: id, question, gold, kind, and free columns (steps, part, ...)

    @property
    def gold(self) -> str:
        return self.problem["gold"]


@dataclass(frozen=True)
class Sampling:
    """How to sample: `Sampling(n=8, max_tokens=128, temperature=1.0, seed=3)`; temperature 0 is greedy."""

    n: int
    max_tokens: int
    temperature: float = 1.0
    seed: int = 0
    top_p: float = 1.0  # nucleus: the fewest tokens that hold this mass; 1: all
    top_k: int = 0  # the k likeliest tokens, before top_p; 0: all
    experts: bool = False  # of mixture-of-experts models: tell each token's experts (Completion.experts)


@dataclass(frozen=True)
class Completion:
    """One sampled answer. `ids` include the end-of-sequence token when `finish == "stop"`.

    >>> c = Completion((5, 9, 2), (-0.1, -0.7, -0.01), "stop", "4", version=3)
    >>> c.tokens, c.truncated
    (3, False)
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]  # of the sampler, natural log, one a token of `ids`, temperature applied
    finish: str  # "stop" (end of sequence), "length" (token budget) or "loop" (ended early: it went round in a circle)
    text: str
    version: int  # of the weights that sampled its first token: the number of optimiser updates behind them
    switches: tuple[tuple[int, int], ...] = ()  # (token index, version from there on): weights that came while it was sampled
    # int16 [prompt + tokens - 1, layers with experts, experts of a token]: where the sampler's routers sent each position that went
    # through it, the prompt's and all but the last token's; -1: not known. None: a dense model, or nobody asked.
    experts: np.ndarray | None = field(default=None, compare=False, repr=False)

    @property
    def tokens(self) -> int:
        return len(self.ids)

    @property
    def truncated(self) -> bool:
        return self.finish != "stop"


@dataclass(frozen=True)
class Group:
    """G answers to one prompt, with one score each once they are scored.

    >>> p = Prompt("a", (1,), {"gold": "4"}); c = Completion((2,), (-0.5,), "stop", "4", 0)
    >>> Group(p, (c, c), (Score(1.0), Score(0.0))).rewards
    (1.0, 0.0)
    """

    prompt: Prompt
    completions: tuple[Completion, ...]
    scores: tuple[Score, ...] = ()

    @property
    def rewards(self) -> tuple[float | None, ...]:
        return tuple(s.value for s in self.scores)


@dataclass(frozen=True)
class Span:
    """Where one completion stands in a row: positions [start, stop), its prompt at [prompt_start, prompt_stop)."""

    start: int
    stop: int
    prompt_start: int
    prompt_stop: int


@dataclass(frozen=True)
class Row:
    """One packed row: the unit of one forward and backward pass.

    Worked example: a prompt (7, 8) with completions (1, 2) and (3,):
      ids_L       7 8 1 2 3        positions_L 0 1 2 3 2       (both completions continue the same prompt)
      targets_T   1 2 3            sources_T   1 2 1           (position whose hidden state predicts the target)
      samples_T   0 0 1            lengths_S   2 1
    `weights_T` sum the per-token losses to the loss of the whole step: they hold the global counts, so rows add up.
    """

    ids_L: Tensor  # int64
    positions_L: Tensor  # int64
    spans: tuple[Span, ...]  # one a sample
    sources_T: Tensor  # int64, into L
    targets_T: Tensor  # int64, token ids
    samples_T: Tensor  # int64, into S
    lengths_S: Tensor  # int64
    advantages_T: Tensor  # float32
    sampled_T: Tensor  # float32, the sampler's log-probs
    weights_T: Tensor  # float32, 0 where a sample is masked
    old_T: Tensor | None = None  # float32, the learner's log-probs before the first update; None: the current ones
    ref_T: Tensor | None = None  # float32, the reference model's log-probs
    experts_LMK: Tensor | None = None  # int16, the sampler's experts by layer; -1: the learner's own choice (routing.py)

    def to(self, device: Any) -> Row:
        """The row with its tensors on `device`."""
        moved = {f.name: v.to(device) for f in fields(self) if hasattr(v := getattr(self, f.name), "to")}
        return replace(self, **moved)


@dataclass(frozen=True)
class Batch:
    """One optimiser update: its rows and the counts that the loss was normalised with (global, over all ranks)."""

    rows: tuple[Row, ...]
    samples: int
    tokens: int
