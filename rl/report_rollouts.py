"""Which rollouts of a run a person should read, and how they look on the page. All model text is escaped here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rl.report import read_jsonl, rollout_files, show

HEAD, TAIL = 3500, 1500  # characters of a long text that are shown
SEARCHED = 12  # rollout files that are read for an example of each failure
FAILURES = {
    "wrong": "Wrong answer in the right format",
    "unformatted": "Right answer without the format",
    "silent": "No answer",
    "truncated": "Truncated at the token limit",
    "masked": "Masked: no verdict was possible",
}
Sample = tuple[Mapping[str, Any], Mapping[str, Any]]  # a group's record and one of its completions


def kind_of(completion: Mapping[str, Any]) -> str:
    """One of FAILURES' keys, "right", or "other" (a wrong answer out of format).

    >>> kind_of({"reward": 0.1, "finish": "stop", "parts": {"accuracy": 0.0, "format": 1.0}, "reason": "wrong: 3, gold 4"})
    'wrong'
    """
    if completion.get("reward") is None:
        return "masked"
    if completion.get("finish") in ("length", "loop"):
        return "truncated"
    parts = completion.get("parts") or {}
    right = (parts.get("accuracy", completion["reward"]) or 0) > 0.5
    formatted = (parts.get("format", 1.0) or 0) > 0.5
    if right:
        return "right" if formatted else "unformatted"
    if "no answer" in str(completion.get("reason", "")).lower():
        return "silent"
    return "wrong" if formatted else "other"


def best_and_worst(groups: Sequence[Mapping[str, Any]]) -> tuple[Sample, Sample] | None:
    """The samples with the highest and the lowest reward of a step (the shortest of equals); None where none was judged."""
    judged = [(g, c) for g in groups for c in g.get("completions", ()) if c.get("reward") is not None]
    if not judged:
        return None
    best = min(judged, key=lambda s: (-s[1]["reward"], s[1].get("tokens", 0)))
    worst = min(judged, key=lambda s: (s[1]["reward"], s[1].get("tokens", 0)))
    return best, worst


def to_read(run_dir: Path) -> list[tuple[str, list[tuple[str, Sample]]]]:
    """(heading, [(label, sample)]) for the first, middle and last recorded step."""
    files = rollout_files(run_dir)
    steps = list(files)
    chosen = dict.fromkeys([steps[0], steps[len(steps) // 2], steps[-1]]) if steps else {}
    words = ("First", "Middle", "Last") if len(chosen) == 3 else ("First", "Last")
    sections = []
    for word, step in zip(words, chosen, strict=False):
        pair = best_and_worst(list(read_jsonl(files[step])))
        if pair:
            sections.append((f"{word} recorded step: {step}", [("Best", pair[0]), ("Worst", pair[1])]))
    return sections


def failures(run_dir: Path) -> tuple[dict[str, Sample], int]:
    """One example of each kind of failure, the latest first, and the number of steps that were looked at."""
    files = list(rollout_files(run_dir).values())
    few = min(len(files), SEARCHED)
    looked = [
        files[-1 - round(i * (len(files) - 1) / max(1, few - 1))] for i in range(few)
    ]  # spread, from the last to the first
    found: dict[str, Sample] = {}
    for path in looked:
        for sample in _samples(path):
            kind = kind_of(sample[1])
            if kind in FAILURES:
                found.setdefault(kind, sample)
        if len(found) == len(FAILURES):
            break
    return found, len(looked)


def card(label: str, sample: Sample) -> str:
    """One rollout as HTML: question and gold, what was written, what it was paid and why; the whole prompt behind a click."""
    group, c = sample
    parts = c.get("parts") or {}
    facts = [f"reward {show(c, 'reward', '.3g')}", *(f"{name} {show(parts, name, '.3g')}" for name in parts)]
    facts += [f"advantage {show(c, 'advantage', '+.2f')}", f"{c.get('tokens', '-')} tokens", f"finish {c.get('finish', '-')}"]
    problem = group.get("problem") or {}
    where = [f"step {group.get('step', '-')}", str(group.get("id", ""))]
    where += [f"{k} {problem[k]}" for k in ("part", "steps") if k in problem]
    return (
        f'<article class="rollout"><header><b>{escape(label)}</b><span>{escape(" · ".join(where))}</span></header>'
        f'<p class="question" dir="auto">{_text(str(group.get("question", "")))}</p>'
        f'<p class="gold">Gold <b>{_text(str(group.get("gold", "")))}</b></p>'
        f'<pre dir="auto">{_tagged(_text(str(c.get("text", ""))))}</pre>'
        f'<p class="facts">{"".join(f"<span>{escape(f)}</span>" for f in facts)}</p>'
        f'<p class="reason">{_text(str(c.get("reason", ""))) or "no reason given"}</p>'
        f'<details><summary>Prompt</summary><pre dir="auto">{_text(str(group.get("prompt", "")))}</pre></details></article>'
    )


def _samples(path: Path) -> Iterator[Sample]:
    for group in read_jsonl(path):
        for completion in group.get("completions", ()):
            yield group, completion


def _text(text: str) -> str:
    """Escaped, control characters made visible, the middle of a long text left out."""
    if len(text) > HEAD + TAIL + 200:
        text = f"{text[:HEAD]}\n\n[… {len(text) - HEAD - TAIL:,} characters left out …]\n\n{text[-TAIL:]}"
    return escape(re.sub(r"[\x00-\x08\x0b-\x1f]", lambda m: chr(0x2400 + ord(m[0])), text))


def _tagged(escaped: str) -> str:
    """Sets the think and answer tags off; works on text that is already escaped."""
    return re.sub(r"&lt;/?(?:think|answer)&gt;", r'<span class="mark">\g<0></span>', escaped)
