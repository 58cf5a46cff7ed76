"""`make bench`: runs that stand still between their turns, and what is made of their figures."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench import __main__ as front
from bench import learning, step
from bench.paced import Paced

# A run with a worker in a session of its own, which counts until it finds itself alone.
RUN = """
import subprocess, sys, time
from pathlib import Path
from bench.paced import gate
folder, fails_at = Path(sys.argv[1]), int(sys.argv[2])
worker = "import os, sys, time, pathlib\\nn, parent = 0, os.getppid()\\nwhile os.getppid() == parent:\\n"
worker += "    n += 1; pathlib.Path(sys.argv[1]).write_text(str(n)); time.sleep(0.01)"
subprocess.Popen([sys.executable, "-c", worker, str(folder / "count")], start_new_session=True)
while not (folder / "count").exists():
    time.sleep(0.01)
gate()
for n in range(10):
    if n == fails_at:
        raise SystemExit("no such luck")
    with (folder / "steps").open("a") as file:
        file.write(f"{n}\\n")
    gate()
"""


def paced(folder: Path, fails_at: int = 99) -> Paced:
    folder.mkdir(exist_ok=True)
    return Paced("toy", [sys.executable, "-c", RUN, str(folder), str(fails_at)], folder, limit=60)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Paced]:
    run = paced(tmp_path)
    run.start()
    run.arrive()
    assert not (tmp_path / "steps").exists()
    run.step()
    yield run
    run.end()


def lines(folder: Path) -> int:
    return len((folder / "steps").read_text().splitlines())


def count(folder: Path) -> str:
    """A file that is just being written is empty for a moment; the worker may have been stopped in it."""
    return (folder / "count").read_text()


def test_one_step_a_turn(run: Paced, tmp_path: Path) -> None:
    for n in (1, 2, 3):
        assert lines(tmp_path) == n
        run.step()


def test_nothing_of_it_runs_between_its_turns(run: Paced, tmp_path: Path) -> None:
    run.step()
    family = psutil.Process(run.process.pid).children(recursive=True) + [run.process]
    assert len(family) == 2
    end = time.monotonic() + 30  # a signal takes its time on a busy machine
    while {p.status() for p in family} != {psutil.STATUS_STOPPED}:
        assert time.monotonic() < end
        time.sleep(0.01)
    before = count(tmp_path)
    time.sleep(0.2)  # twenty counts of a worker that runs
    assert count(tmp_path) == before


def test_it_ends_whole(tmp_path: Path) -> None:
    run = paced(tmp_path)
    run.start()
    run.arrive()
    family = psutil.Process(run.process.pid).children(recursive=True)
    run.end()
    assert len(family) == 1
    assert not family[0].is_running()
    assert run.process is None
    run.end()  # once is enough


def test_memory_is_its_own(run: Paced) -> None:
    assert 0 < run.held <= run.peak < 10


def test_a_run_that_ends_says_why(tmp_path: Path) -> None:
    run = paced(tmp_path, fails_at=1)
    run.start()
    run.arrive()
    run.step()
    with pytest.raises(RuntimeError, match="exit 1: no such luck"):
        run.step()
    assert run.failed == "exit 1: no such luck"
    assert run.process is None


def test_a_gate_in_no_paced_run_is_open() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from bench.paced import gate; gate(); print('through')"], capture_output=True, timeout=60
    )
    assert done.stdout == b"through\n", done.stderr


def way(name: str, seconds: list[float], tokens: list[int], learn: float) -> dict[str, Any]:
    steps = [
        {"seconds": s, "tokens": t, "seconds_learn": learn, "seconds_rollout": 1.0}
        for s, t in zip(seconds, tokens, strict=True)
    ]
    return {"way": name, "device_gib": 10.0} | step.medians(steps)


@pytest.fixture
def tree() -> dict[str, Any]:
    """10 prompts of 100 tokens, 2,000,000 parameters, a card of 0.5 TFLOP/s."""
    return {
        "device": "card", "model": "m", "small": False, "product_tflops": 0.5, "parameters": 2_000_000, "prompts": 10, "group": 8,
        "tokens": 64, "prompt_tokens": 100.0, "steps": 3, "commit": "abc",
        "ways": [
            way("turn", [2.0, 1.0, 4.0], [4000, 4000, 4000], 0.5), way("trl", [6.0, 5.0, 9.0], [3000, 4000, 3500], 2.0),
            {"way": "ahead", "failed": "exit 1: a | b"},
        ],
    }  # fmt: skip


def test_shares_by_hand(tree: dict[str, Any]) -> None:
    """Unique tokens: 4,000 + 10 * 100. 6 * 2e6 * 5,000 = 0.06 TFLOP; in 2 s 0.03 TFLOP/s, in 0.5 s 0.12."""
    front.shares(tree["ways"], tree)
    turn, trl, _ = tree["ways"]
    assert turn["share_step"] == pytest.approx(0.03 / 0.5)
    assert turn["share_learner"] == pytest.approx(0.12 / 0.5)
    assert trl["share_step"] == pytest.approx(6 * 2e6 * 4500 / 6 / 1e12 / 0.5)


def test_the_table_by_hand(tree: dict[str, Any]) -> None:
    front.shares(tree["ways"], tree)
    head, rule, turn, trl, ahead = front.markdown(tree).splitlines()[-5:]
    assert {line.count("|") for line in (head, rule, turn, trl, ahead)} == {11}
    assert turn == "| turn | 2.00 [1.00, 4.00] | 1.00 | 0.50 | - | 2000 | 6.0% | 24.0% | 10.0 | 1.00 × |"
    assert trl.endswith("| 583 | 1.8% | 5.4% | 10.0 | 0.29 × |")  # 3,500 tokens in 6 s against 2,000 a second
    assert "exit 1: a / b" in ahead


def test_on_a_cpu_there_is_no_share_and_it_says_so(tree: dict[str, Any]) -> None:
    tree |= {"small": True, "product_tflops": 0.0}
    front.shares(tree["ways"], tree)
    text = front.markdown(tree)
    assert text.startswith("No GPU here")
    assert " | - | - | 10.0 | 1.00 × |" in text


def test_the_plot_is_a_picture(tree: dict[str, Any], tmp_path: Path) -> None:
    front.plot(tree, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_is_used_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bench.json").write_text("{}")
    monkeypatch.setattr(sys, "argv", ["bench", "--out", str(tmp_path)])
    assert front.main() == 2
    assert "holds a bench already" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["bench", "--ways", "turn,trll"])
    assert front.main() == 2
    assert "--ways trll: known are" in capsys.readouterr().err


def learned(folder: Path, seeds: dict[int, list[float]]) -> Path:
    """Finished runs whose reward, accuracy and held-out figures are these numbers; a minute each."""
    for seed, rewards in seeds.items():
        run = folder / f"toy-seed{seed}"
        run.mkdir(parents=True)
        (run / "metrics.jsonl").write_text("".join(json.dumps({"reward": r, "accuracy": r / 2}) + "\n" for r in rewards))
        after = {"greedy": {"value": rewards[-1]}, "pass@1": {"value": 0.5}, "problems": 4}
        (run / "result.json").write_text(json.dumps({"after": after, "minutes": {"train": 1.0}}))
    return folder


def test_two_learners_by_hand(tmp_path: Path) -> None:
    """Differences of the last step are 0.1 and 0.3: mean 0.2, t-interval 0.2 ± 12.706 * 0.1."""
    own = learning.runs(learned(tmp_path / "own", {0: [0.1, 0.3, 0.5], 1: [0.2, 0.4, 0.6], 7: [0.0]}))
    trl = learning.runs(learned(tmp_path / "trl", {0: [0.1, 0.3, 0.6], 1: [0.2, 0.4, 0.9]}))
    table = learning.table(own, trl, ("own", "trl"), 1).splitlines()
    assert table[0] == "| 2 seeds | own | trl | difference |"
    assert "| reward, last 1 steps | 0.550 [0.500, 0.600] | 0.750 [0.600, 0.900] | +0.200 [-1.071, +1.471] |" in table
    assert any(line.startswith("| held out, greedy | 0.550 [0.500, 0.600] | 0.750 ") for line in table)
    assert any(line.endswith("| +0.000 [+0.000, +0.000] |") for line in table if "pass@1" in line)
    learning.plot({"own": {s: own[s] for s in (0, 1)}, "trl": trl}, tmp_path / "learning.png")
    assert (tmp_path / "learning.png").read_bytes().startswith(b"\x89PNG")


def test_learners_without_common_seeds_are_refused(tmp_path: Path) -> None:
    own = learning.runs(learned(tmp_path / "own", {0: [0.1], 1: [0.1]}))
    trl = learning.runs(learned(tmp_path / "trl", {1: [0.1], 2: [0.1]}))
    with pytest.raises(ValueError, match="two or more"):
        learning.table(own, trl, ("own", "trl"), 1)
    with pytest.raises(ValueError, match="no finished run"):
        learning.runs(tmp_path)
