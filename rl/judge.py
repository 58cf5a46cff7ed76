"""A preference reward model in the loop: answers judged in batches, several dimensions with weights, its hold on the reward in sight.

DeepSeek-R1's second reinforcement stage (Nature s41586-025-09422-z) adds reward models on general data to the rules: helpfulness looks at
the answer only, harmlessness and readability at the whole response. recipes/reward_model.py trains one; a recipe names its folder:

    [rewards.preference]
    model = "runs/preference"   # judge.json and a folder a dimension
    weight = 0.5
    kinds = ["general"]         # rules judge the rest

  z_d(x)  = (r_d(x) - mean_d) / std_d     of dimension d, in standard deviations of the answers it was trained on: 0 is a usual one
  score   = sum_d w_d z_d(x) / sum_d w_d, bounded to [-bound, bound]: what no training answer earned is not to be looked for

Rules are scored where the recipe says; the model here, on the learner's device, all answers that wait at once. What it does to a run is
measured each step (`of_preference`) and judged by the guard "preference" (guard_rules.py).
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rewards.score import Sampled, Score
from rewards.scorer import Pending, RewardError, Scorer
from rl.records import Group

FILE, NAME = "judge.json", "preference"
TOKENS = 16_384  # of a batch, padding counted


@dataclass(frozen=True)
class Dimension:
    """One model of a judge, as judge.json has it."""

    name: str
    weight: float
    part: str  # "all": the whole response; "answer": what follows </think>
    mean: float
    std: float


def judged_text(question: str, response: str, part: str = "all") -> str:
    """What a model of preferences reads, in training as in the loop.

    >>> judged_text("2+2?", "<think>2 and 2</think> 4", "answer")
    '2+2?\\n\\n4'
    """
    return f"{question}\n\n{response.rpartition('</think>')[2].strip() if part == 'answer' else response.strip()}"


class Judge:
    """The models of a folder. Loaded when they are first asked."""

    def __init__(self, folder: str | Path, bound: float = 3.0) -> None:
        self.folder, self.bound = Path(folder), bound
        try:
            tree = json.loads((self.folder / FILE).read_text(encoding="utf-8"))
            self.dimensions = [
                Dimension(name, d["weight"], d["part"], d["mean"], d["std"]) for name, d in tree["dimensions"].items()
            ]
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"rewards.preference.model = {str(folder)!r}: no {FILE} of recipes/reward_model.py there ({error!r}); train one, or "
                "name a function of your own as module:function"
            ) from None
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.loaded: dict[str, tuple[Any, Any]] = {}

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[float | None]:
        """The score of each (question, response); None for one that is longer than a model's context."""
        weights = sum(d.weight for d in self.dimensions)
        by_dimension = [self.raw(d.name, [judged_text(q, r, d.part) for q, r in pairs]) for d in self.dimensions]
        return [
            None if None in raws else max(-self.bound, min(self.bound, sum(
                d.weight * (raw - d.mean) / d.std for d, raw in zip(self.dimensions, raws, strict=True) if raw is not None
            ) / weights))
            for raws in zip(*by_dimension, strict=True)
        ]  # fmt: skip

    @torch.no_grad()
    def raw(self, name: str, texts: Sequence[str]) -> list[float | None]:
        """One model's own scores, before they are put on a common scale; longest texts first, so that batches hold little padding."""
        model, tokenizer = self._model(name)
        ids = tokenizer(list(texts))["input_ids"] if texts else []
        found: list[float | None] = [None] * len(texts)
        order = [
            i
            for i in sorted(range(len(ids)), key=lambda i: -len(ids[i]))
            if len(ids[i]) <= model.config.max_position_embeddings
        ]
        while order:
            batch, order = order[: (most := max(1, TOKENS // len(ids[order[0]])))], order[most:]
            width = len(ids[batch[0]])
            padded = torch.tensor(
                [ids[i] + [tokenizer.pad_token_id] * (width - len(ids[i])) for i in batch], device=self.device
            )
            kept = torch.tensor([[1] * len(ids[i]) + [0] * (width - len(ids[i])) for i in batch], device=self.device)
            # The score at the last token, whatever the padding is called.
            hidden = model.base_model(input_ids=padded, attention_mask=kept).last_hidden_state
            last = hidden[torch.arange(len(batch), device=self.device), kept.sum(1) - 1]
            for i, value in zip(batch, model.score(last)[:, 0].float().tolist(), strict=True):
                found[i] = value
        return found

    def _model(self, name: str) -> tuple[Any, Any]:
        if name not in self.loaded:
            folder = str(self.folder / name)
            dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
            model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype).to(self.device).eval()
            tokenizer = AutoTokenizer.from_pretrained(folder)
            self.loaded[name] = model, tokenizer
        return self.loaded[name]


class Judged:
    """A scorer of rules with a judge beside it: `entry` is the recipe's [rewards.preference]. Raises ValueError for one that cannot be."""

    def __init__(self, rules: Scorer | None, entry: Mapping[str, Any]) -> None:
        known = ("model", "weight", "kinds", "gate", "bound")
        if other := [key for key in entry if key not in known]:
            raise ValueError(
                f"rewards.preference has no option {other[0]!r} with a model's folder; it takes {', '.join(known)}"
            )
        self.rules, self.judge = rules, Judge(entry["model"], float(entry.get("bound", 3.0)))
        self.weight, self.kinds, self.gate = float(entry.get("weight", 1.0)), entry.get("kinds"), entry.get("gate")
        self.lock, self.waiting, self.seconds = threading.Lock(), list[_Pending](), 0.0

    def __enter__(self) -> Judged:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, completion: Sampled, problem: Mapping[str, Any]) -> Pending:
        rules = self.rules.submit(completion, problem) if self.rules else None
        pending = _Pending(self, rules, problem, completion.text)
        if pending.judged:
            with self.lock:
                self.waiting.append(pending)
        return pending

    def flush(self) -> None:
        """Judge all that waits. Raises RewardError: a model that does not answer must be seen."""
        with self.lock:
            waiting, self.waiting = self.waiting, []
            begun = time.perf_counter()
            try:
                values = self.judge.score([(p.problem["question"], p.text) for p in waiting])
            except (RuntimeError, OSError, ValueError) as error:
                raise RewardError(f"preference: {type(error).__name__}: {error}"[:2000]) from error
            for pending, value in zip(waiting, values, strict=True):
                pending.value, pending.known = value, True
            self.seconds += time.perf_counter() - begun

    def stats(self) -> dict[str, float]:
        taken, self.seconds = self.seconds, 0.0
        return (self.rules.stats() if self.rules else {}) | {"seconds_preference": taken}

    def close(self) -> None:
        if self.rules:
            self.rules.close()


class _Pending:
    """A score to come: the rules', and the judge's once it has been asked."""

    def __init__(self, owner: Judged, rules: Pending | None, problem: Mapping[str, Any], text: str) -> None:
        self.owner, self.rules, self.problem, self.text = owner, rules, problem, text
        self.judged = owner.kinds is None or problem.get("kind") in owner.kinds
        self.value: float | None = None
        self.known = False

    def done(self) -> bool:
        return self.rules is None or self.rules.done()

    def result(self) -> Score:
        score = self.rules.result() if self.rules else Score(0.0)
        if not self.judged:
            return score
        if not self.known:
            self.owner.flush()
        if self.value is None:
            return Score(None, score.parts, f"{score.reason}; no preference: longer than the model's context")
        parts, said = {**score.parts, NAME: self.value}, f"{score.reason}; preference {self.value:+.2f}".removeprefix("; ")
        if score.value is None or (self.owner.gate and score.parts.get(self.owner.gate) != 1.0):
            return Score(score.value, parts, said)
        return Score(score.value + self.owner.weight * self.value, parts, said)


def of_preference(groups: Sequence[Group], rewards: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """What the judge does to a step; {} where none judges. Over the answers it judged, r rewards, p its part, n lengths in tokens:

    preference_drift   mean p: standard deviations from the answers that it was trained on
    preference_share   sum cov(weight p, r) / sum var(r), both within groups: its share of what the advantages are made of
    preference_length  correlation of p with n within groups: how far it simply pays for length
    preference_rest    mean r - weight p: what everything else pays for the same answers
    """
    if NAME not in rewards:
        return {}
    weight = float(rewards[NAME].get("weight", 1.0))
    made = [
        [(s.parts[NAME], s.value or 0.0, float(c.tokens)) for c, s in zip(g.completions, g.scores, strict=True) if _judged(s)]
        for g in groups
    ]
    every = [x for group in made for x in group]
    if not every:
        return {}
    p_r, r_r, p_p, p_n, n_n = (sum(_cov(g, a, b) for g in made) for a, b in ((0, 1), (1, 1), (0, 0), (0, 2), (2, 2)))
    return {
        "preference_drift": math.fsum(p for p, _, _ in every) / len(every),
        "preference_share": weight * p_r / r_r if r_r > 0 else 0.0,
        "preference_length": p_n / math.sqrt(p_p * n_n) if p_p * n_n > 0 else 0.0,
        "preference_rest": math.fsum(r - weight * p for p, r, _ in every) / len(every),
        "preference_tokens": math.fsum(n for _, _, n in every) / len(every),
    }


def _judged(score: Score) -> bool:
    return score.value is not None and NAME in score.parts


def _cov(group: Sequence[tuple[float, ...]], a: int, b: int) -> float:
    """Sum of products of deviations from the group's means."""
    if not group:
        return 0.0
    means = [math.fsum(x[i] for x in group) / len(group) for i in (a, b)]
    return math.fsum((x[a] - means[0]) * (x[b] - means[1]) for x in group)
