r"""Tokens -> a tree, by recursive descent; the only reader of model-written mathematics (no eval, no sympify).

A node is a tuple, its kind first:
  ("num", Fraction, places)   places: digits behind the point, 0 for a whole number       ("sym", name)   ("text", words)
  ("add", nodes)  ("mul", nodes)  ("neg", a)  ("div", a, b)  ("pow", a, b)  ("pm", sign, a)  ("fact", a)
  ("fn", name, args)  ("app", name, args): an unknown function   ("opaque", name, nodes): sums, integrals, limits
  ("deg", a)  ("pct", a)  ("unit", a, name)  ("base", digits, base)
  ("ratio", nodes)  ("rel", operators, nodes)  ("list", nodes)  ("set", nodes)  ("tuple", open, close, nodes)
  ("union" | "cap" | "minus", a, b)  ("matrix", rows)  ("inf",)
Limits: `math_tokens` bounds length and brackets; here the depth of the recursion is counted (`\frac\frac\frac ...`).
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import Any

from rewards.math_names import CONSTANTS, FUNCTIONS, GREEK, SCALES, UNITS
from rewards.math_tokens import MathError, Token, clean, tokens

Node = tuple[Any, ...]
MAX_DEPTH = 60  # of the reader's recursion
MAX_TREE = 120  # tuples in tuples
_RELATIONS = {"=", "<", ">", "<=", ">=", "!=", "in", "~"}
_MATRICES = {"matrix", "pmatrix", "bmatrix", "Bmatrix", "vmatrix", "array", "smallmatrix"}
_MARKS = "overline bar hat vec dot ddot tilde widehat overrightarrow mathbb widetilde overleftrightarrow"
_ACCENTS = set(_MARKS.split())
_APPLIED = set("fghFGHWu")
_END = Token("end", "", False)


@lru_cache(maxsize=8192)
def parse(text: str, thousands: bool = True) -> Node:
    """The tree of an answer; MathError when it cannot be read."""
    text = clean(text)
    if " " in text and text.lower() in CONSTANTS:
        return CONSTANTS[text.lower()]
    reader = _Reader(tokens(text, thousands))
    node = reader.answer()
    if reader.now is not _END:
        raise MathError(f"cannot read from {reader.now.value!r} on")
    if _deeper(node, MAX_TREE):
        raise MathError(f"a tree deeper than {MAX_TREE}")
    return node


def _deeper(node: Node, limit: int) -> bool:
    """Whether a tree is deeper than `limit` (`3!!!!...` nests without brackets), found without recursion."""
    level: list[Any] = [node]
    for _ in range(limit):
        level = [part for parent in level for part in parent if isinstance(part, tuple)]
        if not level:
            return False
    return True


class _Reader:
    def __init__(self, found: list[Token]) -> None:
        self.tokens, self.at, self.depth, self.bars = [*found, _END], 0, 0, 0

    @property
    def now(self) -> Token:
        return self.tokens[self.at]

    def next(self) -> Token:
        token = self.tokens[self.at]
        self.at += token is not _END
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

    # -- lists and relations -------------------------------------------------------------------------------------------

    def answer(self) -> Node:
        groups = [self.items()]
        while self.op(";"):
            groups.append(self.items())
        if len(groups) == 1:
            return groups[0]
        if all(g[0] == "list" and all(i[0] == "rel" for i in g[1]) for g in groups):
            return ("list", tuple(("tuple", "(", ")", g[1]) for g in groups))
        return ("list", tuple(groups))

    def items(self, semicolons: bool = False) -> Node:
        found = [self.relation()]
        while self.op(",", "and", "or", *((";",) if semicolons else ())):
            while self.op(",", "and", "or"):
                pass
            if self.now is _END or self.peek(")", "]", "}", "\\}", ")>"):
                break
            found.append(self.relation())
        return found[0] if len(found) == 1 else ("list", tuple(found))

    def relation(self) -> Node:
        nodes, operators = [self.ratio()], []
        while self.now.kind == "op" and self.now.value in _RELATIONS:
            operators.append(self.next().value)
            nodes.append(self.ratio())
        return ("rel", tuple(operators), tuple(nodes)) if operators else nodes[0]

    def ratio(self) -> Node:
        nodes = [self.sets()]
        while self.op(":"):
            nodes.append(self.sets())
        return ("ratio", tuple(nodes)) if len(nodes) > 1 else nodes[0]

    def sets(self) -> Node:
        node = self.sum()
        while self.peek("cup", "cap", "setminus"):
            kind = {"cup": "union", "cap": "cap", "setminus": "minus"}[self.next().value]
            node = (kind, node, self.sum())
        return node

    # -- arithmetic ----------------------------------------------------------------------------------------------------

    def sum(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise MathError(f"nested deeper than {MAX_DEPTH}")
        nodes = [self.term()]
        while self.peek("+", "-", "+-", "-+"):
            sign = self.next().value
            node = self.term()
            nodes.append({"+": node, "-": ("neg", node), "+-": ("pm", 1, node), "-+": ("pm", -1, node)}[sign])
        self.depth -= 1
        return ("add", tuple(nodes)) if len(nodes) > 1 else nodes[0]

    def term(self) -> Node:
        sign = 1
        mark = None
        while self.peek("+", "-", "+-", "-+"):
            value = self.next().value
            if value == "-":
                sign = -sign
            elif value != "+":
                mark = 1 if value == "+-" else -1
        node = self.factors()
        if mark is not None:
            return ("pm", mark * sign, node)
        return ("neg", node) if sign < 0 else node

    def factors(self) -> Node:
        node = self.signed()
        while True:
            if self.op("*"):
                node = _times(node, self.signed())
            elif self.op("/"):
                node = ("div", node, self.signed())
            elif self.now.kind in ("word", "text") and self.now.value.lower() in SCALES:
                node = _times(node, ("num", SCALES[self.next().value.lower()], 0))
            elif self.unit_here():
                node = ("unit", node, self.unit())
            elif self.starts():
                if self.now.kind == "num" and node[0] == "num":
                    node = self.mixed(node)
                else:
                    node = self.beside(node)
            else:
                return node

    def signed(self) -> Node:
        negative = False
        while self.peek("-", "+"):
            negative ^= self.next().value == "-"
        node = self.power()
        return ("neg", node) if negative else node

    def beside(self, node: Node) -> Node:
        r"""Two factors side by side: a product, or a mixed number as in `1\frac{1}{2}`."""
        bar = self.now.kind == "cmd" and self.now.value == "frac"
        other = self.power()
        mark, fraction = (other[0], other[1]) if other[0] in ("pct", "deg") else ("", other)
        proper = fraction[0] == "div" and fraction[1][0] == fraction[2][0] == "num" and 0 < fraction[1][1] < fraction[2][1]
        if bar and proper and node[0] == "num" and not (node[2] or fraction[1][2] or fraction[2][2]):
            whole = ("add", (node, fraction))
            return (mark, whole) if mark else whole
        return _times(node, other)

    def mixed(self, whole: Node) -> Node:
        """`1 1/2`: a whole number, a space, a proper fraction; no other two numbers stand side by side."""
        gap, above = self.now.gap, self.number(self.next().value)
        if gap and not whole[2] and not above[2] and self.op("/") and self.now.kind == "num":
            below = self.number(self.next().value)
            if above[1] < below[1] and not below[2]:
                return ("add", (whole, ("div", above, below)))
        raise MathError("two numbers side by side")

    def starts(self) -> bool:
        """Whether a factor starts here."""
        (kind, value, _), before = self.now, self.tokens[self.at - 1]
        if kind == "op":
            return (
                value in ("(", "{", "\\{", "<(") or (value == "[" and before.value != "]") or (value == "|" and not self.bars)
            )
        if kind == "num" and before.kind in ("word", "text"):
            raise MathError("a number behind a word")
        if kind == "word" and len(value) > 1 and before.value == "0":
            raise MathError("a word behind a zero")
        return kind in ("num", "word", "text") or (
            kind == "cmd" and value not in ("\\", "end", "rfloor", "rceil", "right", "&")
        )

    def power(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise MathError(f"nested deeper than {MAX_DEPTH}")
        node = self.postfix(self.atom())
        self.depth -= 1
        return node

    def postfix(self, node: Node) -> Node:
        while True:
            if self.op("!"):
                node = ("fact", node)
            elif self.op("%") or self.percent_word():
                node = ("pct", node)
            elif self.op("'"):
                node = ("sym", _name(node) + "'")
            elif self.op("_"):
                node = self.subscript(node)
            elif self.op("^"):
                node = self.raised(node)
            else:
                return node

    def percent_word(self) -> bool:
        if self.now.kind in ("word", "text") and self.now.value.lower() in ("percent", "pct", "percentage"):
            self.at += 1
            return True
        return False

    def raised(self, node: Node) -> Node:
        start = self.at
        braced = self.op("{")
        if self.now.kind == "cmd" and self.now.value in ("circ", "prime"):
            name = self.next().value
            while self.now.kind == "cmd" and self.now.value == name:
                self.at += 1
            if not braced or self.op("}"):
                return ("deg", node) if name == "circ" else ("sym", _name(node) + "'")
        self.at = start
        if self.peek("-", "+"):
            return ("pow", node, self.signed())
        return ("pow", node, self.power() if not self.peek("{") else self.argument())

    def subscript(self, node: Node) -> Node:
        start = self.at
        if not self.op("{"):
            label = self.next().value
        else:
            depth = 1
            while depth and self.now is not _END:
                value = self.next()
                depth += (value.kind == "op") * ((value.value == "{") - (value.value == "}"))
            label = "".join(t.value for t in self.tokens[start : self.at] if t.value not in ("{", "}"))
        if node[0] == "num":
            if not label.isdigit() or not 2 <= int(label) <= 36:
                raise MathError(f"no base: {label!r}")
            return ("base", str(node[1]), int(label))
        return ("sym", f"{_name(node)}_{label}")

    # -- atoms ---------------------------------------------------------------------------------------------------------

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
            return CONSTANTS["reals"] if name == "mathbb" and inner == ("sym", "R") else ("sym", f"{name} {_name(inner)}")
        if name in ("boxed", "fbox"):
            return self.argument()
        if name in ("dots", "ldots", "cdots", "\\", "end", "&", "pmod", "bmod"):
            raise MathError(f"cannot read \\{name}")
        return ("sym", name)

    def argument(self, first: bool = False) -> Node:
        r"""A braced group, or the next symbol; with `first` only its first digit or letter (`\frac12`)."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise MathError(f"nested deeper than {MAX_DEPTH}")
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
            node = _times(node, self.power())
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
            while self.now is not _END and not self.op("}"):
                self.at += 1
        rows: list[list[Node]] = [[]]
        while not (self.now.kind == "cmd" and self.now.value == "end"):
            if self.now.kind == "cmd" and self.now.value == "\\":
                self.at += 1
                rows.append([])
            elif not self.op("&"):
                rows[-1].append(self.relation())
            if self.now is _END:
                raise MathError("a matrix is never closed")
        self.at += 1
        self.need("{")
        self.at += 1
        self.need("}")
        full = tuple(tuple(row) for row in rows if row)
        if not full or len({len(row) for row in full}) != 1:
            raise MathError("a matrix with rows of different lengths")
        return ("matrix", full)

    # -- units ---------------------------------------------------------------------------------------------------------

    def unit_here(self) -> bool:
        kind, value, _ = self.now
        if kind == "text":
            return (value not in FUNCTIONS or value == "min") and value not in CONSTANTS
        if kind != "word" or value in FUNCTIONS or value.lower() in GREEK or value.lower() in CONSTANTS:
            return kind == "cmd" and value in ("euro", "pound", "$")
        return (value.lower() in UNITS and len(value) > 1) or (
            len(value) >= 4 and not value.startswith(("sqrt", "sin", "cos", "tan"))
        )

    def unit(self) -> str:
        r"""All words that follow, with `/`, squares and cubes: "cm^2", "miles per hour"."""
        names = []
        while True:
            if self.now.kind in ("text", "word") and (self.unit_here() or names):
                names.append(self.next().value.lower())
            elif self.now.kind == "cmd" and self.now.value in ("euro", "pound", "$"):
                names.append({"$": "dollar", "pound": "gbp"}.get(self.now.value, self.now.value))
                self.at += 1
            elif names and self.peek("^") and self.tokens[self.at + 1].value in ("2", "3"):
                names[-1] += "^" + self.tokens[self.at + 1].value
                self.at += 2
            elif (
                names
                and self.peek("^")
                and [t.value for t in self.tokens[self.at + 1 : self.at + 4]] in (["{", "2", "}"], ["{", "3", "}"])
            ):
                names[-1] += "^" + self.tokens[self.at + 2].value
                self.at += 4
            elif names and self.peek("/") and self.tokens[self.at + 1].kind in ("word", "text"):
                self.at += 1
                names.append("per")
            else:
                return " ".join(names)


def _times(a: Node, b: Node) -> Node:
    return ("mul", (*a[1], b)) if a[0] == "mul" else ("mul", (a, b))


def _name(node: Node) -> str:
    if node[0] in ("sym", "text"):
        return node[1]
    if node[0] == "mul" and all(n[0] == "sym" for n in node[1]):
        return "".join(n[1] for n in node[1])
    if node in CONSTANTS.values():
        return next(k for k, v in CONSTANTS.items() if v == node)
    if node[0] == "num":
        return str(node[1])
    raise MathError("a mark on something that is no name")
