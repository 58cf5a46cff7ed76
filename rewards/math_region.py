r"""Parts of the real line: intervals, unions, sets of numbers, inequalities in one unknown, whatever way they are written.

Two regions are the same when membership agrees at every number that stands in either, between them and beyond. So `-2 \le x \le 7`
is `[-2,7]`, and `1 \le |z| \le 3/2` is a union of two intervals. Ends that are not written (`x^3+x<1`) are not found.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

from rewards.math_eval import Undecided, context, exact, same, value
from rewards.math_parse import Node
from rewards.math_tree import canonical, children, has, replaced, symbols

MAX_ENDS = 60


def is_region(node: Node) -> bool:
    """Whether a node is a part of the real line: an interval, a union, an inequality."""
    if node[0] in ("union", "cap", "minus"):
        return True
    if node[0] == "tuple":
        return len(node[3]) == 2
    return node[0] == "rel" and not set(node[1]) & {"=", "~"}


def regions(gold: Node, answer: Node) -> bool:
    """Membership of both agrees at every end, between the ends, and beyond them."""
    if not any(has(n, kind) for n in (gold, answer) for kind in ("rel", "union", "cap", "minus")):
        return False
    if not any(is_region(n) or (n[0] in ("list", "set") and any(map(is_region, n[1]))) for n in (gold, answer)):
        return False
    if not (_is_line(gold) and _is_line(answer)) or gold[0] == answer[0] == "tuple":
        return False
    if any(has(n, "rel") and _variable(n) is None for n in (gold, answer)):
        return False
    names = {canonical(v) for n in (gold, answer) if (v := _variable(n)) is not None}
    variable = next((v for n in (gold, answer) if (v := _variable(n)) is not None), ("sym", "x"))
    mp = context()
    try:
        members = [_member(n, _variable(n) or variable) for n in (gold, answer)]
        ends = {str(mp.nstr(e, 40)): e for n in (gold, answer) for e in _constants(n) if not mp.im(e)}
        if len(names) > 1 or len(ends) > MAX_ENDS:
            return False
        tests = _tests(list(ends.values()))
        verdicts = [tuple(member(x) for x in tests) for member in members]
    except (Undecided, KeyError):
        return False
    return verdicts[0] == verdicts[1] and any(verdicts[0])


def _is_line(node: Node) -> bool:
    if node[0] == "tuple":
        return len(node[3]) == 2 and all(exact(x) is not None or not symbols(x) for x in node[3])
    if node[0] in ("union", "cap", "minus"):
        return _is_line(node[1]) and _is_line(node[2])
    if node[0] == "rel":
        return True
    if node[0] in ("list", "set"):
        return len(node[1]) <= MAX_ENDS and all(_is_line(n) or node[0] == "set" for n in node[1])
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
    if node[0] not in ("tuple", "rel", "list", "set", "union", "cap", "minus") and not symbols(node) and not has(node, "inf"):
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
    nodes = [replaced(n, variable, ("sym", "x!")) for n in node[2]]
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
