"""One planted fault for each guard: what is broken, in a real run of a tiny model, and what must be said about it.

`bench/faults.py` (make faults) runs them all and prints the table of the README; tests/faults/test_guard_planted.py asserts each.
"""

from __future__ import annotations

import dataclasses
import io
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from transformers import AutoModelForCausalLM

from recipes import run as door
from rl.feed import InTurn
from rl.judge import Judge
from rl.policy import ROOT
from rl.sampler import TransformersSampler
from rl.workers import Pool
from tests.faults.paid_for import CYRILLIC
from tests.tiny_pool import pid
from tests.tiny_run import tiny_model, tiny_tokenizer, write_recipe

NANO = str(ROOT / "recipes" / "nano" / "base")
QUIET = ("guard.truncated=2", "guard.zero_variance=2")  # a model of random weights is cut off, and always wrong
PAID = "[rewards.'tests.faults.paid_for:{}']\nchat = false\n[reward_workers]\nprocesses = 1\n"


class NoPlace(RuntimeError):
    """This machine cannot have the fault; the message says why."""


@dataclass(frozen=True)
class Fault:
    """`guard` names what must catch it, `told` is in the reason; `rewards` are TOML, in place of the tiny recipe's."""

    guard: str
    what: str
    told: str
    overrides: tuple[str, ...] = ()
    rewards: str = ""
    plant: Callable[[Path], AbstractContextManager[Any]] = lambda out: nullcontext()
    model: str = (
        "tiny"  # "cyrillic": has Russian words; "parrot": repeats itself; "nano": the embedded base on its own problems
    )
    disk_kb: int = 0  # of a file system that the run writes on


@dataclass(frozen=True)
class Caught:
    """`code` and `reason` of the door, `step` at which the run stopped (the steps it recorded), what it printed."""

    code: int
    reason: str
    step: int
    said: str
    checkpoints: list[str] = field(default_factory=list)

    @property
    def warned(self) -> list[str]:
        return re.findall(r"^warning: guard (\w+):", self.said, re.M)


@contextmanager
def hotter(out: Path) -> Iterator[None]:
    """The sampler draws at another temperature than the learner reckons with."""
    real = TransformersSampler.generate

    def generate(self: TransformersSampler, prompts: Any, sampling: Any, done: Any = None) -> Any:
        return real(self, prompts, dataclasses.replace(sampling, temperature=1.2 * sampling.temperature), done)

    with mock.patch.object(TransformersSampler, "generate", generate):
        yield


@contextmanager
def stale_queue(out: Path) -> Iterator[None]:
    """The feed hands out the first step's groups for ever."""
    real, first = InTurn.take, dict[int, Any]()

    def take(self: InTurn, step: int, version: int, clock: Any) -> Any:
        return first.setdefault(0, first.get(0) or real(self, step, version, clock))

    with mock.patch.object(InTurn, "take", take):
        yield


@contextmanager
def filled(out: Path) -> Iterator[None]:
    """All but 2 MB of the run's disk is gone when the second step samples."""
    real = InTurn.take

    def take(self: InTurn, step: int, version: int, clock: Any) -> Any:
        if step == 2:
            (out.parent / "others").write_bytes(bytes(shutil.disk_usage(out).free - 2_000_000))
        return real(self, step, version, clock)

    with mock.patch.object(InTurn, "take", take):
        yield


@contextmanager
def killed_workers(out: Path) -> Iterator[None]:
    """Rollout workers die as soon as the second step samples."""
    real = Pool.generate

    def generate(self: Pool, prompts: Any, sampling: Any, done: Any = None) -> Any:
        if self.version > 0 and sampling.temperature:
            for worker in self.active.values():
                os.kill(pid(worker), signal.SIGKILL)
        return real(self, prompts, sampling, done)

    with mock.patch.object(Pool, "generate", generate):
        yield


@contextmanager
def pays_for_length(out: Path) -> Iterator[None]:
    """A preference model that likes whatever is long."""

    def score(self: Judge, pairs: Any) -> list[float]:
        return [min(3.0, len(response) / 4) for _, response in pairs]

    with mock.patch.object(Judge, "__init__", return_value=None), mock.patch.object(Judge, "score", score):
        yield


FAST, MANY = ("learn.warmup=0", "guard.patience=1"), ("rollout.prompts=8", "rollout.group=8", "rollout.max_tokens=24")
FAULTS = (
    Fault("nan", "a reward that returns nan", "is nan (not_a_number nan)", rewards=PAID.format("not_a_number")),
    Fault("stale", "a queue that hands out old groups", "weights 1 steps old, rollout.max_staleness = 0", plant=stale_queue),
    Fault("mismatch", "the sampler draws at 1.2 times the temperature", "sampler and learner disagree", plant=hotter),
    Fault("masked", "a judge that goes down in the second step", "no verdict", rewards=PAID.format("no_verdict")),
    Fault("disk", "others fill the disk in the second step", "nearly full", ("run.save_every=1",), plant=filled, disk_kb=20_000),
    Fault("truncated", "answers do not fit", "were cut off", ("rollout.max_tokens=4", "guard.truncated=0.9")),
    Fault("zero_variance", "nothing is ever right", "had one reward only", ("rewards.format.weight=0", "guard.zero_variance=0.98")),
    Fault("entropy", "a learning rate of 0.1", "exploration ends", ("learn.lr=0.1", *FAST), PAID.format("one_token")),
    Fault(
        "repetition", "a base that says its last word over and over", "repeats itself within its answer",
        ("rollout.max_tokens=40",), model="parrot",
    ),
    Fault(
        "language", "a reward that pays for Russian words", "words in the script of the question",
        ("learn.lr=0.05", *FAST, "rollout.max_tokens=24"), PAID.format("cyrillic"), model="cyrillic",
    ),
    Fault("format", "a grader that never says right", "only tags are learned", ("learn.lr=0.02", *FAST, *MANY)),
    Fault("kl", "a learning rate of 0.1", "away from its reference", ("learn.lr=0.1", "learn.warmup=0", "algorithm.reference_every=0")),
    Fault(
        "length", "answers four times as long for nothing", "times the usual",
        ("rollout.length_jumps=[[2, 48]]", "rewards.format.weight=0"),
    ),
    Fault(
        "hacking", 'a reward that pays for the word "answer"', "fell from",
        ("learn.lr=4e-3", "algorithm.inner_epochs=2", *FAST, "guard.probe_every=1", "guard.probe_problems=24"),
        PAID.format("the_word_answer"), model="nano",
    ),
    Fault(
        "preference", "a preference model that pays for length", "standard deviations above", ("rollout.max_tokens=24",),
        "[rewards.preference]\nmodel = 'long'\n", pays_for_length,
    ),
    Fault(
        "throughput", "a reward that becomes slow", "tokens/s, usually",
        ("rollout.prompts=2", "rollout.group=2", "guard.throughput=0.5"), PAID.format("slow"),
    ),
    Fault(
        "workers", "kill -9 of the only rollout worker", "killed by SIGKILL", ("rollout.placement=processes",), plant=killed_workers
    ),
)  # fmt: skip


def run(fault: Fault, folder: Path) -> Caught:
    """The fault in a real run of three steps in `folder`. Raises NoPlace."""
    with disk(folder, fault.disk_kb) if fault.disk_kb else nullcontext(folder / "run") as out:
        args = [str(recipe(fault, folder)), f"run.out={out}", "guard.patience=2", "run.steps=3", *QUIET, *fault.overrides]
        with fault.plant(out):
            code, said, reason = through_the_door(args)
        lines = (out / "metrics.jsonl").read_text().splitlines() if (out / "metrics.jsonl").exists() else []
        kept = sorted(p.name for p in (out / "checkpoints").glob("step-*"))
    # A run that is stopped while it makes a step has not recorded it.
    return Caught(code, reason, len(lines) + (fault.guard in ("nan", "workers")), said, kept)


def healthy(folder: Path) -> tuple[int, str, str]:
    """The embedded base on its own problems, under guards that stop at the first bad step and look at held-out problems in each."""
    args = [str(nano_recipe(folder)), f"run.out={folder / 'run'}", "run.steps=3", "guard.patience=1", "guard.throughput=0"]
    return through_the_door([*args, "guard.probe_every=1", "guard.probe_problems=8"])


def through_the_door(args: list[str]) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of recipes.run in this process."""
    said, told = io.StringIO(), io.StringIO()
    with redirect_stdout(said), redirect_stderr(told):
        code = door.main(args)
    return code, said.getvalue(), told.getvalue()


def recipe(fault: Fault, folder: Path) -> Path:
    """The tiny recipe with the fault's rewards and model."""
    (folder / "model").mkdir(parents=True, exist_ok=True)
    if fault.model == "nano":
        path = nano_recipe(folder)
    else:
        path = write_recipe(folder, tiny_model(folder / "model"))
        text = (
            path.read_text()
            .replace("problems = 4", "problems = 0")
            .replace("kl = 0.01\n", "kl = 0.01\n" if fault.guard == "kl" else "")
        )
        path.write_text(text if fault.guard == "kl" else text.replace("reference_every = 2\n", ""))
    if fault.model == "cyrillic":
        tokenizer = tiny_tokenizer(400)
        tokenizer.add_tokens([f" {word}" for word in CYRILLIC])
        tokenizer.save_pretrained(folder / "model")
    if fault.model == "parrot":  # the last token's embedding outweighs all else in the stream, and the head is tied to it
        model = AutoModelForCausalLM.from_pretrained(folder / "model")
        model.get_input_embeddings().weight.data *= 20
        model.save_pretrained(folder / "model")
    if fault.rewards:
        text = path.read_text()
        start, stop = text.index("[rewards.accuracy]"), text.index("[algorithm]")
        path.write_text(text[:start] + fault.rewards + text[stop:])
    return path


def nano_recipe(folder: Path) -> Path:
    """The embedded base on a few of its own problems: the smallest run in which something is learned."""
    path = folder / "nano.toml"
    path.write_text(
        f"name = 'nano'\n[model]\npath = '{NANO}'\n[data]\ntrain = 'nano'\nheldout = 'nano'\nlimit = 400\n[prompt]\nmax_tokens = 320\n"
        "[rollout]\nsampler = 'transformers'\nprompts = 8\ngroup = 4\nmax_tokens = 48\n[rewards.accuracy]\n[rewards.format]\nweight = 0.1\n"
        "[algorithm]\nloss = 'dapo'\n[learn]\nlr = 1e-3\nrow_tokens = 4096\n[evaluate]\nproblems = 24\nsamples = 1\n"
    )
    return path


@contextmanager
def disk(folder: Path, kb: int) -> Iterator[Path]:
    """A folder on a file system of this size. Raises NoPlace where nobody may mount one."""
    mounted = folder / "disk"
    mounted.mkdir(parents=True)
    if os.geteuid() or not shutil.which("mount"):
        raise NoPlace("mounting a small file system needs root")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kb}k", "tmpfs", str(mounted)], capture_output=True).returncode:
        raise NoPlace("this machine lets nobody mount a file system")
    try:
        yield mounted / "run"
    finally:
        subprocess.run(["umount", str(mounted)], check=True)
