"""Teacher -> traces, into files of `shard` questions each: `traces/00000.jsonl`, ... Whole or absent, so a killed run goes on with the
first that is missing; a shard's draws depend on the seed and its number alone, so the files are the same however often it was killed.

The teacher is any Sampler: an engine here, or rollout workers elsewhere (its own pool keeps all of them busy with one shard; who is lost
is replaced). `settings.json` says what the shards were made with; another teacher, question set or sampling is refused, not mixed in.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from distill.formats import normal
from distill.traces import CLOSE, OPEN, Trace, read, to_json, write
from rl.records import Completion, Prompt, Sampling
from rl.sampler import Sampler

FOLDER, SETTINGS = "traces", "settings.json"
OWN = ("id", "question", "gold", "kind")


def generate(
    sampler: Sampler, prompts: Sequence[Prompt], sampling: Sampling, folder: Path, *, shard: int, teacher: Mapping[str, Any],
    say: Callable[[str], None] = print,
) -> list[Path]:  # fmt: skip
    """All shards of `folder`, made or found there. `teacher`: its "name", and what else decides what it draws.

    Raises ValueError where the folder holds traces made otherwise.
    """
    files = shards(folder, len(prompts), shard)
    claim(folder, settings(prompts, sampling, shard, teacher))
    missing = [i for i, path in enumerate(files) if not path.exists()]
    if len(missing) < len(files):
        say(f"{len(files) - len(missing)} of {len(files)} shards are there already")
    begun, tokens, traces = time.monotonic(), 0, 0
    for done, i in enumerate(missing, 1):
        asked = prompts[i * shard : (i + 1) * shard]
        drawn = replace(sampling, seed=seed_of(sampling.seed, i))
        made = sampler.generate([p.ids for p in asked], drawn)
        write(files[i], (to_json(t) for p, cs in zip(asked, made, strict=True) for t in _traces(p, cs, teacher["name"])))
        tokens += sum(c.tokens for cs in made for c in cs)
        traces += sum(len(cs) for cs in made)
        taken = max(time.monotonic() - begun, 1e-9)
        left = taken / done * (len(missing) - done)
        say(f"shard {i + 1}/{len(files)}: {traces:,} traces, {tokens / taken:,.0f} tokens/s, {left / 60:.1f} minutes to go")
    return files


def shards(folder: Path, questions: int, shard: int) -> list[Path]:
    """Every shard's path, there or not."""
    if shard < 1:
        raise ValueError(f"run.shard = {shard}: a file holds the traces of at least 1 question")
    return [folder / FOLDER / f"{i:05}.jsonl" for i in range(-(-questions // shard))]


def load(files: Sequence[Path]) -> Iterator[Trace]:
    """The traces of all shards, in order, with the opening think tag where the prompt had it (chat templates of reasoners)."""
    traces = [trace for path in files for trace in read(path)]
    opened = sum(OPEN in trace.text for trace in traces)
    closed = sum(CLOSE in trace.text and OPEN not in trace.text for trace in traces)
    # The shards do not know their template. A teacher that writes the tag itself forgets it now and then: that stays a fault of form.
    yield from (replace(trace, text=normal(trace.text)) for trace in traces) if closed > opened else traces


def settings(prompts: Sequence[Prompt], sampling: Sampling, shard: int, teacher: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides what stands in the files."""
    return {"teacher": dict(teacher), "shard": shard, "questions": digest(prompts), "sampling": asdict(sampling)}


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Enter the settings into the folder, or find them there. Raises ValueError for others."""
    path = folder / SETTINGS
    text = json.dumps(settings, indent=1, sort_keys=True)
    if path.exists():
        old = json.loads(path.read_text(encoding="utf-8"))
        new = json.loads(text)
        if changed := [f"{k}: {old.get(k)!r} -> {new.get(k)!r}" for k in sorted({*old, *new}) if old.get(k) != new.get(k)]:
            raise ValueError(
                f"{folder} holds traces made otherwise ({'; '.join(changed)}): choose another folder with run.out="
            )
        return
    write(path, [text])


def digest(prompts: Sequence[Prompt]) -> str:
    """SHA-256 over what is asked: ids, rows and token ids, so that another template or tokenizer is noticed too."""
    state = hashlib.sha256()
    for p in prompts:
        state.update(json.dumps([p.id, p.ids, p.problem], sort_keys=True, default=str).encode())
    return state.hexdigest()


def seed_of(seed: int, shard: int) -> int:
    return int.from_bytes(hashlib.sha256(f"traces/{seed}/{shard}".encode()).digest()[:4], "big") >> 1


def _traces(prompt: Prompt, completions: Sequence[Completion], teacher: str) -> Iterator[Trace]:
    row = prompt.problem
    columns = {k: v for k, v in row.items() if k not in OWN}
    for n, c in enumerate(completions):
        yield Trace(
            f"{prompt.id}#{n}", prompt.id, row["question"], c.text, str(row.get("gold") or ""), str(row.get("kind", "math")), c.finish,
            c.tokens, teacher, "", columns,
        )  # fmt: skip
