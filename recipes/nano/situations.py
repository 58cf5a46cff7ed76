"""The situations of `situations.toml`, parsed: sentences with placeholders, and the operations they stand for.

A step of a program is `(target, operator, left, right)`: registers are "x" (the running quantity) and "t" (a quantity of its
own, such as 4 boxes of 6); an operand is a register, a number, or "a" or "b" until the generator has drawn them.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

Operand = int | str
Step = tuple[str, str, Operand, Operand]

_OPERATION = re.compile(r"^([-+*/])?(\w+)(?:([-+*/])(\w+))?$")
_PRONOUNS = {"{He}": "{name}", "{he}": "{name}", "{him}": "{name}", "{His}": "{name}'s", "{his}": "{name}'s"}
_PRONOUN = re.compile("|".join(_PRONOUNS))
# Only a sentence that begins like this can follow "Then ..." or "Later ...".
_MAY_FOLLOW = re.compile(r"\{(He|His|name|friend|a)\}|(They|The|It|A|Another) ")


@dataclass(frozen=True)
class Sentence:
    """`text` with placeholders; `first` names the main person where it is the first to mention them; `steps` may be empty."""

    text: str
    first: str
    mentions: bool  # the main person
    may_follow: bool  # a connective such as "Then"
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Situation:
    name: str
    unseen: bool
    items: tuple[str, ...]
    start: tuple[Sentence, ...]
    events: tuple[Sentence, ...]
    ask: tuple[Sentence, ...]


def _operand(word: str) -> Operand:
    return int(word) if word.isdigit() else word


def steps_of(operation: str) -> tuple[Step, ...]:
    """The steps an operation stands for.

    >>> steps_of("-a*b")
    (('t', '*', 'a', 'b'), ('x', '-', 'x', 't'))
    >>> steps_of("/2"), steps_of("a*b")
    ((('x', '/', 'x', 2),), (('x', '*', 'a', 'b'),))
    """
    match = _OPERATION.match(operation)
    if not match:
        raise ValueError(f'situations.toml: "{operation}" is not an operation; write such as "+a", "a*b" or "-x/3"')
    outer, left, inner, right = match.groups()
    if inner is None:
        return (("x", outer, "x", _operand(left)),) if outer else ()
    if outer is None:
        return (("x", inner, _operand(left), _operand(right)),)
    return (("t", inner, _operand(left), _operand(right)), ("x", outer, "x", "t"))


def _sentence(line: str) -> Sentence:
    text, _, operation = line.partition(" | ")
    first = text
    pronoun = _PRONOUN.search(text)
    if pronoun and "{name}" not in text[: pronoun.start()]:
        first = text[: pronoun.start()] + _PRONOUNS[pronoun.group()] + text[pronoun.end() :]
    mentions = bool(pronoun) or "{name}" in text
    return Sentence(text, first, mentions, bool(_MAY_FOLLOW.match(text)), steps_of(operation) if operation else ())


def load() -> tuple[Situation, ...]:
    """All situations, in the order of the file."""
    tables = tomllib.loads((Path(__file__).parent / "situations.toml").read_text(encoding="utf-8"))
    return tuple(
        Situation(
            name,
            table.get("unseen", False),
            tuple(table["items"]),
            *(tuple(_sentence(line) for line in table[key]) for key in ("start", "events", "ask")),
        )
        for name, table in tables.items()
    )


SITUATIONS = load()
SEEN = tuple(s for s in SITUATIONS if not s.unseen)
UNSEEN = tuple(s for s in SITUATIONS if s.unseen)
