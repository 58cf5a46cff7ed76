"""One self-contained page about a run, from its files: config.json, metrics.jsonl, rollouts/*.jsonl, before.json, result.json, and
stopped.json.

Any of them may be missing or incomplete: an interrupted run still gets its page. Nothing is loaded from elsewhere and no script
runs (a content policy in the page forbids both), so what a model wrote can be shown safely.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rl import report_rollouts
from rl.report import METRICS, STOPPED, read_jsonl
from rl.report_findings import findings, value_of
from rl.report_plots import Line, curves, dots, number, percent, stacked

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
NAMES = {"greedy": "Greedy", "pass@1": "Sampled pass@1", "format": "Format kept"}
Tree = Mapping[str, Any]


def write_report(run_dir: str | Path) -> Path:
    """Write run_dir/report.html and return its path. Raises ValueError for a missing folder or a damaged file."""
    folder = Path(run_dir)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; a report is made of a run's folder, e.g. runs/NAME")
    config, result = _read(folder / "config.json"), _read(folder / "result.json")
    if "before" not in result and (before := _read(folder / "before.json")):
        result = {"before": before, **result}
    metrics = list(read_jsonl(folder / METRICS)) if (folder / METRICS).exists() else []
    stopped = "" if "after" in result else str(_read(folder / STOPPED).get("reason", ""))
    body = [
        _head(folder.name, config, result, metrics, stopped),
        _what_to_look_for(metrics, result),
        _before_after(result),
        _by_steps(result),
        _curves(metrics),
        _rollouts(folder),
        _files(config, result),
    ]
    style = Path(__file__).with_name("report.css").read_text()
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(folder.name)}: GRPO report</title>'
        f"<style>{style}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n"
    )
    path, part = folder / "report.html", folder / "report.html.tmp"
    part.write_text(page, encoding="utf-8", errors="backslashreplace")
    part.replace(path)
    return path


def _read(path: Path) -> Tree:
    if not path.exists():
        return {}
    try:
        tree = json.loads(path.read_bytes())
    except ValueError:
        tree = None
    if not isinstance(tree, dict):
        raise ValueError(f"{path} is no JSON object; restore it, or delete it and make the report without it")
    return tree


def _head(folder: str, config: Tree, result: Tree, metrics: Sequence[Tree], stopped: str = "") -> str:
    model = result.get("model") or _at(config, "model", "path")
    data = result.get("data") or _at(config, "data") or {}
    if isinstance(data, Mapping):
        data = ", held out: ".join(str(v) for v in dict.fromkeys([data.get("train"), data.get("heldout")]) if v)
    name, steps = result.get("name") or _at(config, "name") or folder, result.get("steps") or _at(config, "run", "steps")
    done = max((int(m["step"]) for m in metrics if "step" in m), default=0)
    minutes = value_of(result, "minutes", "total")
    state = "" if "after" in result else f'<p><span class="badge">not finished: step {done} of {steps or "-"}</span></p>'
    if stopped:
        state = f'<p><span class="badge">stopped after step {done} of {steps or "-"}</span> {escape(stopped)}</p>'
    if minutes is None and metrics:
        minutes = sum(value_of(m, "seconds") or 0.0 for m in metrics) / 60
    phases = " + ".join(
        f"{v:.1f} {k}" for k in ("before", "train", "after") if (v := value_of(result, "minutes", k)) is not None
    )
    seed = result.get("seed", _at(config, "run", "seed"))
    facts = {
        "Model": model, "Problems": data, "Steps": f"{done} of {steps}" if steps else done,
        "Minutes": f"{minutes:.1f}" + (f" ({phases})" if phases else "") if minutes is not None else None,
        "Seed": seed, "Commit": result.get("commit"),
        "Versions": ", ".join(f"{k} {v}" for k, v in (result.get("versions") or {}).items()),
    }  # fmt: skip
    wide = {"Versions": ' class="wide"'}
    cells = ((k, escape(str("-" if v in (None, "") else v))) for k, v in facts.items())
    meta = "".join(f"<div{wide.get(k, '')}><dt>{k}</dt><dd>{v}</dd></div>" for k, v in cells)
    return f'<h1>{escape(str(name))}</h1>{state}{_heroes(result)}<dl class="meta">{meta}</dl>'


def _heroes(result: Tree) -> str:
    cards = []
    before, after = result.get("before") or {}, result.get("after") or {}
    for key in [k for k in _measures(before, after) if k != "format"]:
        first, last = value_of(before, key, "value"), value_of(after, key, "value")
        gain = f"{100 * (last - first):+.1f} points; " if first is not None and last is not None else ""
        cards.append(
            f'<div class="hero"><div class="label">{escape(_label(key))}</div>'
            f'<div class="values"><s>{_share(first)} →</s> <em>{_share(last)}</em></div>'
            f'<div class="range">{gain}95 % interval {_range(after if last is not None else before, key)}</div></div>'
        )
    return f'<div class="heroes">{"".join(cards)}</div>' if cards else ""


def _what_to_look_for(metrics: Sequence[Tree], result: Tree) -> str:
    signs = {"fine": "✓", "look": "!", "unknown": "–"}
    items = [
        f'<li class="{f.state}"><i>{signs[f.state]}</i><b>{escape(f.title)}</b><span>{escape(f.text)}</span></li>'
        for f in findings(metrics, result)
    ]
    note = "Computed from this run. First and last are means over a fifth of the steps; the limits are rules of thumb."
    return f'<h2>What to look for</h2><p class="note">{note}</p><ul class="findings">{"".join(items)}</ul>'


def _before_after(result: Tree) -> str:
    before, after = result.get("before") or {}, result.get("after") or {}
    some = after or before
    if not some:
        return '<h2>Before and after</h2><p class="note">No held-out result was written.</p>'
    rows = [_rows("All problems", some.get("problems"), before, after)]
    for part in dict.fromkeys([*(before.get("by_part") or {}), *(after.get("by_part") or {})]):
        first, last = (before.get("by_part") or {}).get(part) or {}, (after.get("by_part") or {}).get(part) or {}
        rows.append(_rows(f"Part: {part}", (last or first).get("n"), first, last))
    problems, samples, temperature = (some.get(k, "-") for k in ("problems", "samples", "temperature"))
    how = f"{problems} held-out problems, {samples} samples each at temperature {temperature}"
    sizes = [
        f"{word}: {number(tokens)} tokens a completion, {percent(cut)} truncated"
        for word, e in (("Before", before), ("after", after))
        if (tokens := value_of(e, "mean_tokens")) is not None and (cut := value_of(e, "truncated")) is not None
    ]
    note = f"{how}; whiskers and brackets are 95 % intervals over problems. {'; '.join(sizes)}{'.' if sizes else ''}"
    scale = "".join(f"<span>{v}</span>" for v in ("0 %", "25", "50", "75", "100 %"))
    head = "<th>Measure</th>" + "".join(f'<th class="n">{k}</th>' for k in ("Before", "After", "Points"))
    head += f'<th class="chart"><div class="scale">{scale}</div></th>'
    table = f'<table class="results"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    keys = "".join(
        f'<span><i class="swatch box {kind}"></i>{k}</span>' for k, kind in (("before", "second"), ("after", "main"))
    )
    legend = f'<div class="legend">{keys}</div>'
    return f'<h2>Before and after</h2><p class="note">{escape(note)}</p>{legend}{table}'


def _rows(title: str, n: Any, before: Tree, after: Tree) -> str:
    rows = [f'<tr><th colspan="5">{escape(title)}{f" <small>({escape(str(n))})</small>" if n else ""}</th></tr>']
    for key in _measures(before, after):
        first, last = value_of(before, key, "value"), value_of(after, key, "value")
        gain = f"{100 * (last - first):+.1f}" if first is not None and last is not None else "-"
        lows, highs = (
            (value_of(after, key, "low"), value_of(before, key, "high")),
            (value_of(before, key, "low"), value_of(after, key, "high")),
        )
        apart = any(a is not None and b is not None and a > b for a, b in (lows, highs))
        cells = "".join(
            f'<td class="n">{_share(v)} <small>{_range(e, key)}</small></td>' for v, e in ((first, before), (last, after))
        )
        rows.append(
            f'<tr><td>{escape(_label(key))}</td>{cells}<td class="n{" gain" if apart else ""}">{gain}</td>'
            f'<td class="chart">{_dumbbell(before.get(key) or {}, after.get(key) or {})}</td></tr>'
        )
    return "".join(rows)


def _dumbbell(before: Tree, after: Tree) -> str:
    """Two dots with whiskers on a 0-100 % line as wide as its cell (positions in percent, so nothing is stretched)."""
    parts = [f'<line class="grid" x1="{x}%" x2="{x}%" y1="0" y2="30"/>' for x in (0, 25, 50, 75, 100)]
    for kind, y, m in (("second", 11, before), ("main", 19, after)):
        at, low, high = (value_of(m, k) for k in ("value", "low", "high"))
        if low is not None and high is not None:
            parts.append(f'<line class="whisker {kind}" x1="{100 * low:.2f}%" x2="{100 * high:.2f}%" y1="{y}" y2="{y}"/>')
        if at is not None:
            parts.append(f'<circle class="dot {kind}" cx="{100 * at:.2f}%" cy="{y}" r="4.5"/>')
    return f'<svg aria-hidden="true">{"".join(parts)}</svg>'


def _by_steps(result: Tree) -> str:
    before, after = (_at(result, w, "by_steps") or {} for w in ("before", "after"))
    labels = sorted({*before, *after}, key=_natural)
    if not labels:
        return ""
    counts = [str(n) for k in labels if (n := (after.get(k) or before.get(k) or {}).get("n")) is not None]
    among = f" ({counts[0]} problems each)" if len(set(counts)) == 1 else f" ({', '.join(counts)} problems)" if counts else ""
    keys = [k for k in _measures(*before.values(), *after.values()) if k != "format"]
    figures = []
    for key in keys:
        series = [
            (word, kind, [_triple(side.get(k) or {}, key) for k in labels])
            for word, kind, side in (("before", "second", before), ("after", "main", after))
            if side
        ]
        figures.append(dots(_label(key), "by number of steps", labels, series))
    note = f"Accuracy by how many steps a problem needs, with 95 % intervals{among}: "
    note += "a climb in reasoning shows at problems of many steps, not only at short ones."
    rows = "".join(
        _rows(
            f"{k} step{'' if k == '1' else 's'}",
            (after.get(k) or before.get(k) or {}).get("n"),
            before.get(k) or {},
            after.get(k) or {},
        )
        for k in labels
    )
    table = f'<details><summary>The numbers</summary><table class="results"><tbody>{rows}</tbody></table></details>'
    return f'<h2>By number of steps</h2><p class="note">{escape(note)}</p><div class="charts">{"".join(figures)}</div>{table}'


def _curves(metrics: Sequence[Tree]) -> str:
    def line(*key: str, name: str = "", kind: str = "main", **more: Any) -> Line:
        return Line(name, [(float(m.get("step", i)), value_of(m, *key)) for i, m in enumerate(metrics, 1)], kind, **more)

    def split(title: str, key: str) -> list[str]:
        """A curve each of what `key` is split into; no figure where it was not recorded."""
        names = sorted({k for m in metrics for k in (m.get(key) or {})}, key=_natural)
        ramp = [f"r{round(7 * j / max(1, len(names) - 1))}" for j in range(len(names))]
        lines = [line(key, name, name=name, tag=name, kind=kind) for name, kind in zip(names, ramp, strict=True)]
        return [curves(title, "training samples", lines, percent)] if lines else []

    other = sorted({k for m in metrics for k in m if k.startswith("part/") and k not in ("part/accuracy", "part/format")})
    phases = [line(f"seconds_{p}", name=p, kind=f"r{2 * i}") for i, p in enumerate(("rollout", "learn", "reward", "sync"))]
    figures = [
        curves("Reward", "mean ± standard deviation", [line("reward", band=[value_of(m, "reward_std") for m in metrics])]),
        curves("Accuracy and format", "training samples", [
            line("accuracy", name="accuracy"), line("format", name="format", kind="second")], percent),
        *split("Accuracy by number of steps", "by_steps"),
        *split("Accuracy by part", "by_part"),
        *(curves(k.removeprefix("part/"), "reward part", [line(k)]) for k in other),
        curves("Completion length", "tokens", [
            line("length", name="mean"), line("length_max", name="longest", kind="second", peak=True)]),
        curves("Lost samples", "share", [
            line("truncated", name="truncated"), line("zero_variance", name="zero-variance groups", kind="second"),
            line("masked", name="masked", kind="third")], percent),
        curves("Entropy", "nats a token", [line("entropy")]),
        curves("KL to the reference", "nats a token", [line("kl")]),
        curves("Sampler against learner", "|Δ log-prob|, log scale", [
            line("mismatch", name="mean"), line("mismatch_max", name="largest", kind="second", peak=True)], log=True),
        curves("Clipped tokens", "share", [
            line("clip_high", name="above"), line("clip_low", name="below", kind="second")], percent),
        curves("Gradient norm", "before clipping", [line("grad_norm")]),
        stacked("Seconds a step", "by phase", phases),
        curves("Speed", "completion tokens a second", [line("tokens_per_s")]),
    ]  # fmt: skip
    note = (
        "Each step's own samples, before its update. Longer runs show their moving average over a twentieth of the run on top."
    )
    return f'<h2>Training</h2><p class="note">{note}</p><div class="charts">{"".join(figures)}</div>'


def _rollouts(folder: Path) -> str:
    sections = report_rollouts.to_read(folder)
    if not sections:
        return '<h2>Rollouts to read</h2><p class="note">No rollouts were recorded.</p>'
    html = [
        '<h2>Rollouts to read</h2><p class="note">By reward: the best and the worst of a step (the shortest of equals).</p>'
    ]
    for heading, samples in sections:
        html.append(f'<h3>{escape(heading)}</h3><div class="pair">{"".join(report_rollouts.card(*s) for s in samples)}</div>')
    found, looked = report_rollouts.failures(folder)
    names = report_rollouts.FAILURES
    cards = "".join(report_rollouts.card(names[k], found[k]) for k in names if k in found)
    absent = ", ".join(names[k].lower() for k in names if k not in found)
    html.append("<h3>One example of each kind of failure</h3>")
    html.append(
        f'<p class="note">The latest found in {looked} recorded step(s).{f" Not found: {absent}." if absent else ""}</p>'
    )
    html.append(f'<div class="pair">{cards}</div>')
    return "".join(html)


def _files(config: Tree, result: Tree) -> str:
    blocks = [
        f"<details><summary>{name}</summary><pre>{escape(json.dumps(tree, indent=2, ensure_ascii=False))}</pre></details>"
        for name, tree in (("config.json", config), ("result.json", result))
        if tree
    ]
    return f"<h2>Files</h2>{''.join(blocks)}" if blocks else ""


def _at(tree: Tree, *path: str) -> Any:
    node: Any = tree
    for key in path:
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


def _measures(*evaluations: Tree) -> list[str]:
    """greedy, pass@1, pass@k..., format: those that any of the evaluations holds."""
    present = {k for e in evaluations for k in e}
    passes = sorted((k for k in present if k.startswith("pass@")), key=_natural)
    return [k for k in ("greedy", *passes, "format") if k in present]


def _natural(text: str) -> tuple[int, str]:
    digits = "".join(c for c in text if c.isdigit())
    return (int(digits) if digits else 0, text)


def _label(key: str) -> str:
    return NAMES.get(key, key)


def _share(value: float | None) -> str:
    return "-" if value is None else percent(value)


def _range(evaluation: Tree, key: str) -> str:
    low, high = value_of(evaluation, key, "low"), value_of(evaluation, key, "high")
    return "" if low is None or high is None else f"[{100 * low:.1f}, {100 * high:.1f}]"


def _triple(entry: Tree, key: str) -> tuple[float, float, float] | None:
    value = value_of(entry, key, "value")
    low, high = value_of(entry, key, "low"), value_of(entry, key, "high")
    return None if value is None else (value, value if low is None else low, value if high is None else high)
