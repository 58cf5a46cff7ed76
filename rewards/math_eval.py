r"""The value of a tree: exactly as a Fraction where it is rational, else to 170 bits, with every cost bounded beforehand.

Nothing is expanded, so `(x+y+z)^{200}` costs one power. Sizes are bounded before an operation runs: a rational result has at
most `MAX_BITS` bits, an exponent at most `MAX_EXPONENT` bits; what lies beyond is `Undecided`, and so is a sum whose smaller
part is lost in rounding (`9^{9^9}+1`), because equality could not be told then. Symbols get random values, so two formulas that
agree at a few points are equal but for a probability that nobody meets (Schwartz 1980, Zippel 1979).
mpmath contexts are not thread-safe: every thread has its own.
"""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

from rewards.math_parse import Node
from rewards.math_tree import canonical

BITS = 170
AGREE = 120  # two values are equal when they agree in so many leading bits
MAX_BITS = 4_096
MAX_EXPONENT = 2**40
_local = threading.local()


class Undecided(Exception):
    """The value lies beyond the bounds, or is not defined."""


def context() -> Any:
    """This thread's mpmath context."""
    if not hasattr(_local, "mp"):
        from mpmath.ctx_mp import MPContext

        _local.mp = MPContext()
        _local.mp.prec = BITS
    return _local.mp


# -- exact values ------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2048)
def exact(node: Node) -> Fraction | None:
    """The rational value, or None where there is none within the bounds."""
    value = _exact(node)
    if value is not None and max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        return None
    return value


def _exact(node: Node) -> Fraction | None:
    kind = node[0]
    if kind == "num":
        return node[1]
    if kind in ("neg", "unit", "pct"):
        inner = exact(node[1])
        return None if inner is None else -inner if kind == "neg" else inner / 100 if kind == "pct" else inner
    if kind in ("add", "mul"):
        total = Fraction(kind == "mul")
        for part in node[1]:
            value = exact(part)
            if value is None or total.denominator.bit_length() > MAX_BITS or total.numerator.bit_length() > MAX_BITS:
                return None
            total = total + value if kind == "add" else total * value
        return total
    if kind == "div":
        above, below = exact(node[1]), exact(node[2])
        return above / below if above is not None and below else None
    if kind == "pow":
        return _exact_power(exact(node[1]), exact(node[2]))
    if kind == "fact":
        n = exact(node[1])
        return Fraction(math.factorial(int(n))) if n is not None and n.denominator == 1 and 0 <= n <= 400 else None
    if kind == "fn":
        return _exact_function(node[1], [exact(a) for a in node[2]])
    return None


def _exact_power(base: Fraction | None, power: Fraction | None) -> Fraction | None:
    if base is None or power is None or (base == 0 and power <= 0):
        return None
    if power.denominator != 1:
        root = _root(base, power.denominator) if power.denominator <= 64 else None
        return None if root is None else _exact_power(root, Fraction(power.numerator))
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if base in (0, 1, -1):
        return base if power % 2 else base * base
    return base ** int(power) if size * abs(power) <= MAX_BITS else None


def _root(value: Fraction, n: int) -> Fraction | None:
    """The exact n-th root of a non-negative fraction, or None."""
    if value < 0:
        return None
    parts = []
    for part in (value.numerator, value.denominator):
        guess = math.isqrt(part) if n == 2 else round(float(part) ** (1 / n)) if part.bit_length() < 1000 else 0
        if guess**n != part:
            return None
        parts.append(guess)
    return Fraction(parts[0], parts[1])


def _exact_function(name: str, args: list[Fraction | None]) -> Fraction | None:
    values: list[Any] = [a for a in args if a is not None]
    if len(values) != len(args):
        return None
    whole = all(v.denominator == 1 for v in values)
    if name == "sqrt":
        n = values[1] if len(values) > 1 else Fraction(2)
        return _exact_power(values[0], 1 / n) if values[0] >= 0 and n > 0 and n.denominator == 1 else None
    if name == "abs":
        return abs(values[0])
    if name in ("floor", "ceil"):
        return Fraction(math.floor(values[0]) if name == "floor" else math.ceil(values[0]))
    if name in ("gcd", "lcm") and whole:
        return Fraction((math.gcd if name == "gcd" else math.lcm)(*map(int, values)))
    if name in ("max", "min"):
        return (max if name == "max" else min)(values)
    if name == "binom" and whole and len(values) == 2 and 0 <= values[1] <= values[0] <= 2000:
        return Fraction(math.comb(int(values[0]), int(values[1])))
    return None


# -- values at a point -------------------------------------------------------------------------------------------------------


def chance(*key: Any) -> random.Random:
    """Random numbers that depend on nothing but the key, the same in every process."""
    return random.Random(repr(key))


def value(node: Node, point: Mapping[str, Any], base10: bool = False) -> Any:
    """The value where each symbol has its value in `point`; Undecided beyond the bounds or where it is not defined."""
    mp = context()
    try:
        result = _Evaluator(mp, point, base10).of(node)
    except (ValueError, ZeroDivisionError, OverflowError, TypeError, IndexError) as error:
        raise Undecided(str(error)) from error
    if mp.isnan(result):
        raise Undecided("not a number")
    return result


def same(a: Any, b: Any) -> bool:
    """Whether two values agree to rounding."""
    mp = context()
    if mp.isinf(a) or mp.isinf(b):
        return a == b
    return a == b or abs(a - b) <= mp.ldexp(max(abs(a), abs(b)), -AGREE)


class _Evaluator:
    def __init__(self, mp: Any, point: Mapping[str, Any], base10: bool) -> None:
        self.mp, self.point, self.base10 = mp, point, base10

    def of(self, node: Node) -> Any:
        kind, mp = node[0], self.mp
        if (fraction := exact(node)) is not None:
            return (
                mp.mpf(fraction.numerator) / fraction.denominator if fraction.denominator != 1 else mp.mpf(fraction.numerator)
            )
        if kind == "sym":
            return self.point[node[1]]
        if kind == "const":
            return {"pi": mp.pi, "e": mp.e, "i": mp.j}[node[1]] * 1
        if kind == "neg":
            return -self.of(node[1])
        if kind == "add":
            total = self.of(node[1][0])
            for part in node[1][1:]:
                total = self.plus(total, self.of(part))
            return total
        if kind == "mul":
            total = mp.mpf(1)
            for part in node[1]:
                total *= self.of(part)
            return total
        if kind == "div":
            return self.of(node[1]) / self.of(node[2])
        if kind == "pow":
            return self.power(self.of(node[1]), self.of(node[2]))
        if kind == "fn":
            return self.function(node[1], [self.of(a) for a in node[2]])
        if kind == "fact":
            return self.gamma(self.of(node[1]) + 1)
        if kind == "deg":
            return self.of(node[1]) * mp.pi / 180
        if kind == "pct":
            return self.of(node[1]) / 100
        if kind == "unit":
            return self.of(node[1])
        if kind == "inf":
            return mp.inf
        if kind == "app":
            return self.hashed(node[1], [self.of(a) for a in node[2]])
        if kind == "opaque":
            return self.hashed(canonical(node), [])
        if kind == "base":
            return mp.mpf(int(node[1], node[2]))
        raise Undecided(f"a {kind} has no value")

    def plus(self, a: Any, b: Any) -> Any:
        mp, total = self.mp, a + b
        if a and b and not mp.isinf(total):
            large, small = (abs(a), abs(b)) if abs(a) > abs(b) else (abs(b), abs(a))
            if small < mp.ldexp(large, -BITS + 20):
                raise Undecided("a summand is lost in rounding")
            if abs(total) < mp.ldexp(large, -BITS + 35):
                return mp.zero
        return total

    def power(self, base: Any, power: Any) -> Any:
        mp = self.mp
        if base == 0:
            if not mp.re(power) > 0:
                raise Undecided("a power of zero")
            return mp.zero
        if abs(power) > MAX_EXPONENT or abs(power) * (1 + abs(mp.mag(base))) > MAX_EXPONENT:
            raise Undecided("an exponent beyond the bound")
        return base**power

    def gamma(self, x: Any) -> Any:
        if self.mp.im(x) or not -1000 < x < 2_000_000_000:
            raise Undecided("a factorial beyond the bound")
        return self.mp.gamma(x)

    def hashed(self, name: str, args: list[Any]) -> Any:
        key = [self.mp.nstr(a, 25) for a in args]
        return self.mp.mpf(chance(name, key, self.point.get("")).uniform(0.5, 2.5))

    def function(self, name: str, args: list[Any]) -> Any:
        mp, x = self.mp, args[0]
        if mp.isinf(x) and name not in ("max", "min", "abs"):
            raise Undecided("a function of infinity")
        if name not in ("log", "ln", "log10", "abs", "sqrt", "max", "min") and abs(x) > MAX_EXPONENT:
            raise Undecided("an argument beyond the bound")
        if name == "sqrt":
            return mp.sqrt(x) if len(args) == 1 else self.root(x, args[1])
        if name == "cbrt":
            return self.root(x, mp.mpf(3))
        if name in ("log", "ln", "log10"):
            return self.log(name, args)
        if name in ("floor", "ceil"):
            near = mp.nint(mp.re(x))
            return near if abs(x - near) < mp.ldexp(1, -100) else getattr(mp, name)(mp.re(x))
        if name in ("max", "min"):
            return (max if name == "max" else min)(args)
        if name == "abs":
            return abs(x)
        if name == "binom":
            n, k = args
            return self.gamma(n + 1) / (self.gamma(k + 1) * self.gamma(n - k + 1))
        if name in ("gcd", "lcm"):
            return self.hashed(name, sorted(args))
        if name == "exp" and abs(x) > MAX_EXPONENT / 2:
            raise Undecided("an exponent beyond the bound")
        return getattr(mp, name.replace("arc", "a") if name.startswith("arc") else name)(x)

    def root(self, x: Any, n: Any) -> Any:
        if not self.mp.im(x) and x < 0 and n == int(n) and int(n) % 2:
            return -((-x) ** (1 / n))
        return self.power(x, 1 / n)

    def log(self, name: str, args: list[Any]) -> Any:
        mp = self.mp
        if args[0] == 0:
            raise Undecided("the logarithm of zero")
        base = args[1] if len(args) > 1 else mp.mpf(10) if name == "log10" or (name == "log" and self.base10) else None
        return mp.log(args[0]) if base is None else mp.log(args[0]) / mp.log(base)
