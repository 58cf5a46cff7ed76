r"""Do two trees mean the same answer? Lists, sets, tuples, matrices, ratios, equations; the gold stands on the left.

Rules that are a choice and not mathematics (those on numbers stand in `math_scalar`):
1. A label is not part of the value: `x=2`, `f(n)=2`, `x \in \{2\}`, `S_1:S=2` are `2`; `2x+z=1` is not `1`.
2. A list without brackets is a set: `1,2` is `2,1` and `\{1,2\}`; against a tuple its order counts. `a \pm b` is two values.
3. A column or a row is the tuple of its entries; `f(x)=x^2` is `f(n)=n^2`.
"""

from __future__ import annotations

from typing import Any

from rewards.math_eval import Undecided, context, exact, same, value
from rewards.math_parse import Node
from rewards.math_region import is_region, regions
from rewards.math_scalar import points, quantities, quantity, scalars, whole_numbers
from rewards.math_tree import canonical, children, has, replaced, symbols

MAX_ITEMS = 60  # of a list, set or tuple
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
    if "tuple" in (gold[0], answer[0]) or is_region(gold) or is_region(answer):
        return _tuples(gold, answer, tolerance)
    if gold[0] == "text" or answer[0] == "text":
        return False
    return quantities(gold, answer, tolerance)


def plain(node: Node) -> Node:
    r"""Resolves what only looks like a structure: `a \pm b` -> a list, lists in lists, a matrix of one entry."""
    if has(node, "pm") and node[0] != "rel":
        if node[0] in ("list", "set"):
            return plain((node[0], tuple(x for item in node[1] for x in (_both(item) if has(item, "pm") else (item,)))))
        return ("list", _both(node))
    if node[0] == "list" and any(item[0] == "list" for item in node[1]):
        return ("list", tuple(x for item in node[1] for x in (item[1] if item[0] == "list" else (item,))))
    return node


def _both(node: Node) -> tuple[Node, Node]:
    return _signed(node, 1), _signed(node, -1)


def _signed(node: Any, sign: int) -> Any:
    if not isinstance(node, tuple):
        return node
    if node and node[0] == "pm":
        inner = _signed(node[2], sign)
        return inner if node[1] == sign else ("neg", inner)
    return tuple(_signed(part, sign) for part in node)


# -- structures --------------------------------------------------------------------------------------------------------------


def _collections(gold: Node, answer: Node, tolerance: float) -> bool:
    if regions(gold, answer):
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
    if g_names and a_names:  # other labels: only functions of another letter are the same
        named = all(name.startswith("app") for name in (*g_names, *a_names)) and len(g) == len(a)
        return named and all(equal(x, y, tolerance) for x, y in zip(g, a, strict=True))
    if (g_names or a_names) and len(g) == len(a):
        return _in_order(tuple(map(_value, g)), tuple(map(_value, a)), tolerance)
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
    return regions(gold, answer)


def _ratios(gold: Node, answer: Node, tolerance: float) -> bool:
    """`6:8` is `3:4` and, with two parts, `3/4`; clock times (`12:00`) are compared part by part."""
    g, a = (node[1] if node[0] == "ratio" else None for node in (gold, answer))
    if g and a:
        if len(g) != len(a):
            return False
        if _in_order(tuple(quantity(x)[0] for x in g), tuple(quantity(x)[0] for x in a), tolerance):
            return True
        if any(exact(quantity(x)[0]) == 0 for x in (*g, *a)):
            return False
        return all(scalars(("div", g[0], x), ("div", a[0], y)) for x, y in zip(g[1:], a[1:], strict=True))
    g, a = (("div", *n) if n and len(n) == 2 else None for n in (g, a))
    return (
        scalars(g or gold, a or answer, tolerance)
        if (g or a) and all(n[0] not in ("tuple", "text") for n in (gold, answer))
        else False
    )


def matrix(node: Node) -> tuple[tuple[Node, ...], ...] | None:
    """The entries of a matrix, also of sums, products and multiples of matrices; None for anything else."""
    if node[0] == "matrix":
        return node[1]
    if node[0] == "neg" and (inner := matrix(node[1])):
        return tuple(tuple(("neg", x) for x in row) for row in inner)
    if node[0] == "div" and (inner := matrix(node[1])):
        return tuple(tuple(("div", x, node[2]) for x in row) for row in inner)
    if node[0] not in ("add", "mul") or not has(node, "matrix") or len(node[1]) > 4:
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


# -- labels, equations, inequalities --------------------------------------------------------------------------------------------


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
            if g[0] == a[0] != "":
                return False
        if regions(gold, answer):
            return True
        return len(gold[1]) == len(answer[1]) == 1 and _equations(gold, answer)
    if (g and equal(g[1], answer, tolerance)) or (a and equal(gold, a[1], tolerance)):
        return True
    if not a and answer[0] == "rel" and answer[1] == ("=",) and not _numbers(answer[2][0]) and not symbols(answer[2][1]):
        return exact(gold) is not None and equal(gold, answer[2][1], tolerance)  # `x+y=5` for the sum 5
    return regions(gold, answer)


def _numbers(node: Node) -> bool:
    return has(node, "num") or has(node, "tuple")


def _renamed(gold: Node, g: Node, answer: Node, a: Node) -> tuple[Node, Node]:
    """`f(x)=x^2` and `f(n)=n^2` are one function: the argument's name is replaced."""
    one, two = gold[2][0], answer[2][0]
    if one[0] == two[0] == "app" and one[1] == two[1] and [n[0] for n in (*one[2], *two[2])] == ["sym", "sym"]:
        old, new = two[2][0], one[2][0]
        if new[1] not in symbols(a):
            return g, replaced(a, old, new)
    return g, a


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
    for point in points(names, whole_numbers(f, h)):
        try:
            one, two = value(f, point), value(h, point)
        except Undecided:
            continue
        if not one or not two or context().isinf(one) or context().isinf(two):
            return False
        if ratio is not None and not same(one / two, ratio):
            return False
        ratio = one / two
        agreed += 1
    return agreed >= 3 and (operator in ("=", "!=") or context().re(ratio) > 0)
