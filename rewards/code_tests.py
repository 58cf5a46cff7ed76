"""Programs scored by tests: asserts (MBPP), check functions (HumanEval), function calls and stdin/stdout (contests).

The verdict is made here, outside the sandbox. A program is given arguments or standard input, and its answers are compared with values that
it never sees. Tests that are code themselves run in a second sandbox against a stand-in for the program (`sandbox_child.run_checks`).
Neither an exit status nor a text on stdout can make a pass.

What a problem's row may hold (first match counts):
  test, entry_point                           HumanEval: `check(candidate)`; `prompt` is the head of the function
  asserts | test_list (test_setup_code)       MBPP: assert statements
  inputs, outputs, fn_name                    calls of a function; string inputs are JSON, one argument a line (LiveCodeBench)
  inputs, outputs | stdin, stdout             whole programs; one string or a list of them
  input_output | tests                        JSON of such a mapping, or a list of {input, output, testtype}
`tolerance` in a row lets numbers differ by that much; without it they must be equal.
"""

from __future__ import annotations

import ast
import builtins
import functools
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rewards.code_extract import extract_code
from rewards.sandbox import Sandbox, image_for, refuse
from rewards.sandbox_codec import encode, same
from rewards.sandbox_remote import RemoteSandbox
from rewards.sandbox_run import Limits, Run
from rewards.score import Reward, Sampled, Score

Runner = Sandbox | RemoteSandbox
RETRIES = 2  # after an infrastructure fault, before the sample is masked


@dataclass(frozen=True)
class Tests:
    """The tests of one problem: `Tests("stdio", (("1\\n", "2\\n"),))`; each case is (input, expected), or one assert."""

    kind: str  # asserts, check, functions, stdio
    cases: tuple[Any, ...]
    entry: str = ""
    setup: tuple[str, ...] = ()  # trusted sources run before asserts
    tolerance: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """`kind`: pass, fail, or how the run went wrong: timeout, memory, output, crash, refused, infrastructure."""

    kind: str
    passed: int = 0
    total: int = 1
    detail: str = ""
    seconds: float = 0.0


def read_tests(problem: Mapping[str, Any]) -> Tests:
    """The tests of a problem's row. Raises ValueError when there are none."""
    name, tolerance = str(problem.get("id", problem.get("task_id", "?"))), float(problem.get("tolerance") or 0.0)
    entry = str(problem.get("entry_point") or problem.get("fn_name") or "")
    if problem.get("test") and entry:
        return Tests("check", (str(problem["test"]),), entry, (str(problem.get("prompt") or ""),), tolerance)
    asserts = problem.get("asserts") or problem.get("test_list")
    if asserts:
        setup = (*(problem.get("test_imports") or ()), problem.get("test_setup_code") or "")
        asserts = (asserts,) if isinstance(asserts, str) else tuple(asserts)
        return Tests("asserts", asserts, entry or builtin_under_test(asserts), setup, tolerance)
    given = problem.get("input_output") or problem.get("tests")
    if isinstance(given, str):
        given = json.loads(given)
    if isinstance(given, Mapping):
        return read_tests({**given, "id": name, "tolerance": tolerance})
    if given:
        functional = given[0].get("testtype") == "functional"
        row = {"inputs": [t["input"] for t in given], "outputs": [t["output"] for t in given]}
        return read_tests({**row, "fn_name": entry if functional else "", "id": name, "tolerance": tolerance})
    inputs = problem.get("inputs", problem.get("stdin", ""))
    outputs = problem.get("outputs", problem.get("stdout"))
    inputs, outputs = ([x] if isinstance(x, str) else x for x in (inputs, outputs))
    if outputs is None or len(inputs) != len(outputs) or not outputs:
        raise ValueError(
            f"problem {name} has no tests: it needs test and entry_point, asserts, inputs and outputs of one length, or stdin and stdout"
        )
    if entry:
        cases = [
            (_arguments(i), json.loads(o) if isinstance(i, str) and isinstance(o, str) else o)
            for i, o in zip(inputs, outputs, strict=True)
        ]
        return Tests("functions", tuple(cases), entry, (), tolerance)
    joined = [
        tuple("\n".join(map(str, x)) if isinstance(x, list) else str(x) for x in pair)
        for pair in zip(inputs, outputs, strict=True)
    ]
    return Tests("stdio", tuple(joined), "", (), tolerance)


def builtin_under_test(asserts: tuple[str, ...]) -> str:
    """The function that these asserts test, when it has a builtin's name: `sum` in "assert sum(10, 15) == 6".

    Only asserts that name nothing but builtins can test such a function; in all others a builtin is Python's own, whatever the
    program defines.
    """
    trees = [ast.parse(text) for text in asserts]
    names = {n.id for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Name)}
    calls = [n.func.id for n in ast.walk(trees[0]) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    return calls[0] if calls and all(hasattr(builtins, n) for n in names) else ""


def _arguments(given: Any) -> list[Any]:
    return [json.loads(line) for line in given.strip().split("\n")] if isinstance(given, str) else list(given)


def judge(sandbox: Runner, source: str, tests: Tests, every: bool = False, budget_s: float = 8.0) -> Verdict:
    """Run `source` against `tests` within `budget_s` seconds in all. `every`: go on after the first failure (partial credit)."""
    start, total = time.monotonic(), len(tests.cases)
    if refusal := refuse(source):
        return Verdict("refused", 0, total, refusal)
    limits = replace(sandbox.limits, wall_s=min(sandbox.limits.wall_s, budget_s))
    run = {"stdio": _stdio, "functions": _functions}.get(tests.kind, _asserts)
    with sandbox.lock:
        verdict = Verdict("infrastructure")
        for _ in range(1 + RETRIES):
            try:
                verdict = run(sandbox, source, tests, every, replace(limits), start + budget_s)
            except OSError as e:  # no worker could be started
                verdict = Verdict("infrastructure", detail=str(e)[:200])
            if verdict.kind != "infrastructure":
                break
    return replace(verdict, total=total, seconds=time.monotonic() - start)


def _stdio(sandbox: Runner, source: str, tests: Tests, every: bool, limits: Limits, end: float) -> Verdict:
    """Each case is a run of its own."""
    passed, kind, detail = 0, "pass", ""
    for number, (stdin, expected) in enumerate(tests.cases, 1):
        left = end - time.monotonic()
        if left <= 0:
            return Verdict("timeout", passed, detail=f"test {number}: over the budget of all tests")
        run = sandbox.run(source, stdin, replace(limits, wall_s=min(limits.wall_s, left)))
        if run.kind == "infrastructure":
            return Verdict(run.kind, detail=run.detail)
        if run.kind == "ok" and same_output(run.stdout, expected, tests.tolerance):
            passed += 1
            continue
        if kind == "pass":
            kind = "fail" if run.kind == "ok" else run.kind
            detail = f"test {number}: {_shown(run.stdout) if run.kind == 'ok' else run.detail}"
        if not every or run.kind == "timeout":  # a program that hangs once would eat the budget
            break
    return Verdict(kind, passed, detail=detail)


def same_output(got: str, expected: str, tolerance: float = 0.0) -> bool:
    """Equal line by line but for spaces at the ends of lines and empty lines at the end; numbers may differ by `tolerance`."""
    lines = [[line.rstrip() for line in text.rstrip().split("\n")] for text in (got, expected)]
    if lines[0] == lines[1]:
        return True
    if tolerance <= 0 or len(lines[0]) != len(lines[1]):
        return False
    pairs = [(a.split(), b.split()) for a, b in zip(*lines, strict=True)]
    return all(len(a) == len(b) and all(map(functools.partial(_same_word, tolerance), a, b)) for a, b in pairs)


def _same_word(tolerance: float, got: str, expected: str) -> bool:
    if got == expected:
        return True
    try:
        return math.isclose(float(got), float(expected), rel_tol=tolerance, abs_tol=tolerance)
    except ValueError:
        return False


def _functions(sandbox: Runner, source: str, tests: Tests, every: bool, limits: Limits, end: float) -> Verdict:
    """One run answers all calls; the next call is sent only after the answer to the last."""
    program = sandbox.start(image_for(source), {"mode": "functions", "source": source}, limits=limits)
    passed, failure, crashed = 0, "", False
    reply = _reply(program.frame())
    if reply[0] != "v":
        crashed, failure = reply[0] is None, f"{reply[1]}: {reply[2]}"
    for number, (args, expected) in enumerate(tests.cases, 1):
        if crashed or (failure and not every):
            break
        program.send(["call", tests.entry, encode(tuple(args)), ["d"]])
        reply = _reply(program.frame())
        if reply[0] == "v" and same(reply[1], expected, tests.tolerance):
            passed += 1
            continue
        crashed = reply[0] is None
        failure = failure or f"test {number}: {_shown(json.dumps(reply[1]))}" + (f": {reply[2]}" if reply[0] == "e" else "")
    return _ended(sandbox, program, crashed, Verdict("fail" if failure else "pass", passed, detail=failure))


def _reply(frame: bytes | None) -> tuple[Any, Any, Any]:
    """("v", data, ""), ("e", type, text), or (None, ...) when the program ended or sent nonsense."""
    try:
        kind, *rest = json.loads(frame or b"")
        if kind == "v" and len(rest) == 1:
            return "v", rest[0], ""
        return "e", str(rest[0])[:80], str(rest[1])[:200]
    except (ValueError, TypeError, IndexError, RecursionError):
        return None, "no answer", ""


def _ended(sandbox: Runner, program: Any, crashed: bool, verdict: Verdict) -> Verdict:
    """End the program. When it did not answer, how it ended is the verdict."""
    if not program.ended:
        program.kill("ended")  # it waits for the next call, or talks nonsense
    run: Run = sandbox.finish(program)
    if not crashed and run.kind == "ended":
        kind = "memory" if ": MemoryError" in verdict.detail or '"MemoryError"' in verdict.detail else verdict.kind
        return replace(verdict, kind=kind)
    kind = "crash" if run.kind in ("ok", "ended") else run.kind
    return replace(verdict, kind=kind, detail=run.detail or "ended before it answered")


def _asserts(sandbox: Runner, source: str, tests: Tests, every: bool, limits: Limits, end: float) -> Verdict:
    """The tests run in a second worker; what they do with the program's names goes to the first, the answers go back."""
    checking = tests.kind == "check"
    job = {
        "mode": "checks",
        "setup": list(tests.setup),
        "asserts": list(tests.cases),
        "entry": tests.entry,
        "check": "",
        "every": every,
    }
    if checking:
        job.update(setup=[*tests.setup, *tests.cases], asserts=[], check="check")
    program = sandbox.start(image_for(source), {"mode": "functions", "source": source}, limits=limits)
    reply = _reply(program.frame())
    if reply[0] != "v":
        return _ended(sandbox, program, reply[0] is None, Verdict("fail", detail=f"{reply[1]}: {reply[2]}"))
    checker = sandbox.start(image_for("\n".join(map(str, tests.setup + tests.cases))), job, role="check", limits=limits)
    passed, detail, done, crashed = 0, "", False, False
    while (frame := checker.frame()) is not None:
        kind, *rest = json.loads(frame)
        if kind == "ask":
            program.send(rest)
            answer = program.frame()
            if answer is None:
                crashed = True
                break
            checker.send_raw(answer)
        elif kind == "result":
            passed, detail = passed + bool(rest[0]), detail or ("" if rest[0] else f"test: {rest[1]}")
        else:
            done = True
            break
    if not checker.ended:
        checker.kill("ended")
    checked = sandbox.finish(checker)
    verdict = Verdict("fail" if detail else "pass", passed, detail=detail)
    if crashed or done:
        return _ended(sandbox, program, crashed, verdict)
    program.kill("ended")
    sandbox.finish(program)
    return replace(
        verdict,
        kind="fail" if checked.kind in ("ok", "ended", "crash") else checked.kind,
        detail=f"its tests ended: {checked.detail}",
    )


def _shown(text: str) -> str:
    return f"got {text[:80]!r}{'...' if len(text) > 80 else ''}"


def code_reward(
    partial: bool = False,
    wall_s: float = 6.0,
    budget_s: float = 9.0,
    memory_mb: int = 1024,
    tier: str = "auto",
    sandbox_url: str = "",
) -> Reward:
    """The reward of a recipe: 1 when all tests pass, else 0; with `partial` the share of tests passed.

    `wall_s` is for one program, `budget_s` for all tests of a sample, both in seconds; `tier` as in `sandbox.Sandbox`; `sandbox_url`
    names a SandboxFusion server to run programs on instead. A fault of the sandbox itself is retried, then the value is None (masked).
    """
    sandbox = _sandbox(
        tier, sandbox_url, Limits(wall_s=wall_s, memory_mb=memory_mb)
    )  # a host that cannot is refused here, with the reason

    def reward(completion: Sampled, problem: Mapping[str, Any]) -> Score:
        tests = read_tests(problem)
        verdict = grade(sandbox, completion.text, problem, tests, partial, budget_s)
        reason = verdict.kind if verdict.kind == "pass" else f"{verdict.kind}: {verdict.detail}"
        return Score(value_of(verdict, partial), {}, reason)

    return reward


def value_of(verdict: Verdict, partial: bool = False) -> float | None:
    if verdict.kind == "infrastructure":
        return None
    return verdict.passed / verdict.total if partial else float(verdict.kind == "pass" and verdict.passed == verdict.total)


def grade(
    sandbox: Runner, completion: str, problem: Mapping[str, Any], tests: Tests, partial: bool, budget_s: float
) -> Verdict:
    head = str(problem.get("prompt") or "") if tests.kind == "check" else ""
    source = extract_code(completion, head, tests.entry)
    if not source.strip():
        return Verdict("refused", 0, len(tests.cases), "no code in the completion")
    return judge(sandbox, source, tests, partial, budget_s)


@functools.cache
def _sandbox(tier: str, url: str, limits: Limits) -> Runner:
    """One a process and setting; its workers stay warm."""
    if url:
        return RemoteSandbox(url, limits)
    return Sandbox(tier, limits)


def grade_case(case: Mapping[str, Any]) -> dict[str, Any]:
    """One line of `python -m rewards.grade --kind code`. Raises ValueError for a case without id, completion or tests."""
    for key in ("id", "completion"):
        if key not in case:
            raise ValueError(f"a code case needs {key!r}; this one has {sorted(case)}")
    start = time.monotonic()
    verdict = grade(_sandbox("auto", "", Limits()), str(case["completion"]), case, read_tests(case), False, 8.0)
    ms = round(1000 * (time.monotonic() - start), 1)
    return {"id": case["id"], "score": value_of(verdict), "verdict": verdict.kind, "reason": verdict.detail, "ms": ms}
