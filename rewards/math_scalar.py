r"""Are two formulas the same number, for all values of their symbols? Units, percent and decimals included.

Rules that are a choice and not mathematics:
1. Units, `\text{...}` behind a value, money and degree signs count only where both sides name units of one table: `1 m` is
   `100 cm`, `5 m` is not `5 cm`. `28\%` is `28` and `0.28`, but `28` is not `0.28`. `60^\circ` is `60` and `\pi/3`.
2. Decimals are exact. A decimal with 6 or more digits behind the point (5 of them significant) also equals what it rounds.
   A relative tolerance is used only where the problem states one.
3. A number with a base equals its digits without one. `\log` is the natural logarithm or that to base 10.
4. Formulas are compared where both are real; letters such as n, m, k are whole numbers in formulas about whole numbers.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from rewards.math_eval import Undecided, chance, context, exact, same, value
from rewards.math_names import unit
from rewards.math_parse import Node
from rewards.math_tree import calls, has, symbols

_DISCRETE = ("fact", "binom", "floor", "ceil", "gcd", "lcm")
_WHOLE = set("nmkijdNMpqrabc")
_LETTERS = tuple(("sym", letter) for letter in "msghLlVANJKWC")  # units of one letter


def quantities(gold: Node, answer: Node, tolerance: float) -> bool:
    """Whether two values are the same, with their units, percent signs, degrees and bases."""
    (g, g_unit, g_pct), (a, a_unit, a_pct) = quantity(gold), quantity(answer)
    if a[0] == "mul" and len(a[1]) == 2 and a[1][1] in _LETTERS and a[1][0][0] == "num" == g[0] and not a_unit:
        a, a_unit = a[1][0], a[1][1][1]  # `5 m`: a unit of one letter behind a bare number
    if g_unit and a_unit and g_unit != a_unit:
        one, two = unit(g_unit), unit(a_unit)
        if one and two:
            if one[0] != two[0]:
                return False
            g, a = _scaled(g, one[1]), _scaled(a, two[1])
    if g[0] == "base" or a[0] == "base":
        return _bases(g, a)
    if scalars(g, a, tolerance):
        return True
    if "degree" in (g_unit, a_unit) and g_unit != a_unit and has(answer if g_unit else gold, "const"):
        return scalars(gold, answer, tolerance)  # `60^\circ` is `\pi/3`
    if g_pct != a_pct:
        return (
            scalars(_scaled(g, Fraction(1, 100)), a, tolerance)
            if g_pct
            else scalars(g, _scaled(a, Fraction(1, 100)), tolerance)
        )
    return False


def quantity(node: Node) -> tuple[Node, str, bool]:
    """Value, unit and whether it is a percentage."""
    name, percent = "", False
    while node[0] in ("unit", "pct", "deg") or (node[0] == "neg" and node[1][0] in ("unit", "pct", "deg")):
        if node[0] == "neg":
            node = (node[1][0], ("neg", node[1][1]), *node[1][2:])
        name = node[2] if node[0] == "unit" else "degree" if node[0] == "deg" else name
        percent |= node[0] == "pct"
        node = node[1]
    return node, name, percent


def _scaled(node: Node, factor: Fraction) -> Node:
    return ("mul", (("num", factor, 0), node))


def _bases(gold: Node, answer: Node) -> bool:
    if gold[0] == "base":
        digits = gold[1]
        if answer[0] == "num":
            return str(answer[1]) == digits
        return answer[0] == "base" and answer[1:] == gold[1:]
    try:
        return exact(gold) == int(answer[1], answer[2])
    except ValueError:
        return False


def scalars(gold: Node, answer: Node, tolerance: float = 0.0) -> bool:
    """Whether two formulas have the same value, for all values of their symbols."""
    g, a = exact(gold), exact(answer)
    if g is not None and a is not None:
        return g == a or _rounded(gold, answer, g, a) or _close(g, a, tolerance)
    names = symbols(gold) | symbols(answer)
    if not names:
        try:
            g, a = value(gold, {}), value(answer, {})
        except Undecided:
            return False
        return same(g, a) or _rounded(gold, answer, g, a) or _close(g, a, tolerance) or _any_log(gold, answer, names)
    return _identical(gold, answer, names, False) or _any_log(gold, answer, names)


def _any_log(gold: Node, answer: Node, names: frozenset[str]) -> bool:
    r"""`\log` without a base may be the natural one or that to base 10: the second reading."""
    if not (calls(gold, ("log",)) or calls(answer, ("log",))):
        return False
    return _identical(gold, answer, names, True)


def whole_numbers(*nodes: Node) -> bool:
    """Whether a formula is about whole numbers: factorials, floors, common divisors."""
    return any(calls(node, _DISCRETE) for node in nodes)


def points(names: frozenset[str], whole: bool, count: int = 6) -> list[dict[str, Any]]:
    """Random points: half of them positive, half of mixed signs; whole numbers for the letters of whole numbers."""
    mp, found = context(), []
    for trial in range(count):
        point: dict[str, Any] = {"": trial}
        for name in sorted(names):
            draw = chance("point", name, trial)
            if whole and name[0] in _WHOLE:
                point[name] = mp.mpf(draw.randint(12, 40) if name[0] in "nNM" else draw.randint(2, 11))
            else:
                sign = -1 if trial >= count // 2 and draw.random() < 0.5 else 1
                point[name] = sign * mp.mpf(draw.randint(2**58, 2**61)) / 2**60
        found.append(point)
    return found


def _identical(gold: Node, answer: Node, names: frozenset[str], base10: bool) -> bool:
    """Whether both agree at all points where both are real; where that leaves fewer than two points, at all points."""
    mp, real, other, agreed = context(), 0, 0, True
    for point in points(names, whole_numbers(gold, answer)):
        try:
            g, a = value(gold, point, base10), value(answer, point, base10)
        except Undecided:
            continue
        agree = same(g, a)
        if mp.im(g) or mp.im(a):
            other += 1
            agreed &= agree
        elif not agree:
            return False
        else:
            real += 1
    return real >= 2 or (real + other >= 2 and agreed)


def _rounded(gold: Node, answer: Node, g: Any, a: Any) -> bool:
    """Whether one side is a long decimal that rounds the other."""
    for node, mine, other in ((answer, a, g), (gold, g, a)):
        node = node[1] if node[0] == "neg" else node
        if node[0] != "num" or node[2] < 6 or abs(node[1]) * 10 ** node[2] < 10_000:
            continue
        if not isinstance(mine, Fraction) or not isinstance(other, Fraction):
            mp = context()
            if mp.im(other):
                continue
            half = mp.mpf(10) ** -node[2] * mp.mpf("0.5000001")
        else:
            half = Fraction(5000001, 10**7) / 10 ** node[2]
        if abs(mine - other) <= half:
            return True
    return False


def _close(g: Any, a: Any, tolerance: float) -> bool:
    if not tolerance:
        return False
    return (
        abs(g - a) <= Fraction(tolerance) * abs(g)
        if isinstance(g, Fraction) and isinstance(a, Fraction)
        else bool(abs(g - a) <= tolerance * abs(g))
    )
