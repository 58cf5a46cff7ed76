"""Do our figures agree with lm-evaluation-harness 0.4.13, question by question? `python -m bench.lm_eval_agreement --data DIR`.

Both answer the same questions with the same small model on the CPU in float32:
  mmlu           5-shot: the prompt's text, the log-likelihood of each letter, the letter chosen
  gsm8k_8shot    greedy: the prompt's text, the answer's text, right or wrong (what follows #### there, our strict extraction)
  gsm8k          greedy under the training template: the same, the harness reading "<answer>" or "The answer is", we leniently
and then the harness's stored answers are graded by eval/regrade.py (`eval.run --completions`).

The harness lives in an environment of its own: `--python` names one that has it, else one is made below a temporary folder.
Its tasks are written as YAML files beside copies of the questions, so nothing is fetched from a hub.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from eval import tasks
from eval.evaluate import Options, evaluate
from eval.records import Answered, read_samples
from eval.regrade import regrade
from eval.tasks import LETTERS
from rl.data import read_file
from rl.prompts import R1_ZERO

VERSION = "0.4.13"
GREEDY = {"do_sample": False, "temperature": 0.0, "max_gen_toks": 256}
CLEAN = {"ignore_case": True, "ignore_punctuation": False, "regexes_to_ignore": [",", r"\$", r"(?s).*#### ", r"\.$"]}


def environment(folder: Path) -> str:
    """A fresh environment with the harness and this one's torch; returns its Python."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin/python")
    links = [option for place in os.environ.get("PIP_FIND_LINKS", "").split() for option in ("--find-links", place)]
    pins = Path(__file__).resolve().parent.parent / "requirements/cpu.txt"
    command = [sys.executable, "-m", "uv", "pip", "install", "-q", "--python", python, *links, "--constraint", str(pins)]
    subprocess.run([*command, f"lm_eval=={VERSION}", "torch", "transformers", "accelerate"], check=True)
    return python


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def task_file(folder: Path, name: str, files: dict[str, str], fields: dict[str, Any]) -> None:
    """YAML is a superset of JSON."""
    tree = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test", **fields}
    (folder / f"{name}.yaml").write_text(json.dumps(tree, indent=1), encoding="utf-8")


def mmlu_tasks(folder: Path, data: str, rows: list[dict[str, Any]]) -> list[str]:
    """One task a subject, as the harness's own `mmlu` has it."""
    made = []
    for subject in dict.fromkeys(row["subject"] for row in rows):
        raw = {}
        for part in ("dev", "test"):
            with open(Path(data) / f"mmlu/{part}/{subject}_{part}.csv", newline="", encoding="utf-8") as lines:
                raw[part] = [
                    {"question": r["question"], "choices": [r[f"choice{i}"] for i in range(4)], "answer": int(r["answer"])}
                    for r in csv.DictReader(lines)
                ]
        asked = [raw["test"][int(row["id"].rpartition("/")[2])] for row in rows if row["subject"] == subject]
        files = {
            "dev": write_jsonl(folder / f"{subject}_dev.jsonl", raw["dev"]),
            "test": write_jsonl(folder / f"{subject}_test.jsonl", asked),
        }
        about = subject.replace("_", " ")
        task_file(
            folder, f"ours_mmlu_{subject}", files,
            {
                "fewshot_split": "dev", "fewshot_config": {"sampler": "first_n"}, "num_fewshot": 5, "output_type": "multiple_choice",
                "description": f"The following are multiple choice questions (with answers) about {about}.\n\n",
                "doc_to_text": "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:",
                "doc_to_choice": list(LETTERS), "doc_to_target": "answer",
                "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
            },
        )  # fmt: skip
        made.append(f"ours_mmlu_{subject}")
    return made


def gsm8k_tasks(folder: Path, data: str, rows: list[dict[str, Any]]) -> list[str]:
    """The harness's `gsm8k` with the first 8 training rows as examples, and the training template with its own reading."""
    raw = read_file(Path(data) / "gsm8k/test.jsonl")
    asked = [raw[int(row["id"].rpartition("/")[2])] for row in rows]
    files = {"test": write_jsonl(folder / "gsm8k_test.jsonl", asked), "train": str(Path(data).resolve() / "gsm8k/train.jsonl")}
    metric = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True, **CLEAN}
    shared = {"output_type": "generate_until", "doc_to_target": "{{answer}}", "metric_list": [metric]}

    def reading(pattern: str) -> list[dict[str, Any]]:
        last = {"function": "regex", "regex_pattern": pattern, "group_select": -1}
        return [{"name": "read", "filter": [last, {"function": "take_first"}]}]

    task_file(
        folder, "ours_gsm8k_8shot", files,
        {
            **shared, "fewshot_split": "train", "num_fewshot": 8, "fewshot_config": {"sampler": "first_n"},
            "doc_to_text": "Question: {{question}}\nAnswer:", "filter_list": reading(r"#### (\-?[0-9\.\,]+)"),
            "generation_kwargs": {"until": ["Question:", "</s>", "<|im_end|>"], **GREEDY},
        },
    )  # fmt: skip
    before, after = R1_ZERO.split("{question}.")
    task_file(
        folder, "ours_gsm8k", files,
        {
            **shared, "num_fewshot": 0, "filter_list": reading(r"(?:<answer>\s*|The answer is )(\-?[0-9\.\,]+)"),
            "doc_to_text": before + "{{question.strip()}}" + "{{'' if question.strip()[-1] in '.?!' else '.'}}" + after,
            "generation_kwargs": {"until": ["<|endoftext|>"], **GREEDY},
        },
    )  # fmt: skip
    return ["ours_gsm8k_8shot", "ours_gsm8k"]


def harness(python: str, model: str, folder: Path, names: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Its logged samples by task, in the order of the questions."""
    out = folder / "out"
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "cache"), "PYTHONPATH": ""}
    command = [
        python,
        "-m",
        "lm_eval",
        "run",
        "--model",
        "hf",
        "--model_args",
        f"pretrained={Path(model).resolve()},dtype=float32",
    ]
    command += ["--tasks", ",".join(names), "--include_path", str(folder), "--output_path", str(out), "--log_samples"]
    subprocess.run([*command, "--batch_size", "8", "--device", "cpu"], check=True, env={**os.environ, **offline}, cwd=folder)
    found = {}
    for name in names:
        (path,) = out.rglob(f"samples_{name}_2*.jsonl")  # then the date
        found[name] = sorted(read_file(path), key=lambda sample: sample["doc_id"])
    return found


def show(name: str, agree: int, of: int, detail: str = "") -> None:
    print(f"{name:<58} {agree}/{of}{detail}", flush=True)


def compare_mmlu(rows: list[dict[str, Any]], ours: list[Answered], theirs: list[dict[str, Any]]) -> None:
    prompts, letters, accuracy, worst = 0, 0, [0.0, 0.0], 0.0
    for row, a, sample in zip(rows, ours, theirs, strict=True):
        prompts += sample["arguments"]["gen_args_0"]["arg_0"] == row["plain"]
        values = [float(r[0] if isinstance(r, list) else r) for r in _flat(sample["resps"])]
        worst = max(worst, *(abs(x - y) for x, y in zip(values, a.choices, strict=True)))
        letters += LETTERS[max(range(4), key=values.__getitem__)] == a.samples[0].text
        accuracy[0] += a.samples[0].lenient or 0.0
        accuracy[1] += float(sample["acc"])
    show("mmlu: prompts, character by character", prompts, len(ours))
    show(
        "mmlu: letters chosen",
        letters,
        len(ours),
        f"; accuracy here {accuracy[0] / len(ours):.6f}, there {accuracy[1] / len(ours):.6f}",
    )
    print(f"mmlu: largest difference of a log-likelihood               {worst:.2e} nats")


def _flat(resps: list[Any]) -> list[Any]:
    """One (log-likelihood, is greedy) a choice."""
    return [r[0] if len(r) == 1 else r for r in resps]


def compare_gsm8k(name: str, mode: str, prompts: list[str], ours: list[Answered], theirs: list[dict[str, Any]]) -> None:
    same_prompt = same_text = same_verdict = right = 0
    for prompt, a, sample in zip(prompts, ours, theirs, strict=True):
        mine = a.samples[0]
        same_prompt += sample["arguments"]["gen_args_0"]["arg_0"] == prompt
        same_text += sample["resps"][0][0] == mine.text
        same_verdict += float(sample["exact_match"]) == getattr(mine, mode)
        right += getattr(mine, mode) == 1.0
    show(f"{name}: prompts, character by character", same_prompt, len(ours))
    show(f"{name}: answers, character by character", same_text, len(ours))
    show(f"{name}: right or wrong", same_verdict, len(ours), f" ({right} right)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("GRPO_DATA", ""), help="folder with gsm8k/ and mmlu/")
    parser.add_argument("--model", default="recipes/nano/base")
    parser.add_argument("--python", default="", help=f"a Python that has lm_eval {VERSION}; empty: make an environment")
    parser.add_argument("--mmlu", type=int, default=400, help="questions, an even draw; 0: all")
    parser.add_argument("--gsm8k", type=int, default=200)
    args = parser.parse_args()
    if not args.data:
        parser.error("--data (or $GRPO_DATA): the folder that holds the data sets")
    with tempfile.TemporaryDirectory(prefix="lm-eval-") as temporary:
        folder = Path(temporary)
        python = args.python or environment(folder / "venv")
        limits = {"mmlu": args.mmlu, "gsm8k_8shot": args.gsm8k, "gsm8k": args.gsm8k}
        rows = {name: tasks.load(name, args.data, limit=limit) for name, limit in limits.items()}
        work = folder / "tasks"
        work.mkdir()
        names = mmlu_tasks(work, args.data, rows["mmlu"]) + gsm8k_tasks(work, args.data, rows["gsm8k"])
        found = harness(python, args.model, work, names)
        evaluate(rows, Options(args.model, max_tokens=256), folder / "ours")
        ours = {name: read_samples(folder / "ours", name) for name in rows}
        print()
        compare_mmlu(rows["mmlu"], ours["mmlu"], [s for name in names if name.startswith("ours_mmlu") for s in found[name]])
        compare_gsm8k(
            "gsm8k_8shot",
            "strict",
            [row["plain"] for row in rows["gsm8k_8shot"]],
            ours["gsm8k_8shot"],
            found["ours_gsm8k_8shot"],
        )
        zero = [_r1_zero(row["question"]) for row in rows["gsm8k"]]
        compare_gsm8k("gsm8k", "lenient", zero, ours["gsm8k"], found["ours_gsm8k"])
        stored = write_jsonl(
            folder / "stored.jsonl", [{"doc_id": s["doc_id"], "resps": s["resps"]} for s in found["ours_gsm8k"]]
        )
        again = regrade("gsm8k", stored, "", rows["gsm8k"], folder / "regraded")
        same = sum(a.samples[0].lenient == b.samples[0].lenient for a, b in zip(again, ours["gsm8k"], strict=True))
        show("gsm8k: its stored answers graded by eval.regrade", same, len(again))


def _r1_zero(question: str) -> str:
    stop = "" if question[-1] in ".?!" else "."
    return R1_ZERO.replace("{question}.", question + stop)


if __name__ == "__main__":
    main()
