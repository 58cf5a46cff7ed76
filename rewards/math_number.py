r"""Plain numbers, by string only: `-1,234.50` -> `Fraction`, fast and at a cost linear in the digits.

Read as plain: an optional sign, optional `$`, digits with or without thousands separators (`,` or `\,`), decimals, an optional
exponent (`1e3`), `a/b`. Everything else is `None` here and goes on to the parser.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_DIGITS = 1_000  # a longer run of digits is not a plain number
_NUMBER = re.compile(
    r"(?P<sign>[-+\u2212]?)\s*\\?\$?\s*"
    r"(?P<whole>\d{1,3}(?:,\d{3})+|\d{1,3}(?:\\,\d{3})+|\d{1,3}(?:\{,\}\d{3})+|\d+)?(?P<point>\.\d*)?"
    r"(?:[eE](?P<power>[-+]?\d{1,3}))?(?:\s*/\s*(?P<below>\d+))?\.?"
)


def number(text: str) -> Fraction | None:
    """The value of a plain number, or None.

    >>> number("-1,234.50"), number("3/6"), number("x")
    (Fraction(-2469, 2), Fraction(1, 2), None)
    """
    if len(text) > MAX_DIGITS or (match := _NUMBER.fullmatch(text.strip())) is None:
        return None
    sign, whole, point, power, below = match.group("sign", "whole", "point", "power", "below")
    digits = re.sub(r"\D", "", whole or "")
    decimals = (point or "")[1:]
    if (not digits and not decimals) or (below and int(below) == 0):
        return None
    if below and (point or power):
        return None
    value = Fraction(int(digits + decimals), 10 ** len(decimals))
    if power:
        value *= Fraction(10) ** int(power)
    if below:
        value /= int(below)
    return -value if sign in ("-", "\u2212") else value
