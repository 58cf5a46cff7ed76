"""Plain data between a sandboxed program and its judge: JSON with tags, decoded to exact builtin types only (never pickle).

None, booleans, strings, finite and other floats and ints below 2**63 stand for themselves; the rest is a tagged array:
  ["l", ...] list   ["t", ...] tuple   ["s", ...] set   ["f", ...] frozenset   ["d", key, value, ...] dict   ["i", hex] big int
  ["b", latin-1] bytes   ["c", re, im] complex   ["m", text] Decimal   ["q", n, d] Fraction   ["r", start, stop, step] range
  ["n", dtype, nested list] numpy array   ["y", name] one of the builtin types
  ["h", id, type name] an object that stays in the program (a handle)
A subclass travels as its builtin base, so an overridden `__eq__` never leaves the sandbox.
"""

from __future__ import annotations

import decimal
import fractions
import math
import sys
from collections.abc import Callable
from typing import Any

DEPTH = 100  # of nesting; honest results are far below, and every reader here is recursive
_BUILTIN: tuple[type, ...] = (int, float, str, bool, list, tuple, dict, set, frozenset, bytes, complex, type(None))
TYPES = {t.__name__: t for t in _BUILTIN}
SEQUENCES = {"l": list, "t": tuple, "s": set, "f": frozenset}


def encode(value: Any, keep: Callable[[Any], int | str] | None = None, depth: int = 0) -> Any:
    """`value` as tagged data. `keep` files an object that is not plain and returns its id; without it such a value is a TypeError."""
    if depth > DEPTH:
        raise ValueError(f"data nested deeper than {DEPTH}")
    if value is None or value is True or value is False:
        return value
    if isinstance(value, int):
        number = int.__add__(value, 0)
        return number if -(1 << 63) <= number < 1 << 63 else ["i", hex(number)]
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, str):
        return str.__str__(value)
    for tag, kind in SEQUENCES.items():
        if isinstance(value, kind):
            return [tag, *(encode(v, keep, depth + 1) for v in kind.__iter__(value))]
    if isinstance(value, dict):
        return ["d", *(encode(x, keep, depth + 1) for pair in dict.items(value) for x in pair)]
    if isinstance(value, bytes | bytearray):
        return ["b", bytes(value).decode("latin-1")]
    if isinstance(value, complex):
        return ["c", value.real, value.imag]
    if isinstance(value, decimal.Decimal):
        return ["m", decimal.Decimal.__str__(value)]
    if isinstance(value, fractions.Fraction):
        return ["q", encode(value.numerator), encode(value.denominator)]
    if isinstance(value, range):
        return ["r", *(encode(x) for x in (value.start, value.stop, value.step))]
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic) and value.dtype.kind in "biufcSU":
        return encode(value.item(), keep, depth + 1)
    if numpy is not None and isinstance(value, numpy.ndarray) and value.dtype.kind in "biufcSU":
        return ["n", value.dtype.str, encode(value.tolist(), keep, depth + 1)]
    if type(value) is type and TYPES.get(value.__name__) is value:
        return ["y", value.__name__]
    if keep is None:
        raise TypeError(f"{type(value).__name__} is not plain data")
    return ["h", keep(value), type(value).__name__[:80]]


def decode(data: Any, handle: Callable[[Any, str], Any] | None = None, depth: int = 0) -> Any:
    """The value of tagged data. Raises ValueError for anything that `encode` does not write."""
    if depth > DEPTH:
        raise ValueError(f"data nested deeper than {DEPTH}")
    if data is None or type(data) in (bool, int, float, str):
        return data
    if type(data) is not list or not data or type(data[0]) is not str:
        raise ValueError("not tagged data")
    tag, *rest = data
    try:
        if tag in SEQUENCES:
            return SEQUENCES[tag](decode(x, handle, depth + 1) for x in rest)
        if tag == "d":
            items = [decode(x, handle, depth + 1) for x in rest]
            return dict(zip(items[::2], items[1::2], strict=True))
        if tag == "h" and handle is not None:
            return handle(rest[0] if type(rest[0]) is int else str(rest[0]), str(rest[-1]))
        if tag == "n":
            nested = decode(rest[1], handle, depth + 1)
            numpy = sys.modules.get("numpy")
            return nested if numpy is None else numpy.array(nested, dtype=numpy.dtype(str(rest[0])))
        if tag == "y":
            return TYPES[rest[0]]
        if tag == "i":
            return int(rest[0], 16)
        if tag == "b":
            return rest[0].encode("latin-1")
        if tag == "m":
            return decimal.Decimal(str(rest[0]))
        numbers = {"c": complex, "q": fractions.Fraction, "r": range}
        return numbers[tag](*(decode(x, None, depth + 1) for x in rest))
    except (KeyError, IndexError, TypeError, AttributeError, ArithmeticError) as e:
        raise ValueError(f"bad tagged data {str(data)[:60]}: {e}") from None


def same(data: Any, want: Any, tolerance: float = 0.0, depth: int = 0) -> bool:
    """Is the tagged `data` of a program equal to the trusted value `want`?

    Python's `==`, but lists and tuples are alike (JSON has no tuples), nan equals nan, and with `tolerance` numbers may differ by
    that much, absolutely or relatively. The data are walked along `want`: nothing that the program chose is hashed into a table of
    ours, and nothing larger than the expected value is looked at.
    """
    if depth > DEPTH:
        return False
    tag, rest = (data[0], data[1:]) if type(data) is list and data else (None, [])
    if tag in ("l", "t") or (tag == "n" and len(rest) == 2 and type(rest[1]) is list):
        if tag == "n":
            rest = rest[1][1:]
        if not isinstance(want, list | tuple) or len(rest) != len(want):
            return False
        return all(same(x, w, tolerance, depth + 1) for x, w in zip(rest, want, strict=True))
    try:
        if tag == "d":
            if not isinstance(want, dict) or len(rest) != 2 * len(want):
                return False
            pairs = [(decode(k), v) for k, v in zip(rest[::2], rest[1::2], strict=True)]
            found = {k for k, v in pairs if k in want and same(v, want[k], tolerance, depth + 1)}
            return len(found) == len(want)
        if tag in ("s", "f"):
            return isinstance(want, set | frozenset) and len(rest) == len(want) == len(
                {x for x in map(decode, rest) if x in want}
            )
        got = decode(data)
    except (ValueError, TypeError, RecursionError):
        return False
    if isinstance(got, int | float) and isinstance(want, int | float):
        if got != got or want != want:
            return got != got and want != want
        return got == want or (tolerance > 0 and close(got, want, tolerance))
    return type(got) is type(want) and bool(got == want)


def close(got: float, want: float, tolerance: float) -> bool:
    try:
        return math.isclose(got, want, rel_tol=tolerance, abs_tol=tolerance)
    except OverflowError:  # an int beyond every float
        return False
