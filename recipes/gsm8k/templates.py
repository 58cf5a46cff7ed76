"""GSM8K's solved training rows -> templates: which number of the question goes into which step of the solution.

GSM8K (Cobbe et al., arXiv 2110.14168) writes its arithmetic into the solutions, `48/2 = <<48/2=24>>24`. Each number of such a note is
traced by its value to a number of the question, to an earlier result, or to a constant that the words bring (half, a dozen, a week),
so that the question can be asked again with other numbers (draw.py), as GSM-Symbolic (Mirzadeh et al., arXiv 2410.05229) does with
100 questions by hand. What cannot be traced, or in two ways, is no template; `read` says why.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

Value = int | Fraction
Step = tuple[str, int, int]  # operator, left and right: places among the registers

NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|(?<![\w.])\.\d+")
_NOTE = re.compile(r"<<([^<>]*)>>")
_TERM = r"\(?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)\)?(?: ?%)?(?: [a-z]+(?:/[a-z]+)?){0,2}"
_EQUATION = re.compile(
    rf"(?<![\w.$%/*+-])({_TERM}(?: ?[-+*/x×–] ?{_TERM})+) ?= ?\$?({NUMBER.pattern})"
)  # one that stands in the text
_EXPRESSION = re.compile(r"[\d.+\-*/() ]+")
_PLAIN = re.compile(r"[ -;=?-~\n‘’“”–—×£€]*")  # no "<" or ">": they belong to the tags
_OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
_WORDS = {  # what words bring without a digit
    "two|twice|half|halves|double|doubled|doubles|couple|pair|pairs|both|second": (2,),
    "three|thrice|third|thirds|triple|tripled|triples": (3,), "four|quarter|quarters|fourth|fourths": (4,), "five|fifth|fifths": (5,),
    "six|sixth|sixths": (6,), "seven|seventh|week|weeks|weekly|daily": (7,), "eight|eighth|eighths": (8,), "nine|ninth": (9,),
    "ten|tenth|tenths|dime|dimes": (10,), "eleven": (11,), "twelve|dozen|dozens|month|months|year|years|inches|foot|feet": (12,),
    "yard|yards|foot": (3,), "thirteen": (13,), "fourteen": (14,), "fifteen": (15,), "sixteen|pound|pounds|ounces": (16,),
    "eighteen": (18,), "twenty": (20,), "day|days|hour|hours": (24,), "quarters": (25,), "thirty": (30,), "month|months|april|june": (30,),
    "forty": (40,), "fifty": (50,), "year|yearly|weeks": (52,), "sixty|minute|minutes|hour|hours|second|seconds": (60,),
    "year|years|days": (365,), "percent|percentage|hundred|dollar|dollars|cent|cents|pennies|meter|meters|cm|m": (100,),
    "thousand|kilogram|kilograms|kg|km|kilometers|grams|liters|ml": (1000,), "nickel|nickels|school|workday|weekdays": (5,),
}  # fmt: skip
_ALWAYS = (1, 2, 3, 4, 10, 100, Fraction(1, 2), Fraction(1, 4), Fraction(1, 10), Fraction(1, 100))
_BY_WORD: dict[str, set[int]] = {}
for _names, _values in _WORDS.items():
    for _name in _names.split("|"):
        _BY_WORD.setdefault(_name, set()).update(_values)


@dataclass(frozen=True)
class Number:
    """A number of the question that may be redrawn: every place where this value stands."""

    value: Value
    places: int  # digits behind the point
    percent: bool
    cents: bool


@dataclass(frozen=True)
class Template:
    """A question that can be asked with other numbers.

    Registers hold first `numbers`, then `constants`, then each step's result. `question` and `prose` are text with register numbers
    (an int for each number to write; negative, -1 - register: with commas for thousands).
    """

    id: str
    question: tuple[str | int, ...]
    numbers: tuple[Number, ...]
    constants: tuple[Value, ...]
    steps: tuple[Step, ...]
    results: tuple[Value, ...]  # of the original numbers
    answer: int  # register of the gold
    gold: Value
    prose: tuple[
        str | int, ...
    ]  # the solution as its author wrote it, without notes; empty where a number in it cannot be traced


class Untraceable(ValueError):
    """Why a row is no template, in a few words."""


def value_of(text: str) -> Value:
    """
    >>> value_of("1,080"), value_of("2.50"), value_of(".5")
    (1080, Fraction(5, 2), Fraction(1, 2))
    """
    return whole(Fraction(text.replace(",", "")))


def whole(value: Value) -> Value:
    """An int where it is one: much faster to calculate with."""
    return value.numerator if isinstance(value, Fraction) and value.denominator == 1 else value


def apply(operator: str, left: Value, right: Value) -> Value:
    """Exact. Raises ZeroDivisionError.

    >>> apply("/", 12, 4), apply("/", 1, 3)
    (3, Fraction(1, 3))
    """
    if operator == "+":
        return whole(left + right)
    if operator == "-":
        return whole(left - right)
    if operator == "*":
        return whole(left * right)
    return whole(Fraction(left) / right)


def read(rows: Iterable[Mapping[str, Any]]) -> tuple[list[Template], Counter[str]]:
    """The templates of GSM8K's rows (`question`, `answer`), and why the others are none. A template's id is gsm8k/train/ROW."""
    found, reasons = list[Template](), Counter[str]()
    for i, row in enumerate(rows):
        try:
            found.append(_Reader(f"gsm8k/train/{i}", str(row["question"]).strip(), str(row["answer"])).template())
        except Untraceable as why:
            reasons[str(why)] += 1
    return found, reasons


class _Reader:
    """One row on its way to a template. While reading, registers are the question's numbers and the results; constants come last."""

    def __init__(self, id: str, question: str, answer: str) -> None:
        self.id, self.question = id, question
        self.solution, _, gold = answer.rpartition("####")
        self.solution = self.solution.strip()
        if not (_PLAIN.fullmatch(question) and _PLAIN.fullmatch(_NOTE.sub("", self.solution))):
            raise Untraceable("signs")
        self.gold = value_of(gold.strip()) if NUMBER.fullmatch(gold.strip()) else 0
        self.said = set[Value]([1])
        for word in re.findall(r"[a-z]+", question.lower()):
            self.said |= _BY_WORD.get(word, set())
        if "%" in question:
            self.said.add(100)
        for above, below in re.findall(r"(\d+)/(\d+)", question):
            a, b = int(above), int(below)
            self.said |= {a, b, b - a} | ({whole(Fraction(a, b)), whole(1 - Fraction(a, b))} if b else set())
        self.numbers = list[Number]()
        self.find_numbers()
        self.free = {number.value: i for i, number in enumerate(self.numbers)}
        self.results = list[tuple[Value, bool]]()  # value, and whether a note ends with it
        self.steps = list[tuple[str, Any, Any]]()  # operands: ("q", number), ("r", result), ("c", value)
        self.used = set[tuple[str, Any]]()
        self.known = list[tuple[int, tuple[str, Any]]]()  # from where in the solution on a result is known

    def find_numbers(self) -> None:
        """Numbers that may vary: no fraction, time, ordinal or year, no 1, nothing that a word says as well."""
        by_value: dict[Value, Number | None] = {}
        for match in NUMBER.finditer(self.question):
            before, behind = self.question[: match.start()][-2:], self.question[match.end() :][:9].lower()
            value, text = value_of(match[0]), match[0]
            fixed = value <= 1 or value in self.said or bool(re.match(r"[:/]\d|[a-z]|\s?[ap]\.?m\b", behind))
            fixed |= bool(re.search(r"\d[:/]$|[A-Za-z#]$", before)) or (
                re.fullmatch(r"(19|20)\d\d", text) is not None and before[-1:] != "$"
            )
            places = len(text.partition(".")[2])
            number = Number(value, places, bool(re.match(r"\s?(%|percent)", behind)), bool(re.match(r"[\s-]cent", behind)))
            if fixed or (value in by_value and by_value[value] != number):
                by_value[value] = None
            else:
                by_value[value] = number
        self.numbers = [number for number in by_value.values() if number]
        self.said |= {value for value, number in by_value.items() if not number}

    def template(self) -> Template:
        notes = list(_NOTE.finditer(self.solution))
        inside = [match.span() for match in notes]
        plain = [m for m in _EQUATION.finditer(self.solution) if not any(a < m.end() and m.start() < b for a, b in inside)]
        for match in sorted([*notes, *plain], key=lambda m: m.start()):
            if match[0].startswith("<<"):
                self.read_note(match.end(), *match[1].replace("$", "").replace(",", "").replace("%", "").rpartition("=")[::2])
            else:
                self.read_plain(match)
        answer = next((("r", i) for i in reversed(range(len(self.results))) if self.results[i][0] == self.gold), None)
        if not self.steps or answer is None:
            raise Untraceable("gold")
        used = sorted({operand[1] for step in self.steps for operand in step[1:] if operand[0] == "q"})
        if not used:
            raise Untraceable("no number to redraw")
        self.said |= {number.value for i, number in enumerate(self.numbers) if i not in used}
        constants = sorted({operand[1] for step in self.steps for operand in step[1:] if operand[0] == "c"})
        first = len(used) + len(constants)

        def register(operand: tuple[str, Any]) -> int:
            kind, which = operand
            return {"q": used.index, "c": lambda v: len(used) + constants.index(v), "r": lambda i: first + i}[kind](which)

        self.free = {self.numbers[i].value: i for i in used}
        return Template(
            self.id, tuple(self.pieces(used)), tuple(self.numbers[i] for i in used), tuple(constants),
            tuple((operator, register(left), register(right)) for operator, left, right in self.steps),
            tuple(value for value, _ in self.results), register(answer), self.gold,
            tuple(self.prose([(at, register(end)) for at, end in self.known], used)),
        )  # fmt: skip

    def read_note(self, at: int, formula: str, result: str) -> None:
        """The steps of `48/2=24`."""
        if not _EXPRESSION.fullmatch(formula) or not NUMBER.fullmatch(result.strip()):
            raise Untraceable("note")
        try:
            tree = ast.parse(re.sub(r"(?<![\d.])0+(?=\d)", "", formula.strip()), mode="eval").body
        except SyntaxError:
            raise Untraceable("note") from None
        end = self.operand(tree, top=True)
        if self.value(end) != value_of(result.strip()):
            raise Untraceable("inexact")
        if end[0] == "r":
            self.results[end[1]] = (self.results[end[1]][0], True)
            self.known.append((at, end))

    def read_plain(self, match: re.Match[str]) -> None:
        """An equation without a note; nothing happens where it is none."""
        formula = re.sub(r"[$,%]|(?<=[\d )])(?!x )[a-z]+(?:/[a-z]+)?", "", match[1])
        before = len(self.steps), set(self.used), list(self.results)
        try:
            self.read_note(match.start(2), re.sub("[x×]", "*", formula).replace("–", "-"), match[2].replace(",", ""))
        except Untraceable:
            self.used, self.results = before[1], before[2]
            del self.steps[before[0] :]

    def value(self, operand: tuple[str, Any]) -> Value:
        kind, which = operand
        return self.numbers[which].value if kind == "q" else self.results[which][0] if kind == "r" else which

    def operand(self, tree: ast.AST, top: bool = False) -> tuple[str, Any]:
        if isinstance(tree, ast.BinOp) and type(tree.op) in _OPERATORS:
            left, right = self.operand(tree.left), self.operand(tree.right)
            if left[0] == right[0] == "c" and isinstance(tree.op, ast.Div) and not top and right[1]:
                return "c", apply("/", left[1], right[1])  # 1/4 of something is not worth a step
            return self.step(_OPERATORS[type(tree.op)], left, right)
        if isinstance(tree, ast.Constant) and isinstance(tree.value, int | float):
            return self.bind(value_of(f"{tree.value}" if isinstance(tree.value, int) else f"{tree.value:.10f}"))
        raise Untraceable("note")

    def step(self, operator: str, left: Any, right: Any) -> tuple[str, Any]:
        try:
            value = apply(operator, self.value(left), self.value(right))
        except ZeroDivisionError:
            raise Untraceable("note") from None
        self.used |= {left, right}
        if (operator, left, right) in self.steps:
            return "r", self.steps.index((operator, left, right))
        self.steps.append((operator, left, right))
        self.results.append((value, False))
        return "r", len(self.results) - 1

    def bind(self, value: Value) -> tuple[str, Any]:
        """What a number of a note stands for. Raises Untraceable where that is not known."""
        number = ("q", self.free[value]) if value in self.free else None
        results = [("r", i) for i, (v, ends) in enumerate(self.results) if v == value and ends]
        fresh = [r for r in results if r not in self.used]
        if number and (number not in self.used or not fresh):
            if fresh:
                raise Untraceable("two ways")
            return number
        if fresh or results:
            return (fresh or results)[-1]
        if value in self.said:
            return "c", value
        for i, n in enumerate(self.numbers):
            if (n.percent or n.cents) and value == Fraction(n.value, 100):
                return self.step("/", ("q", i), ("c", 100))
            if n.percent and value in (100 - n.value, 100 + n.value):
                return self.step("-" if value < 100 else "+", ("c", 100), ("q", i))
            if n.percent and value in (1 - Fraction(n.value, 100), 1 + Fraction(n.value, 100)):
                return self.step("/", self.step("-" if value < 1 else "+", ("c", 100), ("q", i)), ("c", 100))
        if value in _ALWAYS:
            return "c", value
        part = next((("r", i) for i, (v, ends) in enumerate(self.results) if ends and Fraction(v, 100) == value), None)
        if part and 100 in self.said:
            return self.step("/", part, ("c", 100))
        raise Untraceable("a number from nowhere")

    def pieces(self, used: list[int]) -> Iterable[str | int]:
        """The question as text and registers."""
        at = 0
        for match in NUMBER.finditer(self.question):
            place = self.free.get(value_of(match[0]))
            if place is not None:
                yield self.question[at : match.start()]
                yield _written(used.index(place), match[0])
                at = match.end()
        yield self.question[at:]

    def prose(self, ends: list[tuple[int, int]], used: list[int]) -> list[str | int]:
        """The solution without notes as text and registers; empty where a number in it cannot be traced."""
        pieces, at = list[str | int](), 0
        values = {register: self.value(operand) for (_, register), (_, operand) in zip(ends, self.known, strict=True)}
        notes = [match.span() for match in _NOTE.finditer(self.solution)]
        for match in NUMBER.finditer(self.solution):
            if any(start < match.start() < stop for start, stop in notes):
                continue
            value = value_of(match[0])
            meant = {used.index(i) for i in used if self.numbers[i].value == value}
            said = {register for place, register in ends if place <= match.start() and values[register] == value}
            here = {register for place, register in ends if place == match.start() and register in said}
            meant = here or meant | said
            if len(meant) > 1 or (not meant and value not in self.said and value not in _ALWAYS):
                return []
            pieces += [self.solution[at : match.start()], _written(next(iter(meant)), match[0]) if meant else match[0]]
            at = match.end()
        pieces.append(self.solution[at:])
        return [_NOTE.sub("", p).replace("\n", " ") if isinstance(p, str) else p for p in pieces]


def _written(register: int, text: str) -> int:
    return -1 - register if "," in text else register
