"""An evaluation's folder -> results.json, report.md and report.html. `python -m eval.report DIR` writes them again.

What is shown depends on the folder's settings, samples and contamination.json alone: no clock, no path of the folder, nothing
drawn without a seed. So the same answers give the same bytes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval import report_html, report_md, report_results
from eval.contamination import MOST, entered
from eval.dual_chain import dual_chain
from eval.figures import estimate, figures, right_PG
from eval.records import Answered, Settings, read_samples, read_settings, samples_path, write_atomic
from eval.report_words import label


@dataclass(frozen=True)
class Evaluation:
    """What one folder holds, with its figures; keys are tasks, those that were answered in full."""

    name: str
    settings: Mapping[str, Settings]
    answered: Mapping[str, Sequence[Answered]]
    figures: Mapping[str, Mapping[str, Any]]
    chains: Mapping[str, Mapping[str, Any]]  # dual chain, of tasks whose answers can be voted on
    overlap: Sequence[Mapping[str, Any]]  # what contamination.entered has; none: nobody looked
    clean: Mapping[str, Mapping[str, Any]]  # accuracy without the questions that stand in the training set


def read(folder: str | Path, name: str = "", tasks: Sequence[str] = ()) -> Evaluation:
    """`tasks`: only these; empty: all that were answered. Raises ValueError for a folder that holds no answers or a damaged file."""
    settings = {s.task: s for s in read_settings(folder) if samples_path(folder, s.task).exists()}
    settings = {task: s for task, s in settings.items() if not tasks or task in tasks}
    if not settings:
        raise ValueError(f"{folder}: no task was answered in full, so there is nothing to report; run its `make eval` again")
    answered = {task: read_samples(folder, task) for task in settings}
    overlap = [row for row in entered(folder) if row["task"] in settings]
    found = {task: figures(rows) for task, rows in answered.items()}
    votable = [task for task, s in settings.items() if found[task]["samples"] > 1 and s.grader != "rewards/code_tests"]
    return Evaluation(
        name or label(next(iter(settings.values())).model),
        settings,
        answered,
        found,
        {task: dual_chain(answered[task]) for task in votable},
        overlap,
        {task: clean for task, rows in answered.items() if (clean := _clean(rows, overlap))},
    )


def _clean(answered: Sequence[Answered], overlap: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Lenient accuracy over the questions of which no n shows most in the training set; {} where all are such, or none."""
    rows = [row for row in overlap if row["task"] == answered[0].task]
    dirty = {f["id"] for row in rows for f in row["found"] if f["whole"] or f["share"] >= MOST}
    kept = [a for a in answered if a.id not in dirty]
    if not kept or len(kept) == len(answered):
        return {}
    return estimate(right_PG(kept).mean(axis=1).tolist()) | {"left_out": len(answered) - len(kept)}


def write(folder: str | Path) -> Path:
    """Write results.json, report.md and report.html of one evaluation; returns the page's path. Raises ValueError."""
    evaluation, out = read(folder), Path(folder)
    write_atomic(out / "results.json", report_results.to_json(evaluation))
    write_atomic(out / "report.md", report_md.markdown(evaluation))
    return write_page(out, report_html.page([evaluation]))


def write_comparison(folders: Sequence[str | Path], found: Mapping[str, Any], out: str | Path) -> Path:
    """Write the page of what eval/compare.py found in these folders; returns its path. Raises ValueError."""
    names = [model["name"] for model in found["models"]]
    parts = [read(folder, name, list(found["tasks"])) for folder, name in zip(folders, names, strict=True)]
    return write_page(Path(out), report_html.page(parts, found))


def write_page(out: Path, page: str) -> Path:
    """Lone surrogates in a model's text, which UTF-8 does not have, become escapes."""
    path = out / "report.html"
    write_atomic(path, page.encode("utf-8", "backslashreplace").decode("utf-8"))
    return path


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="eval.report", description="The report of an evaluation, from its folder.")
    parser.add_argument("folder", help="of an evaluation")
    given = parser.parse_args(argv)
    try:
        print(f"report {write(given.folder)}")
    except ValueError as error:
        print(f"eval.report: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
