"""The part of report.html that comes before any score: which questions stand in what the model was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from eval.report_words import measured, trained_on
from rl.report_plots import percent

if TYPE_CHECKING:
    from eval.report import Evaluation

LISTED = 200  # questions that are named, for each test set and n
WHOLE = {"exact": "word for word", "words": "all words"}


def overlap_section(models: Sequence[Evaluation]) -> str:
    """Tables and lists, once for models with the same; where nobody looked it says so."""
    parts = ["<h2>Training questions in the test sets</h2>"]
    told: list[Evaluation] = []
    for m in models:
        if any(m.overlap == other.overlap for other in told):
            continue
        told.append(m)
        same = [other.name for other in models if other.overlap == m.overlap]
        parts.append(f"<h3>{escape(', '.join(same))}</h3>" if len(models) > 1 else "")
        if m.overlap:
            parts += [_overlap_table([other for other in models if other.overlap == m.overlap]), *map(_overlap_list, m.overlap)]
        else:
            parts.append(
                '<p class="note"><span class="badge">not looked for</span> Name what the model was trained on, '
                "<code>--train FILE</code>, and the questions that stand in it are listed here, before any score.</p>"
            )
    return "".join(parts)


def _overlap_table(models: Sequence[Evaluation]) -> str:
    rows, overlap = [], models[0].overlap
    for row in overlap:
        counts = (row["questions"], row.get("short", 0), row["exact"], row.get("whole", 0), row["most"], len(row["found"]))
        cells = "".join(f'<td class="n">{count:,}</td>' for count in counts)
        rows.append(f'<tr><td>{escape(row["task"])}</td><td class="n">{row["n"]}</td>{cells}</tr>')
    names = ("n", "questions", "fewer than n words", "word for word", "all words", "70 % of n-grams", "any n-gram")
    head = "<th>Test set</th>" + "".join(f'<th class="n">{name}</th>' for name in names)
    clean = "".join(
        f"<li>{escape(_of(m, models))}{escape(task)} without the {e['left_out']:,} of 70 % or more: {measured(e)} right (lenient)</li>"
        for m in models
        for task, e in m.clean.items()
    )
    source = f"Training set: {trained_on(overlap)}, {overlap[0]['rows']:,} rows. n-grams are of words."
    return (
        f'<p class="note">{escape(source)}</p><div class="scroll"><table class="results"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>" + (f'<ul class="notes">{clean}</ul>' if clean else "")
    )


def _of(m: Evaluation, models: Sequence[Evaluation]) -> str:
    return f"{m.name}, " if len(models) > 1 else ""


def _overlap_list(row: Mapping[str, Any]) -> str:
    if not row["found"]:
        return ""
    items = "".join(
        f"<tr><td>{escape(f['id'])}</td><td>{WHOLE.get(f['whole'], '')}</td>"
        f'<td class="n">{percent(f["share"])}</td><td>{escape(f["train"])}</td>'
        f'<td class="text" dir="auto">{escape(f["text"][:300])}</td></tr>'
        for f in row["found"][:LISTED]
    )
    many = f"{row['task']}, n = {row['n']}: {len(row['found']):,} questions"
    more = f" (the first {LISTED} here)" if len(row["found"]) > LISTED else ""
    head = '<th>question</th><th></th><th class="n">n-grams</th><th>training row</th><th>what is shared</th>'
    return (
        f'<details><summary>{escape(many + more)}</summary><div class="scroll"><table class="results list"><thead><tr>{head}</tr></thead>'
        f"<tbody>{items}</tbody></table></div></details>"
    )
