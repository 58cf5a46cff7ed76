"""How good a base is: `python -m recipes.nano.evaluate_base DIR`. Greedy, sampled pass@1 and pass@16 on the held-out problems,
by steps and by part, and how often each manner of answering is used.

A quick look while the base is being made; `eval/` is what reports a run.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from recipes.nano.problems import heldout
from rl.prompts import render

_TAGGED = re.compile(r"^\s*<think>[^<]*</think>\s*<answer>([^<]*)</answer>\s*$")
_ANSWER = re.compile(r"<answer>\s*([^<]*?)\s*(?:</answer>|$)")
_SAYS = re.compile(r"The answer is (\d+)")


def answer_of(text: str) -> str | None:
    """The last <answer>, else the last "The answer is N".

    >>> answer_of(" 1 + 2 = 3. The answer is 3."), answer_of(" <answer> 4</answer>"), answer_of(" 5")
    ('3', '4', None)
    """
    found = _ANSWER.findall(text) or _SAYS.findall(text)
    return found[-1] if found else None


def kind_of(text: str) -> str:
    """The corpus kind a completion looks like."""
    if _TAGGED.match(text):
        return "tagged"
    if "<" in text or not _SAYS.search(text):
        return "junk"
    return "bare" if "=" not in text else "untagged"


def generate(model: Any, tokenizer: Any, prompts: list[tuple[int, ...]], sample: bool, batch: int, limit: int) -> list[str]:
    """One completion a prompt, greedy or at temperature 1."""
    import torch

    texts: list[str] = []
    choice = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if sample else {"do_sample": False}
    for i in range(0, len(prompts), batch):
        padded = tokenizer.pad({"input_ids": [list(p) for p in prompts[i : i + batch]]}, return_tensors="pt").to(model.device)
        with torch.no_grad():
            ids = model.generate(**padded, max_new_tokens=limit, pad_token_id=tokenizer.pad_token_id, **choice)
        texts += tokenizer.batch_decode(ids[:, padded["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def _table(rows: list[dict[str, Any]], right: list[list[bool]], greedy: list[bool]) -> dict[str, dict[str, float]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        for key in ("all", row["part"], f"{row['steps']} steps"):
            groups[key].append(i)
    return {
        key: {
            "greedy": sum(greedy[i] for i in at) / len(at),
            "pass@1": sum(sum(right[i]) / len(right[i]) for i in at) / len(at),
            f"pass@{len(right[0])}": sum(any(right[i]) for i in at) / len(at),
        }
        for key, at in sorted(groups.items())
    }


def evaluate(folder: Path, count: int = 500, samples: int = 16, batch: int = 2000, limit: int = 120) -> dict[str, Any]:
    """The measured figures of the model in `folder`, on the standard held-out problems."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    started = time.time()
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    rows = heldout(count)
    prompts = [render(row["question"], "r1_zero", tokenizer) for row in rows]
    once = generate(model, tokenizer, prompts, False, batch, limit)
    many = generate(model, tokenizer, [p for p in prompts for _ in range(samples)], True, batch, limit)
    drawn = [many[i * samples : (i + 1) * samples] for i in range(count)]
    right = [[answer_of(text) == row["gold"] for text in texts] for row, texts in zip(rows, drawn, strict=True)]
    kinds = Counter(map(kind_of, many))
    good: Counter[str] = Counter()
    for texts, marks in zip(drawn, right, strict=True):
        good.update(kind_of(text) for text, mark in zip(texts, marks, strict=True) if mark)
    return {
        "table": _table(rows, right, [answer_of(text) == row["gold"] for row, text in zip(rows, once, strict=True)]),
        "kinds": {kind: {"share": n / len(many), "right": good[kind] / n} for kind, n in sorted(kinds.items())},
        "greedy_kinds": {kind: n / count for kind, n in sorted(Counter(map(kind_of, once)).items())},
        "mean_tokens": sum(len(tokenizer(text)["input_ids"]) for text in many) / len(many),
        "seconds": time.time() - started,
        "examples": [texts[0] for texts in drawn[:16]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--samples", type=int, default=16)
    options = parser.parse_args()
    print(json.dumps(evaluate(options.folder, options.count, options.samples), indent=1))


if __name__ == "__main__":
    main()
