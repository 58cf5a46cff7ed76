"""Grade-school word problems whose gold is computed by executing the program that generated them.

A problem has 1 to 8 reasoning steps. It begins with a quantity, goes through events that change it and asks for what it is
then. Some sentences need two steps ("4 boxes of 6": 4 * 6, then the sum), so sentences do not tell the number of steps. Every
intermediate result is an integer in 0..999 and every division is exact.

Splits share nothing by construction: a problem's fingerprint is its situation and its numbers, and a checksum of it says on
which side it belongs. Situations with `unseen = true` are in "heldout_unseen" only. `overlap` measures it all the same.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from recipes.nano.situations import SEEN, UNSEEN, Operand, Sentence, Situation, Step

SPLITS = ("train", "heldout_seen", "heldout_unseen")
STEPS = (1, 2, 3, 4, 5, 6)
MAX_STEPS = 8
LARGEST = 999
_COMFORT = 300  # a product may not carry the running quantity beyond this
_HELDOUT_SHARE = 8  # one fingerprint in 8 is held out

_SHE = (
    "Mia", "Emma", "Ava", "Lily", "Zoe", "Anna", "Ella", "Grace", "Ruby", "Nora",
    "Maya", "Rosa", "Lucy", "Sara", "Jane", "Amy", "Kate", "Lena", "Tina", "Olga",
)  # fmt: skip
_HE = (
    "Tom", "Ben", "Sam", "Max", "Leo", "Jack", "Omar", "Luke", "Noah", "Adam",
    "Ivan", "Hugo", "Paul", "Eric", "Dan", "Finn", "Carl", "Theo", "Raj", "Ken",
)  # fmt: skip
_PRONOUNS = {
    True: {"He": "She", "he": "she", "His": "Her", "his": "her", "him": "her"},
    False: {"He": "He", "he": "he", "His": "His", "his": "his", "him": "him"},
}
_CONNECTIVES = ("Then", "Later", "After that", "The next day", "Soon after")


@dataclass(frozen=True)
class Program:
    """x begins as `start`; then the steps run in order. The result is x."""

    start: int
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Drawn:
    """A problem with its program, which only the pretraining corpus may read."""

    question: str
    program: Program
    situation: Situation
    results: tuple[int, ...]  # of each step; the last one is the gold

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.situation.name, self.question)


def apply(operator: str, left: int, right: int) -> int:
    """One operation; a division must be exact.

    >>> apply("/", 12, 4)
    3
    """
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "*":
        return left * right
    quotient, rest = divmod(left, right)
    if rest:
        raise ValueError(f"{left} / {right} is not an integer")
    return quotient


def execute(program: Program) -> tuple[int, ...]:
    """The result of every step. Raises ValueError where one leaves 0..999 or a division is not exact.

    >>> execute(Program(10, (("t", "*", 4, 6), ("x", "+", "x", "t"), ("x", "/", "x", 2))))
    (24, 34, 17)
    """
    registers: dict[Operand, int] = {"x": program.start, "t": 0}
    results = []
    for target, operator, left, right in program.steps:
        value = apply(operator, registers.get(left, left), registers.get(right, right))  # type: ignore[arg-type]
        if not 0 <= value <= LARGEST:
            raise ValueError(f"{value} is not in 0..{LARGEST}")
        registers[target] = value
        results.append(value)
    return tuple(results)


def fingerprint(situation: str, question: str) -> str:
    """The situation and the question's numbers in their order."""
    return situation + ":" + ",".join(re.findall(r"\d+", question))


def is_heldout(fingerprint: str) -> bool:
    return zlib.crc32(fingerprint.encode()) % _HELDOUT_SHARE == 0


def _pick(rng: random.Random, low: int, high: int) -> int:
    """An integer in low..high; 0 where there is none. (`rng.randint` takes four times as long.)"""
    return low + int(rng.random() * (high - low + 1)) if high >= low else 0


def _numbers(rng: random.Random, steps: tuple[Step, ...], x: int) -> tuple[int, int]:
    """Fitting numbers a and b for a sentence when the running quantity is x; 0 where a number does not fit."""
    operators = "".join(step[1] for step in steps)
    last = operators[-1]
    if steps[0][2] == "a":  # a and b make a quantity of their own
        small = 40 if last != "-" else min(40, x - 3)
        if operators[0] == "*":
            a = _pick(rng, 2, min(9, small // 2))
            return a, _pick(rng, 2, min(12, small // a)) if a else 0
        a = _pick(rng, 2, small - 2)
        return a, _pick(rng, 2, small - a)
    if operators == "+":
        return _pick(rng, 2, 40), 2
    if operators == "-":
        return _pick(rng, 2, min(40, x - 2)), 2
    if operators == "/":
        fits = [n for n in range(2, 11) if x % n == 0 and x // n >= 2]
        return (fits[_pick(rng, 0, len(fits) - 1)] if fits else 0), 2
    return _pick(rng, 2, min(5, _COMFORT // max(x, 1))), 2  # "*" and "*+"


def _start(rng: random.Random, sentence: Sentence) -> tuple[int, int]:
    """The numbers of an opening sentence."""
    if not sentence.steps:
        return _pick(rng, 5, 90), 2
    if sentence.steps[0][1] == "*":
        return _pick(rng, 2, 9), _pick(rng, 2, 12)
    return _pick(rng, 4, 50), _pick(rng, 4, 50)


def _bind(steps: tuple[Step, ...], a: int, b: int) -> tuple[Step, ...]:
    values: dict[Operand, int] = {"a": a, "b": b}
    return tuple(
        (target, operator, values.get(left, left), values.get(right, right)) for target, operator, left, right in steps
    )


def _extend(rng: random.Random, sentence: Sentence, x: int) -> tuple[int, int, tuple[Step, ...], tuple[int, ...]] | None:
    """Numbers, bound steps and results of one sentence after the quantity x; None where it cannot follow."""
    a, b = _numbers(rng, sentence.steps, x)
    if a < 2 or b < 2:
        return None
    steps = _bind(sentence.steps, a, b)
    try:
        results = execute(Program(x, steps))
    except ValueError:
        return None
    # "Doubled" and "half" have no number of their own to keep small, and nothing is left to tell once x is 0.
    return (a, b, steps, results) if 2 <= results[-1] <= 2 * _COMFORT else None


def draw(rng: random.Random, situation: Situation, count: int) -> Drawn:
    """A problem of `count` steps in one situation."""
    for _ in range(1000):
        if drawn := _attempt(rng, situation, count):
            return drawn
    raise ValueError(f"no problem of {count} steps found in {situation.name}; its events do not allow it")


def _attempt(rng: random.Random, situation: Situation, count: int) -> Drawn | None:
    ask = rng.choice(situation.ask)
    start = rng.choice(situation.start)
    left = count - len(start.steps) - len(ask.steps)
    if left < 0:
        return None
    a, b = _start(rng, start)
    steps = _bind(start.steps, a, b)
    results = execute(Program(a, steps))
    x = results[-1] if results else a
    first = 0 if results else a
    said: list[tuple[Sentence, int, int]] = [(start, a, b)]
    for event in rng.sample(situation.events, len(situation.events)):
        if not left:
            break
        if len(event.steps) <= left and (more := _extend(rng, event, x)):
            said.append((event, more[0], more[1]))
            steps, results, x = steps + more[2], results + more[3], more[3][-1]
            left -= len(event.steps)
    if left:
        return None
    a = b = 0
    if ask.steps:
        more = _extend(rng, ask, x)
        if not more:
            return None
        a, b = more[:2]
        steps, results = steps + more[2], results + more[3]
    said.append((ask, a, b))
    return Drawn(_tell(rng, situation, said), Program(first, steps), situation, results)


def _tell(rng: random.Random, situation: Situation, said: list[tuple[Sentence, int, int]]) -> str:
    """The question's text."""
    she = rng.random() < 0.5
    names = _SHE if she else _HE
    words: dict[str, Any] = {"name": rng.choice(names), "item": rng.choice(situation.items), **_PRONOUNS[she]}
    # The friend is of the other gender, so that a pronoun is never ambiguous.
    words["friend"] = rng.choice(_HE if she else _SHE)
    known, parts, last = False, [], len(said) - 1
    for i, (sentence, a, b) in enumerate(said):
        template = sentence.text if known else sentence.first
        known = known or sentence.mentions
        words["a"], words["b"] = a, b
        if 0 < i < last and sentence.may_follow and rng.random() < 0.35:
            if not template.startswith("{name}") and not template.startswith("{friend}"):
                template = template[0].lower() + template[1:] if template[0] != "{" else template.replace("{H", "{h", 1)
            template = f"{rng.choice(_CONNECTIVES)} {template}"
        parts.append(template.format_map(words))
    return " ".join(parts)


def _check(split: str, steps: Iterable[int]) -> None:
    if split not in SPLITS:
        raise ValueError(f'nano problems: no split "{split}"; there are {", ".join(SPLITS)}')
    if not (wanted := tuple(steps)) or not all(1 <= n <= MAX_STEPS for n in wanted):
        raise ValueError(f"nano problems: steps = {wanted}; give numbers from 1 to {MAX_STEPS}")


def problems(part: str, count: int, seed: int, steps: tuple[int, ...] = STEPS) -> list[dict[str, Any]]:
    """`count` different problems of a split, the numbers of steps in turn; the same arguments give the same rows.

    A row has id, question, gold, kind "math", steps, part ("seen" or "unseen") and situation: no solution.
    Raises ValueError for an unknown split or steps outside 1..8.
    """
    _check(part, steps)
    rng = random.Random(f"{part}/{seed}")
    rows: list[dict[str, Any]] = []
    known: set[str] = set()
    misses = 0
    while len(rows) < count:
        drawn = draw_for(rng, part, steps[len(rows) % len(steps)])
        if drawn.fingerprint in known:
            misses += 1
            if misses > 1000 + 20 * count:
                raise ValueError(f"nano problems: no {count} different problems of {steps} steps in {part}; ask for fewer")
            continue
        known.add(drawn.fingerprint)
        rows.append(_row(drawn, f"nano/{part}/{seed}/{len(rows)}"))
    return rows


def draw_for(rng: random.Random, split: str, count: int) -> Drawn:
    """A problem of `count` steps that belongs to the split."""
    if split == "heldout_unseen":
        return draw(rng, rng.choice(UNSEEN), count)
    while True:
        drawn = draw(rng, rng.choice(SEEN), count)
        if is_heldout(drawn.fingerprint) == (split == "heldout_seen"):
            return drawn


def _row(drawn: Drawn, id: str) -> dict[str, Any]:
    return {
        "id": id,
        "question": drawn.question,
        "gold": str(drawn.results[-1]),
        "kind": "math",
        "steps": len(drawn.program.steps),
        "part": "unseen" if drawn.situation.unseen else "seen",
        "situation": drawn.situation.name,
    }


def heldout(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Held-out problems: half seen situations with new numbers, half situations never seen. Standard: `heldout(500)`."""
    return problems("heldout_seen", count - count // 2, seed) + problems("heldout_unseen", count // 2, seed)


def overlap(rows_a: Iterable[Mapping[str, Any]], rows_b: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How many of rows_b occur in rows_a: by exact question, and by situation and numbers."""
    questions, prints = set(), set()
    for row in rows_a:
        questions.add(row["question"])
        prints.add(fingerprint(row["situation"], row["question"]))
    rows_b = list(rows_b)
    return {
        "question": sum(row["question"] in questions for row in rows_b),
        "numbers": sum(fingerprint(row["situation"], row["question"]) in prints for row in rows_b),
    }
