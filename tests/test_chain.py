"""The chain of stages: what is done is not run again, killed at any moment it comes to the same end, what has changed is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from eval.provenance import hash_of
from recipes import chain

LADDER = """
name = "tiny"
[[stage]]
name = "first"
run = "tests.chain_stage"
args = ["{{here}}", "{steps}", "{pause}", "{given}"]
outputs = ["final", "result.json"]
metrics = "result.json"
[[stage]]
name = "second"
run = "tests.chain_stage"
args = ["{{here}}", "{steps}", "{pause}", "{{first}}/final/sum"]
outputs = ["final"]
[[stage]]
name = "third"
run = "tests.chain_stage"
args = ["{{here}}", "3", "0", "{{first}}/final/sum", "{{second}}/final/sum"]
outputs = ["final/sum"]
"""


def write(folder: Path, steps: object = 3, pause: float = 0.0, text: str = LADDER) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    given = folder / "given"
    if not given.exists():
        given.write_text("5")
    path = folder / "ladder.toml"
    path.write_text(text.format(steps=steps, pause=pause, given=given))
    return path


def climb(ladder: Path, out: Path, *more: str) -> int:
    return chain.main([str(ladder), f"out={out}", *more])


def manifest(out: Path) -> dict[str, Any]:
    return json.loads((out / chain.MANIFEST).read_text())["stages"]


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Which stages ran in the last climb."""
    return [line.split()[1].rstrip(":") for line in capsys.readouterr().out.splitlines() if line.startswith("===")]


def test_stages_in_order_with_hashes_and_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ladder, out = write(tmp_path), tmp_path / "out"
    assert climb(ladder, out) == 0
    assert said(capsys) == ["first", "second", "third"]
    assert (out / "third" / "final" / "sum").read_text() == "22"  # 3 + (5 + 3) + (5 + 3 + 3)
    made = manifest(out)
    assert made["first"]["metrics"] == {"steps": 3}
    assert made["second"]["inputs"] == {"{first}/final/sum": hash_of(out / "first/final/sum")}
    assert made["first"]["inputs"] == {str(tmp_path / "given"): hash_of(tmp_path / "given")}
    assert made["third"]["outputs"] == {"final/sum": hash_of(out / "third/final/sum")}
    assert made["third"]["minutes"] > 0
    assert made["third"]["cpu_minutes"] > 0
    assert climb(ladder, out) == 0
    assert said(capsys) == []


def test_the_seconds_of_a_go_that_was_killed_are_counted(tmp_path: Path) -> None:
    busy = [sys.executable, "-c", "import time\nwhile time.process_time() < 0.5: pass\nprint(1, flush=True)\ntime.sleep(60)"]
    path = tmp_path / "seconds"
    with subprocess.Popen(busy, stdout=subprocess.PIPE) as child:
        clock = chain.Clock(path)
        assert child.stdout is not None
        assert child.stdout.readline() == b"1\n"
        clock.note(child.pid)
        child.kill()  # and with it the chain, which could not say more
    wall, cpu = map(float, path.read_text().split())
    assert 0.5 <= cpu <= wall + 0.1
    told = chain.Clock(path).minutes()  # the next go, which ends at once
    assert told["minutes"] >= wall / 60
    assert (
        cpu / 60 <= told["cpu_minutes"] < (cpu + 0.4) / 60
    )  # the killed child's own, counted by the kernel, is not counted twice
    path.write_text("12.")  # killed while it wrote
    assert chain.Clock(path).minutes()["minutes"] < 12 / 60


def test_byte_code_is_kept_for_the_climb_where_python_may_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage of the chain imports this repository's modules: what they compile to lies in the ladder's folder, until the end."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.delenv("PYTHONPYCACHEPREFIX", raising=False)
    assert chain.environment(tmp_path) == {
        **{k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"},
        "PYTHONPYCACHEPREFIX": str(tmp_path / chain.BYTECODE),
    }
    assert climb(write(tmp_path, steps="many"), tmp_path / "out") == 2
    assert list((tmp_path / "out" / chain.BYTECODE).rglob("*.pyc"))
    assert climb(write(tmp_path), tmp_path / "out") == 0
    assert not (tmp_path / "out" / chain.BYTECODE).exists()
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE")
    assert "PYTHONPYCACHEPREFIX" not in chain.environment(tmp_path)


def test_killed_twice_it_comes_to_the_same_end(tmp_path: Path) -> None:
    """kill -9 of the chain alone in its first and in its second stage: the stage's process ends with it, and nothing is done twice."""
    quick, slow, out = write(tmp_path / "quick", 25), write(tmp_path / "slow", 25, pause=0.1), tmp_path / "killed"
    assert climb(quick, tmp_path / "whole") == 0
    for stage in ("first", "second"):
        command = [sys.executable, "-m", "recipes.chain", str(slow), f"out={out}"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(chain.ROOT)})
        steps, deadline = out / stage / "steps", time.monotonic() + 120
        while not steps.exists() or len(steps.read_text().splitlines()) < 3:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(0.5)  # the child is gone: it counts no further
        at = len(steps.read_text().splitlines())
        time.sleep(0.5)
        assert at == len(steps.read_text().splitlines()) < 25
        assert set(manifest(out) if (out / chain.MANIFEST).exists() else {}) == ({"first"} if stage == "second" else set())
    assert climb(slow, out) == 0
    for name, entry in manifest(tmp_path / "whole").items():
        assert manifest(out)[name]["outputs"] == entry["outputs"], name
    assert (out / "first" / "steps").read_text() == (tmp_path / "whole" / "first" / "steps").read_text()  # no step twice


def test_only_what_is_missing_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ladder, out = write(tmp_path), tmp_path / "out"
    assert climb(ladder, out) == 0
    capsys.readouterr()
    (out / "second" / "final" / "sum").unlink()
    assert climb(ladder, out, "--list") == 0
    assert capsys.readouterr().out.split() == ["done", "first", "missing", "second", "waits", "third"]
    assert climb(ladder, out) == 0
    assert said(capsys) == ["second"]  # made again as it was, so the third still fits


def test_what_has_changed_is_refused_until_it_is_put_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ladder, out = write(tmp_path), tmp_path / "out"
    assert climb(ladder, out) == 0
    (tmp_path / "given").write_text("6")
    assert climb(ladder, out) == 2
    told = capsys.readouterr().err
    assert "stage first was made from something else" in told
    assert "--again first" in told
    assert climb(ladder, out, "--again", "first") == 0
    assert said(capsys) == ["first", "second", "third"]
    assert (out / "third" / "final" / "sum").read_text() == "24"
    assert (out / "third.before-1" / "final" / "sum").read_text() == "22"
    write(tmp_path, steps=4)
    assert climb(ladder, out) == 2
    assert "its command" in capsys.readouterr().err


def test_a_stage_under_way_goes_on_with_the_inputs_it_was_begun_on_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = LADDER[: LADDER.index('[[stage]]\nname = "second"')]
    half = write(tmp_path, text=text.replace('"final", "result.json"', '"product"'))  # ends without what it should make
    out, given = tmp_path / "out", tmp_path / "given"
    assert climb(half, out) == 1
    assert climb(half, out) == 1  # nothing has changed: it goes on
    assert json.loads((out / chain.MANIFEST).read_text()) == {"begun": {"first": {str(given): hash_of(given)}}, "stages": {}}
    given.write_text("6")
    whole = write(tmp_path, text=text)
    capsys.readouterr()
    assert climb(whole, out) == 2
    assert capsys.readouterr().err == (
        f"error: stage first was begun on something else ({given} changed since): --again first puts it aside and makes it anew; "
        "or choose another folder with out=\n"
    )
    assert (out / "first" / "final" / "sum").read_text() == "8"
    shutil.copytree(out, tmp_path / "empty")
    shutil.rmtree(tmp_path / "empty" / "first")
    assert climb(whole, tmp_path / "empty") == 0  # there is nothing to go on with
    assert climb(whole, out, "--again", "first") == 0
    assert (out / "first.before-1" / "final" / "sum").read_text() == "8"
    assert (out / "first" / "final" / "sum").read_text() == "9"
    made = json.loads((out / chain.MANIFEST).read_text())
    assert made["begun"] == {}
    assert made["stages"]["first"]["inputs"] == {str(given): hash_of(given)}


def test_what_was_not_put_aside_is_still_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while it puts a folder aside: the folder is not taken for one of the new inputs."""
    ladder, out = write(tmp_path), tmp_path / "out"
    assert climb(ladder, out) == 0
    (tmp_path / "given").write_text("6")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        assert climb(ladder, out, "--again", "first") == 130
    assert climb(ladder, out) == 2
    assert climb(ladder, out, "--again", "first") == 0


@pytest.mark.parametrize(
    ("arg", "wanted"),
    [
        *((f"data.train=FOLDER/{name}", [f"FOLDER/{name}"]) for name in ("data+v1.jsonl", "a@b", "c=d", "e f")),
        ("FOLDER/c=d", ["FOLDER/c=d"]),
        ("data.train=['FOLDER/e f', \"FOLDER/a@b\", 'FOLDER/none']", ["FOLDER/e f", "FOLDER/a@b"]),
        ("rewards.x={model = 'FOLDER/a@b', weight = 0.5}", ["FOLDER/a@b"]),
        ("data.train=['{first}/final/sum', '{here}/a@b']", ["{first}/final/sum"]),
        ("model.path={first}/final", ["{first}/final"]),
        ("README.md", ["README.md"]),  # of the repository, whatever the folder one stands in
        ("data.train=recipes/r1_nano.toml", ["recipes/r1_nano.toml"]),
        *(
            (arg, [])
            for arg in ("model.path=''", "--steps", "20", "run.steps=20", "model.path=Owner/Name", "x" * 5000, "=", "")
        ),
    ],
)
def test_inputs_are_the_files_that_args_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arg: str, wanted: list[str]
) -> None:
    for name in ("data+v1.jsonl", "a@b", "c=d", "e f"):
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    found = chain.inputs(chain.Stage("s", "m", (arg.replace("FOLDER", str(tmp_path)),)), tmp_path / "out")
    assert list(found) == [name.replace("FOLDER", str(tmp_path)) for name in wanted]
    assert all(value is None for name, value in found.items() if "{" in name)  # the stage has not run yet
    assert all(value == hash_of(chain.ROOT / name) for name, value in found.items() if "{" not in name)


def test_a_stage_that_fails_stops_the_chain_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert climb(write(tmp_path, steps="many"), out) == 2
    assert f"stage first failed (exit code 2); what it said: {out / 'first.log'}" in capsys.readouterr().err
    assert "steps must be a number" in (out / "first.log").read_text()
    text = LADDER.replace('"final/sum"]\n', '"final/product"]\n')
    assert climb(write(tmp_path, text=text), out) == 1
    assert "did not make final/product" in capsys.readouterr().err


def test_one_chain_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with chain.claimed(tmp_path / "out"):
        code = subprocess.run(
            [sys.executable, "-m", "recipes.chain", str(write(tmp_path)), f"out={tmp_path / 'out'}"],
            env={**os.environ, "PYTHONPATH": str(chain.ROOT)}, capture_output=True, text=True,
        )  # fmt: skip
    assert code.returncode == 2
    assert "is in use by" in code.stderr


def test_an_evaluation_reads_from_stages_before_its_rung(tmp_path: Path) -> None:
    rung = LADDER.replace('name = "second"', 'name = "second"\ntitle = "A rung"')
    stages = chain.load(write(tmp_path, text='evaluate = ["{{first}}/final"]' + rung)).stage
    assert [(s.name, s.args[2:]) for s in stages if s.run == chain.RUNG] == [("second_eval", ("{first}/final",))]
    with pytest.raises(ValueError, match=r"second_eval reads from \{third\}, which is no stage before it"):
        chain.load(write(tmp_path, text='evaluate = ["{{third}}/final"]' + rung))


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("{{second}}/final/sum", "{{fourth}}/final/sum", "no stage before it"),
        ("{{second}}/final/sum", "{{second}}", "say which of its outputs"),
        ('name = "second"', 'name = "first"', "a name of its own"),
        ("outputs = [", "output = [", "unknown key"),
    ],
)
def test_a_ladder_that_cannot_be_is_refused(tmp_path: Path, old: str, new: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        chain.load(write(tmp_path, text=LADDER.replace(old, new)))
