"""The data card: what a set of traces is made of, what was dropped and why, and some of it to read. One page, nothing loaded, no script.

`statistics` is the whole of its numbers (statistics.json), so that the page says nothing that a program could not read.
"""

from __future__ import annotations

import random
import statistics as stats
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from distill.decontaminate import Clean
from distill.filter import Dropped
from distill.traces import Trace
from rewards import language
from rl.report_html import POLICY

SHOWN = 12  # kept traces to read
BINS = 30
STYLE = Path(__file__).resolve().parent.parent / "rl" / "report.css"
MEANS = {
    "cut off": "the teacher ran out of tokens, or went round in a circle",
    "format": "think tags missing, doubled, out of order or around nothing",
    "length": "too little reasoning, or too many tokens",
    "language": "words of another language",
    "repetition": "the same stretches again and again",
    "wrong": "the verifier says so",
    "duplicate": "the same as an earlier trace of its question",
    "similar": "nearly the same as an earlier trace of its question",
    "per question": "its question has enough",
    "test question": "it is, or recites, a question of a test set",
}


def statistics(name: str, traces: Sequence[Trace], clean: Clean, sieved: Dropped) -> dict[str, Any]:
    """Every number of the card, as plain JSON types. `sieved`: what the filters dropped, before decontamination."""
    dropped = Counter(sieved.counts)
    dropped.update(clean.dropped.counts)
    kept = clean.kept
    a_question = Counter(Counter(t.problem for t in kept).values())
    return {
        "name": name,
        "sources": dict(Counter(t.source for t in traces).most_common()),
        "traces": len(traces),
        "questions": len({t.problem for t in traces}),
        "kept": len(kept),
        "kept_questions": len({t.problem for t in kept}),
        "dropped": {k: dropped[k] for k in MEANS if k in dropped} | {k: n for k, n in dropped.items() if k not in MEANS},
        "kept_by_kind": dict(Counter(t.kind for t in kept)),
        "traces_a_question": {str(k): a_question[k] for k in sorted(a_question)},
        "words_of_reasoning": _spread([len(t.think.split()) for t in kept]),
        "teacher_tokens": _spread([t.tokens for t in kept if t.tokens]),
        "scripts": _scripts(kept),
        "tests_before": [_overlap(c) for c in clean.before],
        "tests_after": [_overlap(c) for c in clean.after],
    }


def write_card(path: Path, told: Mapping[str, Any], kept: Sequence[Trace], dropped: Sequence[tuple[Trace, str, str]]) -> Path:
    """The page, whole or as it was; returns its path."""
    body = [_head(told), _funnel(told), _shape(told), _tests(told), _sample(kept), _gone(dropped)]
    name = escape(str(told["name"]))
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{name}: data card</title>'
        f"<style>{STYLE.read_text(encoding='utf-8')}{_OWN}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n"
    )
    part = path.with_name(f".{path.name}.part")
    part.write_text(page, encoding="utf-8", errors="backslashreplace")
    part.replace(path)
    return path


_OWN = """
.scroll { overflow-x: auto; }
.notes { color: var(--soft); font-size: 13.5px; }
.bar { display: inline-block; height: 10px; border-radius: 2px; background: var(--accent); opacity: .85;
  vertical-align: middle; min-width: 1px; }
.bar.gone { background: var(--other); }
.results td.wide { width: 45%; }
.trace { background: var(--panel); border-radius: 10px; padding: 14px 18px; margin: 14px 0; }
.trace h4 { margin: 0 0 8px; font-size: 13px; color: var(--soft); font-weight: 500; overflow-wrap: anywhere; }
.trace .q { font-weight: 600; white-space: pre-wrap; overflow-wrap: anywhere; }
.trace .think { color: var(--soft); white-space: pre-wrap; overflow-wrap: anywhere;
  border-left: 3px solid var(--rule); padding-left: 12px; margin: 10px 0; }
.trace .a { white-space: pre-wrap; overflow-wrap: anywhere; }
"""


def _spread(values: Sequence[int]) -> dict[str, Any]:
    if not values:
        return {}
    ordered = sorted(values)
    at = {f"p{p}": ordered[min(len(ordered) - 1, len(ordered) * p // 100)] for p in (5, 50, 95)}
    width = max(1, -(-(ordered[-1] + 1 - ordered[0]) // BINS))
    counts = Counter((v - ordered[0]) // width for v in ordered)
    histogram = [[ordered[0] + i * width, counts[i]] for i in range(max(counts) + 1)]
    return {
        "mean": round(stats.fmean(values), 1),
        "least": ordered[0],
        **at,
        "most": ordered[-1],
        "histogram": histogram,
        "bin": width,
    }


def _scripts(kept: Sequence[Trace]) -> dict[str, float]:
    """Share of the traces' words by script."""
    counts = Counter[str]()
    for t in kept:
        counts.update(language.scripts(t.text))
    total = sum(counts.values())
    return {name: round(n / total, 5) for name, n in counts.most_common()} if total else {}


def _overlap(c: Any) -> dict[str, Any]:
    tree = asdict(c)
    tree["found"] = len(tree["found"])
    return tree | {"exact": c.exact, "whole": c.whole, "most": c.most}


def _head(told: Mapping[str, Any]) -> str:
    sources = ", ".join(f"{name or 'unknown'} ({n:,})" for name, n in list(told["sources"].items())[:5])
    share = told["kept"] / told["traces"] if told["traces"] else 0.0
    tokens = told["teacher_tokens"].get("mean")
    heroes = {
        "Traces kept": (f"{told['kept']:,}", f"{share:.1%} of {told['traces']:,}"),
        "Questions kept": (f"{told['kept_questions']:,}", f"of {told['questions']:,}"),
        "Words of reasoning": (
            f"{told['words_of_reasoning'].get('mean', 0):,}",
            f"in the mean; {tokens or '-'} tokens a trace",
        ),
    }
    cards = "".join(
        f'<div class="hero"><div class="label">{k}</div><div class="values"><em>{v}</em></div><div class="range">{escape(r)}</div></div>'
        for k, (v, r) in heroes.items()
    )
    facts = {"Teacher": sources, "Kinds": ", ".join(f"{k} {n:,}" for k, n in told["kept_by_kind"].items())}
    cells = "".join(f"<div><dt>{k}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items())
    return f'<h1>{escape(str(told["name"]))}: data card</h1><div class="heroes">{cards}</div><dl class="meta">{cells}</dl>'


def _bars(rows: Sequence[tuple[str, int, str, str]], heads: tuple[str, str]) -> str:
    """(name, number, note, kind of bar) each."""
    most = max((n for _, n, _, _ in rows), default=0) or 1
    total = sum(n for _, n, _, _ in rows) or 1
    lines = "".join(
        f'<tr><td>{escape(name)}</td><td class="n">{n:,}</td><td class="n">{n / total:.1%}</td>'
        f'<td class="wide"><span class="bar {kind}" style="width:{100 * n / most:.2f}%"></span></td>'
        f"<td><small>{escape(note)}</small></td></tr>"
        for name, n, note, kind in rows
    )
    head = f'<th>{heads[0]}</th><th class="n">{heads[1]}</th><th class="n">share</th><th></th><th></th>'
    return f'<div class="scroll"><table class="results"><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def _funnel(told: Mapping[str, Any]) -> str:
    rows = [("kept", told["kept"], "", "")]
    rows += [(name, n, MEANS.get(name, ""), "gone") for name, n in told["dropped"].items()]
    note = "Each trace is counted once: under the first filter that wants it gone, in this order."
    return f'<h2>What was kept and dropped</h2><p class="note">{note}</p>{_bars(rows, ("", "traces"))}'


def _shape(told: Mapping[str, Any]) -> str:
    parts = ["<h2>What is kept</h2>"]
    for title, key, unit in (
        ("Length of the reasoning", "words_of_reasoning", "words"),
        ("Length", "teacher_tokens", "tokens"),
    ):
        spread = told[key]
        if spread:
            note = (
                f"mean {spread['mean']:,}, median {spread['p50']:,}, 5 % below {spread['p5']:,}, 5 % above {spread['p95']:,}, "
            )
            parts.append(
                f'<h3>{title}, {unit}</h3><p class="note">{note}longest {spread["most"]:,}</p>{_histogram(spread, unit)}'
            )
    each = [(f"{k} trace{'' if k == '1' else 's'}", n, "", "") for k, n in told["traces_a_question"].items()]
    parts.append("<h3>Traces a question</h3>" + _bars(each, ("", "questions")))
    scripts = [(name, round(share * 100_000), "", "") for name, share in told["scripts"].items()]
    lines = "".join(f"<li>{escape(name)}: {n / 1000:.2f} % of the words</li>" for name, n, _, _ in scripts)
    parts.append(f'<h3>Scripts</h3><ul class="notes">{lines}</ul>' if lines else "")
    return "".join(parts)


def _histogram(spread: Mapping[str, Any], unit: str) -> str:
    bins, width = spread["histogram"], spread["bin"]
    most, step = max(n for _, n in bins), 640 / len(bins)
    parts = []
    for i, (start, n) in enumerate(bins):
        height = 120 * n / most
        said = f"{start:,} to {start + width - 1:,} {unit}: {n:,}"
        box = f'x="{i * step + 0.5:.1f}" y="{125 - height:.1f}" width="{max(1.0, step - 1):.1f}" height="{height:.1f}"'
        parts.append(f'<rect class="fill main" {box}><title>{said}</title></rect>')
    ends = (bins[0][0], bins[len(bins) // 2][0], bins[-1][0] + width - 1)
    for x, value, anchor in zip((0, 320, 640), ends, ("start", "middle", "end"), strict=True):
        parts.append(f'<text x="{x}" y="142" style="text-anchor:{anchor}">{value:,}</text>')
    return (
        f'<svg viewBox="0 0 640 146" style="max-width:640px;width:100%" role="img" aria-label="histogram">'
        f'<line class="axis" x1="0" x2="640" y1="125.5" y2="125.5"/>{"".join(parts)}</svg>'
    )


def _tests(told: Mapping[str, Any]) -> str:
    after = {(c["task"], c["n"]): c for c in told["tests_after"]}
    rows = []
    for c in told["tests_before"]:
        then = after[(c["task"], c["n"])]
        numbers = "".join(
            f'<td class="n">{c[key]:,}{f" → {then[key]:,}" if c[key] else ""}</td>'
            for key in ("exact", "whole", "most", "found")
        )
        rows.append(
            f'<tr><td>{escape(c["task"])}</td><td class="n">{c["n"]}</td><td class="n">{c["questions"]:,}</td>{numbers}</tr>'
        )
    names = ("n", "questions", "word for word", "all words", "70 % of n-grams", "any n-gram")
    head = "<th>Test set</th>" + "".join(f'<th class="n">{name}</th>' for name in names)
    note = (
        "Test questions of which the filtered traces, questions included, have so much; before → after the traces that have it were taken "
        "out. n-grams are of words. Any n-gram: common phrases too; nothing is dropped for these."
    )
    return (
        f'<h2>Test questions in the traces</h2><p class="note">{note}</p><div class="scroll"><table class="results"><thead><tr>{head}</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _sample(kept: Sequence[Trace]) -> str:
    chosen = random.Random("card").sample(list(kept), min(SHOWN, len(kept)))
    return (
        f'<h2>To read</h2><p class="note">{len(chosen)} kept traces, drawn at random.</p>'
        + "".join(_trace(t, "") for t in chosen)
        if chosen
        else '<h2>To read</h2><p class="note">Nothing was kept.</p>'
    )


def _gone(dropped: Sequence[tuple[Trace, str, str]]) -> str:
    first: dict[str, tuple[Trace, str]] = {}
    for trace, by, why in dropped:
        first.setdefault(by, (trace, why))
    if not first:
        return ""
    cards = "".join(_trace(t, f"{by}: {why}") for by, (t, why) in first.items())
    return f'<h2>Dropped</h2><p class="note">One of each kind, the first.</p>{cards}'


def _trace(t: Trace, why: str) -> str:
    badge = f'<span class="badge">{escape(why)}</span> ' if why else ""
    gold = f", gold {t.gold}" if t.gold else ""
    if t.think:
        body = f'<div class="think" dir="auto">{escape(t.think)}</div><div class="a" dir="auto">{escape(t.answer)}</div>'
    else:
        body = f'<div class="a" dir="auto">{escape(t.text)}</div>'
    head = escape(f"{t.id}, {t.kind}{gold}")
    return f'<div class="trace"><h4>{badge}{head}</h4><div class="q" dir="auto">{escape(t.question)}</div>{body}</div>'
