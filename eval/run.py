"""The door: `python -m eval.run --model M --tasks gsm8k,mmlu [--k 4] [--out DIR] [--data DIR]`, and without a model
`python -m eval.run --task gsm8k --completions FILE.jsonl [--field NAME]`, `python -m eval.run --task humaneval --audit`.

The same command goes on where a killed evaluation was. Tasks whose questions are generated come from `python -m recipes.evaluate`.
Exit code 0: done. 2: the input cannot be used, said in one line. 1: it stopped itself, said in one line with the reason.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is imported

from eval import report, tasks
from eval.answer import CodeGrader
from eval.contamination import Contamination, asked, contamination, enter, markdown, training_texts
from eval.evaluate import Options, evaluate, tell
from eval.regrade import regrade
from rewards.score import Text
from rl.data import Row, Source
from rl.rollout import RewardFailed

Sources = Mapping[str, Source]


def main(argv: Sequence[str] | None = None, sources: Sources | None = None) -> int:
    """`sources`: generated problem sets by name, handed in by what may import them (recipes/evaluate.py)."""
    args = _parser().parse_args(argv)
    try:
        return _run(args, sources)
    except (ValueError, OSError) as error:
        return _say_why(2, error)
    except RewardFailed as error:
        return _say_why(1, f"stopped: {error}")
    except KeyboardInterrupt:
        return _say_why(130, "interrupted; the same command goes on")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m eval.run", description="Evaluate a model, or grade stored completions.")
    parser.add_argument(
        "--tasks", "--task", required=True, help=f"comma-separated: {', '.join(tasks.TASKS)}; or files of problems"
    )
    parser.add_argument("--model", default="", help="folder or hub name")
    parser.add_argument("--completions", default="", metavar="FILE", help="grade these stored answers instead of sampling")
    parser.add_argument("--field", default="", help="the column of FILE with the completion, or a list of them")
    parser.add_argument("--audit", action="store_true", help="check the tasks' golds, programs in the sandbox, and stop")
    parser.add_argument("--out", default="", help="folder of the evaluation; empty: runs/eval-MODEL")
    parser.add_argument(
        "--data", default=os.environ.get("GRPO_DATA", ""), help="folder of the data sets; empty: $GRPO_DATA, else the hub"
    )
    parser.add_argument(
        "--train", nargs="+", default=[], help="what was trained on: overlap with each test set is listed before its score"
    )
    parser.add_argument("--limit", type=int, default=0, help="an even draw of so many questions a task; 0: all")
    parser.add_argument("--k", type=int, default=1, help="samples a question")
    parser.add_argument("--temperature", type=float, default=None, help="0 is greedy; default: 0 for one sample, else 1")
    parser.add_argument("--top-p", type=float, default=1.0, help="nucleus; 1: all tokens")
    parser.add_argument("--max-tokens", type=int, default=0, help="of an answer; 0: the task's own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--template", choices=["r1_zero", "chat", "plain"], default="", help="default: r1_zero; not for few-shot tasks"
    )
    parser.add_argument("--engine", choices=["vllm", "transformers"], default="vllm", help="what samples")
    parser.add_argument("--trust-remote-code", action="store_true")
    return parser


def _run(args: argparse.Namespace, sources: Sources | None) -> int:
    names = list(dict.fromkeys(name.strip() for name in args.tasks.split(",") if name.strip()))
    if not names:
        raise ValueError(f"--tasks is empty: name some of {', '.join(tasks.TASKS)}, or a file of problems")
    if bool(args.model) + bool(args.completions) + args.audit != 1:
        raise ValueError(
            "give one of --model (sample and grade), --completions (grade stored answers) and --audit (check the golds)"
        )
    options = _options(args)
    if args.completions and len(names) != 1:
        raise ValueError(f"--completions are answers to one task: name one, not {len(names)}")
    rows = {name: tasks.load(name, args.data, sources, args.limit) for name in names}
    if args.audit:
        return max(audit(name, rows[name]) for name in names)
    out = Path(args.out or f"runs/eval-{_name(args.model or args.completions)}")
    overlap = _overlap(args.train, rows, sources) if args.train else []
    if args.completions:
        tell(tasks.short(names[0]), regrade(names[0], args.completions, args.field, rows[names[0]], out))
    else:
        evaluate(rows, options, out)
    if overlap:
        enter(out, overlap, args.train)
    print(f"evaluation {out}\nreport     {report.write(out)}", flush=True)
    return 0


def _overlap(train: Sequence[str], rows: Mapping[str, Sequence[Row]], sources: Sources | None) -> list[Contamination]:
    """Which questions stand in the training sets; said before any score."""
    found = contamination((text for name in train for text in training_texts(name, sources)), asked(rows))
    print(markdown(found, shown=3), flush=True)
    return found


def _options(args: argparse.Namespace) -> Options:
    for name, least in (("k", 1), ("limit", 0), ("max_tokens", 0), ("seed", 0)):
        if getattr(args, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: must be at least {least}")
    temperature = args.temperature if args.temperature is not None else float(args.k > 1)
    if temperature < 0 or not 0 < args.top_p <= 1:
        raise ValueError(
            f"--temperature {temperature} --top-p {args.top_p}: temperature is 0 or more, top-p above 0 and up to 1"
        )
    if args.k > 1 and temperature == 0:
        raise ValueError(
            f"--k {args.k} with temperature 0 would draw the same answer {args.k} times: set --temperature, or --k 1"
        )
    return Options(
        args.model, args.k, temperature, args.top_p, args.max_tokens, args.seed, args.template, args.engine, args.trust_remote_code
    )  # fmt: skip


def _name(path: str) -> str:
    """`zero_nano-seed0-final` for runs/zero_nano-seed0/final, `answers` for answers.jsonl."""
    parts = [p for p in Path(path).parts[-2:] if p not in ("/", ".", "..")]
    return "-".join(parts).removesuffix(".jsonl")


def audit(name: str, rows: Sequence[Row]) -> int:
    """Golds were checked by the load; of code rows every program is run against its tests. 0: all are right."""
    programs = [row for row in rows if row["kind"] == "code"]
    wrong: list[str] = []
    if programs:
        grader = CodeGrader()
        try:
            pending = [(row, grader.submit(Text(f"```python\n{row['program']}\n```"), row)) for row in programs]
            wrong = [f"{row['id']}: {score.reason}" for row, p in pending if (score := p.result()).value != 1.0]
        finally:
            grader.close()
    print(f"{name}: {len(rows) - len(wrong)} of {len(rows)} golds are right against themselves", flush=True)
    for line in wrong:
        print(f"  {line}")
    return 2 if wrong else 0


def _say_why(code: int, reason: object) -> int:
    print(f"error: {' '.join(str(reason).split())}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
