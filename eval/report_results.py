"""results.json in the layout of lm-evaluation-harness 0.4, so that what reads theirs reads ours.

`results[task]` has "metric,filter" and "metric_stderr,filter", `results["mmlu_SUBJECT"]` the subjects and `group_subtasks` names them.
Filters are ours: "strict" and "lenient" extraction, "none" where there is one verdict. Two keys are our own, and theirs ignore
them: `figures` (everything of eval/figures.py, with intervals, by group, dual chain) and `settings`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from eval.records import Settings

if TYPE_CHECKING:
    from eval.report import Evaluation

VERSION = 1  # of our task definitions, as lm-evaluation-harness numbers its own
Figures = Mapping[str, Any]


def to_json(evaluation: Evaluation) -> str:
    """The file's text; equal evaluations give equal bytes."""
    return json.dumps(_finite(results(evaluation)), indent=1, ensure_ascii=False) + "\n"


def results(evaluation: Evaluation) -> dict[str, Any]:
    tasks = evaluation.settings
    entries: dict[str, Any] = {}
    groups, subtasks, counts = {}, {}, {}
    for task, s in tasks.items():
        found = evaluation.figures[task]
        entries[task] = {"alias": task, **_metrics(s, found)}
        counts[task] = {"original": s.rows, "effective": found["questions"]}
        subjects = found["by"].get("subject", {}) if task == "mmlu" else {}
        for subject, f in subjects.items():
            entries[f"{task}_{subject}"] = {"alias": subject, **_pair("acc", "none", f["lenient"])}
            counts[f"{task}_{subject}"] = {"original": f["questions"], "effective": f["questions"]}
        subtasks[task] = [f"{task}_{subject}" for subject in subjects]
        if subjects:
            groups[task] = entries[task]
    first, parent = next(iter(tasks.values())), {sub: task for task, subs in subtasks.items() for sub in subs}
    of = {name: tasks[parent.get(name, name)] for name in entries}
    return {
        "results": entries,
        **({"groups": groups} if groups else {}),
        "group_subtasks": subtasks,
        "configs": {task: _config(s) for task, s in tasks.items()},
        "versions": dict.fromkeys(entries, VERSION),
        "n-shot": {name: int(s.extra.get("shots", 0)) for name, s in of.items()},
        "higher_is_better": {
            name: {key.partition(",")[0]: True for key in entry if "," in key and "_stderr," not in key}
            for name, entry in entries.items()
        },
        "n-samples": counts,
        "config": {
            "model": first.engine, "model_args": f"pretrained={first.model},dtype={first.dtype}", "model_sha": first.model_hash,
            "model_dtype": first.dtype, "limit": None, "random_seed": first.seed,
        },
        "git_hash": first.commit,
        "date": first.date,
        "model_source": first.engine,
        "model_name": first.model,
        "task_hashes": {task: s.data_hash for task, s in tasks.items()},
        "figures": {
            task: {**found, "dual_chain": evaluation.chains.get(task), "without_contaminated": evaluation.clean.get(task)}
            for task, found in evaluation.figures.items()
        },
        "contamination": [{k: v for k, v in row.items() if k != "found"} for row in evaluation.overlap],
        "settings": {task: asdict(s) for task, s in tasks.items()},
    }  # fmt: skip


def _metrics(s: Settings, found: Figures) -> dict[str, Any]:
    """Accuracy under its usual name there: acc of choices, pass@1 of programs, exact_match of the rest."""
    k = found["samples"]
    if s.mode == "loglikelihood":
        return _pair("acc", "none", found["lenient"][f"mean@{k}"])
    code = s.grader == "rewards/code_tests"
    name = {f"mean@{k}": "pass@1" if code else "exact_match"}
    made: dict[str, Any] = {}
    for verdict in ("lenient",) if code else ("strict", "lenient"):
        for key, e in found[verdict].items():
            made |= _pair(name.get(key, key), "none" if code else verdict, e)
    return made


def _pair(metric: str, filtered: str, e: Mapping[str, Any]) -> dict[str, Any]:
    """One question has no standard error; their word for that is N/A."""
    return {f"{metric},{filtered}": e["value"], f"{metric}_stderr,{filtered}": e["se"] if math.isfinite(e["se"]) else "N/A"}


def _config(s: Settings) -> dict[str, Any]:
    drawn = {"max_gen_toks": s.max_tokens, "temperature": s.temperature, "top_p": s.top_p, "do_sample": s.temperature > 0}
    return {
        "task": s.task,
        "dataset_path": s.data,
        "output_type": "multiple_choice" if s.mode == "loglikelihood" else "generate_until",
        "num_fewshot": int(s.extra.get("shots", 0)),
        "repeats": s.samples,
        "generation_kwargs": drawn if s.mode == "generate" else {},
        "metadata": {"version": VERSION},
    }


def _finite(value: Any) -> Any:
    """JSON has no NaN: the standard error of one question is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(v) for key, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value
