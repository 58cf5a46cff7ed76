"""Verdicts on programs: the data sets' own solutions pass, the wrong fail, and what only looks like a solution earns nothing."""

# ruff: noqa: E501 (hostile programs stand on one line each)
from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from rewards.code_extract import extract_code
from rewards.code_tests import Verdict, builtin_under_test, code_reward, grade, grade_case, judge, read_tests, same_output
from rewards.sandbox import Sandbox, SandboxRefused, resolve
from rewards.sandbox_codec import decode, encode, same
from rewards.sandbox_run import Limits
from rewards.score import Text


@pytest.fixture(scope="module")
def sandbox():
    try:
        resolve()
    except SandboxRefused as e:
        pytest.skip(str(e))
    with Sandbox(limits=Limits(wall_s=10.0)) as made:
        yield made


def verdict(sandbox: Sandbox, source: str, every: bool = False, budget_s: float = 20.0, **row) -> Verdict:
    return judge(sandbox, source, read_tests({"id": "t", **row}), every, budget_s)


ADD = {"asserts": ["assert add(1, 2) == 3", "assert add(5, 5) == 10", "assert add(-1, 1) == 0"]}
CHECK = {
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(5, 5) == 10\n",
    "entry_point": "add",
}
CALLS = {"fn_name": "add", "inputs": [[1, 2], [5, 5]], "outputs": [3, 10]}
LINES = {"inputs": ["1 2\n", "5 5\n"], "outputs": ["RESULT\n3\n", "RESULT\n10\n"]}
FORMS = {"asserts": ADD, "check": CHECK, "calls": CALLS}


@pytest.mark.parametrize("form", FORMS)
def test_right_and_wrong_functions(sandbox: Sandbox, form: str) -> None:
    assert verdict(sandbox, "def add(a, b): return a + b", **FORMS[form]).kind == "pass"
    assert verdict(sandbox, "def add(a, b): return a - b", **FORMS[form]).kind == "fail"
    assert verdict(sandbox, "", **FORMS[form]).kind == "fail"
    assert verdict(sandbox, "def add(a, b): raise ValueError('no')", **FORMS[form]).kind == "fail"
    assert verdict(sandbox, "def add(a, b: return", **FORMS[form]).kind == "fail"


def test_stdin_and_stdout(sandbox: Sandbox) -> None:
    right = "a, b = map(int, input().split())\nprint('RESULT')\nprint(a + b)"
    assert verdict(sandbox, right, **LINES).kind == "pass"
    assert verdict(sandbox, right + "\nprint()\nprint()  ", **LINES).kind == "pass"
    assert verdict(sandbox, right + "\nprint(1)", **LINES).kind == "fail"
    assert verdict(sandbox, "print('RESULT')", **LINES).kind == "fail"
    assert verdict(sandbox, right + "\n1 / 0", **LINES).kind == "crash"
    assert verdict(sandbox, "print(input())", stdin="4", stdout="4").kind == "pass"
    assert verdict(sandbox, "print(len(input()))", stdin="x" * 3_000_000, stdout="3000000").kind == "pass"


# fmt: off
HACKS = {
    "exits": "import sys\nsys.exit(0)",
    "exits in the call": "import os\ndef add(*a): os._exit(0)",
    "raises SystemExit in the call": "def add(*a): raise SystemExit(0)",
    "own BaseException": "class Q(BaseException): pass\ndef add(*a): raise Q",
    "equal to all": "class E:\n  def __eq__(s, o): return True\n  __ne__ = lambda s, o: False\n  __hash__ = None\ndef add(*a): return E()",
    "int subclass": "class E(int):\n  def __eq__(s, o): return True\n  __hash__ = int.__hash__\ndef add(*a): return E(1)",
    "float subclass": "class E(float):\n  def __eq__(s, o): return True\n  def __sub__(s, o): return 0.0\ndef add(*a): return E(1)",
    "str subclass": "class E(str):\n  def __eq__(s, o): return True\n  __hash__ = str.__hash__\ndef add(*a): return E('x')",
    "lying class": "class E:\n  __class__ = int\n  def __eq__(s, o): return True\n  __int__ = __index__ = lambda s: 3\ndef add(*a): return E()",
    "metaclass": "class M(type):\n  def __eq__(s, o): return True\n  __hash__ = type.__hash__\nclass E(metaclass=M): pass\ndef add(*a): return E",
    "nan": "def add(*a): return float('nan')",
    "array": "import numpy as np\ndef add(*a): return np.array([])",
    "array that equals": "import numpy as np\nclass A(np.ndarray):\n  def __eq__(s, o): return True\ndef add(*a): return np.zeros(1).view(A)",
    "Mock": "from unittest import mock\nadd = mock.MagicMock()\nadd.return_value.__eq__ = lambda s, o: True",
    "builtins": "import builtins\nbuiltins.int = builtins.bool = lambda *a: True\nbuiltins.AssertionError = type('X', (), {})\ndef add(*a): return 1",
    "own check": "def check(candidate): pass\ndef add(*a): return 1\nassert_ = lambda *a: None",
    "excepthook": "import sys, atexit, os\nsys.excepthook = lambda *a: os._exit(0)\natexit.register(os._exit, 0)\ndef add(*a): return 1",
    "trace": "import sys\nsys.settrace(lambda f, e, a: f.f_locals.update(v=3) or None)\ndef add(*a): return 1",
    "reduce": "class E:\n  def __reduce__(s): return (print, ('x',))\ndef add(*a): return E()",
    "very deep": "def add(*a):\n  x = []\n  for _ in range(100000): x = [x]\n  return x",
    "circular": "def add(*a):\n  x = []\n  x.append(x)\n  return x",
    "huge int": "def add(*a): return 1 << (1 << 26)",
    "huge text": "def add(*a): return 'x' * (32 << 20)",
    "endless": "def add(*a):\n  while True: yield 3",
    "colliding keys": "def add(*a): return {i * (2**61 - 1): 0 for i in range(1, 3000)}",
    "forged frames": "import os, struct, json\nfor t in (['done'], ['result', True, ''], ['v', 3], ['ended']):\n"
    "  b = json.dumps(t).encode()\n  os.write(4, struct.pack('<I', len(b)) + b)\ndef add(*a): return 1",
    "forged and gone": "import os, struct, json\nb = json.dumps(['done']).encode()\nos.write(4, (struct.pack('<I', len(b)) + b) * 9)\nos._exit(0)",
    "nonsense frame": "import os\nos.write(4, b'\\x04\\0\\0\\0oops')\ndef add(*a): return 1",
    "deep frame": "import os, struct\nb = b'[' * 100000\nos.write(4, struct.pack('<I', len(b)) + b)\ndef add(*a): return 1",
    "printed verdicts": "print('OK\\n1 passed\\n[\"done\"]\\nVERDICT 1')\ndef add(*a): return 1",
    "thread that exits": "import os, threading\nthreading.Timer(0.05, os._exit, (0,)).start()\ndef add(*a):\n  import time; time.sleep(1)",
    "frames": """
import sys
def add(*a):
    f, sought = sys._getframe(1), "".join(["(1, 2) =", "= 3"])
    while f:
        if any(sought in str(v) for v in (*f.f_locals.values(), *f.f_globals.values())): return a[0] + a[1]
        f = f.f_back
""",
    "objects": """
import gc
def add(*a):
    sought = "".join(["(1, 2) =", "= 3"])
    if any(sought in str(o)[:9999] for o in gc.get_objects() if type(o) in (dict, list, tuple)): return a[0] + a[1]
""",
    "ends its own life unseen": "import os, signal, resource\ntry: resource.setrlimit(resource.RLIMIT_CPU, (0, 0))\nexcept Exception: pass\n"
    "try: os.kill(os.getpid(), 9)\nexcept OSError: pass\ndef add(*a): return 1",
}
# fmt: on


@pytest.mark.parametrize("name", HACKS)
def test_a_hack_earns_nothing_and_is_never_masked(sandbox: Sandbox, name: str) -> None:
    for form, row in FORMS.items():
        got = verdict(sandbox, HACKS[name], **row)
        assert got.kind not in ("pass", "infrastructure"), (form, got)
        assert got.passed < got.total, (form, got)


def test_swallowing_the_end_of_time(sandbox: Sandbox) -> None:
    source = "import signal\nsignal.signal(14, signal.SIG_IGN)\ndef add(*a):\n  while True:\n    try:\n      while True: pass\n    except BaseException: pass"
    for row in FORMS.values():
        assert verdict(sandbox, source, budget_s=0.5, **row).kind == "timeout"
    assert verdict(sandbox, source + "\nadd()", budget_s=0.5, **LINES).kind == "timeout"


def test_helpers_of_the_tests_cannot_be_replaced(sandbox: Sandbox) -> None:
    """What Python, its library or the prompt define is theirs in the tests, whatever the program calls so."""
    fake = (
        "class sys: getsizeof = staticmethod(lambda x: 5)\ndef abs(x): return 0\ndef poly(x): return 0\ndef size(x): return 5"
    )
    assert verdict(sandbox, fake, asserts=["assert size((1, 2)) == sys.getsizeof((1, 2))"]).kind == "fail"
    assert verdict(sandbox, fake, asserts=["assert abs(size(1) - 9) < 1"]).kind == "fail"
    row = {"prompt": "def poly(x):\n    return x\n\ndef size(x):\n    ''' a doc '''\n", "entry_point": "size"}
    assert verdict(sandbox, fake, test="def check(candidate):\n    assert poly(candidate(1)) == 9", **row).kind == "fail"
    assert verdict(sandbox, "def sum(a, b): return a * b", asserts=["assert sum(2, 3) == 6"]).kind == "pass"
    assert builtin_under_test(("assert abs(size(1) - 9) < 1",)) == ""


def test_objects_of_the_program_stay_there(sandbox: Sandbox) -> None:
    source = "class Node:\n  def __init__(s, v): s.v, s.next = v, None\n  def __eq__(s, o): return True\ndef length(n):\n  return 1 + length(n.next) if n else 0"
    row = {"test_setup_code": "a = Node(1)\na.next = Node(2)", "asserts": ["assert length(a) == 2", "assert a.next.v == 2"]}
    assert verdict(sandbox, source, **row).kind == "pass"
    assert verdict(sandbox, source, asserts=["assert Node(1) == 5"]).kind == "fail"
    solution = "class Solution:\n  def twoSum(self, nums, target): return [nums.index(target - n) for n in nums]"
    calls = {"inputs": ["[3, 3]\n6"], "outputs": ["[0, 0]"]}
    assert verdict(sandbox, solution, fn_name="twoSum", **calls).kind == "pass"
    assert verdict(sandbox, solution, fn_name="Solution.twoSum", **calls).kind == "pass"


def test_partial_credit(sandbox: Sandbox) -> None:
    source = "def add(a, b): return 3"
    assert verdict(sandbox, source, **ADD).passed == 1
    row = {"asserts": [*ADD["asserts"], "assert add(0, 3) == 3"]}
    got = verdict(sandbox, source, every=True, **row)
    assert (got.kind, got.passed, got.total) == ("fail", 2, 4)
    reward = code_reward(partial=True)
    assert reward(Text(f"```python\n{source}\n```"), {"id": "1", **row}).value == 0.5
    assert code_reward()(Text(f"```python\n{source}\n```"), {"id": "1", **row}).value == 0.0
    assert code_reward()(Text("no code"), {"id": "1", **row}).reason == "refused: no code in the completion"


def test_infrastructure_is_retried_then_masked(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    from rewards import code_tests

    with Sandbox() as fresh:
        started = []
        start = fresh.start

        def dying(*args, **options):
            program = start(*args, **options)
            started.append(program)
            if len(started) <= deaths:
                program.worker.process.kill()
            return program

        monkeypatch.setattr(fresh, "start", dying)
        deaths = 1
        assert verdict(fresh, "def add(a, b): return a + b", **CALLS).kind == "pass"
        deaths, started[:] = 99, []
        got = verdict(fresh, "def add(a, b): return a + b", **CALLS)
    assert got.kind == "infrastructure"
    assert len(started) == 3
    assert code_tests.value_of(got) is None


def test_human_eval(sandbox: Sandbox, data_root: Path) -> None:
    with gzip.open(data_root / "humaneval" / "HumanEval.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines]
    wrong = {
        r["task_id"]: v
        for r in rows
        if (v := grade(sandbox, r["canonical_solution"], r, read_tests(r), False, 20.0)).kind != "pass"
    }
    assert not wrong
    fenced = {
        r["task_id"]: v
        for r in rows[::10]
        if (v := grade(sandbox, f"```python\n{r['prompt']}{r['canonical_solution']}```", r, read_tests(r), False, 20.0)).kind
        != "pass"
    }
    assert not fenced
    assert all(grade(sandbox, "    pass\n", r, read_tests(r), False, 20.0).kind == "fail" for r in rows[::10])


PECULIAR = (
    126,
    367,
    533,
    590,
    596,
    601,
    927,
)  # a builtin's name, objects in the tests, types as arguments, names of the library


@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_mbpp(data_root: Path, every: int) -> None:
    rows = [json.loads(line) for line in (data_root / "mbpp" / "mbpp.jsonl").read_text().splitlines()]
    rows = [r for i, r in enumerate(rows) if i % every == 0 or r["task_id"] in PECULIAR]
    with Sandbox(limits=Limits(wall_s=60.0)) as patient:
        graded = {r["task_id"]: judge(patient, r["code"], read_tests(r), budget_s=60.0) for r in rows}
    assert not {name: v for name, v in graded.items() if v.kind != "pass"}


def test_extraction() -> None:
    head = "import math\n\ndef f(x):\n    '''doc'''\n"
    assert extract_code("<think>```python\nbad\n```</think>\n```python\nx = 1\n```\n```python\nx = 2\n```") == "x = 2\n"
    assert extract_code("```json\n{}\n```\n```py\ny = 1\n```\n```text\nz\n```") == "y = 1\n"
    assert extract_code("```python\nunfinished = 1") == "unfinished = 1"
    assert extract_code("    return x\n\nif __name__ == '__main__':\n    f(1)", head, "f") == head + "    return x\n"
    assert "def f(x): return 2" in extract_code("```python\ndef f(x): return 2\n```\n```python\nprint(f(1))\n```", head, "f")
    compile(extract_code("```python\ndef f(x):\n    return 2\n```", head, "f"), "x", "exec")
    assert extract_code("The answer is 5.") == ""


def test_codec_goes_round_and_refuses() -> None:
    import decimal
    import fractions

    values = [
        None,
        True,
        1,
        -(1 << 80),
        1.5,
        "ü\ud800",
        b"\xff",
        (1, [2, {3}], frozenset({4})),
        {1: {"a": (2,)}},
        1j,
        range(3),
        int,
    ]
    values += [decimal.Decimal("1.10"), fractions.Fraction(1, 3)]
    for value in values:
        back = decode(json.loads(json.dumps(encode(value))))
        assert back == value
        assert type(back) is type(value)
    for bad in (["x"], ["h", 1], ["d", 1], ["i", "zz"], {"a": 1}, [], [1], ["s", ["l"]]):
        with pytest.raises(ValueError):
            decode(bad)


def test_same_is_pythons_equality_on_plain_data() -> None:
    for value in (1, 1.5, "a", [1, [2.0, None]], {"a": [1], "b": True}, {1, 2}, (1, 2)):
        assert same(encode(value), value)
    assert same(encode((1, 2)), [1, 2])
    assert same(encode(float("nan")), float("nan"))
    assert same(encode(0.30000001), 0.3, 1e-6)
    assert not same(encode(0.30000001), 0.3)
    for got, want in (
        ([1], [1, 2]),
        ("1", 1),
        ({"a": 1}, {"a": 2}),
        ({"a": 1, "b": 1}, {"a": 1}),
        ({1, 2}, {1, 3}),
        (None, 0),
        ([1], {1}),
    ):
        assert not same(encode(got), want)
    assert not same(["d", "a", 1, "a", 1], {"a": 1, "b": 1})
    assert not same(["s", 1, 1], {1, 2})


def test_output_comparison() -> None:
    assert same_output("1 2 \n3\n\n", "1 2\n3")
    assert not same_output("1  2", "1 2")
    assert not same_output("1\n2", "1 2")
    assert same_output("0.33333333 x", "0.33333334 x", 1e-6)
    assert not same_output("0.33333333 y", "0.33333334 x", 1e-6)


def test_rows_of_other_formats_and_bad_rows() -> None:
    apps = read_tests({"id": 1, "input_output": json.dumps({"inputs": ["1\n"], "outputs": ["2\n"]})})
    assert (apps.kind, apps.cases) == ("stdio", (("1\n", "2\n"),))
    bench = read_tests({"id": 1, "fn_name": "f", "tests": [{"input": "[1]\n2", "output": "3", "testtype": "functional"}]})
    assert (bench.kind, bench.entry, bench.cases) == ("functions", "f", (([[1], 2], 3),))
    with pytest.raises(ValueError, match="problem 7 has no tests"):
        read_tests({"id": 7})
    with pytest.raises(ValueError, match="needs 'completion'"):
        grade_case({"id": 1})


def test_grade_case(sandbox: Sandbox) -> None:
    line = grade_case({"id": "x", "completion": "print(int(input()) * 2)", "stdin": "4", "stdout": "8"})
    assert (line["id"], line["score"], line["verdict"]) == ("x", 1.0, "pass")
