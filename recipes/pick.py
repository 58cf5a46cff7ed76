"""A run's rollouts -> traces for its successor's cold start: `python -m recipes.pick RUN/rollouts OUT [--steps 10] [--per-question 2]`.

DeepSeek-R1 (arXiv 2501.12948, section 2.3.1) begins with readable traces, some of them R1-Zero's, refined by people.
Here: the right answers of the last steps (the policy at its best), cleaned: what stands before <think> or behind </answer> is cut off
(an answer that went on after it had ended) and what is left is judged again, blank lines and double spaces go. What is then not
readable, the filters drop and count (recipes/distill.py with data.traces=["OUT/traces.jsonl"]). People's traces, or anyone's, enter there
as well, in place of this file.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill import filter
from distill.traces import Trace, to_json, write
from rewards import format_tags
from rl.report import ROLLOUTS, read_jsonl, rollout_files

_FORM = re.compile(r"<think>(.*?)</think>\s*<answer>(.*?)</answer>", re.DOTALL)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m recipes.pick", description="Right, cleaned traces of a run's rollouts.")
    parser.add_argument("rollouts", help="the folder of that name in a run's folder")
    parser.add_argument("out")
    parser.add_argument("--steps", type=int, default=10, help="of the last so many steps that were written down")
    parser.add_argument("--per-question", type=int, default=2)
    args = parser.parse_args(argv)
    try:
        picked, counts = pick(Path(args.rollouts), args.steps, args.per_question)
        if not picked:
            raise ValueError(
                f"{args.rollouts}: no right answer of the form <think> </think> <answer> </answer> ({dict(counts)})"
            )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write(Path(args.out) / "traces.jsonl", map(to_json, picked))
    print(", ".join(f"{n} {what}" for what, n in counts.items()) + f"\ntraces {Path(args.out) / 'traces.jsonl'}")
    return 0


def pick(rollouts: Path, steps: int, per_question: int) -> tuple[list[Trace], Counter[str]]:
    """Traces, and how many answers became of what."""
    if rollouts.name != ROLLOUTS:
        raise ValueError(f"{rollouts}: not the {ROLLOUTS} folder of a run")
    files = list(rollout_files(rollouts.parent).values())[-steps:]
    counts, kept, seen = Counter[str](), Counter[str](), set[tuple[str, str]]()
    made = []
    for trace, right in (pair for path in reversed(files) for group in read_jsonl(path) for pair in _answers(group)):
        text = cleaned(trace.text)
        fate = "wrong" if not right else "without form" if not text else "picked"
        if fate == "picked" and not _still_right(trace, text):
            fate = "right only in what is cut off"
        if fate == "picked" and (kept[trace.problem] >= per_question or (trace.problem, text) in seen):
            fate = "more of a question"
        counts[fate] += 1
        if fate == "picked":
            kept[trace.problem] += 1
            seen.add((trace.problem, text))
            made.append(replace(trace, text=text))
    return made, counts


def cleaned(text: str) -> str:
    """The trace in its form and nothing else; "" where there is none.

    >>> cleaned("Well. <think> 2 and 2  is\\n\\n4 </think> <answer> 4 </answer> User: and then?")
    ' <think> 2 and 2 is\\n4 </think> <answer>4</answer>'
    """
    found = _FORM.search(text)
    if not found or any(tag in part for part in found.groups() for tag in format_tags.TAGS):
        return ""
    think = "\n".join(" ".join(line.split()) for line in found[1].splitlines() if line.strip())
    return f" <think> {think} </think> <answer>{found[2].strip()}</answer>" if think else ""


def _still_right(trace: Trace, text: str) -> bool:
    """Whether the verdict on the whole answer holds for what is left of it; programs are not run again."""
    if not format_tags.fault(trace.text):
        return True
    return trace.kind != "code" and filter.right(replace(trace, text=text)).value == 1.0


def _answers(group: Mapping[str, Any]) -> Iterator[tuple[Trace, bool]]:
    problem = group["problem"]
    for n, c in enumerate(group["completions"]):
        columns = {k: v for k, v in problem.items() if k not in ("id", "kind")}
        trace = Trace(
            f"{group['id']}@{group['step']}#{n}", group["id"], group["question"], c["text"], str(group["gold"]),
            str(problem.get("kind", "math")), "stop", c["tokens"], "rollouts", "", columns,
        )  # fmt: skip
        yield trace, c["finish"] == "stop" and 1.0 in (c["parts"].get("accuracy"), c["parts"].get("code"))


if __name__ == "__main__":
    sys.exit(main())
