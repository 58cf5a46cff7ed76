"""What a run writes down: metrics.jsonl (one line a step), rollouts/step-000012.jsonl (every group as text), the console line.

`report_html.py` makes the page from these files; both survive a kill at any moment.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rl.records import Group

METRICS = "metrics.jsonl"
STOPPED = "stopped.json"  # why a run stopped itself, until it goes on
ROLLOUTS = "rollouts"


class Journal:
    """The files of one run, open for appending. Only one process (rank 0) may hold it.

    `resumed_step` is the step of the checkpoint that the run continues from (0: from the start): lines and rollouts of later
    steps are cut away, for they will be made again. None is a new run: a folder that already holds metrics is refused with
    ValueError, never overwritten. A file that cannot be written raises OSError.
    """

    def __init__(self, run_dir: str | Path, resumed_step: int | None = None) -> None:
        self.run_dir = Path(run_dir)
        self.path = self.run_dir / METRICS
        if resumed_step is None and self.path.exists() and self.path.stat().st_size:
            raise ValueError(
                f"{self.run_dir} already holds a run; continue it with --resume, or choose another folder with run.out="
            )
        (self.run_dir / ROLLOUTS).mkdir(parents=True, exist_ok=True)
        if resumed_step is not None:
            self._cut(resumed_step)
        self._file = self.path.open("ab")

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Append one step's line and force it to disk. A value that is not finite becomes null: every reader can parse it."""
        line = json.dumps(_finite(metrics), allow_nan=False)
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def rollouts(
        self,
        step: int,
        groups: Sequence[Group],
        advantages_PG: Sequence[Sequence[float | None]],
        decode: Callable[[tuple[int, ...]], str],
    ) -> Path:
        """Write the step's groups as text, one JSON line a group; `decode` makes prompt ids text.

        The file appears whole or not at all; an older one of the same step is replaced.
        """
        path = self.run_dir / ROLLOUTS / f"step-{step:06d}.jsonl"
        lines = [_group_line(step, g, a, decode(g.prompt.ids)) for g, a in zip(groups, advantages_PG, strict=True)]
        _write_whole(path, "".join(lines).encode(errors="backslashreplace"))  # a lone surrogate becomes its JSON escape
        return path

    def close(self) -> None:
        self._file.close()

    def _cut(self, last: int) -> None:
        """Keep the lines of steps up to `last`; drops a torn last line and rollouts of later steps."""
        if self.path.exists():
            kept = [m for m in read_jsonl(self.path) if m["step"] <= last]
            _write_whole(self.path, "".join(json.dumps(m) + "\n" for m in kept).encode())
        for step, path in rollout_files(self.run_dir).items():
            if step > last:
                path.unlink()


def read_jsonl(path: str | Path) -> Iterator[dict[str, Any]]:
    """The records of a JSON-lines file, one at a time.

    A torn last line (the writer was killed) is left out; any other line that is no JSON object raises ValueError.
    """
    with Path(path).open("rb") as file:  # bytes: only \n ends a line, never a U+2028 inside a text
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if not isinstance(record, dict):
                raise ValueError(f"{path}, line {number} is no JSON object; the file was changed by hand or by another program")
            yield record


def rollout_files(run_dir: str | Path) -> dict[int, Path]:
    """The rollout files of a run by step, in order of steps."""
    found = {int(p.stem.split("-")[1]): p for p in (Path(run_dir) / ROLLOUTS).glob("step-*.jsonl")}
    return dict(sorted(found.items()))


def console_line(metrics: Mapping[str, Any], step: int, total: int) -> str:
    """One live line a step, about 160 columns wide; what is missing stands as "-".

    Order: reward ± std, accuracy, format, mean length (tokens), truncated, zero-variance groups, KL, entropy (nats), clipped
    tokens, largest sampler-learner difference of a log-prob, (staleness, refilled prompts, lost workers,) tokens/s, seconds by phase
    (rollout/reward/learn/sync), time left.
    """
    m = metrics
    clip = None if _number(m, "clip_low") is None and _number(m, "clip_high") is None else {
        "clip": (_number(m, "clip_low") or 0.0) + (_number(m, "clip_high") or 0.0)
    }  # fmt: skip
    phases = "/".join(show(m, f"seconds_{name}", ".1f") for name in ("rollout", "reward", "learn", "sync"))
    return (
        f"{step:>{len(str(total))}}/{total} reward {show(m, 'reward', '.3f')}±{show(m, 'reward_std', '.2f')}"
        f" acc {show(m, 'accuracy', '.3f')} fmt {show(m, 'format', '.2f')} len {show(m, 'length', '.0f')}"
        f" trunc {show(m, 'truncated', '.0%')} zerovar {show(m, 'zero_variance', '.0%')} kl {show(m, 'kl', '.1e')}"
        f" ent {show(m, 'entropy', '.2f')} clip {show(clip or {}, 'clip', '.1%')} mis {show(m, 'mismatch_max', '.0e')}"
        f"{_workers(m)} {_short(_number(m, 'tokens_per_s'))} tok/s {phases} s eta {_clock(_number(m, 'eta_s'))}"
    )


def _workers(m: Mapping[str, Any]) -> str:
    """What stands in the line only where it happened: staleness in steps, prompts sampled in place of useless ones, lost workers."""
    parts = {"stale": show(m, "staleness", ".1f"), "refill": show(m, "refilled", ".0f"), "lost": show(m, "workers_lost", ".0f")}
    return "".join(f" {name} {value}" for name, value in parts.items() if value not in ("-", "0", "0.0"))


def show(metrics: Mapping[str, Any], key: str, form: str) -> str:
    """metrics[key] in the given format, or "-" where it is missing or no number."""
    value = _number(metrics, key)
    return "-" if value is None else format(value, form)


def _number(metrics: Mapping[str, Any], key: str) -> float | None:
    try:
        return float(metrics[key])
    except (KeyError, TypeError, ValueError):
        return None


def _short(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.0f}" if value < 1000 else f"{value / 1000:.1f}k" if value < 1e5 else f"{value / 1000:.0f}k"


def _clock(seconds: float | None) -> str:
    """75 -> "1:15", 7325 -> "2:02:05"."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{s:02d}" if hours else f"{minutes}:{s:02d}"


def _group_line(step: int, group: Group, advantages_G: Sequence[float | None], prompt: str) -> str:
    problem = dict(group.prompt.problem)
    completions = [
        {
            "text": c.text, "tokens": c.tokens, "finish": c.finish, "version": c.version, "reward": s.value,
            "parts": dict(s.parts), "reason": s.reason, "advantage": a,
        }
        for c, s, a in zip(group.completions, group.scores, advantages_G, strict=True)
    ]  # fmt: skip
    record = {"step": step, "id": group.prompt.id, "question": problem.pop("question", ""), "gold": problem.pop("gold", "")}
    record |= {"prompt": prompt, "problem": problem, "completions": completions}
    return json.dumps(_finite(record), ensure_ascii=False, default=str, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """The same tree in plain types (a 0-d array or tensor is its number), with null for what JSON has no sign for: NaN, inf."""
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _write_whole(path: Path, data: bytes) -> None:
    """Replace `path` in one move, so that a kill leaves the old file or the new one. Readers ignore a left-over .tmp."""
    part = path.with_name(path.name + ".tmp")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
