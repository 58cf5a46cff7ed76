r"""Is the answer right? The accuracy reward of DeepSeek-R1-Zero (arXiv 2501.12948, section 2.2.2): 1 or 0, by rules.

The steps, cheapest first: plain numbers by regular expression (`math_number`), the same text after normalisation, then both sides
read into trees (`math_parse`) and compared by rules and by value (`math_compare`, `math_eval`).
Differences from math-verify, which most of the field uses:
1. No sympy and no LaTeX grammar at run time: a reader of our own whose cost is bounded before it starts, so no timer is needed and
   every call is safe in a thread. Nothing a model writes is ever evaluated as code.
2. Formulas are compared by value at random points to 36 digits, never rounded to 6 decimals: `1/2^{99}` is not `1/2^{98}`.
3. An answer counts only when it is committed (`math_extract`): numbers in passing earn nothing.
4. A gold that cannot be read is an error when the data is loaded, never a 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from rewards.math_compare import equal as equal_trees
from rewards.math_extract import extract
from rewards.math_number import number
from rewards.math_parse import Node, parse
from rewards.math_tokens import MAX_LENGTH, MathError, ambiguous, clean
from rewards.score import Reward, Sampled, Score

_WRAPPED = re.compile(r"\\(?:text|mbox|textbf|textit|textrm|textnormal|mathrm|mathbf|operatorname)\s*\{([^{}]*)\}")
_CHOICE = re.compile(r"\(?([A-Ja-j])\)?(?:[.):]\s*\S.*)?", re.DOTALL)
_REASONED = re.compile(r"\(?([A-J])\)?\s*(?:\u2014|,)?\s*(?:because|since|as|not)\b")
_NAMED = re.compile(r"\(([A-J])\)|\b([B-HJ]|A(?=[.,;:)]|$))(?![\w'])")
_DECIMAL_COMMA = re.compile(r"([-+]?)(\d+),(\d\d)|([-+]?)(0),(\d+)")


def equal(answer: str, gold: str, tolerance: float = 0.0) -> bool:
    """Whether `answer` means the same as `gold`; `tolerance` is relative and only for problems that state one."""
    return verdict(answer, gold, tolerance)[0]


def verdict(answer: str, gold: str, tolerance: float = 0.0) -> tuple[bool, str]:
    """Whether the answer is right, and how that was found. Never raises for an answer; ValueError for a bad gold."""
    text, value, trees = _gold(gold)
    if "\\boxed" in answer:
        answer = extract(answer) or answer
    if len(answer) > MAX_LENGTH:
        return False, f"longer than {MAX_LENGTH} characters"
    if value is not None and (mine := number(answer)) is not None and not tolerance:
        if mine == value:
            return True, "number"
        if not ambiguous(answer) and "." not in answer and "." not in text:
            return False, "number"
    if spelling(answer) == spelling(text) != "":
        return True, "text"
    if _letters(text):
        return _same_choice(answer, text), "text"
    readings, why = read(answer)
    if any(equal_trees(g, a, tolerance) for g in trees for a in readings):
        return True, "value"
    return False, why or "value"


def check_gold(gold: str) -> None:
    """Raises ValueError when `gold` is not an answer that can be graded against."""
    if not isinstance(gold, str) or not gold.strip():
        raise ValueError(f"gold {gold!r} is empty or no text: every problem needs its answer as text")
    _gold(gold)


@lru_cache(maxsize=8192)
def _gold(gold: str) -> tuple[str, Any, tuple[Node, ...]]:
    """A gold's text, its plain number if it is one, and its readings. ValueError where nothing can be graded against."""
    if len(gold) > MAX_LENGTH:
        raise ValueError(f"gold of {len(gold)} characters: a gold answer has at most {MAX_LENGTH}")
    text = extract(gold) or gold.strip()
    value = number(text)
    if value is not None and not ambiguous(text) and "," not in text:
        return text, value, read(text)[0]
    trees, why = read(text)
    words = re.sub(r"\\[A-Za-z]+", "", _WRAPPED.sub(r"\1", text))
    if not trees and not _letters(text) and not (re.search(r"[A-Za-z]{2}", words) and text.count("{") == text.count("}")):
        raise ValueError(f"gold {gold[:80]!r} cannot be read ({why}): correct it or leave the problem out")
    return text, value, trees


def read(text: str) -> tuple[tuple[Node, ...], str]:
    """All readings of a text (`1,234` may be one number or two), and the reason where there is none."""
    found, why = [], ""
    for thousands in (True, False) if ambiguous(text) else (True,):
        try:
            found.append(parse(text, thousands))
        except (MathError, RecursionError) as error:
            why = str(error) or "nested too deep"
    if (comma := _DECIMAL_COMMA.fullmatch(text.strip().strip("$ ").strip())) is not None:
        found.append(parse(comma[0].replace(",", ".")))
    return tuple(found), why


def spelling(text: str) -> str:
    """One spelling for texts that differ in markup, case of words and spaces only."""
    try:
        text = clean(text)
    except MathError:
        return ""
    text = _WRAPPED.sub(r" \1 ", text)
    text = re.sub(r"\\(?:left|right|displaystyle|quad|[,!;: ])(?![A-Za-z])|~", " ", text)
    text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", text)
    text = re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text.strip(" .\n"))
    return text if re.search(r"[\\^_=+*/]", text) or len(text) == 1 else text.lower()


def _letters(text: str) -> bool:
    """Whether a gold is words or a choice letter and no formula: `east`, `(C)`, `MAKE`."""
    plain = _WRAPPED.sub(r"\1", text).strip(" .$")
    if plain in ("odd", "red", "yes", "all"):
        return True
    return bool(re.fullmatch(r"\(?[A-J]\)?(?:[.)] .+)?|[A-Z]{2,}|[A-Za-z]{4,}(?:[ -][A-Za-z]+)*", plain)) and "\\" not in plain


def _same_choice(answer: str, gold: str) -> bool:
    """`C` is `(C)`, `c`, `C. 42`; words are compared by `spelling` only."""
    gold, answer = _WRAPPED.sub(r"\1", gold).strip(" .$"), _WRAPPED.sub(r"\1", clean(answer)).strip(" .*`")
    g = _CHOICE.fullmatch(gold)
    if g is None:
        return re.sub(r"[^a-z0-9]", "", answer.lower()) == re.sub(r"[^a-z0-9]", "", gold.lower())
    if (a := _REASONED.match(answer)) is not None:
        return a[1] == g[1].upper()
    if (a := _CHOICE.fullmatch(answer)) is not None and not {x or y for x, y in _NAMED.findall(answer, a.end(1))} - {a[1]}:
        return a[1].upper() == g[1].upper()
    named = {x or y for x, y in _NAMED.findall(answer)}  # prose: right when it names one option and no other
    return named == {g[1].upper()}


def accuracy(mode: str = "lenient", tolerance: float = 0.0) -> Reward:
    """The reward: 1 if the committed answer equals `problem["gold"]`, else 0.

    `mode` "strict" reads only a complete `<answer> ... </answer>`; "lenient" the last committed answer of any form.
    `tolerance` is relative; a problem's own column `tolerance` goes before it.
    """
    if mode not in ("strict", "lenient"):
        raise ValueError(f'accuracy mode {mode!r} is unknown: use "strict" or "lenient"')
    if not 0 <= tolerance < 1:
        raise ValueError(f"accuracy tolerance {tolerance!r} must lie in [0, 1): it is relative to the gold")

    def reward(completion: Sampled, problem: Mapping[str, Any]) -> Score:
        gold = problem["gold"]
        answer = extract(completion.text, mode)
        if answer is None:
            return Score(0.0, {"accuracy": 0.0}, "no answer")
        right, _ = verdict(answer, gold, float(problem.get("tolerance") or tolerance))
        reason = f"right: {answer[:40]}" if right else f"wrong: {answer[:40]}, gold {gold[:40]}"
        return Score(float(right), {"accuracy": float(right)}, reason)

    return reward
