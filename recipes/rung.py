"""What one rung of a ladder can do: `python -m recipes.rung MODEL OUT --recipe recipes/zero_nano.toml [--general FILE] key.sub=value ...`.

The same questions, draws and rules for every rung, whatever it was trained with, so that rungs can be compared: accuracy on the recipe's
held-out questions (greedy, pass@1, pass@k, with 95 % intervals over questions), length, the scripts of the words, and with --general the
share of general requests answered well (--truth names the rule, module:function of (row, text)). OUT/eval.json; the same command gives it
again. A rung is judged by rules alone, never by the reward model that may have trained it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from eval.estimators import mean_at_k, mean_pass_at_k
from eval.heldout import SEED
from recipes.engines import make_sampler
from recipes.result import write_json
from recipes.run import quiet_libraries
from recipes.street import load_task
from rewards.language import scripts, share
from rewards.preference import named
from rewards.scorer import InProcess
from rl import config as configs
from rl import data
from rl.policy import load_tokenizer, resolve
from rl.records import Group, Sampling
from rl.rollout import rollout, scored_rollout

FILE = "eval.json"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m recipes.rung", description="One rung of a ladder on the same questions.")
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--recipe", required=True, help="whose questions, template, sampler and accuracy rule")
    parser.add_argument("--general", default="", help="a .jsonl of general requests")
    parser.add_argument(
        "--truth", default="recipes.nano.general:right", help="module:function that says whether one was answered well"
    )
    parser.add_argument("overrides", nargs="*", help="key.sub=value")
    args = parser.parse_intermixed_args(argv)
    try:
        quiet_libraries()
        config = configs.load(args.recipe, [*args.overrides, f"model.path={args.model}"])
        told = judged(config, args.general, args.truth)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 2
    Path(args.out).mkdir(parents=True, exist_ok=True)
    write_json(Path(args.out) / FILE, told)
    say = ", ".join(
        f"{k} {told[k]['value']:.3f} [{told[k]['low']:.3f}, {told[k]['high']:.3f}]" for k in told if _is_figure(told[k])
    )
    print(f"{say}; {told['tokens']:.0f} tokens an answer, {told['language']:.1%} of words in the question's script", flush=True)
    return 0


def judged(config: configs.Config, general: str = "", truth: str = "") -> dict[str, Any]:
    """The tree of eval.json. Raises ValueError."""
    begun, e, r = time.time(), config.evaluate, config.rollout
    tokenizer = load_tokenizer(config.model.path, config.model.trust_remote_code)
    task = load_task(config, tokenizer)
    if not task.heldout:
        raise ValueError("no held-out questions: set data.heldout and evaluate.problems")
    rows = data.load_rows(general, "heldout") if general else []
    asked = data.prompts(rows, config.prompt.template, tokenizer, config.prompt.max_tokens)
    with torch.device("meta"):  # its sizes alone are asked for
        sizes = AutoConfig.from_pretrained(resolve(config.model.path), trust_remote_code=config.model.trust_remote_code)
        model = AutoModelForCausalLM.from_config(sizes, trust_remote_code=config.model.trust_remote_code)
    tokens = e.max_tokens or r.max_tokens
    context = max(len(p.ids) for p in [*task.heldout, *asked]) + tokens
    engine = {"enable_prefix_caching": False, **r.engine} if r.sampler == "vllm" else dict(r.engine)
    config = replace(config, rollout=replace(r, engine=engine, placement="colocated", workers=1, max_staleness=0))
    sampler = make_sampler(config, tokenizer, torch.device("cuda" if torch.cuda.is_available() else "cpu"), context, model)
    try:
        scorer = InProcess({"accuracy": {k: v for k, v in config.rewards.get("accuracy", {}).items() if k == "mode"}})
        greedy = scored_rollout(sampler, task.heldout, Sampling(1, tokens, 0.0, SEED), scorer)
        drawn = scored_rollout(sampler, task.heldout, Sampling(e.samples, tokens, e.temperature, SEED), scorer)
        told = rollout(sampler, asked, Sampling(4, tokens, e.temperature, SEED)) if asked else []
    finally:
        sampler.close()
    rule = named(truth) if asked else None
    well = [[float(rule(g.prompt.problem, c.text)) for c in g.completions] for g in told] if rule else []
    figures = {"greedy": asdict(mean_at_k(_right(greedy))), "pass@1": asdict(mean_at_k(_right(drawn)))}
    if e.samples > 1:
        figures[f"pass@{e.samples}"] = asdict(mean_pass_at_k(_right(drawn), e.samples))
    return {
        "model": config.model.path, "parameters": sum(p.numel() for p in model.parameters()), "problems": len(task.heldout),
        "samples": e.samples, **figures, **({"general": asdict(mean_at_k(well))} if well else {}), **_texts([*drawn, *told]),
        "seconds": time.time() - begun,
    }  # fmt: skip


def _right(groups: Sequence[Group]) -> list[list[float]]:
    return [[float(s.parts.get("accuracy") == 1.0) for s in g.scores] for g in groups]


def _texts(groups: Sequence[Group]) -> dict[str, Any]:
    answers = [c for g in groups for c in g.completions]
    found = Counter(script for c in answers for script in scripts(c.text))
    return {
        "tokens": sum(c.tokens for c in answers) / len(answers),
        "truncated": sum(c.truncated for c in answers) / len(answers),
        "language": sum(share(c.text, "en") for c in answers) / len(answers),
        "scripts": {name: n / max(1, found.total()) for name, n in found.most_common()},
    }


def _is_figure(value: Any) -> bool:
    return isinstance(value, dict) and "low" in value


if __name__ == "__main__":
    sys.exit(main())
