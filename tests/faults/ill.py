"""One planted fault for each line of the doctor: what is broken in a tiny recipe, and what its line must say (guards: planted.py)."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes import doctor, doctor_checks
from rl.policy import ROOT
from tests.faults import planted
from tests.faults.planted import PAID
from tests.tiny_run import tiny_model, tiny_tokenizer, write_recipe

LINES = ("versions", "memory", "disk", "template", "rewards", "golds", "sandbox", "agreement", "dry run")
CODE = {"id": "add", "question": "Write add(a, b).", "kind": "code", "asserts": ["assert add(1, 2) == 3"]}


@dataclass(frozen=True)
class Ill:
    """`line` must fail, with `told` in it. `make` changes the recipe's folder; `plant` holds while the doctor looks."""

    line: str
    what: str
    told: str
    overrides: tuple[str, ...] = ()
    rewards: str = ""
    make: Callable[[Path], Any] = lambda folder: None
    plant: Callable[[Path], AbstractContextManager[Any]] = lambda folder: nullcontext()
    disk_kb: int = 0


@contextmanager
def another_transformers(folder: Path) -> Iterator[None]:
    """An installation in which one package was replaced by hand."""
    info = folder / "site" / "transformers-4.30.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 4.30.0\n")
    sys.path.insert(0, str(folder / "site"))
    doctor_checks.versions.cache_clear()
    try:
        yield
    finally:
        sys.path.remove(str(folder / "site"))
        doctor_checks.versions.cache_clear()


def of_67b(folder: Path) -> None:
    """The tiny model's folder says that it is one of 67 billion weights."""
    shape = json.loads((ROOT / "recipes" / "shapes" / "deepseek-llm-67b.json").read_text())
    (folder / "model" / "config.json").write_text(json.dumps(shape | {"architectures": ["LlamaForCausalLM"]}))


def two_bos(folder: Path) -> None:
    """A chat template that brings a BOS, over a tokenizer that adds one."""
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.chat_template = "{{ bos_token }}{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder / "model")


def programs(folder: Path) -> None:
    for name in ("train", "heldout"):
        (folder / f"{name}.jsonl").write_text(json.dumps(CODE | {"id": name, "question": f"{CODE['question']} {name}"}) + "\n")


ILLS = (
    Ill("versions", "transformers replaced by 4.30", "wants transformers", plant=another_transformers),
    Ill("memory", "a model of 67 billion weights", "this run does not fit", ("guard.disk=0",), make=of_67b),
    Ill("disk", "a disk too small for the run", "the run needs", disk_kb=6000),
    Ill("template", "a chat template with a second BOS", "begins with 2 BOS tokens", ("prompt.template=chat",), make=two_bos),
    Ill(
        "rewards", "a reward that hangs", "no verdict: infrastructure", rewards=PAID.format("for_ever") + "wall_s = 0.3\n"
    ),
    Ill("golds", "a reward with the wrong sign", "earns less than a wrong one", ("rewards.accuracy.weight=-1",)),
    Ill(
        "sandbox", "a sandbox that contains nothing", "one that opens a socket went through",
        rewards="[rewards.code]\ntier = 'unsafe'\n[reward_workers]\nprocesses = 1\n", make=programs,
    ),
    Ill("agreement", "the sampler draws at 1.2 times the temperature", "nats (allowed 1e-05)", plant=planted.hotter),
    Ill("dry run", "a learning rate of 1e30", "guard nan: the gradient of update", ("learn.lr=1e30", "learn.warmup=0")),
)  # fmt: skip


def examine(ill: Ill | None, folder: Path) -> tuple[int, str]:
    """(exit code, what the doctor printed) for the tiny recipe with this fault; None: without any. Raises planted.NoPlace."""
    path = write_recipe(folder, tiny_model(folder / "model"))
    path.write_text(path.read_text().replace("kl = 0.01\n", "").replace("reference_every = 2\n", ""))
    args = [str(path), *planted.QUIET]
    if ill is None:
        return looked([*args, f"run.out={folder / 'run'}"])
    if ill.rewards:
        text = path.read_text()
        start, stop = text.index("[rewards.accuracy]"), text.index("[algorithm]")
        path.write_text(text[:start] + ill.rewards + text[stop:])
    ill.make(folder)
    with planted.disk(folder, ill.disk_kb) if ill.disk_kb else nullcontext(folder / "run") as out, ill.plant(folder):
        return looked([*args, f"run.out={out}", *ill.overrides])


def looked(args: list[str]) -> tuple[int, str]:
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = doctor.main(args)
    return code, said.getvalue()
