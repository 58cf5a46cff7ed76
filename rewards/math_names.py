"""The names that the math reader knows: functions, constants, Greek letters, units."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

_SAME = "sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh exp ln log sqrt abs floor ceil gcd lcm max min"
FUNCTIONS: dict[str, str] = {name: name for name in _SAME.split()}
FUNCTIONS |= {
    "asin": "arcsin",
    "acos": "arccos",
    "atan": "arctan",
    "tg": "tan",
    "ctg": "cot",
    "cosec": "csc",
    "ceiling": "ceil",
}
FUNCTIONS |= {"Abs": "abs", "lg": "log10", "log10": "log10", "cbrt": "cbrt", "binomial": "binom", "arctg": "arctan"}

CONSTANTS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("pi", "Pi"), ("const", "pi")),
    **{"e": ("const", "e"), "i": ("const", "i"), "infty": ("inf",), "infinity": ("inf",), "inf": ("inf",), "oo": ("inf",)},
    **dict.fromkeys(("emptyset", "varnothing", "no solution", "no solutions", "none", "empty set", "nosolution"), ("set", ())),
    **dict.fromkeys(
        ("reals", "all real numbers", "all reals", "real numbers"), ("tuple", "(", ")", (("neg", ("inf",)), ("inf",)))
    ),
}

_NUMERALS = "zero one two three four five six seven eight nine ten eleven twelve"
CONSTANTS |= {name: ("num", Fraction(n), 0) for n, name in enumerate(_NUMERALS.split())}
SCALES = {
    name: Fraction(10**n) for name, n in (("hundred", 2), ("thousand", 3), ("million", 6), ("billion", 9), ("trillion", 12))
}

_GREEK = """
alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi
omega
"""
GREEK = set(_GREEK.split())

# unit -> (dimension, size in that dimension's first unit); units of one dimension are converted, others only compared
_TABLE = """
length: m=1 meter=1 metre=1 km=1000 kilometer=1000 kilometre=1000 cm=1/100 centimeter=1/100 centimetre=1/100 mm=1/1000
 millimeter=1/1000 in=127/5000 inch=127/5000 inches=127/5000 ft=381/1250 foot=381/1250 feet=381/1250 yd=1143/1250 yard=1143/1250
 mi=201168/125 mile=201168/125
time: s=1 sec=1 second=1 min=60 minute=60 h=3600 hr=3600 hour=3600 day=86400 week=604800
mass: kg=1 kilogram=1 g=1/1000 gm=1/1000 gram=1/1000 mg=1/1000000
weight: lb=1 pound=1 lbs=1 oz=1/16 ounce=1/16
money: dollar=1 usd=1 cent=1/100
volume: l=1 liter=1 litre=1 ml=1/1000 milliliter=1/1000
angle: degree=1 deg=1
"""
UNITS: dict[str, tuple[str, Fraction]] = {}
for _line in _TABLE.strip().replace("\n ", " ").splitlines():
    _dimension, _, _units = _line.partition(":")
    for _unit in _units.split():
        _name, _, _size = _unit.partition("=")
        UNITS[_name] = UNITS.setdefault(_name + "s", (_dimension, Fraction(_size)))
_OTHERS = "euro gbp yuan rupee unit units sq square cubic mph kph people ways way hz rad radian radians am pm per"
for _word in _OTHERS.split():
    UNITS.setdefault(_word, (_word, Fraction(1)))


def unit(name: str) -> tuple[str, Fraction] | None:
    """Dimension and size of a unit such as "cm^2" or "square inches"; None for words that are no known unit."""
    words, power = name.split(), 1
    if words and words[0] in ("square", "sq", "cubic") and len(words) == 2:
        power = 3 if words[0] == "cubic" else 2
        words = words[1:]
    if len(words) != 1:
        return None
    word, _, raised = words[0].partition("^")
    if word not in UNITS or word in _OTHERS.split():
        return None
    dimension, size = UNITS[word]
    power = int(raised) if raised else power
    return dimension + (f"^{power}" if power > 1 else ""), size**power
