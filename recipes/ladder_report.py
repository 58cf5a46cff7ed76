"""One page over all rungs of a ladder: accuracy with intervals after each, length, language mix, cost, and what each rung bought.

Written by recipes/chain.py from its manifest alone: `collect` -> `table` (the terminal's) and `write` (the page, one file, no script).
A rung's gain is the difference to the rung before it on the same questions, its interval from both rungs' own (independent draws of
answers to the same questions: a paired interval, which recipes/compare would give, is no wider). Cost is wall-clock minutes of its stages
on the machine that ran them, those of goes that were killed included, evaluations apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

Tree = Mapping[str, Any]
FIGURES = ("greedy", "pass@1", "general")
WIDTH, HEIGHT, LEFT, TOP = 960, 320, 48, 16
COLORS = {"greedy": "#1f6feb", "pass@1": "#d1650f", "general": "#2a7f3f"}
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1c2128;background:#fff;max-width:1080px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin:0 0 .2rem} h2{font-size:1.15rem;margin:2rem 0 .5rem} p{max-width:46rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
td,th{padding:.3rem .5rem;border-bottom:1px solid #d8dee4;text-align:right;vertical-align:top}
th{font-weight:600;color:#57606a;font-size:.85rem} td:first-child,th:first-child{text-align:left} .wide{overflow-x:auto}
small{color:#57606a;white-space:nowrap;display:block} .up{color:#1a7f37} .down{color:#b42318}
svg{width:100%;height:auto} .key{display:inline-block;margin-right:1.2rem}
"""


def collect(name: str, stages: Sequence[tuple[str, str, str, str]], manifest: Tree) -> dict[str, Any]:
    """The rungs in order; `stages` are (name, title, stage that is judged, its teacher's) and a rung is one with a title that was judged.

    A rung's minutes are those of all stages since the rung before it, evaluations left out.
    """
    rungs: list[dict[str, Any]] = []
    minutes, judging = 0.0, 0.0
    parts: list[str] = []
    at: dict[str, dict[str, Any]] = {}  # rungs by the stage that is judged
    for stage, title, judged, teacher in stages:
        entry = manifest["stages"].get(stage)
        if entry is None:
            continue
        if not judged:
            minutes += entry["minutes"]
            parts.append(stage)
            continue
        judging += entry["minutes"]
        rungs.append({"title": title, "minutes": minutes, "stages": parts, **entry["metrics"]})
        minutes, parts = 0.0, []
        at[judged] = rungs[-1]
        if teacher in at:
            rungs[-1]["teacher"] = at[teacher]["title"]
            rungs[-1]["kept"] = {key: kept(at[teacher][key], rungs[-1][key]) for key in ("greedy", "pass@1")}
    for before, now in pairwise(rungs):
        now["gain"] = {key: gain(before[key], now[key]) for key in FIGURES if key in before and key in now}
    return {"name": name, "rungs": rungs, "judging": judging, "minutes": sum(r["minutes"] for r in rungs)}


def gain(before: Tree, now: Tree) -> dict[str, float]:
    """Difference with its 95 % interval: half-widths of both, in quadrature, each on its side."""
    value = now["value"] - before["value"]
    down = math.hypot(now["value"] - now["low"], before["high"] - before["value"])
    up = math.hypot(now["high"] - now["value"], before["value"] - before["low"])
    return {"value": value, "low": value - down, "high": value + up}


def kept(teacher: Tree, student: Tree) -> dict[str, float]:
    """Share of the teacher's accuracy, with its 95 % interval: relative half-widths in quadrature. 0 where the teacher is never right."""
    if not teacher["value"]:
        return {"value": 0.0, "low": 0.0, "high": 0.0}
    share = student["value"] / teacher["value"]
    half = math.hypot((student["high"] - student["low"]) / 2, share * (teacher["high"] - teacher["low"]) / 2) / teacher["value"]
    return {"value": share, "low": share - half, "high": share + half}


def table(told: Tree) -> str:
    """A line a rung, for the terminal."""
    lines = [f"{'':<34}{'greedy':>20}{'pass@1':>20}{'bought':>8}{'tokens':>8}{'en':>7}{'minutes':>9}"]
    for r in told["rungs"]:
        figures = "".join(f"{_number(r[k]):>20}" for k in ("greedy", "pass@1"))
        bought = f"{100 * r['gain']['pass@1']['value']:+.1f}" if "gain" in r else ""
        lines.append(f"{r['title'][:33]:<34}{figures}{bought:>8}{r['tokens']:>8.0f}{r['language']:>7.1%}{r['minutes']:>9.1f}")
    lines += [
        f"{r['title']} keeps of {r['teacher']}: pass@1 {_number(r['kept']['pass@1'])} %" for r in rungs_with_teacher(told)
    ]
    return "\n".join(lines)


def rungs_with_teacher(told: Tree) -> list[Tree]:
    return [r for r in told["rungs"] if "teacher" in r]


def write(path: Path, told: Tree) -> Path:
    """The page. Whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(page(told), encoding="utf-8")
    temporary.replace(path)
    return path


def page(told: Tree) -> str:
    rungs = told["rungs"]
    name, first = escape(told["name"]), rungs[0] if rungs else {"problems": 0, "samples": 0}
    intro = (
        f"{len(rungs)} rungs on the same {first['problems']} held-out questions, {first['samples']} sampled answers each beside the greedy "
        f"one; brackets are 95 % intervals over questions. {told['minutes']:.1f} minutes of climbing, {told['judging']:.1f} of evaluation."
    )
    keys = "".join(
        f'<span class="key"><span style="color:{c}">&#9679;</span> {escape(_label(k))}</span>' for k, c in COLORS.items()
    )
    after = (
        "A gain is to the rung above it. A rung that begins from the base or from a smaller student again shows what its data are worth, "
        "not what the weights before it lost. General requests are judged by a rule that no reward ever saw."
    )
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{name}</title>',
        f"<style>{STYLE}</style><h1>{name}</h1><p>{intro}</p>",
        f"<h2>Accuracy after each rung, %</h2><p>{keys}</p>{plot(rungs)}",
        f'<h2>What each rung bought</h2><div class="wide">{rows(rungs)}</div>',
        *(
            f"<p><b>{escape(r['title'])}</b> keeps {_number(r['kept']['pass@1'])} % of the pass@1 of {escape(r['teacher'])}, "
            f"{_number(r['kept']['greedy'])} % of its greedy accuracy.</p>"
            for r in rungs_with_teacher(told)
        ),
        f'<h2>Length, language, cost</h2><div class="wide">{costs(rungs)}</div><p>{after}</p></html>',
    ]
    return "\n".join(parts)


def plot(rungs: Sequence[Tree]) -> str:
    """Dots with intervals, one column a rung; SVG."""
    step, base = (WIDTH - LEFT - 20) / max(1, len(rungs)), HEIGHT - 70
    parts = []

    def text(x: float, y: float, said: str, anchor: str = "middle", color: str = "#1c2128") -> None:
        parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="12" fill="{color}">{escape(said)}</text>'
        )

    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = base - share * (base - TOP)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - 10}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e6e9ed"/>')
        text(LEFT - 8, y + 4, f"{100 * share:.0f}", "end", "#57606a")
    for i, rung in enumerate(rungs):
        centre = LEFT + step * (i + 0.5)
        for j, key in enumerate(k for k in FIGURES if k in rung):
            x, color = centre + 11 * (j - 1), COLORS[key]
            low, value, high = (base - rung[key][k] * (base - TOP) for k in ("low", "value", "high"))
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="{color}" stroke-width="2"/>')
            parts.append(f'<circle cx="{x:.1f}" cy="{value:.1f}" r="4.5" fill="{color}"/>')
        for line, said in enumerate(_wrapped(rung["title"])):
            text(centre, base + 18 + 14 * line, said)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="accuracy in per cent after each rung">{"".join(parts)}</svg>'


def rows(rungs: Sequence[Tree]) -> str:
    drawn = [k for k in (rungs[0] if rungs else {}) if k.startswith("pass@") and k != "pass@1"]
    shown = ["greedy", "pass@1", *drawn, "general"]
    head = "".join(f"<th>{escape(_label(k))}, %</th>" + ("<th>bought</th>" if k in FIGURES else "") for k in shown)
    body = []
    for r in rungs:
        cells = "".join(_cell(r.get(k)) + (_gain(r.get("gain", {}).get(k)) if k in FIGURES else "") for k in shown)
        body.append(f"<tr><td>{escape(r['title'])}</td>{cells}</tr>")
    return f"<table><tr><th>rung</th>{head}</tr>{''.join(body)}</table>"


def costs(rungs: Sequence[Tree]) -> str:
    names = ("rung", "parameters", "tokens an answer", "cut off", "language kept", "words by script", "minutes")
    body = []
    for r in rungs:
        mix = ", ".join(f"{name} {share:.1%}" for name, share in list(r["scripts"].items())[:4]) or "no words"
        first = f"<td>{escape(r['title'])}<small>{escape(' + '.join(r['stages']))}</small></td>"
        cells = (
            f"{r['parameters']:,}",
            f"{r['tokens']:.0f}",
            f"{r['truncated']:.1%}",
            f"{r['language']:.1%}",
            mix,
            f"{r['minutes']:.1f}",
        )
        body.append(f"<tr>{first}{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    return f"<table><tr>{''.join(f'<th>{name}</th>' for name in names)}</tr>{''.join(body)}</table>"


def _cell(figure: Tree | None) -> str:
    return (
        f"<td>{100 * figure['value']:.1f}<small>{100 * figure['low']:.1f} to {100 * figure['high']:.1f}</small></td>"
        if figure
        else "<td>–</td>"
    )


def _gain(figure: Tree | None) -> str:
    if not figure:
        return "<td>–</td>"
    sign = "up" if figure["low"] > 0 else "down" if figure["high"] < 0 else ""
    return f'<td class="{sign}">{100 * figure["value"]:+.1f}<small>{100 * figure["low"]:+.1f} to {100 * figure["high"]:+.1f}</small></td>'


def _number(figure: Tree) -> str:
    return f"{100 * figure['value']:.1f} [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"


def _label(key: str) -> str:
    return {"pass@1": "sampled pass@1", "general": "general requests"}.get(key, key)


def _wrapped(title: str, width: int = 13) -> list[str]:
    lines = [""]
    for word in title.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines[:4]
