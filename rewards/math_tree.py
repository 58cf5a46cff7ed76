"""Looking at trees of `math_parse` without evaluating them."""

from __future__ import annotations

from typing import Any

from rewards.math_parse import Node

_NAMES = "num sym text add mul neg div pow pm fact fn app opaque deg pct unit base ratio rel list set tuple"
_KINDS = set(_NAMES.split()) | {"union", "cap", "minus", "matrix", "inf", "const"}


def children(node: Node) -> list[Node]:
    """The nodes directly below."""
    found: list[Node] = []
    stack = list(node[1:])
    while stack:
        part = stack.pop()
        if isinstance(part, tuple) and part:
            if isinstance(part[0], str) and part[0] in _KINDS:
                found.append(part)
            else:
                stack.extend(part)
    return found


def symbols(node: Node) -> frozenset[str]:
    """The names of the free symbols."""
    if node[0] == "sym":
        return frozenset((node[1],))
    found: frozenset[str] = frozenset()
    for child in children(node):
        found |= symbols(child)
    return found


def canonical(node: Node) -> str:
    """One spelling for trees that differ only in the order of summands and factors."""
    kind = node[0]
    if kind in ("add", "mul", "set"):
        return f"{kind}({','.join(sorted(canonical(n) for n in node[1]))})"
    if kind == "num":
        return str(node[1])
    if kind == "matrix":
        return f"matrix({';'.join(','.join(canonical(x) for x in row) for row in node[1])})"
    parts = [canonical(n) for n in children(node)]
    marks = [p for p in node[1:] if isinstance(p, (str, int)) or (kind == "rel" and p is node[1])]
    return f"{kind}{marks}({','.join(parts)})"


def has(node: Node, kind: str) -> bool:
    """Whether a node of this kind occurs."""
    return node[0] == kind or any(has(child, kind) for child in children(node))


def calls(node: Node, functions: tuple[str, ...]) -> bool:
    """Whether a function, or a kind of node, among `functions` occurs."""
    return (
        node[0] in functions or (node[0] == "fn" and node[1] in functions) or any(calls(c, functions) for c in children(node))
    )


def replaced(node: Any, old: Node, new: Node) -> Any:
    """The tree with every `old` replaced by `new`."""
    if node == old:
        return new
    return tuple(replaced(part, old, new) for part in node) if isinstance(node, tuple) else node
