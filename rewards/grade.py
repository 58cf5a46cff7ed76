r"""Grades given answers: `python -m rewards.grade --kind math < cases.jsonl > verdicts.jsonl`.

One JSON object a line, in and out.
  math in: {"id", "gold", "answer"}      `answer` is a completion or only an answer; optional "tolerance" (relative)
  code in: {"id", "completion", ...} with a problem's prompt and tests as in `rewards.code_tests`
  out:     {"id", "score", "verdict", "reason", "ms"}; score null: no verdict was possible
Lines that are no case are reported on stderr with their numbers, the others are graded, and the exit status is 2.
`--audit` wants a "label" (true or false) in every case and prints, instead of verdicts, a confusion table, the disagreements with
the labels and with a second verifier (math-verify, for math), and the ten slowest cases.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from multiprocessing.connection import Connection
from typing import Any

from rewards.math_answer import verdict
from rewards.math_extract import final

SECOND_LIMIT = 10.0  # seconds for one call of the second verifier


def grade_math(case: Mapping[str, Any]) -> dict[str, Any]:
    """One math case. ValueError for a case without its fields or with a gold that cannot be read."""
    missing = [key for key in ("id", "gold", "answer") if key not in case]
    if missing:
        raise ValueError(f"a math case needs id, gold and answer; {', '.join(missing)} is missing")
    if not isinstance(case["answer"], str) or not isinstance(case["gold"], (str, int, float)):
        raise ValueError("gold must be text or a number, and answer must be text")
    start = time.perf_counter()
    right, reason = verdict(final(case["answer"]), final(str(case["gold"])), float(case.get("tolerance") or 0.0))
    milliseconds = round(1000 * (time.perf_counter() - start), 3)
    return {
        "id": case["id"],
        "score": float(right),
        "verdict": "right" if right else "wrong",
        "reason": reason,
        "ms": milliseconds,
    }


def grade_code(case: Mapping[str, Any]) -> dict[str, Any]:
    """One code case, in the sandbox."""
    from rewards.code_tests import grade_case

    return grade_case(case)


GRADERS = {"math": grade_math, "code": grade_code}


def cases(lines: Iterable[str], kind: str, bad: list[int]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(case, verdict) for every good line; the numbers of bad lines are added to `bad` and reported."""
    for n, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            case = json.loads(line)
            if not isinstance(case, dict):
                raise ValueError("a JSON object is wanted")
            yield case, GRADERS[kind](case)
        except ValueError as error:
            bad.append(n)
            print(f"line {n}: {error}", file=sys.stderr)


# -- audit -------------------------------------------------------------------------------------------------------------------


class Second:
    """math-verify in a process of its own, killed and started again where it takes too long."""

    def __init__(self) -> None:
        self.process: Any = None
        self.pipe: Any = None

    def right(self, gold: str, answer: str) -> bool | None:
        """Its verdict, or None where it had none within the limit."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, other = context.Pipe()
            self.process = context.Process(target=_second, args=(other,), daemon=True)
            self.process.start()
            other.close()
        try:
            self.pipe.send((gold, answer))
            if self.pipe.poll(SECOND_LIMIT):
                return self.pipe.recv()
        except (EOFError, BrokenPipeError):
            pass
        self.close()
        return None

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


def _second(pipe: Connection) -> None:
    import logging

    from math_verify import parse
    from math_verify import verify as agree

    logging.disable(logging.CRITICAL)
    while True:
        gold, answer = pipe.recv()
        try:
            one = parse(gold, parsing_timeout=None) or parse(f"${gold}$", parsing_timeout=None)
            two = parse(answer, parsing_timeout=None) or parse(f"${answer}$", parsing_timeout=None)
            pipe.send(bool(agree(one, two, timeout_seconds=None)))
        except Exception:  # whatever it raises, it has no verdict
            pipe.send(None)


def audit(lines: Iterable[str], kind: str, bad: list[int]) -> str:
    """The report on labelled cases."""
    table = {(label, given): 0 for label in (True, False) for given in (True, False, None)}
    wrong, differing, slow, asked = [], [], [], 0
    second = Second() if kind == "math" else None
    try:
        for case, result in cases(lines, kind, bad):
            label, given = case.get("label"), None if result["score"] is None else result["score"] == 1.0
            if not isinstance(label, bool):
                print(f"case {case['id']}: an audit needs label true or false, not {label!r}", file=sys.stderr)
                bad.append(-1)
                continue
            table[label, given] += 1
            slow.append((result["ms"], str(case["id"])))
            if given is not label:
                wrong.append(f"  {case['id']}: label {label}, graded {given} ({result['reason']}){_shown(case)}")
            if second is not None:
                asked += 1
                other = second.right(str(case["gold"]), case["answer"])
                if other is not given:
                    differing.append(f"  {case['id']}: label {label}, here {given}, math-verify {other}{_shown(case)}")
    finally:
        if second is not None:
            second.close()
    total = sum(table.values())
    agreed = table[True, True] + table[False, False]
    lines_out = [
        f"{total} cases, {agreed} as labelled ({agreed / max(total, 1):.1%})",
        "",
        "              graded right  graded wrong  no verdict",
        *(
            f"label {str(label).lower():5}  {table[label, True]:12d}  {table[label, False]:12d}  {table[label, None]:10d}"
            for label in (True, False)
        ),
        "",
        f"not as labelled ({len(wrong)}):",
        *wrong,
        *([f"other than math-verify ({len(differing)} of {asked}):", *differing] if second is not None else []),
        "slowest (ms):",
        *(f"  {ms:10.1f}  {name}" for ms, name in sorted(slow, reverse=True)[:10]),
    ]
    return "\n".join(lines_out)


def _shown(case: Mapping[str, Any]) -> str:
    if "gold" not in case:
        return ""
    gold, answer = (" ".join(str(case[key]).split()) for key in ("gold", "answer"))
    return f"\n      gold {gold[-60:]!r}, answer {answer[-80:]!r}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="rewards.grade", description="Grade answers from standard input, one JSON object a line."
    )
    parser.add_argument("--kind", choices=sorted(GRADERS), required=True)
    parser.add_argument("--audit", action="store_true", help="cases carry a label: print a report instead of verdicts")
    given = parser.parse_args(argv)
    bad: list[int] = []
    if given.audit:
        print(audit(sys.stdin, given.kind, bad))
    else:
        for _, result in cases(sys.stdin, given.kind, bad):
            print(json.dumps(result), flush=given.kind == "code")
    return 2 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
