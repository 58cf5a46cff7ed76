r"""Atoms of the grammar: numbers, names, brackets, LaTeX commands, functions, matrices. `math_parse` has the rest of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from fractions import Fraction
from typing import Any

from rewards.math_names import CONSTANTS, FUNCTIONS, GREEK
from rewards.math_tokens import MathError, Token

Node = tuple[Any, ...]
MAX_DEPTH = 60  # of the reader's recursion
END = Token("end", "", False)
_MATRICES = {"matrix", "pmatrix", "bmatrix", "Bmatrix", "vmatrix", "array", "smallmatrix"}
_MARKS = "overline bar hat vec dot ddot tilde widehat overrightarrow mathbb widetilde overleftrightarrow"
_ACCENTS = set(_MARKS.split())
_APPLIED = set("fghFGHWu")


class Cursor:
    """A place in the tokens."""

    def __init__(self, found: list[Token]) -> None:
        self.tokens, self.at, self.depth, self.bars = [*found, END], 0, 0, 0

    @property
    def now(self) -> Token:
        return self.tokens[self.at]

    def next(self) -> Token:
        token = self.tokens[self.at]
        self.at += token is not END
        return token

    def op(self, *values: str) -> bool:
        """Whether an operator among `values` stands here; takes it."""
        if self.now.kind == "op" and self.now.value in values:
            self.at += 1
            return True
        return False

    def peek(self, *values: str) -> bool:
        return self.now.kind == "op" and self.now.value in values

    def need(self, value: str) -> None:
        if not self.op(value):
            raise MathError(f"{value!r} is missing before {self.now.value!r}")

    def deeper(self) -> None:
        """Counts one level of recursion; the caller takes it back."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise MathError(f"nested deeper than {MAX_DEPTH}")


class Atoms(Cursor, ABC):
    """Reads one atom; the five readers above it are the grammar's."""

    @abstractmethod
    def items(self, semicolons: bool = False) -> Node:
        """Several answers side by side."""

    @abstractmethod
    def relation(self) -> Node:
        """Sums with =, <, ... between them."""

    @abstractmethod
    def sum(self) -> Node:
        """Terms with + and - between them."""

    @abstractmethod
    def term(self) -> Node:
        """Signed factors with *, / or nothing between them."""

    @abstractmethod
    def signed(self) -> Node:
        """A power with its sign."""

    @abstractmethod
    def power(self) -> Node:
        """An atom with its exponents."""

    @abstractmethod
    def starts(self) -> bool:
        """Whether an atom begins at the next token."""

    def atom(self) -> Node:
        token = self.next()
        kind, value, _ = token
        if kind == "num":
            return self.number(value)
        if kind == "word":
            return self.word(value)
        if kind == "text":
            return self.words(value)
        if kind == "cmd":
            return self.command(value)
        if value in ("(", "[", "<("):
            return self.brackets(value)
        if value == "{":
            if self.op("}"):
                return self.atom()
            node = self.items()
            self.need("}")
            return node
        if value == "\\{":
            return self.braces()
        if value == "|":
            self.bars += 1
            node = self.sum()
            self.bars -= 1
            self.need("|")
            return ("fn", "abs", (node,))
        raise MathError(f"cannot read {value!r}" if value else "the answer breaks off")

    def number(self, value: str) -> Node:
        mantissa, _, power = value.lower().partition("e")
        whole, _, decimals = mantissa.partition(".")
        number = Fraction(int(whole + decimals or "0"), 10 ** len(decimals))
        if power and abs(int(power)) > 400:
            raise MathError(f"exponent {power} is too large")
        if not power and self.now.kind == "cmd" and self.now.value == "overline" and "." in mantissa:
            self.at += 1
            period = self.argument()
            if period[0] == "num":
                digits = self.tokens[self.at - 2].value
                number += Fraction(int(period[1]), (10 ** len(digits) - 1) * 10 ** len(decimals))
                return ("num", number, 0)
        return ("num", number * Fraction(10) ** int(power or 0), len(decimals))

    def word(self, value: str) -> Node:
        low = value.lower()
        if value in FUNCTIONS or (low in FUNCTIONS and len(value) > 2):
            return self.function(value if value in FUNCTIONS else low)
        if value in CONSTANTS or (low in CONSTANTS and len(value) > 2):
            return CONSTANTS.get(value, CONSTANTS.get(low))  # type: ignore[return-value]
        if low in GREEK:
            return ("sym", value)
        if len(value) == 1:
            return self.letter(value)
        if len(value) <= 5:
            for name in ("sqrt", "sin", "cos", "tan", "log", "ln", "pi"):
                if value.startswith(name):
                    self.tokens.insert(self.at, Token("word", value[len(name) :], False))
                    return self.word(name)
        if len(value) <= 3:
            self.tokens.insert(self.at, Token("word", value[1:], False))
            return self.letter(value[0])
        if self.peek("("):
            raise MathError(f"the unknown function {value!r}")
        return ("sym", low)

    def letter(self, value: str) -> Node:
        if value in CONSTANTS:
            return CONSTANTS[value]
        follows = self.peek("(") and not self.now.gap
        if follows and (
            value in _APPLIED or (self.tokens[self.at + 1].kind == "num" and self.tokens[self.at + 2].value == ")")
        ):
            self.at += 1
            args = self.items()
            self.need(")")
            return ("app", value, args[1] if args[0] == "list" else (args,))
        if self.now.kind == "num" and not self.now.gap:
            raise MathError(f"a digit right behind the letter {value!r}")
        return ("sym", value)

    def words(self, value: str) -> Node:
        low = value.lower()
        if value in FUNCTIONS:
            return self.function(value)
        if value in CONSTANTS or low in CONSTANTS:
            return CONSTANTS.get(value, CONSTANTS.get(low))  # type: ignore[return-value]
        return ("sym", value) if len(value) == 1 else ("text", " ".join(low.split()))

    def brackets(self, opened: str) -> Node:
        bars, self.bars = self.bars, 0
        node = self.items(semicolons=True)
        self.bars = bars
        closed = self.next().value
        if (opened == "<(") != (closed == ")>") or closed not in (")", "]", ")>"):
            raise MathError(f"bracket {opened!r} is not closed")
        if node[0] == "list":
            vector = opened == "<("
            return ("tuple", "(" if vector else opened, ")" if vector else closed, node[1])
        if (opened, closed) not in (("(", ")"), ("[", "]"), ("<(", ")>")):
            raise MathError("an interval needs two ends")
        return node

    def braces(self) -> Node:
        if self.op("\\}"):
            return ("set", ())
        bars, self.bars = self.bars, 0
        node = self.items(semicolons=True)
        if self.op("mid", "|") or node[0] == "ratio":
            node = node[1][1] if node[0] == "ratio" else self.items()
            self.need("\\}")
            return node  # {x | condition} is read as its condition
        self.bars = bars
        self.need("\\}")
        return ("set", node[1] if node[0] == "list" else (node,))

    def command(self, name: str) -> Node:
        if name in FUNCTIONS:
            return self.function(name)
        if name in CONSTANTS:
            return CONSTANTS[name]
        if name == "frac":
            return ("div", self.argument(first=True), self.argument(first=True))
        if name == "binom":
            return ("fn", "binom", (self.argument(first=True), self.argument(first=True)))
        if name in ("lfloor", "lceil"):
            node = self.sum()
            if (end := self.next().value) not in ("rfloor", "rceil"):
                raise MathError(f"\\{name} ends in {end!r}")
            return ("fn", "floor" if name == "lfloor" else "ceil", (node,))
        if name == "begin":
            return self.matrix()
        if name in ("sum", "prod", "int", "lim", "oint", "iint"):
            return self.opaque(name)
        if name in ("$", "euro", "pound"):
            return ("unit", self.power(), {"$": "dollar", "pound": "gbp"}.get(name, name))
        if name in _ACCENTS:
            inner = self.argument()
            return CONSTANTS["reals"] if name == "mathbb" and inner == ("sym", "R") else ("sym", f"{name} {name_of(inner)}")
        if name in ("boxed", "fbox"):
            return self.argument()
        if name in ("dots", "ldots", "cdots", "\\", "end", "&", "pmod", "bmod"):
            raise MathError(f"cannot read \\{name}")
        return ("sym", name)

    def argument(self, first: bool = False) -> Node:
        r"""A braced group, or the next symbol; with `first` only its first digit or letter (`\frac12`)."""
        self.deeper()
        if self.op("{"):
            if self.op("}"):
                raise MathError("an empty argument")
            bars, self.bars = self.bars, 0
            node = self.items()
            self.bars = bars
            self.need("}")
        else:
            token = self.now
            if first and token.kind in ("num", "word") and len(token.value) > 1:
                self.tokens[self.at : self.at + 1] = [Token(token.kind, c, False) for c in (token.value[0], token.value[1:])]
            node = self.atom()
        self.depth -= 1
        return node

    def function(self, name: str) -> Node:
        power = base = None
        root = None
        if name == "sqrt" and self.op("["):
            root = self.sum()
            self.need("]")
        while self.peek("^", "_"):
            if self.next().value == "^":
                power = self.argument() if self.peek("{") else self.signed()
            else:
                base = self.argument()
        if name in ("sqrt",) and not self.peek("(", "{"):
            args: tuple[Node, ...] = (self.argument(),)
        elif self.peek("(", "{", "["):
            node = self.argument() if self.peek("{") else self.atom()
            args = node[3] if node[0] == "tuple" else node[1] if node[0] == "list" else (node,)
        else:
            args = (self.chain(),)
        if root is not None:
            args = (*args, root)
        if base is not None:
            args = (*args, base)
        name = FUNCTIONS[name]
        if power == ("neg", ("num", Fraction(1), 0)) and f"arc{name}" in FUNCTIONS:
            return ("fn", f"arc{name}", args)
        node = ("fn", name, args)
        return ("pow", node, power) if power is not None else node

    def chain(self) -> Node:
        r"""The argument of `\sin 2x`: factors side by side, up to the next function."""
        negative = self.op("-")
        node = self.power()
        while self.starts() and self.now.kind != "text" and not self.peek("(", "[", "|", "\\{"):
            if self.now.value in FUNCTIONS or self.now.kind == "num":
                break
            node = times(node, self.power())
        return ("neg", node) if negative else node

    def opaque(self, name: str) -> Node:
        bounds = []
        while self.peek("^", "_"):
            self.next()
            if self.op("{"):
                bounds.append(self.items())
                self.need("}")
            else:
                bounds.append(self.atom())
        return ("opaque", name, (*bounds, self.term()))

    def matrix(self) -> Node:
        self.need("{")
        name = self.next().value
        self.need("}")
        if name not in _MATRICES:
            raise MathError(f"environment {name!r}")
        if name == "array" and self.op("{"):
            while self.now is not END and not self.op("}"):
                self.at += 1
        rows: list[list[Node]] = [[]]
        while not (self.now.kind == "cmd" and self.now.value == "end"):
            if self.now.kind == "cmd" and self.now.value == "\\":
                self.at += 1
                rows.append([])
            elif not self.op("&"):
                rows[-1].append(self.relation())
            if self.now is END:
                raise MathError("a matrix is never closed")
        self.at += 1
        self.need("{")
        self.at += 1
        self.need("}")
        full = tuple(tuple(row) for row in rows if row)
        if not full or len({len(row) for row in full}) != 1:
            raise MathError("a matrix with rows of different lengths")
        return ("matrix", full)


def times(a: Node, b: Node) -> Node:
    return ("mul", (*a[1], b)) if a[0] == "mul" else ("mul", (a, b))


def name_of(node: Node) -> str:
    if node[0] in ("sym", "text"):
        return node[1]
    if node[0] == "mul" and all(n[0] == "sym" for n in node[1]):
        return "".join(n[1] for n in node[1])
    if node in CONSTANTS.values():
        return next(k for k, v in CONSTANTS.items() if v == node)
    if node[0] == "num":
        return str(node[1])
    raise MathError("a mark on something that is no name")
