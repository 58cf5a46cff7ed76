"""Small charts as inline SVG for report_html.py: curves over training steps, stacked seconds, dots with intervals.

Colours and fonts come from the page's style sheet (classes below), so the charts follow light and dark. Every text is escaped.
Curves longer than MAX_POINTS are averaged in equal bins of steps (or their maximum is taken, where a peak is what matters).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

MAX_POINTS = 300
WIDTH, HEIGHT = 360, 196  # user units; text is set for a chart about this many pixels wide
LEFT, RIGHT, TOP, FLOOR = 44, 12, 10, HEIGHT - 26
Points = Sequence[tuple[float, float | None]]


@dataclass(frozen=True)
class Line:
    """One curve: (step, value or None) pairs. `kind` is its look: "main", "second", "third" or "r0".."r7" (strong to faint).

    `band` holds one half-width a point (drawn as value ± half), `tag` a short label at the line's right end.
    """

    name: str
    points: Points
    kind: str = "main"
    band: Sequence[float | None] = ()
    tag: str = ""
    peak: bool = False  # bins keep their maximum, not their mean


def percent(value: float) -> str:
    """0.205 -> "20.5 %"; digits by size."""
    shown = 100 * value
    return (
        f"{shown:.0f} %" if shown == 0 or abs(shown) >= 99.95 else f"{shown:.1f} %" if abs(shown) >= 0.1 else f"{shown:.1g} %"
    )


def number(value: float) -> str:
    """Three significant digits without noise: 1313, 0.523, 3.1e-06, 41.2k."""
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1e4:
        return f"{value / 1000:.3g}k" if size < 1e6 else f"{value:.2e}"
    if size >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if size >= 1e-3 else f"{value:.1e}"


def curves(title: str, unit: str, lines: Sequence[Line], shown: Callable[[float], str] = number, log: bool = False) -> str:
    """One figure over training steps. Axes start at 0 unless `log`; more than 40 points also get their moving average."""
    lines = [_binned(line) for line in lines if any(v is not None for _, v in line.points)]
    if not lines:
        return _figure(title, unit, "", '<p class="empty">not recorded in this run</p>', "")
    values = [v for line in lines for v in _extent(line)]
    y = _Log(values) if log else _Linear([0.0, *values], FLOOR, TOP)
    margin = 14 if lines[0].tag else 0
    x = _Linear([p[0] for line in lines for p in line.points], LEFT, WIDTH - RIGHT - margin, whole=True)
    parts = [_grid(x, y, shown)]
    ends = []
    for line in reversed(lines):  # the first one is drawn on top
        smooth = _smoothed(line.points)
        if line.band:
            parts.append(_area(line, x, y))
        if smooth is not line.points:
            parts.append(f'<path class="line {line.kind} raw" d="{_path(line.points, x, y)}"/>')
        parts.append(f'<path class="line {line.kind}" d="{_path(smooth, x, y)}"/>')
        last = next((v for _, v in reversed(smooth) if v is not None), None)
        if line.tag and last is not None:
            ends.append((y.at(last), line.tag, line.kind))
    parts += [f'<text class="tag" x="{WIDTH - RIGHT - 9}" y="{at + 3.5:.1f}">{escape(tag)}</text>' for at, tag in _apart(ends)]
    parts.append(_hover(lines, x, shown))
    named = [line for line in lines if line.name and not line.tag]
    return _figure(
        title, unit, _change(lines[0], shown), _svg(title, parts), _legend([(line.name, line.kind) for line in named])
    )


def stacked(title: str, unit: str, lines: Sequence[Line]) -> str:
    """Areas on top of one another, first at the bottom: where the seconds of a step go."""
    lines = [_binned(line) for line in lines if any(v is not None for _, v in line.points)]
    if not lines:
        return _figure(title, unit, "", '<p class="empty">not recorded in this run</p>', "")
    steps = [p[0] for p in lines[0].points]
    heights = [[0.0] * len(steps)]
    for line in lines:
        heights.append([below + (v or 0.0) for below, (_, v) in zip(heights[-1], line.points, strict=True)])
    x, y = _Linear(steps, LEFT, WIDTH - RIGHT, whole=True), _Linear([0.0, *heights[-1]], FLOOR, TOP)
    parts = [_grid(x, y, number)]
    for line, low, high in zip(lines, heights[:-1], heights[1:], strict=True):
        edge = [f"{x.at(s):.1f},{y.at(v):.1f}" for s, v in zip(steps, high, strict=True)]
        edge += [f"{x.at(s):.1f},{y.at(v):.1f}" for s, v in zip(reversed(steps), reversed(low), strict=True)]
        parts.append(f'<polygon class="fill {line.kind}" points="{" ".join(edge)}"/>')
    parts.append(_hover(lines, x, number))
    total = Line("", list(zip(steps, heights[-1], strict=True)))
    return _figure(
        title, unit, _change(total, number), _svg(title, parts), _legend([(line.name, f"box {line.kind}") for line in lines])
    )


def dots(
    title: str, unit: str, labels: Sequence[str], series: Sequence[tuple[str, str, Sequence[tuple[float, float, float] | None]]]
) -> str:
    """Shares with intervals over a few ordered labels; `series` are (name, kind, one (value, low, high) or None a label)."""
    y, width = _Linear([0.0, 1.0], FLOOR, TOP), (WIDTH - LEFT - RIGHT) / max(1, len(labels))
    parts = [_grid(None, y, lambda v: f"{100 * v:.0f} %")]
    for i, label in enumerate(labels):
        parts.append(f'<text class="x" x="{LEFT + (i + 0.5) * width:.1f}" y="{HEIGHT - 9}">{escape(label)}</text>')
    for j, (name, kind, values) in enumerate(series):
        places = [LEFT + (i + 0.5) * width + 7 * (j - (len(series) - 1) / 2) for i in range(len(labels))]
        known = [(at, v) for at, v in zip(places, values, strict=True) if v is not None]
        parts.append(
            f'<path class="line {kind} thin" d="M{" L".join(f"{at:.1f},{y.at(v[0]):.1f}" for at, v in known)}"/>'
            if known
            else ""
        )
        for at, (value, low, high) in known:
            told = f"{name}: {percent(value)} ({percent(low)} to {percent(high)})"
            parts.append(
                f"<g><title>{escape(told)}</title>"
                f'<path class="whisker {kind}" d="M{at:.1f},{y.at(low):.1f} V{y.at(high):.1f}"/>'
                f'<circle class="dot {kind}" cx="{at:.1f}" cy="{y.at(value):.1f}" r="3.6"/></g>'
            )
    return _figure(title, unit, "", _svg(title, parts), _legend([(name, kind) for name, kind, _ in series]))


class _Linear:
    """A linear axis from pixel `start` to `stop`. The y-axis ends on round ticks, that of steps (`whole`) at the data."""

    def __init__(self, values: Sequence[float], start: float, stop: float, whole: bool = False) -> None:
        low, high = min(values), max(values)
        if high - low < 1e-12:
            high = low + (1.0 if whole or low == 0 else abs(low))
        step = _round_step((high - low) / 4)
        if whole:
            step = max(1.0, step)
        else:
            low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        self.ticks = [i * step for i in range(first, last + 1)]
        self.low, self.high, self.start, self.stop = low, high, start, stop

    def at(self, value: float) -> float:
        return self.start + (self.stop - self.start) * (value - self.low) / (self.high - self.low)


class _Log:
    """A y-axis in decades. What is not above 0 stands at the bottom."""

    def __init__(self, values: Sequence[float]) -> None:
        above = [v for v in values if v > 0] or [1e-8]
        self.low, self.high = math.floor(math.log10(min(above))), math.ceil(math.log10(max(above)))
        self.high = max(self.high, self.low + 1)
        every = math.ceil((self.high - self.low) / 5)
        self.ticks = [10.0**e for e in range(self.low, self.high + 1, every)]

    def at(self, value: float) -> float:
        place = math.log10(value) if value > 0 else self.low
        return FLOOR + (TOP - FLOOR) * (place - self.low) / (self.high - self.low)


def _round_step(rough: float) -> float:
    size = 10.0 ** math.floor(math.log10(rough))
    return next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= rough * 0.999)


def _tick(value: float, shown: Callable[[float], str]) -> str:
    text = shown(value)
    return text.replace(".0 %", " %") if text.endswith(".0 %") else text


def _grid(x: _Linear | None, y: _Linear | _Log, shown: Callable[[float], str]) -> str:
    decade = isinstance(y, _Log)
    lines = []
    for tick in y.ticks:
        text = f"10<tspan dy='-4' font-size='8'>{round(math.log10(tick))}</tspan>" if decade else escape(_tick(tick, shown))
        at = y.at(tick)
        kind = "axis" if tick == 0 else "grid"
        lines.append(
            f'<path class="{kind}" d="M{LEFT},{at:.1f} H{WIDTH - RIGHT}"/>'
            f'<text class="y" x="{LEFT - 6}" y="{at + 3.5:.1f}">{text}</text>'
        )
    for tick in x.ticks if x else ():
        lines.append(f'<text class="x" x="{x.at(tick):.1f}" y="{HEIGHT - 9}">{tick:.0f}</text>' if x else "")
    if x:
        lines.append(f'<text class="y" x="{LEFT - 6}" y="{HEIGHT - 9}">step</text>')
    return "".join(lines)


def _binned(line: Line) -> Line:
    """At most MAX_POINTS points, each from an equal share of the steps."""
    if len(line.points) <= MAX_POINTS:
        return line
    size = len(line.points) / MAX_POINTS
    cuts = [slice(round(i * size), round((i + 1) * size)) for i in range(MAX_POINTS)]

    def gather(values: Sequence[float | None]) -> float | None:
        known = [v for v in values if v is not None]
        return None if not known else max(known) if line.peak else math.fsum(known) / len(known)

    points = [(line.points[c][-1][0], gather([v for _, v in line.points[c]])) for c in cuts]
    return Line(line.name, points, line.kind, [gather(line.band[c]) for c in cuts] if line.band else (), line.tag, line.peak)


def _smoothed(points: Points) -> Points:
    """A centred moving average over a twentieth of the curve; short curves stay as they are."""
    if len(points) <= 40:
        return points
    half = max(1, len(points) // 40)
    result: list[tuple[float, float | None]] = []
    for i, (step, value) in enumerate(points):
        near = [v for _, v in points[max(0, i - half) : i + half + 1] if v is not None]
        result.append((step, None if value is None else math.fsum(near) / len(near)))
    return result


def _extent(line: Line) -> list[float]:
    halves = line.band or [None] * len(line.points)
    pairs = [(v, h or 0.0) for (_, v), h in zip(line.points, halves, strict=True) if v is not None]
    return [v + h for v, h in pairs] + [v - h for v, h in pairs]


def _path(points: Points, x: _Linear, y: _Linear | _Log) -> str:
    """Pieces between gaps; a lone point becomes a dot (a line of no length with round caps)."""
    pieces, pen = [], "M"
    for i, (step, value) in enumerate(points):
        if value is None:
            pen = "M"
            continue
        place = f"{x.at(step):.1f},{y.at(value):.1f}"
        pieces.append(pen + place)
        if pen == "M" and (i + 1 == len(points) or points[i + 1][1] is None):
            pieces.append("L" + place)
        pen = "L"
    return "".join(pieces)


def _area(line: Line, x: _Linear, y: _Linear | _Log) -> str:
    known = [(s, v, h) for (s, v), h in zip(line.points, line.band, strict=True) if v is not None and h is not None]
    edge = [f"{x.at(s):.1f},{y.at(v + h):.1f}" for s, v, h in known]
    edge += [f"{x.at(s):.1f},{y.at(v - h):.1f}" for s, v, h in reversed(known)]
    return f'<polygon class="band {line.kind}" points="{" ".join(edge)}"/>'


def _apart(ends: list[tuple[float, str, str]], gap: float = 10.5) -> list[tuple[float, str]]:
    """Labels at the lines' ends, moved down where they would cover one another, then up where they would leave the chart."""
    placed: list[tuple[float, str]] = []
    for at, tag, _ in sorted(ends):
        placed.append((max(at, placed[-1][0] + gap) if placed else at, tag))
    over = max(0.0, placed[-1][0] - (FLOOR)) if placed else 0.0
    return [(at - over, tag) for at, tag in placed]


def _hover(lines: Sequence[Line], x: _Linear, shown: Callable[[float], str]) -> str:
    """Invisible strips with the values of a step as their tool tip (no script needed)."""
    steps = [p[0] for p in lines[0].points]
    wide = (x.stop - x.start) / max(1, len(steps) - 1)
    strips, tall = [], FLOOR - TOP
    for i, step in enumerate(steps):
        values = [
            f"{line.name or line.tag}: {shown(v)}"
            for line in lines
            if i < len(line.points) and (v := line.points[i][1]) is not None
        ]
        told = escape(f"step {step:.0f}\n" + "\n".join(values))
        strips.append(
            f'<rect x="{x.at(step) - wide / 2:.1f}" y="{TOP}" width="{wide:.1f}" height="{tall}"><title>{told}</title></rect>'
        )
    return f'<g class="hover">{"".join(strips)}</g>'


def _change(line: Line, shown: Callable[[float], str]) -> str:
    """First and last value as drawn."""
    known = [v for _, v in _smoothed(line.points) if v is not None]
    return f"{shown(known[0])} → {shown(known[-1])}" if len(known) > 1 else shown(known[0])


def _legend(names: Sequence[tuple[str, str]]) -> str:
    return "".join(f'<span><i class="swatch {kind}"></i>{escape(name)}</span>' for name, kind in names)


def _svg(title: str, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'


def _figure(title: str, unit: str, change: str, body: str, legend: str) -> str:
    head = f'<b>{escape(title)}</b><span class="change">{escape(change)}</span>'
    return (
        f'<figure><figcaption>{head}</figcaption><div class="legend"><span>{escape(unit)}</span>{legend}</div>{body}</figure>'
    )
