"""Figures in words, as report.md and report.html say them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.compare_markdown import p_value
from eval.records import Settings
from rl.report_plots import percent

SHORT = 12  # characters of a hash that are shown
ASKED = {"generate": "sampled", "loglikelihood": "log-likelihood of the letters", "regrade": "stored answers, graded again"}


def label(model: str) -> str:
    """A model's name in a title: the last two parts of its path.

    >>> label("/data/runs/zero_nano-seed0/final")
    'zero_nano-seed0/final'
    """
    return "/".join([part for part in Path(model).parts if part not in ("/", ".", "..")][-2:]) or model


def share(e: Mapping[str, Any] | None) -> str:
    return "-" if e is None or e["value"] is None else percent(e["value"])


def interval(e: Mapping[str, Any] | None) -> str:
    """`[31.0, 38.1]`, in per cent."""
    return (
        "" if e is None or e.get("low") is None or e.get("high") is None else f"[{100 * e['low']:.1f}, {100 * e['high']:.1f}]"
    )


def measured(e: Mapping[str, Any] | None) -> str:
    return f"{share(e)} {interval(e)}".strip()


def measures(figures: Mapping[str, Any]) -> dict[str, Mapping[str, Any] | None]:
    """The table's figures of a task: strict, lenient, and maj@k and pass@k for its k, None where one sample was drawn."""
    k, strict, lenient = figures["samples"], figures["strict"], figures["lenient"]
    several = k > 1
    return {
        "strict": strict[f"mean@{k}"], "lenient": lenient[f"mean@{k}"],
        "maj": lenient[f"maj@{k}"] if several else None, "pass": lenient[f"pass@{k}"] if several else None,
    }  # fmt: skip


def remarks(task: str, settings: Settings, figures: Mapping[str, Any]) -> list[str]:
    """What a reader of a task's figures must know beside them."""
    told = [f"{task}: {percent(figures['no_verdict'])} of the samples got no verdict"] if figures["no_verdict"] else []
    cut = settings.extra.get("prompts_cut", 0)
    return told + ([f"{task}: {cut:,} prompts are longer than the model takes and lost their beginning"] if cut else [])


def facts(settings: Iterable[Settings]) -> dict[str, str]:
    """What a reader needs to repeat it. Where tasks differ in a fact, each value names its tasks."""
    parts = list(settings)
    return {name: _joined(parts, [row[name] for row in map(_facts, parts)]) for name in _facts(parts[0])}


def _facts(s: Settings) -> dict[str, str]:
    drawn = "greedy" if s.temperature == 0 else f"temperature {s.temperature:g}, top-p {s.top_p:g}"
    many = f"{s.samples} a question, {drawn}, up to {s.max_tokens} tokens" if s.mode == "generate" else ASKED[s.mode]
    return {
        "Model": s.model,
        "Weights" if s.mode != "regrade" else "Completions": f"sha256 {s.model_hash[:SHORT]}",
        "Samples": many,
        "Template": f"{s.template} {s.template_hash[:SHORT]}".strip(),
        "Grader": f"{s.grader} {s.grader_version[:SHORT]}",
        "Engine": ", ".join(x for x in (f"{s.engine} {s.engine_version}".strip(), s.dtype) if x),
        "Seed": str(s.seed),
        "Date": s.date,
        "Commit": s.commit or "-",
    }


def _joined(settings: Sequence[Settings], values: Sequence[str]) -> str:
    tasks: dict[str, list[str]] = {}
    for s, value in zip(settings, values, strict=True):
        tasks.setdefault(value, []).append(s.task)
    return next(iter(tasks)) if len(tasks) == 1 else "; ".join(f"{', '.join(names)}: {v}" for v, names in tasks.items())


def gap(column: str, groups: Mapping[str, Any], spread: Mapping[str, Any]) -> str:
    """The largest gap between groups, by name, and whether chance alone could have made it."""
    high, low = spread["high_group"], spread["low_group"]
    top, bottom = (groups[name]["lenient"]["value"] for name in (high, low))
    sure = "more than chance makes of equal groups" if spread["low"] > 0 else "no more than chance can make of equal groups"
    return (
        f"Largest gap by {column}: {named(column, high)} ({percent(top)}) over {named(column, low)} ({percent(bottom)}), "
        f"{100 * spread['value']:.1f} points "
        f"(95 % interval {100 * spread['low']:.1f} to {100 * spread['high']:.1f}, corrected for having picked it among "
        f"{spread['groups']} groups; p {p_value(spread['p'])}): {sure}."
    )


def named(column: str, group: str) -> str:
    """A group in a sentence: `steps 2`, `astronomy`."""
    return f"{column} {group}" if group.isdigit() else group


def ordered(groups: Mapping[str, Any], value: Any) -> list[str]:
    """Names of groups: by number where all are numbers (levels, steps), else the best first."""
    if all(name.split()[-1].isdigit() for name in groups if name.split()) and all(groups):
        return sorted(groups, key=lambda name: (int(name.split()[-1]), name))
    return sorted(groups, key=lambda name: (-value(groups[name]), name))


def overlap(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line a test set: what the training set has of it. [] where nobody looked."""
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        counts = ", ".join(f"{row['most']} of which it has 70 % of the {row['n']}-grams or all words" for row in own)
        exact = max(row.get("exact", 0) for row in own)
        lines.append(
            f"{task}: of {own[0]['questions']} questions {counts}; {exact} word for word "
            f"(training set: {trained_on(own)}, {own[0]['rows']} rows)"
        )
    return lines


def trained_on(rows: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(dict.fromkeys(name for row in rows for name in row.get("training", ()))) or "not named"
