"""Evaluations as `make eval` stores them, made up: for tests of the reports."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from eval.records import Answered, Sampled, Settings, write_samples, write_settings

SETTINGS = Settings(
    task="gsm8k", data="gsm8k/test.jsonl", rows=120, data_hash="d" * 64, template="r1_zero", template_hash="7e" * 32,
    model="runs/zero/final", model_hash="3d" * 32, grader="rewards/math_answer", grader_version="6a" * 32, mode="generate",
    samples=4, temperature=1.0, max_tokens=256, seed=5, engine="vllm", engine_version="0.31.0", dtype="float32",
    date="2026-11-22", commit="0123456789ab", extra={"prompts_cut": 0},
)  # fmt: skip
MMLU = replace(
    SETTINGS, task="mmlu", data="mmlu/test", template="plain", mode="loglikelihood", samples=1, temperature=0.0, max_tokens=0,
    grader="the likeliest letter", extra={"shots": 5, "prompts_cut": 3},
)  # fmt: skip
HOSTILE = '</script><script>window.broken=1</script><img src=x onerror="window.broken=1"><!--<script>\u2028 & \x00'
SUBJECTS = ("anatomy", "astronomy", "virology")
Text = Callable[[int, int], str]


def sampled(right: bool, text: str, tokens: int, strict: bool = True) -> Sampled:
    verdict = float(right)
    return Sampled(text, tokens, tokens >= 256, verdict if strict else 0.0, verdict, "4" if right else "5", "because")


def generated(n: int = 120, k: int = 4, chance: float = 0.5, seed: int = 0, text: Text | None = None) -> list[Answered]:
    """n questions; the later ones are harder, wrong answers longer, a tenth of the right ones out of form."""
    draw = random.Random(seed)
    rows = []
    for i in range(n):
        samples = []
        for j in range(k):
            right = draw.random() < chance * (1.5 - i / n)
            wrote = text(i, j) if text else f"{i} + {j} = {i + j}. The answer is {'4' if right else '5'}."
            samples.append(sampled(right, wrote, 20 + draw.randrange(60) + (0 if right else 40), draw.random() > 0.1))
        rows.append(
            Answered("gsm8k", f"gsm8k/test/{i}", f"Question number {i}?", "4", {"steps": str(1 + i % 3)}, 90, tuple(samples))
        )
    return rows


def letters(n: int = 90, seed: int = 0) -> list[Answered]:
    """n questions with four choices, one letter each."""
    draw = random.Random(seed)
    rows = []
    for i in range(n):
        logs, subject = tuple(-draw.random() * 4 for _ in "ABCD"), SUBJECTS[i % 3]
        chosen = "ABCD"[logs.index(max(logs))]
        choice = Sampled(chosen, 0, False, float(chosen == "A"), float(chosen == "A"), chosen, "likeliest")
        rows.append(
            Answered(
                "mmlu", f"mmlu/{subject}/{i}", f"Which one, {i}?\nA. x\nB. y", "A", {"subject": subject}, 700, (choice,), logs
            )
        )
    return rows


def stored(folder: Path, answered: Sequence[Sequence[Answered]], *settings: Settings) -> Path:
    """One evaluation's folder; `settings` in the order of `answered`, with the rows' number put right."""
    write_settings(folder, [replace(s, rows=len(rows)) for s, rows in zip(settings, answered, strict=True)])
    for s, rows in zip(settings, answered, strict=True):
        write_samples(folder, s.task, rows)
    return folder
