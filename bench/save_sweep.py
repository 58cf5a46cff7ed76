"""Every system call of a checkpoint's save as its last, by SIGKILL, and as one that finds the disk full:
`python -m bench.save_sweep [--every N] [--folder DIR]`.

A save of step 2 beside a whole step 1, over a damaged step 2 and what an earlier save that was killed left, with run.keep = 1: so the save
writes, replaces and removes. After each fault the run must resume from step 1 or step 2, whole and equal to the bit, never crash, and the
next save must leave nothing else. A save that finds the disk full at a call that concerns files must say so, or have succeeded.
"""

from __future__ import annotations

import argparse
import errno
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from bench.syscalls import CHANGES, SUPPORTED, Call, trace
from rl.checkpoint import State, load, save
from rl.config import Config
from rl.learn import Learner, accelerator
from rl.policy import Policy
from rl.records import Completion, Group, Prompt

FINE = ("old", "new", "not reached")
FULL = 28  # exit code of a child whose save said that the disk is full


def learner(folder: Path) -> Learner:
    """A real one, small: each file of its checkpoint takes few system calls."""
    shape = Qwen3Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=8, intermediate_size=16,
        vocab_size=32, eos_token_id=0, bos_token_id=None, pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    config = Config(rewards={"accuracy": {}})
    model, reference = (AutoModelForCausalLM.from_config(shape, dtype=torch.float32) for _ in range(2))
    return Learner(config, Policy(model), Policy(reference), accelerator(config, folder))


def teach(one: Learner) -> None:
    answers = tuple(Completion((5 + g, 6), (-1.0, -1.0), "stop", "", 0) for g in range(2))
    one.step([Group(Prompt("p", (2, 3, 4), {}), answers)], [[1.0, -1.0]], 4)


def contents(one: Learner) -> dict[str, torch.Tensor]:
    found = dict(one.policy.named_parameters())
    for name, parameter in list(found.items()):
        found |= {f"{moment}/{name}": t for moment, t in one.optimizer.state.get(parameter, {}).items()}
    return {name: t.detach().clone() for name, t in found.items()}


class Sweep:
    """The folder before the save, what each step's checkpoint holds, and the calls that an undisturbed save makes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.before = folder / "checkpoints", folder / "before"
        self.one, self.fresh = learner(folder), learner(folder)
        self.wanted = {}
        for step in (1, 2):
            teach(self.one)
            save(self.before, self.one, State(step, self.one.updates, {}), keep=2)
            self.wanted[step] = contents(self.one)
        (self.before / "step-000002" / "state.json").write_text("damaged")
        shutil.copytree(self.before / "step-000001", self.before / ".tmp-step-000002")
        self.calls = self.undisturbed()

    def undisturbed(self) -> list[Call]:
        self.reset()
        ended = trace(self.work)
        if ended.code or self.verdict() != "new":
            raise AssertionError(f"a save without any fault: exit code {ended.code}")
        return ended.calls

    def reset(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.before, self.folder)

    def work(self) -> int:
        try:
            save(self.folder, self.one, State(2, self.one.updates, {}), keep=1)
        except OSError as error:
            return FULL if error.errno == errno.ENOSPC else 1
        return 0

    def fault(self, at: int, full: bool) -> str:
        """What one fault left: "old", "new", or what is wrong; "not reached" where the save did not make so many calls this time."""
        self.reset()
        ended = trace(self.work, at, full)
        if not ended.reached:
            return "not reached"
        if full and ended.calls[at].name in CHANGES and ended.code not in (0, FULL):
            return f"ended by {ended.code}, not by the full disk"
        return self.verdict()

    def verdict(self) -> str:
        """What a resume finds and goes on with."""
        try:
            state, damaged = load(self.folder, self.fresh)
        except Exception as error:
            return f"resume: {type(error).__name__}: {error}"
        if damaged and (state.step == 2 or any("step-000002: state.json" not in d for d in damaged)):
            return f"a damaged checkpoint that was whole: {damaged}"
        found, wanted = contents(self.fresh), self.wanted[state.step]
        if found.keys() != wanted.keys() or not all(torch.equal(t, wanted[n]) for n, t in found.items()):
            return f"step {state.step} is not what was saved"
        save(self.folder, self.fresh, State(3, self.fresh.updates, {}), keep=1)
        left = sorted(p.name for p in self.folder.iterdir())
        return {1: "old", 2: "new"}[state.step] if left == ["step-000003"] else f"the next save leaves {left}"


def summary(verdicts: Iterable[str]) -> str:
    found = Counter(v if v in FINE else "wrong" for v in verdicts)
    points, survived = found.total() - found["not reached"], found["old"] + found["new"]
    return (
        f"{survived} of {points} points resumed from a whole checkpoint ({found['old']} the old one, {found['new']} the new one), "
        f"{found['not reached']} not reached"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.save_sweep", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--every", type=int, default=1, help="only every so-manieth call, and all that change files")
    parser.add_argument("--folder", type=Path, help="on the file system to be tried; default: a temporary folder")
    args = parser.parse_args()
    if not SUPPORTED:
        raise SystemExit("bench.save_sweep: x86-64 only")
    torch.set_num_threads(1)
    started, wrong = time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="save-sweep-", dir=args.folder) as folder:
        sweep = Sweep(Path(folder))
        points = [i for i, c in enumerate(sweep.calls) if i % args.every == 0 or c.name in CHANGES]
        changing = sum(c.name in CHANGES for c in sweep.calls)
        print(f"a save makes {len(sweep.calls)} system calls, {changing} of which concern files", flush=True)
        for full in (False, True):
            verdicts = {i: sweep.fault(i, full) for i in points}
            print(f"{'ENOSPC' if full else 'SIGKILL'}: {summary(verdicts.values())}", flush=True)
            for i, verdict in verdicts.items():
                if verdict not in FINE:
                    wrong += 1
                    print(f"  call {i}, {sweep.calls[i].name} {sweep.calls[i].path}: {verdict}", flush=True)
    print(f"{time.monotonic() - started:.0f} s")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
