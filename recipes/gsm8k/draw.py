"""The same question with other numbers, names and things: sane ones, and every result computed anew.

A draw is kept when each result is what the original one was: positive where it was, whole where it was, a share where it was, written
with as many digits. Percentages stay below 100 %, prices keep their cents, round numbers stay mostly round.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from recipes.gsm8k.templates import Number, Template, Value, apply, whole

TRIES = 60
LARGEST = 20  # times the original result
FAULTS = ("slip", "operation", "skip")
_SHE = re.findall(
    r"\w+",
    "Mary Sarah Janet Jenny Jane Martha Carla Anna Hannah Lisa Maria Alice Nancy Rachel Kim Tina Annie Amanda Julia Jessica Jenna Beth "
    "Lily Julie Carrie Megan Janice Linda Kelly Lucy Carly Brenda Nina Donna Monica Leila Samantha Jennifer Angela Madeline Kate Gina "
    "Laura Wendy Bella Marcy Rebecca Michelle Diane Olivia Joan Barbara Elsa Jasmine Melissa Stephanie Kylie Tiffany Brittany Carolyn "
    "Tara Haley Becky Claire Abigail Carmen Cheryl Molly Emma Sophia Zoe Nora Ruby Fatima Priya Yuki Ingrid Helga Amira Naomi",
)
_HE = re.findall(
    r"\w+",
    "John James Tom Bob Jack Tim Mike Jerry Peter Jason Tony Matt Jim Michael Steve Ben Harry Paul Jake Frank Josh Adam Jackson Andy "
    "Max Jimmy Jeff George Randy Andrew Henry Kevin Tommy Brian Marcus Thomas Kyle David Oliver Jeremy Chris Johnny Fred Ken Roger "
    "Toby Danny Justin William Martin Dave Carson Aaron Daniel Gary Barry Samuel Joseph Eric Pete Luke Alan Leo Joey Jon Diego Caleb "
    "Manny Ian Trevor Mason Nathan Jerome Mario Derek Javier Nick Carter Lucas Bruce Charles Larry Blake Kenny Anthony Ivan Ron "
    "Matthew Arthur Omar Raj Hugo Tariq Kofi Sven Pablo Amir Chen",
)
# What is counted may be counted of something else of its sort: singular, and plural where it is no "s" more.
_THINGS = (
    "apple orange banana mango/mangoes tomato/tomatoes potato/potatoes carrot peach/peaches lemon pear grape avocado "
    "coconut watermelon strawberry/strawberries cookie cupcake pie cake donut muffin brownie pancake sandwich/sandwiches "
    "burger pizza egg candy/candies lollipop biscuit onion bagel",
    "book pencil pen notebook crayon eraser marble sticker toy doll balloon bead necklace bracelet earring button card "
    "stamp puzzle/puzzles magazine poster painting candle basket jar bucket plate bowl spoon chair towel shirt hat cap "
    "sweater skirt dress/dresses jacket sock blouse brick tile plank envelope feather shell flower rose tulip bulb computer "
    "bicycle lamp vase mug kite",
    "dog cat chicken cow duck pig horse goat rabbit hen bird kitten puppy/puppies lion snake turtle frog squirrel",
)
_SORTS = [[tuple(pair.split("/")) if "/" in pair else (pair, f"{pair}s") for pair in sort.split()] for sort in _THINGS]
_THING = {word: (sort, at) for sort, pairs in enumerate(_SORTS) for at, pair in enumerate(pairs) for word in pair}
_ALIKE = {name: names for names in (_SHE, _HE) for name in names}
_WORD = re.compile(r"[A-Za-z]+")
_NICE = 10_000  # a value of at most four digits behind the point can be written


@dataclass(frozen=True)
class Drawn:
    """A question with its numbers; `registers` as the template's steps count them."""

    template: Template
    registers: tuple[Value, ...]
    names: dict[str, str]

    @property
    def gold(self) -> Value:
        return self.registers[self.template.answer]

    @property
    def question(self) -> str:
        return self.text(self.template.question)

    @property
    def prose(self) -> str:
        return self.text(self.template.prose)

    def text(self, pieces: Sequence[str | int]) -> str:
        return rename("".join(p if isinstance(p, str) else self.number(p) for p in pieces), self.names)

    def number(self, register: int) -> str:
        """As the original writes it: prices keep their cents, thousands their commas."""
        place = register if register >= 0 else -1 - register
        value = self.registers[place]
        if place < len(self.template.numbers) and (places := self.template.numbers[place].places):
            return f"{float(value):.{places}f}"
        return f"{value:,}" if register < 0 and isinstance(value, int) else written(value)


def written(value: Value) -> str:
    """
    >>> written(24), written(Fraction(5, 2)), written(Fraction(1, 3))
    ('24', '2.5', '0.33')
    """
    if isinstance(value, int):
        return str(value)
    return f"{float(value):.{4 if nice(value) else 2}f}".rstrip("0").rstrip(".")


def nice(value: Value) -> bool:
    """Whether it can be written down exactly."""
    return isinstance(value, int) or _NICE % value.denominator == 0


def rename(text: str, names: dict[str, str]) -> str:
    return _WORD.sub(lambda match: names.get(match[0], match[0]), text) if names else text


def execute(template: Template, numbers: Sequence[Value]) -> tuple[Value, ...]:
    """All registers for these numbers. Raises ZeroDivisionError."""
    registers = [*numbers, *template.constants]
    for operator, left, right in template.steps:
        registers.append(apply(operator, registers[left], registers[right]))
    return tuple(registers)


def original(template: Template) -> Drawn:
    """The row as GSM8K has it."""
    return Drawn(template, execute(template, [n.value for n in template.numbers]), {})


def draw(rng: random.Random, template: Template) -> Drawn | None:
    """Other numbers and names; None where none fit within TRIES."""
    for attempt in range(TRIES):
        share = 0.9 if attempt < TRIES // 2 else 0.4
        numbers = [other(rng, n) if rng.random() < share else n.value for n in template.numbers]
        if all(new == n.value for new, n in zip(numbers, template.numbers, strict=True)):
            continue
        try:
            registers = execute(template, numbers)
        except ZeroDivisionError:
            continue
        new = registers[-len(template.results) :]
        if all(map(sane, new, template.results)) and nice(registers[template.answer]):
            return Drawn(template, registers, _names(rng, template))
    return None


def other(rng: random.Random, number: Number) -> Value:
    """Another value of the same manner: between half and twice, as round."""
    value, scale = number.value, 10**number.places
    if number.percent and value <= 100:
        return 5 * rng.randint(1, 19) if value % 5 == 0 else rng.randint(2, 99)
    units = int(value * scale)
    step = 1
    if number.places:
        step = next(s for s in (25, 10, 5, 1) if units % s == 0)
    elif units >= 1000:
        step = next(s for s in (500, 100, 50, 10, 1) if units % s == 0)
    elif units >= 20:
        step = next(s for s in (50, 10, 5, 1) if units % s == 0)
    if step > 1 and rng.random() < 0.3:
        step = max(1, step // 5)
    low, high = (
        max(-(-units // 2 // step), 2 if units < 13 and scale == 1 else 1),
        max(2 * units // step, 9 if scale == 1 else 2),
    )
    return whole(Fraction(step * rng.randint(min(low, high), high), scale))


def sane(new: Value, old: Value) -> bool:
    """A result is of the kind that the original one was.

    >>> sane(12, 30), sane(-3, 4), sane(Fraction(7, 2), 4), sane(Fraction(7, 4), Fraction(5, 2)), sane(500, 4)
    (True, False, False, True, False)
    """
    far = LARGEST * max(10, float(old), -float(old))
    if (new > 0) != (old > 0) or (new < 1) != (old < 1) or not -far <= new <= far:
        return False
    if isinstance(old, int):
        return isinstance(new, int)
    return not nice(old) or (nice(new) and (isinstance(new, int) or new.denominator <= max(old.denominator, 100)))


def _names(rng: random.Random, template: Template) -> dict[str, str]:
    """Other words for people, and in every second draw for things; a word that stands for two would change the question."""
    words = {word for piece in template.question if isinstance(piece, str) for word in _WORD.findall(piece)}
    taken = set[Any]()
    new = {name: _untaken(rng, _ALIKE[name], taken) for name in sorted(words & _ALIKE.keys())}
    if rng.random() < 0.5:
        for sort, at in sorted({_THING[word.lower()] for word in words if word.lower() in _THING}):
            for old, word in zip(_SORTS[sort][at], _untaken(rng, _SORTS[sort], taken), strict=True):
                new |= {old: word, old.capitalize(): word.capitalize()}
    return new


def _untaken(rng: random.Random, choices: Sequence[Any], taken: set[Any]) -> Any:
    """One that no other word has become."""
    while (word := rng.choice(choices)) in taken:
        pass
    taken.add(word)
    return word


def equations(drawn: Drawn, faults: Sequence[str] = (), slip: Callable[[Value], Value] = whole) -> tuple[str, Drawn]:
    """The solution as equations, one a step, `48/2=24. 48+24=72.`, and the registers it ends with.

    A result that cannot be written down (1/3) goes into the next equation as it came about. `faults`: one of FAULTS or "" for each step;
    what goes wrong is carried on.
    """
    template = drawn.template
    first = len(template.numbers) + len(template.constants)
    registers = list(drawn.registers[:first])
    shown = [written(v) for v in registers]
    said: list[str] = []
    for i, (operator, left, right) in enumerate(template.steps):
        fault = faults[i] if faults else ""
        if fault == "operation":
            operator = {"+": "-", "-": "+", "*": "+", "/": "*"}[operator]
        a, b = registers[left], registers[right]
        value = a if fault == "skip" else 0 if operator == "/" and b == 0 else apply(operator, a, b)
        value = slip(value) if fault == "slip" else value
        registers.append(value)
        formula = f"{_inside(shown[left], operator, False)}{operator}{_inside(shown[right], operator, True)}"
        if fault == "skip":
            shown.append(shown[left])
        elif nice(value) or first + i == template.answer:
            said.append(f"{formula}={written(value)}.")
            shown.append(written(value))
        else:
            shown.append(formula)
    return " ".join(said), Drawn(template, tuple(registers), drawn.names)


def _inside(text: str, operator: str, right: bool) -> str:
    """Brackets around a formula in a formula where they change its meaning."""
    if not re.search(r"[-+*/]", text):
        return text
    return text if not right and operator in "*/" and not re.search(r"[-+]", text) else f"({text})"
