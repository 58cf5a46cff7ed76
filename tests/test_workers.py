"""The pool under rewards that hang, die, eat memory and lie on stdout: real processes, really killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rewards.sandbox import SandboxRefused, resolve
from rewards.score import Text
from rewards.workers import RewardError, RewardPool
from tests.tiny_run import reward_workers

# A user's reward module: what it does is told by the problem's row
USER = """
import os, signal, time
def act(prompts, completions, what=None, **columns):
    out = []
    for w in what or [""] * len(completions):
        if w == "hang": time.sleep(60)
        if w == "die": os.kill(os.getpid(), signal.SIGKILL)
        if w == "die once" and not os.path.exists("died"): open("died", "w").close(); os.kill(os.getpid(), signal.SIGKILL)
        if w == "raise": raise KeyError("a bug")
        if w == "memory": x = [0] * (1 << 40)
        if w == "print": print("noise" * 1000, flush=True)
        out.append(None if w == "none" else 1.0)
    return out
"""


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "user_rewards_x.py").write_text(USER)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return "user_rewards_x:act"


def row(what: str = "", **more) -> dict:
    return {"id": what or "r", "question": "2+2?", "gold": "4", "what": what, **more}


RIGHT = Text("<think>2+2</think> <answer>4</answer>", tokens=5)


def test_scores_come_while_the_caller_goes_on() -> None:
    with RewardPool({"accuracy": {}, "format": {"weight": 0.5}}, workers=2) as pool:
        futures = [pool.submit(Text(f"<think>x</think> <answer>{i % 2 + 3}</answer>"), row()) for i in range(40)]
        scores = [f.result(30) for f in futures]
        stats = pool.stats()
    assert [s.value for s in scores] == [0.5 + i % 2 for i in range(40)]
    assert scores[1].parts == {"accuracy": 1.0, "format": 1.0}
    names = [f"reward_ms_p{q}/{name}" for name in ("accuracy", "format", "all") for q in (50, 99)]
    assert set(stats) == {*names, "reward_restarts", "reward_timeouts", "reward_deaths"}
    assert (stats["reward_restarts"], stats["reward_timeouts"], stats["reward_deaths"]) == (0, 0, 0)
    assert 0 < stats["reward_ms_p50/accuracy"] <= stats["reward_ms_p99/accuracy"] <= stats["reward_ms_p99/all"]


def test_the_pool_keeps_torch_out() -> None:
    code = "import rewards.worker_child, rewards.workers, sys; print([m for m in ('torch', 'transformers', 'rl') if m in sys.modules])"
    root = Path(__file__).resolve().parent.parent
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True).stdout == "[]\n"


def test_a_user_reward_that_hangs_is_killed_retried_and_masked(user: str) -> None:
    with RewardPool({user: {}, "accuracy": {}}, workers=1, wall_s=0.5) as pool:
        begin = time.monotonic()
        score = pool.submit(RIGHT, row("hang")).result(60)
        assert score.value is None
        assert score.reason.startswith("infrastructure: user_rewards_x:act over 0.5 s")
        assert time.monotonic() - begin < 30
        assert pool.submit(RIGHT, row()).result(30).value == 2.0
        stats = pool.stats()
        assert (stats["reward_timeouts"], stats["reward_restarts"]) == (3, 3)
        assert stats["reward_ms_p99/user_rewards_x:act"] == 500.0  # what hung is in the latency
        assert stats["reward_ms_p99/all"] >= 1500
        assert pool.stats()["reward_timeouts"] == 0  # since the last call


def test_a_judge_of_text_that_hangs_gives_zero_and_the_rest_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The stand-in is put in place in the child by the interpreter's own start-up hook."""
    hook = "import rewards.combine as c, time\ndef slow(seconds=0.0):\n    from rewards.score import Score\n"
    hook += "    return lambda completion, problem: (time.sleep(60 if 'bomb' in completion.text else 0), Score(1.0))[1]\n"
    (tmp_path / "sitecustomize.py").write_text(hook + "c.REWARDS['slow'] = slow\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with RewardPool({"accuracy": {}, "slow": {}}, workers=1, wall_s=0.5) as pool:
        assert pool.submit(RIGHT, row()).result(30).value == 2.0
        score = pool.submit(Text("bomb <answer>4</answer>"), row()).result(30)
        assert (score.value, score.parts["slow"]) == (1.0, 0.0)
        assert "timeout: over 0.5 s" in score.reason
        assert pool.stats()["reward_restarts"] == 1


@pytest.mark.parametrize(("what", "value"), [("die", None), ("die once", 1.0), ("memory", 0.0), ("print", 1.0), ("none", None)])
def test_what_becomes_of_a_sample(user: str, what: str, value: float | None) -> None:
    with RewardPool({user: {}}, workers=1, wall_s=20) as pool:
        assert pool.submit(RIGHT, row(what)).result(60).value == value
        assert pool.submit(RIGHT, row()).result(60).value == 1.0


def test_errors_reach_their_owner(user: str) -> None:
    with RewardPool({user: {}}, workers=1) as pool:
        with pytest.raises(RewardError, match=r"user_rewards_x:act of raise: KeyError: 'a bug'"):
            pool.submit(RIGHT, row("raise")).result(30)
        with pytest.raises(ValueError, match="not plain data"):
            pool.submit(RIGHT, row(x=object()))
        assert pool.submit(RIGHT, row()).result(30).value == 1.0
    with pytest.raises(ValueError, match="closed"):
        pool.submit(RIGHT, row())
    with pytest.raises(ValueError, match="did you mean 'accuracy'"):
        RewardPool({"acuracy": {}})
    with pytest.raises(ValueError, match="no rewards given"):
        RewardPool({})
    with pytest.raises(ValueError, match="workers >= 1"):
        RewardPool({"accuracy": {}}, workers=0)


def test_close_leaves_no_process_and_cancels_the_rest(user: str) -> None:
    pool = RewardPool({user: {}}, workers=2)
    futures = [pool.submit(RIGHT, row("hang")) for _ in range(4)]
    time.sleep(0.3)
    assert len(reward_workers()) == 2
    begin = time.monotonic()
    pool.close()
    assert time.monotonic() - begin < 10
    assert all(f.done() for f in futures)
    assert not reward_workers()


def test_workers_die_with_the_trainer(tmp_path: Path) -> None:
    code = "import time\nfrom rewards.workers import RewardPool\npool = RewardPool({'accuracy': {}}, workers=1)\n"
    code += "print(pool.processes[0].popen.pid, flush=True)\ntime.sleep(60)"
    root = Path(__file__).resolve().parent.parent
    trainer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=root)
    assert trainer.stdout is not None
    worker = int(trainer.stdout.readline())
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()
    for _ in range(100):
        stat = Path(f"/proc/{worker}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the worker outlived its trainer")


def test_random_kills_never_make_a_wrong_verdict() -> None:
    try:
        resolve()
    except SandboxRefused as e:
        pytest.skip(str(e))
    random.seed(3)
    with RewardPool({"code": {}}, workers=2) as pool:
        wanted = [float(i % 3 != 0) for i in range(60)]
        text = "```python\ndef f(x):\n    return x + {}\n```"
        futures = [
            pool.submit(Text(text.format(1 if w else 2)), {"id": i, "asserts": [f"assert f({i}) == {i + 1}"]})
            for i, w in enumerate(wanted)
        ]
        stop = threading.Event()

        def killer() -> None:
            while not stop.wait(0.5):
                tree, new = {os.getpid()}, True
                while new:
                    listed = subprocess.run(
                        ["ps", "-eo", "pid=,ppid=,comm="], capture_output=True, text=True, check=False
                    ).stdout
                    below = {
                        int(p)
                        for p, up, comm in (line.split(None, 2) for line in listed.splitlines())
                        if int(up) in tree and comm != "ps"
                    }
                    new = bool(below - tree)
                    tree |= below
                victims = sorted(tree - {os.getpid()})
                if victims:
                    try:
                        os.kill(random.choice(victims), signal.SIGKILL)
                    except ProcessLookupError:
                        continue

        thread = threading.Thread(target=killer)
        thread.start()
        scores = [f.result(120) for f in futures]
        stop.set()
        thread.join()
    assert not [(w, s) for w, s in zip(wanted, scores, strict=True) if s.value not in (None, w)]
    assert sum(s.value is None for s in scores) < 20
