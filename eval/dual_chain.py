"""Two chains to an answer: rules where they can check one sample, a vote of k samples elsewhere. `python -m eval.dual_chain DIR TASK`.

1. The rule chain looks at the first sample only. Its check is `arithmetic`: the equations in the text are evaluated, all must hold,
   and the last one's value must be the answer; or `verified`: any reward as a verifier, such as unit tests of a program. When the
   check passes, that answer is given at the cost of one sample.
2. Otherwise the model chain takes all k samples: the majority's answer, with its share of the k votes as confidence. From `threshold`
   on it is given, below it the question stays unanswered. A tie counts as the mean over its answers.
Pure over stored samples. Expressions are read and evaluated by rewards/math_parse.py and math_eval.py, whose cost is bounded
beforehand; no model-written text reaches eval or sympify.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from eval.estimators import mean_of_questions
from eval.figures import right_PG, samples_of, votes
from eval.intervals import ratio_of_means
from eval.paired import difference_interval
from eval.records import Answered, Sampled, read_samples
from rewards.math_eval import exact
from rewards.math_parse import parse
from rewards.math_tokens import MathError
from rewards.score import Reward

MAX_TEXT, MAX_SIDE, MAX_EQUATIONS = 50_000, 300, 300
_COMMAND = r"\\(?:[dt]?frac|times|cdot|div|left|right|sqrt|[][(),;!% $])"
_RUN = re.compile(rf"(?:{_COMMAND}|(?<![A-Za-z])[xX](?=\s*\d)|[\d\s.,+*/()^=$%{{}}×÷·−–-])+")
_OPERATOR = re.compile(r"(?<=[\d)}%])\s*(?:[+*/^×÷·−–xX-]|\\(?:times|cdot|div))|\\(?:[dt]?frac|sqrt)")
_NUMBERED = re.compile(r"^\s*\d+[.)]\s+(?=[\d($\\])")
_PART = re.compile(r"\n|;|,(?!\d{3}(?!\d))|\.(?!\d)|\\[][()]")  # ends a sentence, a formula or an item of a list
_DECIMALS = re.compile(r"\.(\d+)\D*$")


@dataclass(frozen=True)
class Checked:
    """What the rule chain found in one sample: whether it vouches for the answer, its own value, and equations that hold."""

    passes: bool
    value: str = ""
    held: int = 0
    found: int = 0


Check = Callable[[Answered, Sampled], Checked]


def arithmetic(question: Answered, sample: Sampled) -> Checked:
    """All equations of the text hold and the last one gives the answer; see point 1."""
    found = equations(sample.text)
    held = sum(ok for _, ok in found)
    if not found:
        return Checked(False)
    last, answer = found[-1][0], _value(sample.answer)
    passes = held == len(found) and not sample.truncated and last == answer
    return Checked(passes, str(last), held, len(found))


def verified(reward: Reward, rows: Mapping[str, Mapping[str, Any]]) -> Check:
    """A reward as the rule chain: it vouches where its value is 1. `rows` are the problems by question id, with what may be known
    before the gold is: for a program the tests that its task shows."""

    def check(question: Answered, sample: Sampled) -> Checked:
        score = reward(sample, rows[question.id])
        return Checked(score.value == 1.0, sample.answer, int(score.value == 1.0), 1)

    return check


def equations(text: str) -> list[tuple[Fraction, bool]]:
    """Every `expression = value` of a text: the value of its first side, and whether all its sides are the same number.

    A side of numbers only; a decimal may round the value. What cannot be read is no equation.

    >>> equations("He eats 16 - 3 - 4 = 9 eggs, so 9 * 2 = $18. Then 10/4 = 3")
    [(Fraction(9, 1), True), (Fraction(18, 1), True), (Fraction(5, 2), False)]
    """
    found: list[tuple[Fraction, bool]] = []
    text = text[-MAX_TEXT:]
    for run in _RUN.finditer(text):
        word = run.start() > 0 and text[run.start() - 1].isalnum()  # stands before the first part
        for i, part in enumerate(_PART.split(_NUMBERED.sub("", run[0])) if "=" in run[0] else ()):
            if "=" in part and (equation := _equation(part, word and i == 0)) is not None:
                found.append(equation)
    return found[-MAX_EQUATIONS:]


def _equation(part: str, word: bool) -> tuple[Fraction, bool] | None:
    """`word`: one stands before it, so `f(3) = 9` begins behind its sign and `apples - 4 = 6` is none."""
    sides = [side.strip(" \t$") for side in part.lstrip(") ").split("=")]
    named = word and not part[0].isspace() and part[0] != ")"
    sides = sides[named or not sides[0] :]
    if len(sides) < 2 or not any(_OPERATOR.search(side) for side in sides):
        return None
    if re.match(r"[+*/^×÷·xX%]", sides[0]) or (word and not named and sides[0][0] in "-−–"):
        return None
    values = [_value(side) for side in sides]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return known[0], all(_same(known[0], value, side) for value, side in zip(known[1:], sides[1:], strict=True))


def _value(text: str) -> Fraction | None:
    """The rational value of a text, or None; its cost is bounded by the reader."""
    if not text or len(text) > MAX_SIDE:
        return None
    try:
        return exact(parse(re.sub(r"(?<=[\d)\s])[xX](?=\s*[\d(])", "*", text)))
    except (MathError, RecursionError):
        return None


def _same(value: Fraction, other: Fraction, written: str) -> bool:
    """Equal, or `other` is a decimal that rounds `value`, or one of both is a percentage."""
    places = _DECIMALS.search(written)
    slack = Fraction(1, 2 * 10 ** len(places[1])) if places and "/" not in written else Fraction(0)
    scaled = [other, other * 100] if written.rstrip().endswith("%") else [other]
    return any(abs(value - o) <= slack for o in scaled)


@dataclass(frozen=True)
class _Question:
    """One question's two chains."""

    passes: bool
    first_right: float
    share: float  # the majority's share of the k votes
    majority_right: float
    first_tokens: int
    all_tokens: int


def _chains(answered: Sequence[Answered], check: Check) -> list[_Question]:
    found = []
    for a, right in zip(answered, right_PG(answered).tolist(), strict=True):
        ballots: dict[Any, list[float]] = {}
        for key, verdict in zip(votes(a.samples), right, strict=True):
            if key is not None:
                ballots.setdefault(key, []).append(verdict)
        most = max(map(len, ballots.values()), default=0)
        tied = [sum(b) / len(b) for b in ballots.values() if len(b) == most]
        majority = sum(tied) / len(tied) if tied else 0.0
        tokens = [s.tokens for s in a.samples]
        passes = check(a, a.samples[0]).passes
        found.append(_Question(passes, right[0], most / len(right), majority, tokens[0], sum(tokens)))
    return found


def dual_chain(answered: Sequence[Answered], check: Check = arithmetic, threshold: float = 0.5) -> dict[str, Any]:
    """Coverage, accuracy and tokens of both chains and of their combination, and the same along the thresholds; plain data.

    `accuracy` is over all questions, an unanswered one counting as wrong; `precision` over those that were answered.
    """
    k = samples_of(answered)
    if not 0 <= threshold <= 1:
        raise ValueError(f"a threshold of {threshold} is no share of the votes; give 0 to 1")
    chains = _chains(answered, check)
    passes = np.array([c.passes for c in chains])
    first, majority = np.array([c.first_right for c in chains]), np.array([c.majority_right for c in chains])
    share = np.array([c.share for c in chains])
    used = np.where(passes, [c.first_tokens for c in chains], [c.all_tokens for c in chains])
    spent = np.array([c.all_tokens for c in chains])

    def at(level: float) -> tuple[np.ndarray, np.ndarray]:
        return passes | (share >= level) & (share > 0), np.where(passes, first, majority)

    given, right = at(threshold)
    gain = right * given - majority * (share >= threshold)
    levels = sorted({0.0, threshold, *(i / k for i in range(1, k + 1))})
    return {
        "task": answered[0].task,
        "questions": len(answered),
        "samples": k,
        "threshold": threshold,
        "rule": _chain(passes, first),
        "model": _chain((share >= threshold) & (share > 0), majority),
        "combined": _chain(given, right),
        "gain": {"value": float(gain.mean()), **dict(zip(("low", "high"), difference_interval(gain), strict=True))},
        "tokens": {"always_k": float(spent.mean()), "combined": float(used.mean()), "saved": _saved(used, spent)},
        "curve": [{"threshold": level} | _point(*at(level)) for level in levels],
    }


def _chain(given: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    answered = right[given]
    return {
        "coverage": asdict(mean_of_questions(given.astype(float))),
        "accuracy": asdict(mean_of_questions(right * given)),
        "precision": asdict(mean_of_questions(answered)) if answered.size else None,
    }


def _point(given: np.ndarray, right: np.ndarray) -> dict[str, float | None]:
    return {
        "coverage": float(given.mean()),
        "accuracy": float((right * given).mean()),
        "precision": float(right[given].mean()) if given.any() else None,
    }


def _saved(used: np.ndarray, spent: np.ndarray) -> dict[str, float] | None:
    """The share of tokens that is saved against k samples of every question; None where no tokens were counted."""
    if len(used) < 2 or not spent.sum():
        return None
    ratio = ratio_of_means(used, spent)
    return {"value": 1 - ratio.value, "low": 1 - ratio.high, "high": 1 - ratio.low}


def markdown(found: Mapping[str, Any]) -> str:
    """A table of the chains, and the threshold curve."""
    lines = [f"{found['task']}: {found['questions']} questions, k = {found['samples']}, threshold {found['threshold']:g}", ""]
    lines += ["| chain | answered | right of all | right of the answered |", "|---|---|---|---|"]
    for name in ("rule", "model", "combined"):
        cells = [found[name][key] for key in ("coverage", "accuracy", "precision")]
        lines.append(f"| {name} | " + " | ".join("none" if c is None else _cell(c) for c in cells) + " |")
    tokens, saved = found["tokens"], found["tokens"]["saved"]
    lines += ["", f"Tokens a question: {tokens['combined']:.1f} in place of {tokens['always_k']:.1f}"]
    lines[-1] += f", {_cell(saved)} saved" if saved else ""
    lines[-1] += f"; combined minus model: {_cell(found['gain'], '+')}"
    lines += ["", "| threshold | answered | right of all | right of the answered |", "|---|---|---|---|"]
    for p in found["curve"]:
        precision = "none" if p["precision"] is None else f"{p['precision']:.1%}"
        lines.append(f"| {p['threshold']:.3g} | {p['coverage']:.1%} | {p['accuracy']:.1%} | {precision} |")
    return "\n".join(lines)


def _cell(e: Mapping[str, float], sign: str = "") -> str:
    return f"{e['value']:{sign}.1%} ({e['low']:{sign}.1%} to {e['high']:{sign}.1%})"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="eval.dual_chain", description="Rules first, a vote where they do not decide.")
    parser.add_argument("folder", help="of an evaluation with several samples a question")
    parser.add_argument("task")
    parser.add_argument("--threshold", type=float, default=0.5, help="share of the votes from which the model chain answers")
    parser.add_argument("--json", action="store_true", help="print the figures instead of the tables")
    given = parser.parse_args(argv)
    try:
        found = dual_chain(read_samples(given.folder, given.task), threshold=given.threshold)
    except ValueError as error:
        print(f"eval.dual_chain: {error}", file=sys.stderr)
        return 2
    print(json.dumps(found, indent=1) if given.json else markdown(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
