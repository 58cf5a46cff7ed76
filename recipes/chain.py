"""Stages in order, each a command of this repository: `python -m recipes.chain recipes/r1_nano.toml [out=FOLDER] [--again STAGE] [--list]`.

A ladder is one TOML file:

    name = "r1_nano"
    [[stage]]
    name = "cold_start"                       # its folder is OUT/cold_start, {here} in its own args, {cold_start} in later ones
    run = "recipes.sft"                       # the module: python -m recipes.sft ARGS
    args = ["recipes/student_nano.toml", "data.train=['{picked}/kept.jsonl']", "run.out={here}"]  # values are TOML: quotes in a list
    outputs = ["final"]                       # what later stages may read, relative to its folder
    metrics = "result.json"                   # optional: copied into the manifest
    title = "Cold start"                      # optional: a rung of the report; its `final` is evaluated (recipes/rung.py, `evaluate`)
    resume = "--resume"                       # optional: added where {here}/config.json is there, a run that was ended before

OUT/manifest.json has of each finished stage its command, inputs and outputs with their SHA-256, metrics, minutes (of the clock, and of
processors), commit; of one under way the inputs it was begun on. A stage is done when its entry is there and everything it names still has
its hash; what is done is not run again. Inputs are what its args name: files and folders that are there, outputs of earlier stages. A stage
whose inputs or command have changed since is refused (its folder holds something else), and so is one that was under way on other inputs:
`--again STAGE` puts its folder aside and those of the stages that read from it.

Killed at any moment, the same command goes on: the manifest is replaced whole, a stage's child ends with this process, and a stage that
was under way goes on from its own checkpoints (`resume`), or begins again (its command then must begin by itself in a folder that is
there). Exit code 0: all is done. Else that of the stage that failed, or 2 and one line for input that cannot be used.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval.provenance import commit, hash_of
from recipes import ladder_page, ladder_report
from recipes.folder import claimed
from recipes.ladder_report import RUNG
from recipes.result import write_json
from rl.config_tree import build, override

ROOT = Path(__file__).resolve().parent.parent
MANIFEST, BYTECODE = "manifest.json", ".bytecode"
_NAME = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Stage:
    name: str
    run: str = ""
    args: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    metrics: str = ""
    resume: str = ""
    title: str = ""  # a rung of the report, by this name: the stage's `final` is evaluated
    teacher: str = ""  # the rung of this stage's teacher: the report says how much of it is kept
    model: str = ""  # what is evaluated in place of `final`; without `run` there is nothing else to the stage


@dataclass(frozen=True)
class Ladder:
    name: str
    stage: tuple[Stage, ...] = ()
    evaluate: tuple[str, ...] = ()  # args of recipes.rung behind model and folder
    out: str = ""  # empty: runs/NAME


class StageFailed(RuntimeError):
    """A stage's command gave up. `code` is its exit code."""

    def __init__(self, name: str, code: int, log: Path) -> None:
        ended = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        super().__init__(f"stage {name} failed ({ended}); what it said: {log}. Mend it, then the same command goes on")
        self.code = code if code > 0 else 1


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m recipes.chain", description="Run a ladder of stages.")
    parser.add_argument("ladder", help="a TOML file, e.g. recipes/r1_nano.toml")
    parser.add_argument("overrides", nargs="*", help="out=FOLDER")
    parser.add_argument(
        "--again", metavar="STAGE", default="", help="put aside what this stage, and those that read from it, have made"
    )
    parser.add_argument("--list", action="store_true", help="what is done and what is to do, and stop")
    args = parser.parse_intermixed_args(argv)
    try:
        ladder = load(args.ladder, args.overrides)
        out = Path(ladder.out or f"runs/{ladder.name}")
        if args.list:
            print("\n".join(f"{'done' if state == '' else state:<12} {s.name}" for s, state in states(ladder, out)))
            return 0
        signal.signal(
            signal.SIGTERM, lambda number, frame: sys.exit(128 + number)
        )  # through `finally`, so that a stage can save
        with claimed(out):
            tree = climb(ladder, out, args.again)
        if any(s.run == RUNG for s in ladder.stage):
            told = ladder_report.collect(ladder.name, ladder.stage, tree, out)
            print(ladder_report.table(told))
            print(f"report {ladder_page.write(out / 'report.html', told)}", flush=True)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 2
    except StageFailed as failed:
        print(f"error: {failed}", file=sys.stderr, flush=True)
        return failed.code
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr, flush=True)
        return 130
    return 0


def load(path: str | Path, overrides: Sequence[str] = ()) -> Ladder:
    """Read a ladder. Raises ValueError in one line: unreadable, unknown keys, a name twice, an arg that names no earlier stage."""
    try:
        tree = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"ladder {path}: cannot be read: {error}") from None
    for text in overrides:
        key, _, value = text.partition("=")
        if key != "out" or not value:
            raise ValueError(f"override {text!r}: a ladder takes out=FOLDER; settings of a stage stand in its args in {path}")
        tree["out"] = value
    ladder: Ladder = build(Ladder, tree, "")
    if not ladder.stage:
        raise ValueError(f"ladder {path}: no [[stage]]")
    ladder = replace(ladder, stage=tuple(each for stage in ladder.stage for each in evaluated(stage, ladder.evaluate)))
    known: set[str] = set()
    for stage in ladder.stage:
        if not re.fullmatch(r"\w+", stage.name) or stage.name in (*known, "here", "out"):
            raise ValueError(
                f"ladder {path}: stage {stage.name!r}: a name of its own, of letters, digits and _, not here or out"
            )
        for name in (n for arg in stage.args for n in _NAME.findall(arg)):
            if name not in (*known, "here"):
                raise ValueError(f"ladder {path}: stage {stage.name} reads from {{{name}}}, which is no stage before it")
            if name != "here" and not any(f"{{{name}}}/" in arg for arg in stage.args):
                raise ValueError(
                    f"ladder {path}: stage {stage.name} reads all of {{{name}}}: say which of its outputs, {{{name}}}/..."
                )
        known.add(stage.name)
    return ladder


def evaluated(stage: Stage, args: Sequence[str]) -> Iterator[Stage]:
    """The stage and, where it is a rung, the evaluation behind it."""
    if stage.run:
        yield stage
    if stage.title:
        model = stage.model or f"{{{stage.name}}}/final"
        name = f"{stage.name}_eval" if stage.run else stage.name
        yield Stage(
            name,
            RUNG,
            (model, "{here}", *args),
            ("eval.json", "questions.json"),
            "eval.json",
            title=stage.title,
            model=stage.name,
            teacher=stage.teacher,
        )


def climb(ladder: Ladder, out: Path, again: str = "") -> dict[str, Any]:
    """Run what is not done yet, in order; returns the manifest. Raises StageFailed, ValueError."""
    if again:
        put_aside(ladder, out, again)
    for stage in ladder.stage:
        why = state_of(stage, out)
        if why:
            run_stage(stage, out)
        print(f"{'done' if why else 'found':<6} {stage.name}", flush=True)
    shutil.rmtree(out / BYTECODE, ignore_errors=True)  # nothing needs it any more
    print(f"manifest {out / MANIFEST}", flush=True)
    return read(out)


def states(ladder: Ladder, out: Path) -> Iterator[tuple[Stage, str]]:
    """Each stage with why it must run, "" where it is done; what comes after an undone one it reads from is undone too."""
    undone: set[str] = set()
    for stage in ladder.stage:
        why = "waits" if sources(stage) & undone else state_of(stage, out)
        if why:
            undone.add(stage.name)
        yield stage, why


def state_of(stage: Stage, out: Path) -> str:
    """Why the stage must run: "" (it is done), "missing". Raises ValueError where its folder was made from, or begun on, something else."""
    tree, here = read(out), out / stage.name
    entry, begun = tree["stages"].get(stage.name), tree["begun"].get(stage.name)
    if entry is None and (begun is None or not here.is_dir() or not any(here.iterdir())):  # nothing is there to go on with
        return "missing"
    then, now = begun if entry is None else entry["inputs"], inputs(stage, out)
    changed = [p for p in {*now, *then} if now.get(p) != then.get(p)]
    if entry and (entry["args"] != list(stage.args) or entry["run"] != stage.run):
        changed.append("its command")
    if changed:
        raise ValueError(
            f"stage {stage.name} was {'made from' if entry else 'begun on'} something else ({', '.join(sorted(changed)[:3])} changed "
            f"since): --again {stage.name} puts it aside and makes it anew; or choose another folder with out="
        )
    return "" if entry and entry["outputs"] == hashes(outputs(stage, out)) else "missing"


def run_stage(stage: Stage, out: Path) -> None:
    """The command as a child process, then its entry in the manifest. Raises StageFailed, ValueError for outputs it did not make."""
    here, read_from = out / stage.name, inputs(stage, out)
    command = [sys.executable, "-m", stage.run, *(filled(arg, stage, out) for arg in stage.args)]
    if stage.resume and (here / "config.json").exists():
        command.append(stage.resume)
    print(f"\n=== {stage.name}: {' '.join(command[1:])}", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    tree = read(out)
    tree["begun"][stage.name] = read_from
    write_json(out / MANIFEST, tree)  # before the first step: whoever goes on with it must know what it was begun on
    log, clock = out / f"{stage.name}.log", Clock(out / f".{stage.name}.seconds")
    with log.open("ab") as file:
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment(out), preexec_fn=_ends_with_parent
        )
        assert child.stdout is not None
        try:
            for line in iter(child.stdout.readline, b""):
                file.write(line)
                file.flush()
                clock.note(child.pid)
                sys.stdout.write(line.decode(errors="replace"))
                sys.stdout.flush()
            code = child.wait()
        except BaseException as ended:
            if not isinstance(ended, KeyboardInterrupt):  # which has reached the child too
                child.terminate()
            child.communicate()  # it saves
            raise
    if code:
        raise StageFailed(stage.name, code, log)
    made = hashes(outputs(stage, out))
    if absent := [path for path, found in made.items() if found is None]:
        raise StageFailed(f"{stage.name} (it did not make {', '.join(absent)})", 1, log)
    del tree["begun"][stage.name]
    tree["stages"][stage.name] = {
        "run": stage.run, "args": list(stage.args), "inputs": read_from, "outputs": made, **clock.minutes(),
        "metrics": json.loads((here / stage.metrics).read_text(encoding="utf-8")) if stage.metrics else {}, "commit": commit(),
    }  # fmt: skip
    write_json(out / MANIFEST, tree)
    clock.path.unlink(missing_ok=True)


def environment(out: Path) -> dict[str, str]:
    """A stage's. Images often forbid Python to keep byte code; two dozen processes would each compile vLLM anew, 16 s of CPU time."""
    env = dict(os.environ)
    if env.pop("PYTHONDONTWRITEBYTECODE", ""):
        env.setdefault("PYTHONPYCACHEPREFIX", str((out / BYTECODE).resolve()))
    return env


class Clock:
    """Seconds of a stage, of the clock and of its processors, those of goes that were killed included (to their last line)."""

    def __init__(self, path: Path) -> None:
        self.path, self.begun, self.used = path, time.time(), _children()
        self.earlier = [float(n) for n in path.read_text().split()] if path.exists() else []
        self.earlier = self.earlier if len(self.earlier) == 2 else [0.0, 0.0]  # killed while it was written

    def note(self, pid: int) -> None:
        """Write down what the child has used."""
        with suppress(OSError, ValueError):  # it has just ended
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            cpu = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
            self.path.write_text(f"{self.earlier[0] + time.time() - self.begun:.1f} {self.earlier[1] + cpu:.1f}")

    def minutes(self) -> dict[str, float]:
        """Once the child has ended."""
        seconds = (self.earlier[0] + time.time() - self.begun, self.earlier[1] + _children() - self.used)
        return {"minutes": seconds[0] / 60, "cpu_minutes": seconds[1] / 60}


def _children() -> float:
    """CPU seconds of all children that have ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def put_aside(ladder: Ladder, out: Path, again: str) -> None:
    """Rename the folders of `again` and of all that read from it, directly or not, and forget them."""
    if again not in [s.name for s in ladder.stage]:
        raise ValueError(f"--again {again}: no such stage; there are {', '.join(s.name for s in ladder.stage)}")
    tree, stale = read(out), {again}
    for stage in ladder.stage:
        if sources(stage) & stale:
            stale.add(stage.name)
    # Folders first: what has a folder and no entry is gone on with, what has an entry and no folder begins again.
    for name in sorted(stale):
        if (out / name).exists():
            n = next(n for n in range(1, 10_000) if not (out / f"{name}.before-{n}").exists())
            (out / name).rename(out / f"{name}.before-{n}")
    for name in stale:
        tree["stages"].pop(name, None)
        tree["begun"].pop(name, None)
    write_json(out / MANIFEST, tree)


def read(out: Path) -> dict[str, Any]:
    """The manifest; an empty one where there is none. Raises ValueError for one that is none."""
    try:
        tree = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"stages": {}, "begun": {}}
    except ValueError as error:
        raise ValueError(f"{out / MANIFEST} is no manifest ({error}): restore it, or choose another folder with out=") from None
    return {"begun": {}} | tree


def filled(arg: str, stage: Stage, out: Path) -> str:
    """`arg` with the folders of the stages it names.

    >>> filled("run.out={here}", Stage("sft", "recipes.sft"), Path("runs/r1"))
    'run.out=runs/r1/sft'
    """
    return _NAME.sub(lambda m: str(out / (stage.name if m[1] == "here" else m[1])), arg)


def sources(stage: Stage) -> set[str]:
    """The stages that it reads from."""
    return {name for arg in stage.args for name in _NAME.findall(arg)} - {"here"}


def inputs(stage: Stage, out: Path) -> dict[str, str | None]:
    """SHA-256 of every file and folder that the args name and the stage does not make itself, by its name in the args."""
    found: dict[str, str | None] = {}
    for name in (n for arg in stage.args for n in named(arg) if n and "{here}" not in n):
        path = filled(name, stage, out)
        there = path if os.path.exists(path) else ROOT / path
        if _NAME.search(name) or os.path.exists(there):  # not Path.exists: it raises for texts that are too long to be a name
            found[name] = hash_of(Path(there))
    return found


def named(arg: str) -> Iterator[str]:
    """What an arg may name: itself, or each text in the value behind `key=`, read as the stage's door reads it.

    >>> list(named("--general")), list(named("data.train=a+b 1.jsonl")), list(named("data.train=['{picked}/kept.jsonl', 'b.jsonl']"))
    (['--general'], ['a+b 1.jsonl'], ['{picked}/kept.jsonl', 'b.jsonl'])
    """
    key, equals, _ = arg.partition("=")
    if not equals or not key.strip() or "/" in key:
        return iter([arg])
    tree: dict[str, Any] = {}
    override(tree, arg)
    return texts(tree)


def texts(value: Any) -> Iterator[str]:
    """Every text in a TOML value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Iterable):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from texts(part)


def outputs(stage: Stage, out: Path) -> dict[str, Path]:
    return {name: out / stage.name / name for name in stage.outputs}


def hashes(paths: Mapping[str, Path]) -> dict[str, str | None]:
    return {name: hash_of(path) for name, path in paths.items()}


def _ends_with_parent() -> None:
    """In the child, before its program: SIGKILL when the chain ends, however it ends; what it saved is whole at any moment."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
