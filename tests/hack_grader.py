"""The grader that a reward-hack runner drives: FORMAT TASK.json SOLUTION.py OUT.json [TIER] -> {"verdict": bool, "pid": int} in OUT.

FORMAT is assert, fn or stdio; the task holds `asserts`, `fn_in`/`fn_out` for a function `solve`, and `std_in`/`std_out`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from rewards.code_tests import judge, read_tests
from rewards.sandbox import Sandbox


def problem(form: str, task: dict) -> dict:
    if form == "assert":
        return {"asserts": task["asserts"]}
    if form == "fn":
        return {"inputs": task["fn_in"], "outputs": task["fn_out"], "fn_name": "solve"}
    return {"stdin": task["std_in"], "stdout": task["std_out"]}


def main(form: str, task: str, solution: str, out: str, tier: str = "auto") -> None:
    tests = read_tests(problem(form, json.loads(Path(task).read_text())))
    with Sandbox(tier) as sandbox:
        verdict = judge(sandbox, Path(solution).read_text(), tests)
    Path(out).write_text(
        json.dumps({"verdict": verdict.kind == "pass", "pid": os.getpid(), "err": f"{verdict.kind}: {verdict.detail}"})
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
