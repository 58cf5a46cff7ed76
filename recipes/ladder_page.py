"""The page over all rungs of a ladder (report.html): one file, nothing loaded, no script. Its numbers are recipes/ladder_report.py's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from eval.report_plots import scale, whiskers
from recipes.ladder_report import number
from rl.report_html import POLICY

Tree = Mapping[str, Any]
STYLE = Path(__file__).resolve().parent.parent / "rl" / "report.css"
MORE = """
.results td { vertical-align: top; } .results td.wrap, .results td:first-child { white-space: normal; }
.results td:first-child { min-width: 13em; } .results td small { display: block; }
.results td.n, .results th.n { text-align: right; padding-right: 18px; }
.results tr.idle td { color: var(--faint); } .results td.part { padding-left: 18px; }
.results .more { color: var(--accent); } .results .less { color: var(--warn); }
.results .chart svg { height: 34px; } .scroll { overflow-x: auto; }
.said td:last-child { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 13.5px; }
.said td:first-child { width: 22%; }
"""


def write(path: Path, told: Tree) -> Path:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(page(told), encoding="utf-8")
    temporary.replace(path)
    return path


def page(told: Tree) -> str:
    rungs, name = told["rungs"], escape(told["name"])
    head = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{name}</title>'
        f"<style>{STYLE.read_text(encoding='utf-8')}{MORE}</style><h1>{name}</h1>"
    )
    if not rungs:
        return f'{head}<p class="lead">No rung was evaluated yet.</p></html>'
    first = rungs[0]
    lead = (
        f"{len(rungs)} rungs on the same {first['problems']} held-out questions: one greedy answer and {first['samples']} sampled ones "
        "each. Small figures are 95 % intervals over questions."
    )
    parts = [
        f'{head}<p class="lead">{lead}</p>{heroes(told)}',
        "<h2>Accuracy after each rung</h2>",
        '<p class="note">Bought: the difference to the rung above on the same questions, its interval from paired differences; '
        "coloured where it leaves 0 out. A rung that begins from other weights than those of the rung above is set against these too: "
        "what its data are worth. "
        "The chart has greedy (strong) and sampled pass@1 (faint), 0 to 100 %.</p>",
        scrolled(accuracy(rungs)),
    ]
    if any("general" in r for r in rungs):
        parts += [
            "<h2>General requests</h2>",
            f'<p class="note">{first.get("requests", 0)} requests that are no sums, 4 sampled answers each. Answered well is a rule '
            "that no reward ever saw; the judge is the preference reward model, in standard deviations of the answers it was trained "
            "on. Where the judge's score rises and the share answered well does not, the judge is being hacked.</p>",
            scrolled(general(rungs)),
        ]
    parts += [
        "<h2>Length and language</h2>",
        '<p class="note">Of sampled answers. A word is of a language by its script; formulas, tags and numbers are of none.</p>',
        scrolled(texts(rungs)),
        "<h2>Cost</h2>",
        f'<p class="note">{told["total"]["minutes"]:.1f} minutes of climbing and {told["judging"]["minutes"]:.1f} of evaluation on the '
        f"machine that ran ({told['total']['cpu_minutes']:.1f} and {told['judging']['cpu_minutes']:.1f} of its processors). Grey: stages "
        "that train no policy. Tokens sampled are answers that were drawn; tokens learned from are what the updates read, "
        "prompts too in SFT.</p>",
        scrolled(costs(rungs)),
        "<h2>The same question after each rung</h2>",
        '<p class="note">Greedy for questions, sampled for requests.</p>',
        *(scrolled(said(rungs, i)) for i in range(len(first["questions"]["shown"]))),
    ]
    return "\n".join([*parts, "</html>"])


def heroes(told: Tree) -> str:
    """Where it began and how far it came; what the last student keeps; what it cost."""
    first, best = told["rungs"][0], max(told["rungs"], key=lambda r: r["pass@1"]["value"])
    cards = [
        (
            "sampled pass@1, the first rung and the best",
            f"<s>{_percent(first['pass@1'])} →</s> <em>{_percent(best['pass@1'])} %</em>",
            f"{best['title']}: {number(best['pass@1'])}",
        )
    ]
    for r in [r for r in told["rungs"] if "kept" in r][-1:]:
        teacher = next(t for t in told["rungs"] if t["title"] == r["teacher"])
        cards.append(
            (
                f"the student keeps, with {r['parameters'] / teacher['parameters']:.0%} of the teacher's parameters",
                f"<em>{_percent(r['kept']['pass@1'])} %</em>",
                f"of sampled pass@1: {number(r['kept']['pass@1'])}; of greedy: {number(r['kept']['greedy'])}",
            )
        )
    minutes = told["total"]["minutes"] + told["judging"]["minutes"]
    cards.append(("cost", f"{minutes:.0f} minutes", f"{_count(told['total']['sampled'])} tokens sampled, evaluations apart"))
    made = "".join(
        f'<div class="hero"><div class="label">{escape(label)}</div><div class="values">{values}</div>'
        f'<div class="range">{escape(under)}</div></div>'
        for label, values, under in cards
    )
    return f'<div class="heroes">{made}</div>'


def accuracy(rungs: Sequence[Tree]) -> str:
    drawn = [k for k in rungs[0] if k.startswith("pass@") and k != "pass@1"]
    names = ["greedy, %", "bought", "sampled pass@1, %", "bought", *(f"{k}, %" for k in drawn)]
    lines = []
    for r in rungs:
        cells = "".join(_figure(r[k]) + bought(r, k) for k in ("greedy", "pass@1")) + "".join(_figure(r.get(k)) for k in drawn)
        chart = whiskers([("greedy", "main", r["greedy"]), ("sampled pass@1", "second", r["pass@1"])])
        kept = f"<small>keeps {_percent(r['kept']['pass@1'])} % of its teacher's pass@1</small>" if "kept" in r else ""
        lines.append(f'<tr><td>{escape(r["title"])}{kept}</td>{cells}<td class="chart">{chart}</td></tr>')
    return _table("rung", names, f'<th class="chart" style="width:22%">{scale()}</th>', lines)


def general(rungs: Sequence[Tree]) -> str:
    heads = {"general": "answered well, %", "judge": "judge's score"}
    shown = [k for k in heads if any(k in r for r in rungs)]
    lines = []
    for r in rungs:
        cells = "".join(_figure(r.get(k), 1.0 if k == "judge" else 100.0) + bought(r, k) for k in shown)
        chart = whiskers([("answered well", "main", r.get("general"))])
        lines.append(f'<tr><td>{escape(r["title"])}</td>{cells}<td class="chart">{chart}</td></tr>')
    names = [name for k in shown for name in (heads[k], "bought")]
    return _table("rung", names, f'<th class="chart" style="width:22%">{scale()}</th>', lines)


def bought(rung: Tree, key: str) -> str:
    """A gain with its interval, and below it the gain over the weights it began from where those are not the rung above."""
    by = 1.0 if key == "judge" else 100.0
    if key not in rung.get("gain", {}):
        return '<td class="n">–</td>'
    from_start = rung.get("start", {}).get("gain", {}).get(key)
    more = f"<small>from {escape(rung['start']['title'])}: {_signed(from_start, by)}</small>" if from_start else ""
    figure = rung["gain"][key]
    side = "more" if figure["low"] > 0 else "less" if figure["high"] < 0 else ""
    low, high = _digits(figure["low"], by, "+"), _digits(figure["high"], by, "+")
    return f'<td class="n"><span class="{side}">{_digits(figure["value"], by, "+")}</span><small>{low} to {high}</small>{more}</td>'


def texts(rungs: Sequence[Tree]) -> str:
    lines = []
    for r in rungs:
        mix = ", ".join(f"{name} {share:.1%}" for name, share in list(r["scripts"].items())[:4]) or "no words"
        cells = "".join(
            f'<td class="n">{n}</td>' for n in (f"{r['tokens']:.0f}", f"{r['truncated']:.1%}", f"{r['language']:.1%}")
        )
        lines.append(f'<tr><td>{escape(r["title"])}</td>{cells}<td class="wrap">{escape(mix)}</td></tr>')
    names = ("tokens an answer", "cut off", "words in the question's script")
    return _table("rung", names, "<th>words by script</th>", lines)


def costs(rungs: Sequence[Tree]) -> str:
    """Every stage, those that train no policy in grey; a rung's line sums up the stages that led to it."""
    lines = []
    for r in rungs:
        size = f'<td class="n">{r["parameters"] / 1e6:,.2f} M</td>'
        lines.append(f"<tr><td><b>{escape(r['title'])}</b></td>{_spent(r['total'])}{size}<td></td></tr>")
        for s in r["stages"]:
            idle, name = "" if s["learned"] else ' class="idle"', escape(s["name"])
            lines.append(
                f'<tr{idle}><td class="part">{name}</td>{_spent(s)}<td></td><td class="wrap">{escape(s["made"])}</td></tr>'
            )
    names = ("minutes", "of processors", "tokens sampled", "learned from", "parameters")
    return _table("rung and its stages", names, "<th>what came of it</th>", lines)


def _table(first: str, names: Sequence[str], last: str, lines: Sequence[str]) -> str:
    heads = "".join(f'<th class="n">{escape(name)}</th>' for name in names)
    return f'<table class="results"><thead><tr><th>{first}</th>{heads}{last}</tr></thead>{"".join(lines)}</table>'


def said(rungs: Sequence[Tree], i: int) -> str:
    """What every rung answered to one question."""
    asked = escape(rungs[0]["questions"]["shown"][i]["question"])
    lines = "".join(
        f"<tr><td>{escape(r['title'])}</td><td>{escape(r['questions']['shown'][i]['answer'].strip())}</td></tr>" for r in rungs
    )
    return f'<h3>{asked}</h3><table class="results said">{lines}</table>'


def scrolled(table: str) -> str:
    return f'<div class="scroll">{table}</div>'


def _spent(s: Tree) -> str:
    cells = (f"{s['minutes']:.1f}", f"{s['cpu_minutes']:.1f}", _count(s["sampled"]), _count(s["learned"]))
    return "".join(f'<td class="n">{c}</td>' for c in cells)


def _figure(figure: Tree | None, by: float = 100.0) -> str:
    if not figure:
        return '<td class="n">–</td>'
    value, low, high = (_digits(figure[key], by) for key in ("value", "low", "high"))
    return f'<td class="n">{value}<small>{low} to {high}</small></td>'


def _signed(figure: Tree, by: float) -> str:
    return f"{_digits(figure['value'], by, '+')} [{_digits(figure['low'], by, '+')}, {_digits(figure['high'], by, '+')}]"


def _digits(value: float, by: float, sign: str = "") -> str:
    return format(by * value, f"{sign}.{1 if by == 100 else 2}f")


def _percent(figure: Tree) -> str:
    return _digits(figure["value"], 100.0)


def _count(n: float) -> str:
    """Tokens as a reader says them.

    >>> _count(0), _count(930), _count(12_400), _count(3_450_000)
    ('–', '930', '12 k', '3.5 M')
    """
    return "–" if not n else f"{n:.0f}" if n < 1000 else f"{n / 1e3:.0f} k" if n < 1e6 else f"{n / 1e6:.1f} M"
