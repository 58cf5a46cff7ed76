"""Teacher -> traces to learn from: `python -m recipes.distill recipes/traces_X.toml key.sub=value ... [--dry-run]`.

Samples (or reads files of traces), filters, decontaminates against the test sets, and writes into the folder:
  traces/*.jsonl       what the teacher wrote, a file for so many questions
  kept.jsonl           what is left, for recipes/sft.py
  dropped.jsonl        the rest, each with the filter that dropped it and the reason
  statistics.json      every count, and the overlap with the test sets before and after
  card.html            both to read
Killed and started again with the same command it goes on, and ends with the same files. Exit code 2: the input cannot be used.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from distill import card, decontaminate, filter, formats, generate
from distill import config as configs
from distill.config import Traces
from distill.traces import Trace, to_json, write
from eval import tasks
from eval.contamination import questions_of
from eval.provenance import weights_mark
from recipes import folder as folders
from recipes.engines import make_sampler
from recipes.run import quiet_libraries
from recipes.street import SOURCES
from rewards.score import Score, Text
from rewards.workers import RewardPool
from rl import config as rl_configs
from rl import data
from rl.policy import load_tokenizer, resolve
from rl.records import Sampling

KEPT, DROPPED, STATISTICS = "kept.jsonl", "dropped.jsonl", "statistics.json"
CODE = {"code": {"weight": 1.0}}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m recipes.distill", description="Traces of a teacher, to learn from.")
    parser.add_argument("recipe", help="a TOML file, e.g. recipes/traces_nano.toml")
    parser.add_argument("overrides", nargs="*", help="key.sub=value")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and stop")
    args = parser.parse_intermixed_args(argv)
    try:
        config = configs.load(Traces, args.recipe, args.overrides)
        if args.dry_run:
            print(json.dumps(configs.to_dict(config), indent=1))
            return 0
        folder = Path(config.run.out or f"runs/{config.name}-seed{config.run.seed}")
        with folders.claimed(folder):
            return run(config, folder)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr, flush=True)
        return 130


def run(config: Traces, folder: Path) -> int:
    """All of it, in a folder that is ours."""
    quiet_libraries()
    tests = test_sets(config)  # first: a data set that cannot be found is said before anything is sampled
    traces = list(apart(read(config) if config.data.traces else sample(config, folder)))
    print(f"{len(traces):,} traces of {len({t.problem for t in traces}):,} questions", flush=True)
    with judging(config, traces) as judge:
        sieved, dropped = filter.sieve(traces, config.filter, judge)
    _some_of(sieved, traces, dropped.counts)
    clean = decontaminate.decontaminate(sieved, tests)
    counts = {**dropped.counts, **clean.dropped.counts}
    _some_of(clean.kept, traces, counts)
    write(folder / KEPT, map(to_json, clean.kept))
    gone = [*dropped.traces, *clean.dropped.traces]
    write(
        folder / DROPPED,
        (json.dumps({"dropped": by, "reason": why} | json.loads(to_json(t)), ensure_ascii=False) for t, by, why in gone),
    )
    told = card.statistics(config.name, traces, clean, dropped)
    write(folder / STATISTICS, [json.dumps(told, indent=1, ensure_ascii=False)])
    page = card.write_card(folder / "card.html", told, clean.kept, gone)
    print("dropped  " + (", ".join(f"{n:,} {name}" for name, n in counts.items()) or "none"), flush=True)
    print(f"kept     {len(clean.kept):,} of {len(traces):,}: {folder / KEPT}\ncard     {page}", flush=True)
    return 0


def _some_of(left: Sequence[Trace], traces: Sequence[Trace], counts: Mapping[str, int]) -> None:
    if not left:
        raise ValueError(f"no trace is left of {len(traces):,}: dropped {dict(counts)}; see the [filter] table and data.tests")


def apart(traces: Iterable[Trace]) -> Iterator[Trace]:
    """The traces; those of a question whose id was another question's before get a number before both of their ids, from 2 on.

    Files number their rows each from 0, and the filters judge the traces of one id together.
    """
    before: dict[tuple[str, str], str] = {}  # of an id and its question
    taken, again = set[str](), Counter[str]()
    for trace in traces:
        key = trace.problem, trace.question
        if key not in before:
            before[key] = ""
            while before[key] + trace.problem in taken:
                again[trace.problem] += 1
                before[key] = f"{again[trace.problem] + 1}/"
            taken.add(before[key] + trace.problem)
        number = before[key]
        yield replace(trace, id=number + trace.id, problem=number + trace.problem) if number else trace


def read(config: Traces) -> Iterator[Trace]:
    """Given files, one after the other."""
    for path in config.data.traces:
        found = list(formats.read(path))
        if not found:
            raise ValueError(f"{path}: no traces")
        yield from found[: config.data.limit or None]


def sample(config: Traces, folder: Path) -> Iterator[Trace]:
    """The teacher's answers, made or found in the folder."""
    m, r = config.model, config.rollout
    tokenizer = load_tokenizer(m.path, m.trust_remote_code)
    rows = data.load_rows(config.data.train, "train", config.data.folder, SOURCES)[: config.data.limit or None]
    prompts = data.prompts(rows, config.prompt.template, tokenizer, config.prompt.max_tokens)
    sampling = Sampling(r.group, r.max_tokens, r.temperature, config.run.seed, r.top_p, r.top_k)
    files = generate.shards(folder, len(prompts), config.run.shard)
    options = {  # all that decides what the teacher draws: other weights may lie under the same path by now
        "name": m.path, "weights": weights_mark(m.path), "engine": r.sampler, "options": dict(r.engine), "stop_loops": r.stop_loops,
    }  # fmt: skip
    made = sum(path.exists() for path in files)
    if made:  # refused before an engine is started for nothing
        generate.claim(folder, generate.settings(prompts, sampling, config.run.shard, options))
    else:  # those of an engine that made nothing
        (folder / generate.SETTINGS).unlink(missing_ok=True)
    if made < len(files):
        sampler = teacher(config, tokenizer, max(len(p.ids) for p in prompts) + r.max_tokens)
        try:
            generate.generate(
                sampler,
                prompts,
                sampling,
                folder,
                shard=config.run.shard,
                teacher=options,
                say=lambda line: print(line, flush=True),
            )
        finally:
            sampler.close()
    yield from generate.load(files)


def teacher(config: Traces, tokenizer: Any, context: int) -> Any:
    """The recipe's sampler. Without a prefix cache, so that what a shard draws does not depend on what was drawn before it."""
    r = config.rollout
    engine = {"enable_prefix_caching": False, **r.engine} if r.sampler == "vllm" else dict(r.engine)
    base = rl_configs.Config(model=config.model, rollout=replace(r, engine=engine))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trust = config.model.trust_remote_code
    with torch.device("meta"):  # its sizes alone are asked for: nothing is trained here
        sizes = AutoConfig.from_pretrained(resolve(config.model.path), trust_remote_code=trust)
        model = AutoModelForCausalLM.from_config(sizes, trust_remote_code=trust)
    return make_sampler(base, tokenizer, device, context, model)


def test_sets(config: Traces) -> dict[str, list[tuple[str, str]]]:
    """(id, question) of each test set. Raises ValueError for one that cannot be read."""
    names = config.data.tests or tuple(n for n in tasks.TASKS if n not in ("gsm8k_8shot", "mmlu_cot"))  # the same questions
    return questions_of(names, config.data.folder, SOURCES)


@contextmanager
def judging(config: Traces, traces: Sequence[Trace]) -> Iterator[filter.Judge]:
    """The verifier: rules in this process, programs in a pool of sandboxes where there are any."""
    if not config.filter.verify or not any(t.kind == "code" for t in traces):
        yield filter.right
        return
    w = config.reward_workers
    pool = RewardPool(CODE, max(1, w.processes), w.wall_s, w.memory_mb)

    def judge(trace: Trace) -> Score:
        if trace.kind != "code":
            return filter.right(trace)
        return pool.submit(Text(trace.text, trace.tokens, trace.truncated), trace.row).result()

    try:
        yield judge
    finally:
        pool.close()


if __name__ == "__main__":
    sys.exit(main())
