"""report.html: one self-contained page about an evaluation, or about several models on the same questions.

Contamination comes before the first score. Nothing is loaded from elsewhere: the page's policy allows no source but its own style
and the one script of the question browser, named by its hash, so that what a model wrote could not run even if it became markup.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval import report_browser
from eval.report_compared import compared_groups, compared_results, group_link
from eval.report_overlap import overlap_section
from eval.report_plots import lengths, reach, scale, thresholds, whiskers
from eval.report_words import SHORT, facts, gap, interval, measured, measures, ordered, remarks, share
from rl import report_html as run_page
from rl.report_plots import percent

if TYPE_CHECKING:
    from eval.report import Evaluation

POLICY = f"default-src 'none'; style-src 'unsafe-inline'; script-src '{report_browser.SOURCE}'"
FEW = 10  # questions; a smaller group's interval may leave its chart
MANY, ENDS = 12, 5  # more groups than MANY: the best and the worst ENDS, the rest behind a click

CHAINS = {"rule": "Rules, on the first sample", "model": "Vote of k samples", "combined": "Rules, else the vote"}


def page(models: Sequence[Evaluation], found: Mapping[str, Any] | None = None) -> str:
    """`found` is what eval/compare.py returned for these models, the first of which is the base; None for one model."""
    names = [m.name for m in models]
    title = f"{names[0]}: evaluation" if found is None else f"{', '.join(names[1:])} against {names[0]}"
    one = models[0]
    body = [
        _head(models, title, found),
        overlap_section(models),
        _results(one) if found is None else compared_results(found),
        _groups(one) if found is None else compared_groups(found),
        _lengths(models),
        _chains(models),
        report_browser.section(names, [m.answered for m in models]),
        _settings(models),
    ]
    sheets = (Path(run_page.__file__).with_name("report.css"), Path(__file__).with_name("report.css"))
    style = "\n".join(sheet.read_text(encoding="utf-8") for sheet in sheets)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
        f"<style>{style}</style></head><body>\n" + "\n".join(part for part in body if part) + "\n</body></html>\n"
    )


def _head(models: Sequence[Evaluation], title: str, found: Mapping[str, Any] | None) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in (found or {}).get("notes", ()))
    made = f"<h1>{escape(title)}</h1>" + (f'<ul class="notes">{notes}</ul>' if notes else "")
    if len(models) == 1:
        return made + _meta(facts(models[0].settings.values()))
    columns = [facts(m.settings.values()) for m in models]
    own = [name for name in columns[0] if len({c.get(name) for c in columns}) > 1]
    head = "".join(f"<th>{escape(m.name)}</th>" for m in models)
    rows = "".join(
        f"<tr><th>{escape(name)}</th>" + "".join(f"<td>{escape(c.get(name, '-'))}</td>" for c in columns) + "</tr>"
        for name in own
    )
    table = (
        f'<div class="scroll"><table class="plain"><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )
    return made + table + _meta({name: value for name, value in columns[0].items() if name not in own})


def _meta(known: Mapping[str, str]) -> str:
    wide = {True: ' class="wide"', False: ""}
    cells = "".join(
        f"<div{wide[len(value) > 32]}><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in known.items()
    )
    return f'<dl class="meta">{cells}</dl>'


def _results(m: Evaluation) -> str:
    several = any(f["samples"] > 1 for f in m.figures.values())
    keys = [("strict", "Strict"), ("lenient", "Lenient"), *((("maj", "maj@k"), ("pass", "pass@k")) if several else ())]
    shown = {task: measures(f) for task, f in m.figures.items()}
    high = reach([e["high"] for of in shown.values() for e in of.values() if e])
    rows = []
    for i, (task, f) in enumerate(m.figures.items()):
        cells = "".join(f'<td class="n" data-label="{name}">{_value(shown[task][key])}</td>' for key, name in keys)
        sampled = m.settings[task].mode != "loglikelihood"
        cells += f'<td class="n" data-label="Truncated">{share(f["truncated"]) if sampled else ""}</td>'
        cells += f'<td class="n" data-label="Tokens">{format(f["tokens"]["value"], ",.0f") if sampled else ""}</td>'
        marks = [("lenient", "main", shown[task]["lenient"]), ("strict", "second", shown[task]["strict"])]
        marks = marks[:1] if not sampled else marks
        if several and shown[task]["pass"]:
            marks.append((f"pass@{f['samples']}", "third", shown[task]["pass"]))
        many = f"{f['questions']:,} questions × {f['samples']}" if f["samples"] > 1 else f"{f['questions']:,} questions"
        rows.append(
            f'<tr><td><a href="#questions?task={i}">{escape(task)}</a> <small>{many}</small></td>{cells}'
            f'<td class="chart">{whiskers(marks, high)}</td></tr>'
        )
    head = "<th>Task</th>" + "".join(f'<th class="n">{name}</th>' for name in [k[1] for k in keys] + ["Truncated", "Tokens"])
    head += f'<th class="chart">{scale(high)}</th>'
    legend = [("lenient", "main"), ("strict", "second"), *((("pass@k", "third"),) if several else ())]
    return (
        f'<h2>Accuracy</h2><p class="note">{_how()}</p>{_legend(legend)}<table class="results stack"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>{_remarks(m)}{_powers(m) if several else ''}"
    )


def _how() -> str:
    return (
        "Per cent with 95 % intervals over questions. Strict reads only the form that was asked for, lenient the last answer that a text "
        "commits to. A sample without a verdict counts as not right. Tokens are of an answer, on average."
    )


def _remarks(m: Evaluation) -> str:
    told = [line for task in m.figures for line in remarks(task, m.settings[task], m.figures[task])]
    return f'<ul class="notes">{"".join(f"<li>{escape(line)}</li>" for line in told)}</ul>' if told else ""


def _powers(m: Evaluation) -> str:
    """mean@k, pass@j and maj@j for every j that was computed."""
    rows = []
    for task, f in m.figures.items():
        for verdict in ("lenient", "strict") if f["samples"] > 1 else ():
            cells = "".join(f"<li><b>{escape(key)}</b> {measured(e)}</li>" for key, e in f[verdict].items())
            rows.append(f'<p>{escape(task)}, {verdict}</p><ul class="row">{cells}</ul>')
    return f"<details><summary>pass@ and maj@ of fewer samples</summary>{''.join(rows)}</details>"


def _value(e: Mapping[str, Any] | None) -> str:
    return f"{share(e)} <small>{interval(e)}</small>" if e else ""


def _legend(names: Sequence[tuple[str, str]]) -> str:
    keys = "".join(f'<span><i class="swatch box {look}"></i>{escape(name)}</span>' for name, look in names)
    return f'<div class="legend">{keys}</div>'


def _groups(m: Evaluation) -> str:
    parts = []
    for i, (task, f) in enumerate(m.figures.items()):
        for column, groups in f["by"].items():
            parts.append(
                f'<h3>{escape(task)} by {escape(column)}</h3><p class="note">{escape(gap(column, groups, f["spread"][column]))}</p>'
            )
            names = ordered(groups, lambda g: g["lenient"]["value"])
            high = reach([g["lenient"]["high" if g["questions"] >= FEW else "value"] for g in groups.values()])
            sampled = m.settings[task].mode != "loglikelihood"
            if len(names) > MANY:
                parts.append(_group_table(i, column, groups, names[:ENDS] + names[-ENDS:], high, sampled))
                whole = _group_table(i, column, groups, names, high, sampled)
                parts.append(f"<details><summary>All {len(names)}; above, the {ENDS} best and worst</summary>{whole}</details>")
            else:
                parts.append(_group_table(i, column, groups, names, high, sampled))
    return f"<h2>By group</h2>{''.join(parts)}" if parts else ""


def _group_table(i: int, column: str, groups: Mapping[str, Any], names: Sequence[str], high: float, sampled: bool) -> str:
    rows = []
    verdicts = ("strict", "lenient") if sampled else ("lenient",)
    for name in names:
        g = groups[name]
        cells = "".join(f'<td class="n" data-label="{v}">{_value(g[v])}</td>' for v in verdicts)
        rows.append(
            f'<tr><td>{group_link(i, column, name)}</td><td class="n" data-label="questions">{g["questions"]:,}</td>{cells}'
            f'<td class="chart">{whiskers([(name, "main", g["lenient"])], high)}</td></tr>'
        )
    head = f'<th>{escape(column)}</th><th class="n">questions</th>' + "".join(f'<th class="n">{v}</th>' for v in verdicts)
    head += f'<th class="chart">{scale(high)}</th>'
    return f'<table class="results stack"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _lengths(models: Sequence[Evaluation]) -> str:
    figures = []
    for task, s in models[0].settings.items():
        for m in models if s.mode != "loglikelihood" and models[0].figures[task]["tokens_total"] else ():
            title = task if len(models) == 1 else f"{task}, {m.name}"
            figures.append(lengths(title, m.answered[task], f"{percent(m.figures[task]['truncated']['value'])} truncated"))
    return f'<h2>Length of answers</h2><div class="charts">{"".join(figures)}</div>' if figures else ""


def _chains(models: Sequence[Evaluation]) -> str:
    rows, figures = [], []
    for task in models[0].figures:
        for m in (m for m in models if task in m.chains):
            c = m.chains[task]
            title = task if len(models) == 1 else f"{task}, {m.name}"
            rows.append(
                f'<tr><th colspan="4">{escape(title)} <small>{c["questions"]:,} questions, k = {c["samples"]}</small></th></tr>'
            )
            for key, name in CHAINS.items():
                cells = (("Answered", "coverage"), ("Right of all", "accuracy"), ("Right of the answered", "precision"))
                shown = "".join(f'<td class="n" data-label="{word}">{_value(c[key][field])}</td>' for word, field in cells)
                rows.append(f"<tr><td>{name}</td>{shown}</tr>")
            tokens, saved = c["tokens"], c["tokens"]["saved"]
            told = f"{tokens['combined']:,.0f} tokens a question in place of {tokens['always_k']:,.0f}"
            told += f", {measured(saved)} saved" if saved else ""
            gain, low, high = (100 * c["gain"][key] for key in ("value", "low", "high"))
            told += f"; right answers against the vote alone {gain:+.1f} points [{low:+.1f}, {high:+.1f}]"
            rows.append(f'<tr><td colspan="4" class="told">{escape(told)}</td></tr>')
            figures.append(thresholds(title, c["curve"], f"k = {c['samples']}"))
    if not rows:
        return ""
    level = next(iter(next(m for m in models if m.chains).chains.values()))["threshold"]
    note = (
        "Rules first: where every equation in the first sample holds and the last one gives its answer, that answer is taken. Else the "
        f"majority of k samples, if it has {percent(level)} of the votes or more; below that the question stays unanswered."
    )
    head = "<th></th>" + "".join(f'<th class="n">{name}</th>' for name in ("Answered", "Right of all", "Right of the answered"))
    return (
        f'<h2>Rules first, then a vote</h2><p class="note">{note}</p><table class="results stack"><thead><tr>{head}</tr></thead>'
        f'<tbody>{"".join(rows)}</tbody></table><div class="charts">{"".join(figures)}</div>'
    )


def _settings(models: Sequence[Evaluation]) -> str:
    note = (
        f"Hashes are sha256; on this page elsewhere their first {SHORT} digits. The same settings and seed give the same page."
    )
    blocks = "".join(
        f"<details><summary>{escape(m.name)}: {escape(task)}</summary><pre>"
        f"{escape(json.dumps(asdict(s), indent=2, ensure_ascii=False))}</pre></details>"
        for m in models
        for task, s in m.settings.items()
    )
    return f'<h2>How it was measured</h2><p class="note">{note}</p>{blocks}'
