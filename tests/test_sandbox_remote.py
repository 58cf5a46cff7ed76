"""The remote runner against a server that speaks SandboxFusion's protocol (and runs only this file's harmless programs)."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from rewards.code_tests import code_reward, judge, read_tests
from rewards.sandbox_remote import RemoteSandbox
from rewards.sandbox_run import Limits
from rewards.score import Text


class Fusion(BaseHTTPRequestHandler):
    broken = False
    bodies: ClassVar[list[dict]] = []

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.bodies.append(asked)
        answer: dict = {"status": "SandboxError", "message": "no room"}
        if not self.broken:
            ran = {"status": "Finished"}
            try:
                done = subprocess.run(
                    [sys.executable, "-I", "-c", asked["code"]],
                    input=asked["stdin"],
                    capture_output=True,
                    text=True,
                    timeout=asked["run_timeout"],
                )
                ran |= {"return_code": done.returncode, "stdout": done.stdout, "stderr": done.stderr}
            except subprocess.TimeoutExpired:
                ran = {"status": "TimeLimitExceeded"}
            answer = {"status": "Success" if ran.get("return_code") == 0 else "Failed", "message": "", "run_result": ran}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Fusion)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    Fusion.broken, Fusion.bodies = False, []
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


ROWS = {
    "asserts": {"asserts": ["assert add(1, 2) == 3", "assert add(5, 50) == 55"]},
    "check": {"test": "def check(candidate):\n    assert candidate(1, 2) == 3\n", "entry_point": "add"},
    "calls": {"fn_name": "add", "inputs": [[1, 2]], "outputs": [3]},
}


@pytest.mark.parametrize("form", ROWS)
def test_the_verdict_is_ours(url: str, form: str) -> None:
    sandbox, tests = RemoteSandbox(url, Limits(wall_s=20)), read_tests({"id": "t", **ROWS[form]})
    assert judge(sandbox, "print('noise')\ndef add(a, b): return a + b", tests, budget_s=60).kind == "pass"
    assert judge(sandbox, "def add(a, b): return a", tests, budget_s=60).kind == "fail"
    for source in (
        "import os\ndef add(*a): os._exit(0)",
        'print(\'[["v", null], ["v", 3], ["done"]]\')\nimport os; os._exit(0)',
    ):
        assert judge(sandbox, source, tests, budget_s=60).kind not in ("pass", "infrastructure")


def test_expected_values_do_not_travel_with_the_program(url: str) -> None:
    judge(RemoteSandbox(url), "def add(a, b): return a + b  # MODEL", read_tests({"id": "t", **ROWS["asserts"]}), budget_s=60)
    assert any("== 55" in b["stdin"] for b in Fusion.bodies)
    assert not any("== 55" in json.dumps(b) and "MODEL" in json.dumps(b) for b in Fusion.bodies)


def test_stdio_time_and_faults(url: str) -> None:
    sandbox = RemoteSandbox(url, Limits(wall_s=1.0))
    assert sandbox.run("print(int(input()) * 2)", "21").stdout == "42\n"
    assert sandbox.run("while True: pass").kind == "timeout"
    assert sandbox.run("1 / 0").kind == "crash"
    Fusion.broken = True
    score = code_reward(sandbox_url=url)(Text("```python\nprint(8)\n```"), {"id": "t", "stdin": "", "stdout": "8"})
    assert (score.value, score.reason) == (None, "infrastructure: no room")
    assert RemoteSandbox("http://127.0.0.1:9").run("print(1)").kind == "infrastructure"
    with pytest.raises(ValueError, match="address of a SandboxFusion server"):
        RemoteSandbox("localhost:8080")
