"""A comparison (eval/compare.py) as Markdown: the table of tasks first, then each task's groups, questions and cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

SHOWN = 20  # questions named of those won and of those lost


def markdown(found: Mapping[str, Any], shown: int = SHOWN) -> str:
    """The whole report; with `shown` 0 only the table of tasks, for the console."""
    lines = [f"# Against {found['base']}", "", *_models(found), "", *_table(found)]
    lines += ["", *(f"- {note}" for note in found["notes"])] if found["notes"] else []
    for task, of in found["tasks"].items() if shown else ():
        lines += ["", f"## {task}: {of['questions']} questions, {of['samples']} a question", *_task(found["base"], of, shown)]
    return "\n".join(lines)


def _models(found: Mapping[str, Any]) -> Iterator[str]:
    for i, m in enumerate(found["models"]):
        yield f"{i}. {m['name']}. " + ". ".join(f"{name}: {value}" for name, value in m["facts"].items())


def _table(found: Mapping[str, Any]) -> Iterator[str]:
    yield "| task | model | strict | lenient | lenient, difference | p | p, Holm | won / lost | retained | tokens | truncated |"
    yield "|---" * 11 + "|"
    for task, of in found["tasks"].items():
        for name, m in of["models"].items():
            row = [task, name, accuracy(m["strict"]), accuracy(m["lenient"])]
            c = next((c for c in of["comparisons"] if c["model"] == name), None)
            if c is None:
                row += [""] * 5
            else:
                d = c["lenient"]
                row += [points(d), p_value(d["p"]), p_value(d["p_holm"]), f"{d['won']} / {d['lost']}", share(c["retention"])]
            yield "| " + " | ".join([*row, f"{m['tokens']['value']:.0f}", f"{m['truncated']:.1%}"]) + " |"


def _task(base: str, of: Mapping[str, Any], shown: int) -> Iterator[str]:
    if of["gap"]:
        g = of["gap"]
        yield ""
        yield (
            f"Largest gap: {g['high_group']} over {g['low_group']}, {100 * g['value']:.1f} points ({100 * g['low']:.1f} to "
            f"{100 * g['high']:.1f}, corrected for having picked it among {g['groups']}; p {p_value(g['p'])})"
        )
    for name, m in of["models"].items():
        for column, s in m["spread"].items():
            yield ""
            yield (
                f"{name} by {column}: {s['high_group']} is best, {s['low_group']} worst, {100 * s['value']:.1f} points apart "
                f"({100 * s['low']:.1f} to {100 * s['high']:.1f} after picking them among {s['groups']}; p {p_value(s['p'])}); standard "
                f"deviation {100 * s['deviation']:.1f} points"
            )
    for c in of["comparisons"]:
        yield from ("", f"### {c['model']} against {base}", "")
        t = c["tokens"]
        yield (
            f"Strict: {points(c['strict'])}, p {p_value(c['strict']['p'])}, Holm {p_value(c['strict']['p_holm'])}. Tokens a sample: "
            f"{t['difference']:+.1f} ({bound(t['low'])} to {bound(t['high'])}), {share(t['ratio'])} of the base's."
        )
        for word, ids in (("won", c["won_ids"]), ("lost", c["lost_ids"])):
            more = f" and {len(ids) - shown} more in results.json" if len(ids) > shown else ""
            yield from ("", f"Questions {word} ({len(ids)}): {', '.join(ids[:shown]) or 'none'}{more}")
        for column, rows in c["by"].items():
            yield from (
                "",
                f"| {column} | questions | base | {c['model']} | difference | p | p, Holm | won / lost |",
                "|---" * 8 + "|",
            )
            for name, r in rows.items():
                cells = [name, str(r["questions"]), f"{r['base']:.1%}", f"{r['other']:.1%}", points(r)]
                yield "| " + " | ".join([*cells, p_value(r["p"]), p_value(r["p_holm"]), f"{r['won']} / {r['lost']}"]) + " |"


def accuracy(e: Mapping[str, float]) -> str:
    return f"{e['value']:.1%} ({e['low']:.1%} to {e['high']:.1%})"


def points(d: Mapping[str, float]) -> str:
    """A difference in percentage points."""
    return f"{100 * d['difference']:+.1f} ({100 * d['low']:+.1f} to {100 * d['high']:+.1f})"


def p_value(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"


def share(ratio: Mapping[str, float | None] | None) -> str:
    """A ratio with its interval; where that is not bounded it says so."""
    if ratio is None:
        return "none"
    if ratio["low"] is None or ratio["high"] is None:
        return f"{ratio['value']:.0%} (unbounded)"
    return f"{ratio['value']:.0%} ({ratio['low']:.0%} to {ratio['high']:.0%})"


def bound(value: float | None) -> str:
    return "unbounded" if value is None else f"{value:+.1f}"
