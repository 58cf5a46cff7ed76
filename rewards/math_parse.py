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

from functools import lru_cache
from typing import Any

from rewards.math_atoms import END, Atoms, Node, name_of, times
from rewards.math_names import CONSTANTS, FUNCTIONS, GREEK, SCALES, UNITS
from rewards.math_tokens import MathError, clean, tokens

MAX_TREE = 120  # tuples in tuples
_RELATIONS = {"=", "<", ">", "<=", ">=", "!=", "in", "~"}


@lru_cache(maxsize=1024)
def parse(text: str, thousands: bool = True) -> Node:
    """The tree of an answer; MathError when it cannot be read."""
    text = clean(text)
    if " " in text and text.lower() in CONSTANTS:
        return CONSTANTS[text.lower()]
    reader = _Reader(tokens(text, thousands))
    node = reader.answer()
    if reader.now is not END:
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


class _Reader(Atoms):
    """The grammar above the atoms."""

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
            if self.now is END or self.peek(")", "]", "}", "\\}", ")>"):
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
        self.deeper()
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
                node = times(node, self.signed())
            elif self.op("/"):
                node = ("div", node, self.signed())
            elif self.now.kind in ("word", "text") and self.now.value.lower() in SCALES:
                node = times(node, ("num", SCALES[self.next().value.lower()], 0))
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
        return times(node, other)

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
        self.deeper()
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
                node = ("sym", name_of(node) + "'")
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
                return ("deg", node) if name == "circ" else ("sym", name_of(node) + "'")
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
            while depth and self.now is not END:
                value = self.next()
                depth += (value.kind == "op") * ((value.value == "{") - (value.value == "}"))
            label = "".join(t.value for t in self.tokens[start : self.at] if t.value not in ("{", "}"))
        if node[0] == "num":
            if not label.isdigit() or not 2 <= int(label) <= 36:
                raise MathError(f"no base: {label!r}")
            return ("base", str(node[1]), int(label))
        return ("sym", f"{name_of(node)}_{label}")

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
        names: list[str] = []
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
