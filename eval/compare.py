"""Evaluated folders on the same questions, each against the first: `python -m eval.compare BASE OTHER [...] --out DIR`.

The first folder is the base model, or the teacher. For every task that all have: the paired difference in accuracy with interval and
p-value (eval/paired.py; corrected by Holm over all tasks and models), the questions won and lost, the cost in tokens, the share
of the first's accuracy that is retained (Fieller), and tables by group such as MMLU's subjects (Holm over the groups).
What differs in anything but the model is refused; only one model under several templates is taken as a comparison of templates.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval import report
from eval.compare_markdown import markdown
from eval.estimators import Estimate, student
from eval.figures import VERDICTS, estimate, members, right_PG, samples_of, spread
from eval.intervals import bootstrap, largest_gap, ratio_of_means
from eval.paired import holm, paired
from eval.records import Answered, Settings, read_samples, read_settings, write_atomic
from eval.report_words import facts

# two evaluations that differ in one of these did not measure the same thing; in this order the first is named
SAME = {
    "rows": "number of questions", "data_hash": "data hash", "mode": "mode", "grader": "grader",
    "grader_version": "grader's version", "samples": "samples a question", "temperature": "temperature", "top_p": "top_p",
    "max_tokens": "max_tokens",
}  # fmt: skip
TEMPLATE = {"template": "template", "template_hash": "template hash"}
NOTED = ("seed", "engine", "engine_version", "dtype", "commit", "extra")


@dataclass(frozen=True)
class Evaluated:
    """One task of one folder."""

    name: str
    settings: Settings
    answered: list[Answered]


def compare(folders: Sequence[str | Path]) -> dict[str, Any]:
    """All comparisons with the first folder, plain data. Raises ValueError in one line for folders that cannot be compared."""
    if len(folders) < 2:
        raise ValueError(f"got {len(folders)} folder(s): name two or more evaluations, the base model or teacher first")
    names = _names(folders)
    settings = {name: {s.task: s for s in read_settings(folder)} for name, folder in zip(names, folders, strict=True)}
    shared = [task for task in settings[names[0]] if all(task in of for of in settings.values())]
    if not shared:
        had = "; ".join(f"{name}: {', '.join(of) or 'none'}" for name, of in settings.items())
        raise ValueError(f"no task was evaluated in all folders ({had}); evaluate them on the same one")
    notes = [f"{name} has {task}, the others do not all" for name, of in settings.items() for task in of if task not in shared]
    tasks = {}
    for task in shared:
        for name in names[1:]:
            notes += _same_settings(task, names[0], settings[names[0]][task], name, settings[name][task])
        parts = [
            Evaluated(name, settings[name][task], read_samples(folder, task))
            for name, folder in zip(names, folders, strict=True)
        ]
        tasks[task] = _task(_aligned(parts))
    _correct([c[v] for v in VERDICTS[:1] for t in tasks.values() for c in t["comparisons"]])
    _correct([c[v] for v in VERDICTS[1:] for t in tasks.values() for c in t["comparisons"]])
    models = [
        {"name": name, "facts": facts(of[task] for task in shared), "settings": {task: asdict(of[task]) for task in shared}}
        for name, of in settings.items()
    ]
    return {"base": names[0], "models": models, "tasks": tasks, "notes": list(dict.fromkeys(notes))}


def _names(folders: Sequence[str | Path]) -> list[str]:
    """The shortest end of each path that tells them apart."""
    parts = [Path(folder).resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        raise ValueError("the same folder is named twice; name each evaluation once")
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            break
    return names


def _same_settings(task: str, base: str, a: Settings, other: str, b: Settings) -> list[str]:
    """Notes on what may differ. Raises ValueError for what may not."""
    one_model = a.model_hash == b.model_hash
    for key, words in (SAME if one_model else SAME | TEMPLATE).items():
        one, two = getattr(a, key), getattr(b, key)
        if one != two:
            raise ValueError(
                f"{task}: {base} and {other} cannot be compared, their {words} differs ({_short(one)} and {_short(two)}); "
                "evaluate both in the same way"
            )
    differing = [*NOTED, *TEMPLATE] if one_model else NOTED
    notes = [
        f"{task}: {key} differs: {_short(getattr(a, key))} in {base}, {_short(getattr(b, key))} in {other}"
        for key in differing
        if getattr(a, key) != getattr(b, key)
    ]
    return [*notes, *([f"{task}: {base} and {other} are the same model"] if one_model else [])]


def _short(value: Any) -> str:
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else str(value) or "none"


def _aligned(parts: Sequence[Evaluated]) -> list[Evaluated]:
    """The same questions in the order of the first. Raises ValueError naming one that differs."""
    first = parts[0]
    k, aligned = samples_of(first.answered), [first]
    for part in parts[1:]:
        by_id = {a.id: a for a in part.answered}
        for a in first.answered:
            if a.id not in by_id or by_id[a.id].question != a.question or by_id[a.id].gold != a.gold:
                what = "is another" if a.id in by_id else "is missing"
                raise ValueError(
                    f"{a.task}: question {a.id} of {first.name} {what} in {part.name}; evaluate both on the same file"
                )
        if len(by_id) != len(first.answered):
            extra = next(i for i in by_id if i not in {a.id for a in first.answered})
            raise ValueError(f"{first.settings.task}: question {extra} of {part.name} is missing in {first.name}")
        if samples_of(part.answered) != k:
            raise ValueError(f"{first.settings.task}: {first.name} has {k} samples a question, {part.name} has another number")
        aligned.append(Evaluated(part.name, part.settings, [by_id[a.id] for a in first.answered]))
    return aligned


def _task(parts: Sequence[Evaluated]) -> dict[str, Any]:
    right = {v: [right_PG(p.answered, v) for p in parts] for v in VERDICTS}
    models = {}
    for i, part in enumerate(parts):
        tokens = _tokens(part.answered)
        models[part.name] = {v: estimate(right[v][i].mean(axis=1).tolist()) for v in VERDICTS} | {
            "tokens": asdict(bootstrap(tokens)),
            "tokens_total": sum(s.tokens for a in part.answered for s in a.samples),
            "truncated": float(np.mean([s.truncated for a in part.answered for s in a.samples])),
            "spread": spread(part.answered, right["lenient"][i]),
        }
    comparisons = [
        _against(parts[0], parts[i], {v: (right[v][0], right[v][i]) for v in VERDICTS}) for i in range(1, len(parts))
    ]
    gap = {p.name: r.mean(axis=1) for p, r in zip(parts, right["lenient"], strict=True)}
    return {
        "questions": len(parts[0].answered),
        "samples": right["lenient"][0].shape[1],
        "models": models,
        "comparisons": comparisons,
        "gap": asdict(largest_gap(gap, paired=True)) if len(parts) > 2 else None,
    }


def _against(base: Evaluated, other: Evaluated, right: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    a, b = right["lenient"]
    change = b.mean(axis=1) - a.mean(axis=1)
    order = np.argsort(-np.abs(change), kind="stable")
    ids = [q.id for q in base.answered]
    found: dict[str, Any] = {"model": other.name} | {v: asdict(paired(*right[v])) for v in VERDICTS}
    found |= {
        "retention": _ratio(b.mean(axis=1), a.mean(axis=1)),
        "tokens": _cost(_tokens(base.answered), _tokens(other.answered)),
        "won_ids": [ids[i] for i in order if change[i] > 0],
        "lost_ids": [ids[i] for i in order if change[i] < 0],
        "by": {},
    }
    for column, groups in members(base.answered).items():
        rows = {
            name: {"questions": len(at), "base": float(a[at].mean()), "other": float(b[at].mean())}
            | asdict(paired(a[at], b[at]))
            for name, at in groups.items()
        }
        _correct(list(rows.values()))
        found["by"][column] = rows
    return found


def _correct(found: Sequence[dict[str, Any]]) -> None:
    """Adds p_holm: the p-values corrected for their number."""
    for one, p in zip(found, holm([f["p"] for f in found]), strict=True):
        one["p_holm"] = p


def _tokens(answered: Sequence[Answered]) -> list[float]:
    """The mean over a question's samples."""
    return [sum(s.tokens for s in a.samples) / len(a.samples) for a in answered]


def _cost(base: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
    """Tokens a sample: the difference, and the ratio to the base's."""
    more = student(np.subtract(other, base).tolist())
    return {"difference": more.value, "low": _finite(more.low), "high": _finite(more.high), "ratio": _ratio(other, base)}


def _ratio(above: Any, below: Any) -> dict[str, Any] | None:
    """None where there is none: nothing below, or one question. An end that is not bounded is None."""
    if len(below) < 2 or not np.sum(below):
        return None
    found: Estimate = ratio_of_means(above, below)
    return {key: _finite(value) for key, value in asdict(found).items()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="eval.compare", description="Evaluations on the same questions, each against the first."
    )
    parser.add_argument("folders", nargs="+", help="of evaluations; the base model's, or the teacher's, first")
    parser.add_argument("--out", required=True, help="folder for report.html, report.md and results.json")
    given = parser.parse_args(argv)
    try:
        found = compare(given.folders)
        page = report.write_comparison(given.folders, found, given.out)
    except ValueError as error:
        print(f"eval.compare: {error}", file=sys.stderr)
        return 2
    write_atomic(Path(given.out) / "results.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    write_atomic(Path(given.out) / "report.md", markdown(found) + "\n")
    print(f"{markdown(found, shown=0)}\n\nreport {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
