"""The tables of report.html that set models side by side, from what eval/compare.py found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import urlencode

from eval.compare_markdown import bound, p_value, share
from eval.report_plots import kind, reach, scale, whiskers
from eval.report_words import interval, named, ordered
from eval.report_words import share as value
from rl.report_plots import percent

Found = Mapping[str, Any]
MANY, ENDS = 12, 5  # more groups than MANY: those that changed most, up and down; the rest behind a click


def link(text: str, **wanted: Any) -> str:
    """To the questions below, with the browser's controls set."""
    return f'<a href="#questions?{escape(urlencode(wanted))}">{escape(text)}</a>'


def group_link(task: int, column: str, name: str) -> str:
    return link(named(column, name), task=task, group=f"{column}={name}")


def compared_results(found: Found) -> str:
    """A row each task and model: both accuracies, difference, p, questions won and lost, retention, tokens."""
    names = [m["name"] for m in found["models"]]
    high = reach([m[v]["high"] for t in found["tasks"].values() for m in t["models"].values() for v in ("strict", "lenient")])
    rows = []
    for i, (task, of) in enumerate(found["tasks"].items()):
        many = f"{of['questions']:,} questions × {of['samples']}" if of["samples"] > 1 else f"{of['questions']:,} questions"
        rows.append(f'<tr><th colspan="10">{escape(task)} <small>{many}</small></th></tr>')
        rows += [_model_row(i, j, name, of, kind(j, len(names)), high) for j, name in enumerate(names)]
        if of["gap"]:
            g = of["gap"]
            told = f"Largest gap between models: {g['high_group']} over {g['low_group']}, {100 * g['value']:.1f} points "
            told += f"[{100 * g['low']:.1f}, {100 * g['high']:.1f}] after picking it among {g['groups']}"
            rows.append(f'<tr><td colspan="10" class="told">{escape(told)}</td></tr>')
    cells = ("Strict", "Lenient", "Difference", "p", "Won / lost", "Retained", "Tokens", "Truncated")
    head = "<th></th>" + "".join(f'<th class="n">{name}</th>' for name in cells) + f'<th class="chart">{scale(high)}</th>'
    note = (
        f"Per cent with 95 % intervals; differences in points, of lenient accuracy on the same questions, against {names[0]}. p is exact "
        "(McNemar, or all sign flips where several samples were drawn), below it corrected by Holm for all rows of this table. Retained: "
        "the share of the first model's accuracy, with Fieller's interval. Tokens of an answer, and their ratio."
    )
    return (
        f'<h2>Side by side</h2><p class="note">{escape(note)}</p><table class="results stack compared"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _model_row(i: int, j: int, name: str, of: Found, look: str, high: float) -> str:
    m = of["models"][name]
    c = next((c for c in of["comparisons"] if c["model"] == name), None)
    cells = [("Strict", f"{value(m['strict'])} <small>{interval(m['strict'])}</small>")]
    cells += [("Lenient", f"{value(m['lenient'])} <small>{interval(m['lenient'])}</small>")]
    tokens = f"{m['tokens']['value']:,.0f}" if m["tokens_total"] else ""
    if c is None:
        cells += [(word, "") for word in ("Difference", "p", "Won / lost", "Retained")]
    else:
        d = c["lenient"]
        won = link(f"{d['won']:,}", task=i, model=j, show="won") + " / " + link(f"{d['lost']:,}", task=i, model=j, show="lost")
        sure = " gain" if d["p_holm"] < 0.05 else ""
        cells += [("Difference", f'<span class="{sure.strip()}">{_points(d)}</span> <small>{_range(d)}</small>')]
        cells += [("p", f"{p_value(d['p'])} <small>Holm {p_value(d['p_holm'])}</small>"), ("Won / lost", won)]
        cells += [("Retained", _ratio(c["retention"]))]
        tokens += _cost(c["tokens"]) if m["tokens_total"] else ""
    cells += [("Tokens", tokens), ("Truncated", percent(m["truncated"]) if m["tokens_total"] else "")]
    row = "".join(f'<td class="n" data-label="{word}">{text}</td>' for word, text in cells)
    marks = [(f"{name}, lenient", look, m["lenient"])]
    swatch = f'<i class="swatch box {look}"></i>'
    return f'<tr><td>{swatch}{escape(name)}</td>{row}<td class="chart">{whiskers(marks, high)}</td></tr>'


def compared_groups(found: Found) -> str:
    """For every task and column: the base, each model and the difference in each group."""
    parts = []
    for i, (task, of) in enumerate(found["tasks"].items()):
        for j, c in enumerate(of["comparisons"], 1):
            for column, groups in c["by"].items():
                parts.append(
                    f"<h3>{escape(task)} by {escape(column)}: {escape(c['model'])} against {escape(found['base'])}</h3>"
                )
                parts.append(f'<p class="note">{escape(_gaps(column, groups, found["base"], c["model"], of["models"]))}</p>')
                names = ordered(groups, lambda g: g["difference"])
                tables = [_group_table(i, j, column, groups, some, found["base"], c["model"]) for some in _some(names)]
                parts.append(tables[0])
                if len(tables) > 1:
                    parts.append(
                        f"<details><summary>All {len(names)}; above, those that changed most</summary>{tables[1]}</details>"
                    )
    return f"<h2>By group</h2>{''.join(parts)}" if parts else ""


def _some(names: Sequence[str]) -> list[Sequence[str]]:
    return [names] if len(names) <= MANY else [[*names[:ENDS], *names[-ENDS:]], names]


def _gaps(column: str, groups: Found, base: str, other: str, models: Found) -> str:
    told = []
    for name in (base, other):
        s = models[name]["spread"][column]
        told.append(
            f"{name}: {named(column, s['high_group'])} is best, {named(column, s['low_group'])} worst, {100 * s['value']:.1f} points apart "
            f"[{100 * s['low']:.1f}, {100 * s['high']:.1f}]"
        )
    sure = [named(column, name) for name, g in groups.items() if g["p_holm"] < 0.05]
    changed = (
        f"{len(sure)} of {len(groups)} groups changed beyond chance (Holm): {', '.join(sure[:8])}"
        if sure
        else "No group changed beyond chance (Holm)"
    )
    return f"Largest gap by {column}. {'; '.join(told)}. {changed}{' ...' if len(sure) > 8 else ''}."


def _group_table(i: int, j: int, column: str, groups: Found, names: Sequence[str], base: str, other: str) -> str:
    high = reach([max(g["base"], g["other"]) for g in groups.values()])
    rows = []
    for name in names:
        g = groups[name]
        won = link(f"{g['won']:,}", task=i, model=j, group=f"{column}={name}", show="won")
        lost = link(f"{g['lost']:,}", task=i, model=j, group=f"{column}={name}", show="lost")
        cells = (
            ("questions", f"{g['questions']:,}"), ("base", percent(g["base"])), ("other", percent(g["other"])),
            ("difference", f'<span class="{"gain" if g["p_holm"] < 0.05 else ""}">{_points(g)}</span> <small>{_range(g)}</small>'),
            ("p", f"{p_value(g['p'])} <small>Holm {p_value(g['p_holm'])}</small>"), ("won / lost", f"{won} / {lost}"),
        )  # fmt: skip
        row = "".join(f'<td class="n" data-label="{word}">{text}</td>' for word, text in cells)
        marks = [
            (who, look, dict.fromkeys(("value", "low", "high"), g[key]))
            for who, look, key in ((base, "second", "base"), (other, "main", "other"))
        ]
        rows.append(f'<tr><td>{group_link(i, column, name)}</td>{row}<td class="chart">{whiskers(marks, high)}</td></tr>')
    words = ("questions", base, other, "difference", "p", "won / lost")
    head = f"<th>{escape(column)}</th>" + "".join(f'<th class="n">{escape(word)}</th>' for word in words)
    head += f'<th class="chart">{scale(high)}</th>'
    return f'<table class="results stack compared"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _points(d: Found) -> str:
    return f"{100 * d['difference']:+.1f}"


def _range(d: Found) -> str:
    return f"[{100 * d['low']:+.1f}, {100 * d['high']:+.1f}]"


def _ratio(ratio: Found | None) -> str:
    if ratio is None:
        return "-"
    if ratio["low"] is None or ratio["high"] is None:
        return f"{ratio['value']:.0%} <small>unbounded</small>"
    return f"{ratio['value']:.0%} <small>[{100 * ratio['low']:.0f}, {100 * ratio['high']:.0f}]</small>"


def _cost(tokens: Found) -> str:
    apart = f"{tokens['difference']:+.1f} [{bound(tokens['low'])}, {bound(tokens['high'])}]"
    return f" <small>{apart}</small> <small>{share(tokens['ratio'])}</small>"
