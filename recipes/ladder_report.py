"""A ladder in numbers: accuracy with intervals after each rung, what each bought, length, language, cost. recipes/ladder_page.py draws it.

`collect` reads what recipes/chain.py wrote: its manifest, and of each rung questions.json (recipes/rung.py). What is counted, and how:
1. A gain is that of a rung over the rung above it, and over the rung whose weights it began from where that is another one. Both rungs
   answered the same questions, so the interval is of the paired differences (eval/paired.py), narrower than two intervals side by side.
   So is that of what a student keeps, its accuracy over its teacher's: at the share s a question's difference is its own part of right
   answers minus s times the teacher's (the delta method for a ratio of means).
2. Judge scores are in standard deviations of the answers that the judge was trained on; intervals by Student's t over requests.
3. Minutes are wall-clock on the machine that ran, and of its processors; goes that were killed count to their last line. Tokens sampled
   are those of answers that a stage drew; tokens learned from those of each update's rows, a token seen in two updates twice.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from eval.estimators import student
from eval.paired import difference_interval, paired
from rl.config_tree import override

Tree = Mapping[str, Any]
RUNG = "recipes.rung"  # the command of an evaluation
FIGURES = ("greedy", "pass@1", "general", "judge")
_START = re.compile(r"\{(\w+)\}/(final)?")


class Stage(Protocol):
    """What is asked of a stage of recipes/chain.py."""

    @property
    def name(self) -> str: ...
    @property
    def args(self) -> Sequence[str]: ...
    @property
    def title(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def teacher(self) -> str: ...


def collect(name: str, stages: Sequence[Stage], manifest: Tree, out: Path) -> dict[str, Any]:
    """The rungs in order, each with the stages that led to it. An evaluation says in `model` which stage it judges."""
    rungs: list[dict[str, Any]] = []
    led: list[dict[str, Any]] = []
    at: dict[str, dict[str, Any]] = {}  # rungs by the stage that is judged, or what it names in the repository
    begun = {stage.name: _start(stage.args) for stage in stages}
    judging = {"minutes": 0.0, "cpu_minutes": 0.0}
    for stage in stages:
        entry = manifest["stages"].get(stage.name)
        if entry is None:
            continue
        if entry["run"] != RUNG:
            led.append({"name": stage.name, **spent(out / stage.name, entry), "made": made(entry["metrics"])})
            continue
        judging = {key: judging[key] + entry.get(key, 0.0) for key in judging}
        questions = json.loads((out / stage.name / "questions.json").read_text(encoding="utf-8"))
        rung = {"title": stage.title, "stages": led, "total": total(led), "questions": questions, **entry["metrics"]}
        start = at.get(begun.get(stage.model, ""))
        if start and rungs and start is not rungs[-1]:
            rung["start"] = {"title": start["title"], "gain": gains(start, rung)}
        if teacher := at.get(stage.teacher):
            rung["teacher"] = teacher["title"]
            rung["kept"] = {key: kept(teacher["questions"][key], questions[key]) for key in ("greedy", "pass@1")}
        at |= {stage.model: rung, entry["args"][0]: rung}
        rungs.append(rung)
        led = []
    for before, now in pairwise(rungs):
        now["gain"] = gains(before, now)
    return {"name": name, "rungs": rungs, "judging": judging, "total": total([s for r in rungs for s in r["stages"]])}


def _start(args: Sequence[str]) -> str:
    """The stage, or the path, whose weights a stage begins from."""
    tree: dict[str, Any] = {"model": {"path": ""}}
    for arg in args:
        if arg.startswith("model.path="):
            override(tree, arg)  # as the stage's door reads it: quoted or not
    path = str(tree["model"]["path"])
    stage = _START.fullmatch(path)
    return stage[1] if stage else path


def gains(before: Tree, now: Tree) -> dict[str, dict[str, float]]:
    """Of each figure that both have."""
    both = [key for key in FIGURES if key in before and key in now]
    return {key: gain(before["questions"][key], now["questions"][key]) for key in both}


def gain(before: Sequence[Sequence[float]], now: Sequence[Sequence[float]]) -> dict[str, float]:
    """The mean difference on the same questions with its 95 % interval; verdicts of 0 and 1, or a judge's scores."""
    if all(value in (0, 1) for row in (*before, *now) for value in row):
        told = asdict(paired(before, now))
        return {"value": told["difference"], "low": told["low"], "high": told["high"], "p": told["p"]}
    means = [math.fsum(b) / len(b) - math.fsum(a) / len(a) for a, b in zip(before, now, strict=True)]
    found = student(means)
    return {"value": found.value, "low": found.low, "high": found.high}


def kept(teacher: Sequence[Sequence[float]], student: Sequence[Sequence[float]]) -> dict[str, float]:
    """Share of the teacher's accuracy on the same questions, with its 95 % interval (point 1 above). 0 where the teacher is never right.

    Verdicts of 0 and 1, a row a question.

    >>> kept([[1, 1], [1, 0]], [[1, 0], [1, 0]])["value"]
    0.6666666666666666
    """
    of_teacher, of_student = (np.asarray(rows, dtype=np.float64).mean(axis=1) for rows in (teacher, student))
    accuracy = float(of_teacher.mean())
    if not accuracy:
        return {"value": 0.0, "low": 0.0, "high": 0.0}
    share = float(of_student.mean()) / accuracy
    low, high = difference_interval(np.round(of_student - share * of_teacher, 12))  # of a mean that is 0
    return {"value": share, "low": max(0.0, share + low / accuracy), "high": share + high / accuracy}


def spent(folder: Path, entry: Tree) -> dict[str, float]:
    """Minutes and tokens of a stage, from what it wrote down."""
    sampled, learned = 0, 0
    steps, traces = folder / "metrics.jsonl", sorted(folder.glob("traces/*.jsonl"))
    if steps.exists():
        rows = {row["step"]: row for row in map(json.loads, steps.read_text(encoding="utf-8").splitlines())}
        learned = sum(row.get("tokens", 0) for row in rows.values())
        sampled = sum(row.get("tokens", 0) for row in rows.values() if "reward" in row)  # else somebody else's answers: SFT
    for path in traces:
        with path.open(encoding="utf-8") as lines:
            sampled += sum(json.loads(line).get("tokens", 0) for line in lines)
    return {"minutes": entry["minutes"], "cpu_minutes": entry.get("cpu_minutes", 0.0), "sampled": sampled, "learned": learned}


def total(stages: Sequence[Tree]) -> dict[str, float]:
    return {key: sum(s[key] for s in stages) for key in ("minutes", "cpu_minutes", "sampled", "learned")}


def made(metrics: Tree) -> str:
    """What a stage ended with, in a few words; "" where its metrics say nothing that a reader of the ladder asks for."""
    if "kept" in metrics and "traces" in metrics:
        dropped = sorted(metrics["dropped"].items(), key=lambda item: -item[1])
        why = ", ".join(f"{n:,} {reason}" for reason, n in dropped)
        return f"{metrics['kept']:,} of {metrics['traces']:,} traces kept" + (f"; dropped: {why}" if why else "")
    if "dimensions" in metrics:
        told = (f"{name} {100 * d['accuracy']['value']:.0f} %" for name, d in metrics["dimensions"].items())
        return f"prefers the better of two held-out answers: {', '.join(told)}"
    if "updates" in metrics:
        return f"{metrics['updates']} updates on {metrics['traces']:,} traces"
    if "steps" in metrics:
        return f"{metrics['steps']} steps"
    return ""


def table(told: Tree) -> str:
    """A line a rung, for the terminal."""
    lines = [f"{'':<34}{'greedy':>20}{'pass@1':>20}{'bought':>22}{'tokens':>8}{'en':>7}{'minutes':>9}"]
    for r in told["rungs"]:
        figures = "".join(f"{number(r[k]):>20}" for k in ("greedy", "pass@1"))
        bought = number(r["gain"]["pass@1"], "+") if "gain" in r else ""
        lines.append(
            f"{r['title'][:33]:<34}{figures}{bought:>22}{r['tokens']:>8.0f}{r['language']:>7.1%}{r['total']['minutes']:>9.1f}"
        )
    lines += [
        f"{r['title']} keeps of {r['teacher']}: pass@1 {number(r['kept']['pass@1'])} %, paired by question"
        for r in told["rungs"]
        if "teacher" in r
    ]
    return "\n".join(lines)


def number(figure: Tree, sign: str = "") -> str:
    """ "12.0 [10.1, 14.2]", in per cent."""
    value, low, high = (format(100 * figure[key], f"{sign}.1f") for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"
