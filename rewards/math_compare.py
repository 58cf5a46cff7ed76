r"""Do two trees mean the same answer? The rules, one function each; the gold stands on the left.

Rules that are a choice and not mathematics:
1. A label is not part of the value: `x=2`, `f(n)=2`, `x \in \{2\}`, `S_1:S=2` are `2`; `2x+z=1` is not `1`.
2. Units, `\text{...}` behind a value, money and degree signs count only where both sides name units of one table: `1 m` is
   `100 cm`, `5 m` is not `5 cm`. `28\%` is `28` and `0.28`, but `28` is not `0.28`.
3. A list without brackets is a set: `1,2` is `2,1` and `\{1,2\}`; against a tuple its order counts. `a \pm b` is two values.
4. Decimals are exact. A decimal with 6 or more digits behind the point (5 of them significant) also equals what it rounds.
   A relative tolerance is used only where the problem states one.
5. A number with a base equals its digits without one.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import combinations
from typing import Any

from rewards.math_eval import Undecided, canonical, chance, children, context, exact, same, symbols, value
from rewards.math_names import unit
from rewards.math_parse import Node

MAX_ITEMS = 60  # of a list, set or tuple
_DISCRETE = ("fact", "binom", "floor", "ceil", "gcd", "lcm")
_WHOLE = set("nmkijdNMpqrabc")  # symbols that stand for whole numbers where a formula is about whole numbers
_FLIP = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}


def equal(gold: Node, answer: Node, tolerance: float = 0.0) -> bool:
    """Whether the trees mean the same."""
    if canonical(gold) == canonical(answer):
        return True
    gold, answer = plain(gold), plain(answer)
    if gold[0] == "rel" or answer[0] == "rel":
        return _relations(gold, answer, tolerance)
    if answer[0] == "set" and len(answer[1]) == 1 and gold[0] not in ("set", "list", "tuple"):
        return equal(gold, answer[1][0], tolerance)
    if gold[0] == "set" and len(gold[1]) == 1 and answer[0] not in ("set", "list", "tuple"):
        return equal(gold[1][0], answer, tolerance)
    if gold[0] in ("list", "set") or answer[0] in ("list", "set"):
        return _collections(gold, answer, tolerance)
    if gold[0] == "ratio" or answer[0] == "ratio":
        return _ratios(gold, answer, tolerance)
    g, a = matrix(gold), matrix(answer)
    if g is not None or a is not None:
        return _matrices(g, a, gold, answer, tolerance)
    if "tuple" in (gold[0], answer[0]) or _is_region(gold) or _is_region(answer):
        return _tuples(gold, answer, tolerance)
    if gold[0] == "text" or answer[0] == "text":
        return False
    return _quantities(gold, answer, tolerance)


def plain(node: Node) -> Node:
    r"""Resolves what only looks like a structure: `a \pm b` -> a list, lists in lists, a matrix of one entry."""
    if _has(node, "pm") and node[0] != "rel":
        if node[0] in ("list", "set"):
            return plain((node[0], tuple(x for item in node[1] for x in (_both(item) if _has(item, "pm") else (item,)))))
        return ("list", _both(node))
    if node[0] == "list" and any(item[0] == "list" for item in node[1]):
        return ("list", tuple(x for item in node[1] for x in (item[1] if item[0] == "list" else (item,))))
    return node


def _has(node: Node, kind: str) -> bool:
    return node[0] == kind or any(_has(child, kind) for child in children(node))


def _both(node: Node) -> tuple[Node, Node]:
    return _signed(node, 1), _signed(node, -1)


def _signed(node: Any, sign: int) -> Any:
    if not isinstance(node, tuple):
        return node
    if node and node[0] == "pm":
        inner = _signed(node[2], sign)
        return inner if node[1] == sign else ("neg", inner)
    return tuple(_signed(part, sign) for part in node)


# -- scalars -----------------------------------------------------------------------------------------------------------------


def _quantities(gold: Node, answer: Node, tolerance: float) -> bool:
    (g, g_unit, g_pct), (a, a_unit, a_pct) = _quantity(gold), _quantity(answer)
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
    if "degree" in (g_unit, a_unit) and g_unit != a_unit and _has(answer if g_unit else gold, "const"):
        return scalars(gold, answer, tolerance)  # `60^\circ` is `\pi/3`
    if g_pct != a_pct:
        return (
            scalars(_scaled(g, Fraction(1, 100)), a, tolerance)
            if g_pct
            else scalars(g, _scaled(a, Fraction(1, 100)), tolerance)
        )
    return False


_LETTERS = tuple(("sym", letter) for letter in "msghLlVANJKWC")


def _quantity(node: Node) -> tuple[Node, str, bool]:
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
    if not (_calls(gold, ("log",)) or _calls(answer, ("log",))):
        return False
    return _identical(gold, answer, names, True)


def _calls(node: Node, functions: tuple[str, ...]) -> bool:
    return (
        node[0] in functions or (node[0] == "fn" and node[1] in functions) or any(_calls(c, functions) for c in children(node))
    )


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
    whole = _calls(gold, _DISCRETE) or _calls(answer, _DISCRETE)
    mp, real, other, agreed = context(), 0, 0, True
    for point in points(names, whole):
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


# -- structures --------------------------------------------------------------------------------------------------------------


def _collections(gold: Node, answer: Node, tolerance: float) -> bool:
    if _regions(gold, answer):
        return True
    if "tuple" in (gold[0], answer[0]):
        if "set" in (gold[0], answer[0]):
            return False
        g, a = (node[3] if node[0] == "tuple" else node[1] for node in (gold, answer))
        return (gold if gold[0] == "tuple" else answer)[1:3] == ("(", ")") and _in_order(g, a, tolerance)
    g, a = (node[1] if node[0] in ("list", "set") else (node,) for node in (gold, answer))
    if len(g) > MAX_ITEMS or len(a) > MAX_ITEMS or (1 in (len(g), len(a)) and len(g) != len(a)):
        return False
    g_names, a_names = _labels(g), _labels(a)
    if g_names and a_names and set(g_names) == set(a_names):
        a = tuple(a[a_names.index(name)] for name in g_names)
        return _in_order(tuple(map(_value, g)), tuple(map(_value, a)), tolerance)
    if (g_names or a_names) and len(g) == len(a):
        return _in_order(tuple(map(_value, g)), tuple(map(_value, a)), tolerance)
    if _units_differ(g, a):
        return False
    matched: set[int] = set()
    for item in g:
        hit = next((i for i, other in enumerate(a) if i not in matched and equal(_value(item), _value(other), tolerance)), None)
        if hit is None:
            hit = next((i for i in matched if equal(_value(item), _value(a[i]), tolerance)), None)
        if hit is None:
            return False
        matched.add(hit)
    rest = [a[i] for i in range(len(a)) if i not in matched]
    return all(any(equal(_value(item), _value(other), tolerance) for item in g) for other in rest)


def _units_differ(g: tuple[Node, ...], a: tuple[Node, ...]) -> bool:
    return len(g) == 1 and len(a) > 1 and a[0][0] == "text"


def _labels(items: tuple[Node, ...]) -> list[str]:
    """The labels of a list in which every item has one of its own (`x=1, y=2`), else []."""
    names = [split[0] for item in items if (split := label(item)) and split[0]]
    return names if len(names) == len(items) > 1 and len(set(names)) == len(names) else []


def _value(node: Node) -> Node:
    split = label(node) if node[0] == "rel" else None
    return split[1] if split else node


def _in_order(g: tuple[Node, ...], a: tuple[Node, ...], tolerance: float) -> bool:
    return len(g) == len(a) <= MAX_ITEMS and all(equal(_value(x), _value(y), tolerance) for x, y in zip(g, a, strict=True))


def _tuples(gold: Node, answer: Node, tolerance: float) -> bool:
    if gold[0] == answer[0] == "tuple":
        return gold[1:3] == answer[1:3] and _in_order(gold[3], answer[3], tolerance)
    return _regions(gold, answer)


def _ratios(gold: Node, answer: Node, tolerance: float) -> bool:
    """`6:8` is `3:4` and, with two parts, `3/4`; clock times (`12:00`) are compared part by part."""
    g, a = (node[1] if node[0] == "ratio" else None for node in (gold, answer))
    if g and a:
        if len(g) != len(a):
            return False
        if _in_order(tuple(_quantity(x)[0] for x in g), tuple(_quantity(x)[0] for x in a), tolerance):
            return True
        if any(exact(_quantity(x)[0]) == 0 for x in (*g, *a)):
            return False
        return all(scalars(("div", g[0], x), ("div", a[0], y)) for x, y in zip(g[1:], a[1:], strict=True))
    g, a = (("div", *n) if n and len(n) == 2 else None for n in (g, a))
    return (
        scalars(g or gold, a or answer, tolerance)
        if (g or a) and all(n[0] not in ("tuple", "text") for n in (gold, answer))
        else False
    )


def matrix(node: Node, depth: int = 0) -> tuple[tuple[Node, ...], ...] | None:
    """The entries of a matrix, also of sums, products and multiples of matrices; None for anything else."""
    if node[0] == "matrix":
        return node[1]
    if node[0] == "neg" and (inner := matrix(node[1])):
        return tuple(tuple(("neg", x) for x in row) for row in inner)
    if node[0] == "div" and (inner := matrix(node[1])):
        return tuple(tuple(("div", x, node[2]) for x in row) for row in inner)
    if node[0] not in ("add", "mul") or not _has(node, "matrix") or len(node[1]) > 4:
        return None
    total: tuple[tuple[Node, ...], ...] | None = None
    factor: tuple[Node, ...] = ()
    for part in node[1]:
        entries = matrix(part)
        if entries is None or len(entries) > 6 or len(entries[0]) > 6:
            if node[0] == "add" or entries is not None:
                return None
            factor += (part,)
        elif total is None:
            total = entries
        elif node[0] == "add":
            if len(total) != len(entries) or len(total[0]) != len(entries[0]):
                return None
            total = tuple(tuple(("add", xy) for xy in zip(r, s, strict=True)) for r, s in zip(total, entries, strict=True))
        elif len(total[0]) != len(entries):
            return None
        else:
            columns = list(zip(*entries, strict=True))
            total = tuple(tuple(("add", tuple(("mul", xy) for xy in zip(r, c, strict=True))) for c in columns) for r in total)
    return tuple(tuple(("mul", (*factor, x)) if factor else x for x in row) for row in total) if total else None


def _matrices(g: Any, a: Any, gold: Node, answer: Node, tolerance: float) -> bool:
    """Entry by entry; a column or a row is also the tuple of its entries."""
    if g is None or a is None:
        rows, other = (a, gold) if g is None else (g, answer)
        flat = [row[0] for row in rows] if len(rows[0]) == 1 else list(rows[0]) if len(rows) == 1 else []
        return other[0] == "tuple" and other[1:3] == ("(", ")") and _in_order(other[3], tuple(flat), tolerance)
    if len(g) != len(a) or len(g[0]) != len(a[0]) or len(g) * len(g[0]) > 100:
        return False
    return all(equal(x, y, tolerance) for r, s in zip(g, a, strict=True) for x, y in zip(r, s, strict=True))


# -- equations, inequalities, regions of the line ----------------------------------------------------------------------------


def label(node: Node) -> tuple[str, Node] | None:
    """Name and value of a relation that only names its value: `x=2`, `x=1+1=2`, `x \\in S`; None for any other."""
    if node[0] != "rel":
        return None
    operators, nodes = node[1], node[2]
    if "~" in operators:
        cut = operators.index("~")
        if set(operators[:cut]) - {"="}:
            return None
        if cut == 0 and (_is_name(nodes[0]) or symbols(nodes[0]) - symbols(nodes[1])):
            return canonical(nodes[0]), nodes[1]
        return label(("rel", operators[:cut], nodes[: cut + 1])) if cut else ("", nodes[0])
    if set(operators) == {"="}:
        if _is_name(nodes[0]):
            return canonical(nodes[0]), nodes[-1]
        if len(nodes) == 2 and _is_name(nodes[1]) and nodes[1][0] == "sym":
            return canonical(nodes[1]), nodes[0]
        if not symbols(nodes[0]) and not symbols(nodes[-1]) and nodes[0][0] not in ("tuple", "set"):
            return "", nodes[-1]
        return None
    if operators == ("in",) and _is_name(nodes[0]):
        return canonical(nodes[0]), nodes[1]
    return None


def _is_name(node: Node) -> bool:
    """Whether a node can be a label: no numbers and no sums in it."""
    if node[0] in ("sym", "text", "app"):
        return True
    if node[0] == "const":
        return False
    if node[0] in ("mul", "ratio", "div", "neg", "tuple", "unit") or (node[0] == "fn" and node[1] == "abs"):
        below = children(node)
        return bool(below) and all(_is_name(child) for child in below)
    return False


def _relations(gold: Node, answer: Node, tolerance: float) -> bool:
    g, a = label(gold), label(answer)
    if gold[0] == answer[0] == "rel":
        if g and a:
            g_value, a_value = _renamed(gold, g[1], answer, a[1])
            if equal(g_value, a_value, tolerance):
                return True
        if _regions(gold, answer):
            return True
        return len(gold[1]) == len(answer[1]) == 1 and _equations(gold, answer)
    if (g and equal(g[1], answer, tolerance)) or (a and equal(gold, a[1], tolerance)):
        return True
    if not a and answer[0] == "rel" and answer[1] == ("=",) and not _numbers(answer[2][0]) and not symbols(answer[2][1]):
        return exact(gold) is not None and equal(gold, answer[2][1], tolerance)  # `x+y=5` for the sum 5
    return _regions(gold, answer)


def _numbers(node: Node) -> bool:
    return _has(node, "num") or _has(node, "tuple")


def _renamed(gold: Node, g: Node, answer: Node, a: Node) -> tuple[Node, Node]:
    """`f(x)=x^2` and `f(n)=n^2` are one function: the argument's name is replaced."""
    one, two = gold[2][0], answer[2][0]
    if one[0] == two[0] == "app" and one[1] == two[1] and [n[0] for n in (*one[2], *two[2])] == ["sym", "sym"]:
        old, new = two[2][0], one[2][0]
        if new[1] not in symbols(a):
            return g, _replaced(a, old, new)
    return g, a


def _replaced(node: Any, old: Node, new: Node) -> Any:
    if node == old:
        return new
    return tuple(_replaced(part, old, new) for part in node) if isinstance(node, tuple) else node


def _equations(gold: Node, answer: Node) -> bool:
    """`lhs - rhs` of one is a constant multiple of that of the other (a positive one for inequalities)."""
    operator, other = gold[1][0], answer[1][0]
    left, right = answer[2]
    if operator in _FLIP and other == _FLIP[operator]:
        left, right, other = right, left, operator
    if operator != other or operator not in (*_FLIP, "=", "!="):
        return False
    f = ("add", (gold[2][0], ("neg", gold[2][1])))
    h = ("add", (left, ("neg", right)))
    names, ratio, agreed = symbols(f) | symbols(h), None, 0
    if not names or any(node[0] in ("tuple", "set", "list", "matrix", "text") for node in (*gold[2], *answer[2])):
        return False
    for point in points(names, False):
        try:
            one, two = value(f, point), value(h, point)
        except Undecided:
            continue
        if not one or not two:
            return False
        if ratio is not None and not same(one / two, ratio):
            return False
        ratio = one / two
        agreed += 1
    return agreed >= 3 and (operator in ("=", "!=") or context().re(ratio) > 0)


def _is_region(node: Node) -> bool:
    """Whether a node is a part of the real line: an interval, a union, an inequality."""
    if node[0] in ("union", "cap", "minus"):
        return True
    if node[0] == "tuple":
        return len(node[3]) == 2
    return node[0] == "rel" and not set(node[1]) & {"=", "~"}


def _regions(gold: Node, answer: Node) -> bool:
    """Membership of both agrees at every end, between the ends, and beyond them."""
    if not any(_has(n, kind) for n in (gold, answer) for kind in ("rel", "union", "cap", "minus")):
        return False
    if not any(_is_region(n) or (n[0] in ("list", "set") and any(map(_is_region, n[1]))) for n in (gold, answer)):
        return False
    if not (_is_line(gold) and _is_line(answer)) or gold[0] == answer[0] == "tuple":
        return False
    names = {canonical(v) for n in (gold, answer) if (v := _variable(n)) is not None}
    variable = next((v for n in (gold, answer) if (v := _variable(n)) is not None), ("sym", "x"))
    mp = context()
    try:
        members = [_member(n, _variable(n) or variable) for n in (gold, answer)]
        ends = {str(mp.nstr(e, 40)): e for n in (gold, answer) for e in _constants(n) if not mp.im(e)}
        if len(names) > 1 or len(ends) > MAX_ITEMS:
            return False
        tests = _tests(list(ends.values()))
        verdicts = [tuple(member(x) for x in tests) for member in members]
    except (Undecided, KeyError):
        return False
    return verdicts[0] == verdicts[1] and (any(verdicts[0]) or gold[0] == answer[0])


def _is_line(node: Node) -> bool:
    if node[0] == "tuple":
        return len(node[3]) == 2 and all(exact(x) is not None or not symbols(x) for x in node[3])
    if node[0] in ("union", "cap", "minus"):
        return _is_line(node[1]) and _is_line(node[2])
    if node[0] == "rel":
        return True
    if node[0] in ("list", "set"):
        return len(node[1]) <= MAX_ITEMS and all(_is_line(n) or node[0] == "set" for n in node[1])
    return False


def _variable(node: Node) -> Node | None:
    """The one unknown of the relations in a node: a symbol, or an unknown function's value."""
    found = set(_unknowns(node))
    return found.pop() if len(found) == 1 else None


def _unknowns(node: Node) -> list[Node]:
    if node[0] in ("sym", "app"):
        return [node]
    return [u for child in children(node) for u in _unknowns(child)]


def _constants(node: Node) -> list[Any]:
    """The values of all numbers that stand in a region, with both signs."""
    if node[0] in ("inf", "app"):
        return []
    if node[0] not in ("tuple", "rel", "list", "set", "union", "cap", "minus") and not symbols(node) and not _has(node, "inf"):
        number = value(node, {})
        return [number, -number]
    return [c for child in children(node) for c in _constants(child)]


def _tests(ends: list[Any]) -> list[Any]:
    mp = context()
    ends = sorted(ends)
    found = [*ends, mp.mpf("0.3137"), mp.mpf("-0.2719"), mp.mpf(10) ** 7 + 1 / mp.mpf(3), -(mp.mpf(10) ** 7) - 1 / mp.mpf(3)]
    for a, b in combinations(ends, 2):
        found.append((a + b) / 2 + (b - a) / 1024)
    for end in ends:
        found += [end + mp.mpf("0.000001237"), end - mp.mpf("0.000001237"), end + mp.mpf("1.618"), end - mp.mpf("1.618")]
    return found[:400]


def _member(node: Node, variable: Node) -> Callable[[Any], bool]:
    """The test whether a number lies in the region."""
    kind = node[0]
    if kind in ("union", "cap", "minus"):
        a, b = _member(node[1], variable), _member(node[2], variable)
        return {"union": lambda x: a(x) or b(x), "cap": lambda x: a(x) and b(x), "minus": lambda x: a(x) and not b(x)}[kind]
    if kind == "list":
        parts = [_member(n, variable) for n in node[1]]
        return lambda x: any(part(x) for part in parts)
    if kind == "set":
        numbers = [value(n, {}) for n in node[1]]
        return lambda x: any(same(x, n) for n in numbers)
    if kind == "tuple":
        low, high = (value(n, {}) for n in node[3])
        closed = node[1] == "[", node[2] == "]"
        return lambda x: (
            (x > low or (closed[0] and same(x, low)))
            and (x < high or (closed[1] and same(x, high)))
            and ((closed[0] or not same(x, low)) and (closed[1] or not same(x, high)))
        )
    if kind == "rel":
        return lambda x: _holds(node, variable, x)
    raise Undecided(f"a {kind} is no region")


def _holds(node: Node, variable: Node, x: Any) -> bool:
    mp = context()
    known = {"x!": x}
    nodes = [_replaced(n, variable, ("sym", "x!")) for n in node[2]]
    for operator, left, right in zip(node[1], nodes, nodes[1:], strict=False):
        if operator == "in":
            if not _member(right, variable)(value(left, known)):
                return False
            continue
        a, b = value(left, known), value(right, known)
        if mp.im(a) or mp.im(b):
            return False
        alike = same(a, b)
        if not {
            "=": alike,
            "!=": not alike,
            "<": a < b and not alike,
            "<=": a < b or alike,
            ">": a > b and not alike,
            ">=": a > b or alike,
        }.get(operator, False):
            return False
    return True
