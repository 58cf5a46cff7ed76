"""What one rung of a ladder can do: `python -m recipes.rung MODEL OUT --recipe recipes/zero_nano.toml [--general FILE [--judge DIR]] ...`.

The same questions, draws and rules for every rung, whatever it was trained with, so that rungs can be compared: accuracy on the recipe's
held-out questions (greedy, pass@1, pass@k, with 95 % intervals over questions), length, the scripts of the words, and with --general the
share of general requests answered well (--truth names the rule, module:function of (row, text)). With --judge also the mean score that a
preference reward model (rl/judge.py) gives those answers: where it rises and the share answered well does not, it is being hacked.

OUT/eval.json, and OUT/questions.json with every question's verdicts (for paired comparisons) and some answers to read. The same command
gives both again.
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

from eval.estimators import mean_at_k, mean_pass_at_k, student
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
from rl.judge import Judge
from rl.policy import load_tokenizer, resolve
from rl.records import Group, Sampling
from rl.rollout import rollout, scored_rollout
from rl.sampler import Sampler

FILE, QUESTIONS = "eval.json", "questions.json"
DRAWS = 4  # answers to each general request
SHOWN = 2  # questions, and requests, whose answers are kept to be read


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m recipes.rung", description="One rung of a ladder on the same questions.")
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--recipe", required=True, help="whose questions, template, sampler and accuracy rule")
    parser.add_argument("--general", default="", help="a .jsonl of general requests")
    parser.add_argument(
        "--truth", default="recipes.nano.general:right", help="module:function that says whether one was answered well"
    )
    parser.add_argument(
        "--judge", default="", help="the folder of a preference reward model, to judge the general requests' answers"
    )
    parser.add_argument("overrides", nargs="*", help="key.sub=value")
    args = parser.parse_intermixed_args(argv)
    try:
        quiet_libraries()
        config = configs.load(args.recipe, [*args.overrides, f"model.path={args.model}"])
        if args.judge and not args.general:
            raise ValueError("--judge judges answers to general requests: give their file with --general")
        told, questions = judged(config, args.general, args.truth, args.judge)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 2
    Path(args.out).mkdir(parents=True, exist_ok=True)
    write_json(Path(args.out) / QUESTIONS, questions)
    write_json(Path(args.out) / FILE, told)
    say = ", ".join(
        f"{k} {told[k]['value']:.3f} [{told[k]['low']:.3f}, {told[k]['high']:.3f}]" for k in told if _is_figure(told[k])
    )
    print(f"{say}; {told['tokens']:.0f} tokens an answer, {told['language']:.1%} of words in the question's script", flush=True)
    return 0


def judged(
    config: configs.Config, general: str = "", truth: str = "", judge: str = ""
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The trees of eval.json and questions.json. Raises ValueError."""
    begun, e = time.time(), config.evaluate
    tokenizer = load_tokenizer(config.model.path, config.model.trust_remote_code)
    task = load_task(config, tokenizer)
    if not task.heldout:
        raise ValueError("no held-out questions: set data.heldout and evaluate.problems")
    rows = data.load_rows(general, "heldout") if general else []
    asked = data.prompts(rows, config.prompt.template, tokenizer, config.prompt.max_tokens)
    tokens = e.max_tokens or config.rollout.max_tokens
    sampler, parameters = started(config, tokenizer, max(len(p.ids) for p in [*task.heldout, *asked]) + tokens)
    try:
        scorer = InProcess({"accuracy": {k: v for k, v in config.rewards.get("accuracy", {}).items() if k == "mode"}})
        greedy = scored_rollout(sampler, task.heldout, Sampling(1, tokens, 0.0, SEED), scorer)
        drawn = scored_rollout(sampler, task.heldout, Sampling(e.samples, tokens, e.temperature, SEED), scorer)
        told = rollout(sampler, asked, Sampling(DRAWS, tokens, e.temperature, SEED)) if asked else []
    finally:
        sampler.close()
    right: dict[str, list[list[float]]] = {"greedy": _right(greedy), "pass@1": _right(drawn)}
    figures = {name: asdict(mean_at_k(values)) for name, values in right.items()}
    if e.samples > 1:
        figures[f"pass@{e.samples}"] = asdict(mean_pass_at_k(right["pass@1"], e.samples))
    if told:
        rule = named(truth)
        right["general"] = [[float(rule(g.prompt.problem, c.text)) for c in g.completions] for g in told]
        figures["general"] = asdict(mean_at_k(right["general"]))
    if judge:
        right["judge"] = _scores(Judge(judge), told)
        figures["judge"] = asdict(student([sum(scores) / len(scores) for scores in right["judge"]]))
    return {
        "model": config.model.path, "parameters": parameters, "problems": len(task.heldout), "requests": len(asked),
        "samples": e.samples, **figures, **_texts([*drawn, *told]), "seconds": time.time() - begun,
    }, right | {"shown": _shown(greedy) + _shown(told)}  # fmt: skip


def started(config: configs.Config, tokenizer: Any, context: int) -> tuple[Sampler, int]:
    """The recipe's engine with the model's own weights, in this process, and how many parameters it has."""
    m, r = config.model, config.rollout
    with torch.device("meta"):  # its sizes alone are asked for
        sizes = AutoConfig.from_pretrained(resolve(m.path), trust_remote_code=m.trust_remote_code)
        model = AutoModelForCausalLM.from_config(sizes, trust_remote_code=m.trust_remote_code)
    engine = {"enable_prefix_caching": False, **r.engine} if r.sampler == "vllm" else dict(r.engine)
    config = replace(config, rollout=replace(r, engine=engine, placement="colocated", workers=1, max_staleness=0))
    sampler = make_sampler(config, tokenizer, torch.device("cuda" if torch.cuda.is_available() else "cpu"), context, model)
    return sampler, sum(p.numel() for p in model.parameters())


def _right(groups: Sequence[Group]) -> list[list[float]]:
    return [[float(s.parts.get("accuracy") == 1.0) for s in g.scores] for g in groups]


def _scores(judge: Judge, groups: Sequence[Group]) -> list[list[float]]:
    """Of each answer; one that is longer than the judge reads gets the worst there is, so that no rung gains by rambling."""
    found = iter(judge.score([(g.prompt.problem["question"], c.text) for g in groups for c in g.completions]))
    return [[-judge.bound if score is None else score for _, score in zip(g.completions, found, strict=False)] for g in groups]


def _shown(groups: Sequence[Group]) -> list[dict[str, str]]:
    """The first answers to questions spread evenly over the set."""
    picked = groups[:: max(1, len(groups) // SHOWN)][:SHOWN]
    return [{"question": g.prompt.problem["question"], "answer": g.completions[0].text} for g in picked]


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
