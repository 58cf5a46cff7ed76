"""Small charts as inline SVG for report_html.py: intervals on a line, lengths of right and wrong answers, threshold curves.

Looks come from rl/report.css ("main", "second", "third"). Every text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from eval.records import Answered
from rl.report_plots import percent

WIDTH, HEIGHT = 360, 180  # user units; text is set for a chart about this many pixels wide
LEFT, RIGHT, TOP, FLOOR = 40, 12, 10, HEIGHT - 30
BARS = 30
KINDS = ("main", "second", "third")
Bins = tuple[float, list[int], list[int]]  # width in tokens, right and wrong answers in each


def kind(i: int, count: int) -> str:
    """The look of the i-th of `count` models: the base faint, the newest strong."""
    return KINDS[0] if i == count - 1 else KINDS[min(2, count - 1 - i)]


def whiskers(marks: Sequence[tuple[str, str, Mapping[str, Any] | None]], high: float = 1.0) -> str:
    """Dots with 95 % intervals on one line from 0 to `high`, as wide as its cell; `marks` are (name, kind, estimate)."""
    tall = 8 * len(marks) + 14
    parts = [f'<line class="grid" x1="{x}%" x2="{x}%" y1="0" y2="{tall}"/>' for x in (0, 25, 50, 75, 100)]
    for i, (name, look, e) in enumerate(marks):
        if e is None:
            continue
        y, at = 11 + 8 * i, [100 * min(1.0, e[key] / high) for key in ("value", "low", "high")]
        told = f"{name}: {percent(e['value'])} ({percent(e['low'])} to {percent(e['high'])})"
        parts.append(
            f'<g><title>{escape(told)}</title><line class="whisker {look}" x1="{at[1]:.2f}%" x2="{at[2]:.2f}%" y1="{y}" y2="{y}"/>'
            f'<circle class="dot {look}" cx="{at[0]:.2f}%" cy="{y}" r="4"/></g>'
        )
    return f'<svg style="height:{tall}px" role="img" aria-label="accuracy with 95 % intervals">{"".join(parts)}</svg>'


def scale(high: float = 1.0) -> str:
    """The numbers over a column of `whiskers`."""
    ticks = [f"{100 * high * i / 4:.3g}" for i in range(5)]
    return f'<div class="scale">{"".join(f"<span>{t}</span>" for t in ticks[:-1])}<span>{ticks[-1]} %</span></div>'


def reach(highs: Sequence[float]) -> float:
    """The end of an axis that shows them all: 10, 20, 40, 60, 80 or 100 %.

    >>> reach([0.31, 0.35])
    0.4
    """
    return next((end for end in (0.1, 0.2, 0.4, 0.6, 0.8) if max(highs, default=1.0) <= end), 1.0)


def bins(answered: Sequence[Answered]) -> Bins:
    """How long right and wrong answers are, in about BARS bins of a round width; the last one has all that are longer still.

    The axis ends at the 99 % quantile, so that a few answers that ran into the limit do not squeeze the rest.
    """
    drawn = [(s.tokens, s.lenient == 1.0) for a in answered for s in a.samples]
    end = max(1, sorted(tokens for tokens, _ in drawn)[math.ceil(0.99 * len(drawn)) - 1])
    size = 10.0 ** math.floor(math.log10(end / BARS))
    width = max(1.0, next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= end / BARS * 0.999))
    count = int(end // width) + 1
    right, wrong = [0] * count, [0] * count
    for tokens, is_right in drawn:
        (right if is_right else wrong)[min(count - 1, int(tokens // width))] += 1
    return width, right, wrong


def lengths(title: str, answered: Sequence[Answered], note: str) -> str:
    """Right answers from the floor up, wrong ones on top of them, by number of tokens."""
    width, right, wrong = bins(answered)
    top = _round_up(max(r + w for r, w in zip(right, wrong, strict=True)))
    bar = (WIDTH - LEFT - RIGHT) / len(right)
    tall = (FLOOR - TOP) / top
    parts = [_floor(top)]
    for i, (r, w) in enumerate(zip(right, wrong, strict=True)):
        if not r + w:
            continue
        x, y = LEFT + i * bar, FLOOR - (r + w) * tall
        span = f"{width * i:g} to {width * (i + 1):g} tokens" if i + 1 < len(right) else f"{width * i:g} tokens or more"
        told = f"{span}: {r:,} right, {w:,} wrong"
        parts.append(
            f"<g><title>{escape(told)}</title>"
            f'<rect class="fill second" x="{x:.1f}" y="{y:.1f}" width="{bar - 0.6:.1f}" height="{w * tall:.1f}"/>'
            f'<rect class="fill main" x="{x:.1f}" y="{FLOOR - r * tall:.1f}" width="{bar - 0.6:.1f}" height="{r * tall:.1f}"/></g>'
        )
    every = max(1, round(len(right) / 4))
    for i in range(0, len(right) + 1, every):
        parts.append(f'<text class="x" x="{LEFT + i * bar:.1f}" y="{FLOOR + 15}">{_short(width * i)}</text>')
    keys = (("right", "box main"), ("wrong", "box second"))
    return _figure(title, "answers by number of tokens", note, parts, keys)


def thresholds(title: str, curve: Sequence[Mapping[str, Any]], note: str) -> str:
    """Coverage, accuracy and precision over the threshold of the vote's share; steps, as each share of k is one."""
    keys = (("right of the answered", "main"), ("right of all", "second"), ("answered", "third"))
    parts = [_floor(1.0, shares=True)]
    for i in range(5):
        x = LEFT + (WIDTH - LEFT - RIGHT) * i / 4
        parts.append(f'<text class="x" x="{x:.1f}" y="{FLOOR + 15}">{25 * i} %</text>')
    for (_, look), field in reversed(list(zip(keys, ("precision", "accuracy", "coverage"), strict=True))):
        known = [(p["threshold"], p[field]) for p in curve if p[field] is not None]
        places = [(LEFT + (WIDTH - LEFT - RIGHT) * t, FLOOR - (FLOOR - TOP) * v) for t, v in known]
        parts.append(f'<path class="line {look}" d="M{" L".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>' if places else "")
        for (t, v), (x, y) in zip(known, places, strict=True):
            parts.append(
                f"<g><title>from {percent(t)} of the votes on: {percent(v)}</title>"
                f'<circle class="dot {look}" cx="{x:.1f}" cy="{y:.1f}" r="3.2"/></g>'
            )
    return _figure(title, "share of questions over the votes needed", note, parts, keys)


def _floor(top: float, shares: bool = False) -> str:
    """Grid and the numbers at its left: counts, or shares of 1."""
    parts = []
    for i in range(5):
        y, value = FLOOR - (FLOOR - TOP) * i / 4, top * i / 4
        text = f"{100 * value:.0f} %" if shares else _short(value)
        parts.append(
            f'<path class="{"grid" if i else "axis"}" d="M{LEFT},{y:.1f} H{WIDTH - RIGHT}"/>'
            f'<text class="y" x="{LEFT - 6}" y="{y + 3.5:.1f}">{text}</text>'
        )
    return "".join(parts)


def _round_up(count: int) -> int:
    """The next number that a quarter of reads well: 4, 8, 12, 20, 40, 80, 120, 200, 400 ..."""
    size = 1
    while True:
        for step in (4, 8, 12, 20):
            if count <= step * size:
                return step * size
        size *= 10


def _short(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 10_000 else f"{value:g}"


def _figure(title: str, unit: str, note: str, parts: Sequence[str], keys: Sequence[tuple[str, str]]) -> str:
    legend = "".join(f'<span><i class="swatch {look}"></i>{escape(name)}</span>' for name, look in keys)
    head = f'<b>{escape(title)}</b><span class="change">{escape(note)}</span>'
    return (
        f'<figure><figcaption>{head}</figcaption><div class="legend"><span>{escape(unit)}</span>{legend}</div>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg></figure>'
    )
