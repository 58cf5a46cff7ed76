"""`make bench`: whole steps of this project and of TRL on the machine at hand, one step of each in turn.

    python -m bench [MODEL] [--ways turn,ahead,trl,trl-tuned] [--steps 5] [--prompts 64 --group 8 --tokens 512] [--out FOLDER]
    python -m bench [MODEL] --rollout [...]        the sampler alone against bare vLLM (bench/rollout.py)

The same prompts, lengths and model for every way: turn (sampling, then learning), ahead (one step ahead of the learner, a process beside
it), trl (GRPOTrainer as it comes, vLLM colocated), trl-tuned (bench/trl_peer.py says how). Each is a process of its own; while one takes a
step the others stand still (bench/paced.py), so a host that slows down slows them all. Without MODEL: random weights of the shape of
Qwen2.5-0.5B. On a machine without a GPU a small run of the nano base shows that all of it works; its figures say nothing of a GPU.

Writes bench.json, bench.png and bench.md into FOLDER. Columns: seconds of a step, median [range]; its phases; completion tokens a
second; share: 6 * parameters * unique tokens (a prompt once a group) over seconds, against a square product measured in this run, of
the whole step and of the learner alone (GPU only); GiB: the most the way held of the GPU (CPU: resident); speed against the first way.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from bench import step
from bench.paced import Paced, gpu
from eval.provenance import commit, versions
from rl.policy import ROOT, load_tokenizer, resolve

NANO = "recipes/nano/base"
SHAPE = "qwen2.5-0.5b"
SIZES = {  # of the work, with a GPU and without
    True: {"steps": 5, "prompts": 64, "group": 8, "tokens": 512, "micro": 16, "memory": 0.1},
    False: {"steps": 2, "prompts": 4, "group": 4, "tokens": 48, "micro": 8, "memory": 0.15},
}
SMALL = "No GPU here: a small run on the CPU that shows all ways working; its ratios say nothing of a GPU."
HEAD = "| way | step, s | rollout | learn | sync | tokens/s | share, step | share, learner | GiB | speed |"


def parameters(path: str) -> int:
    """Of the model, tied ones once; nothing is loaded."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(resolve(path)))
    return sum(p.numel() for p in model.parameters())


def product() -> float:
    """TFLOP/s of a square product, in a process that leaves nothing on the GPU."""
    code = "import torch; from bench.learner import matmul_rate as rate; cuda = torch.cuda.is_available(); "
    code += "print(rate(torch.device('cuda' if cuda else 'cpu')))"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return float(said.stdout.split()[-1])


def in_turn(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Every way, one step at a time. A way that fails is left out of the rounds that follow."""
    # One step more than is measured: in a run's last one nothing is sampled ahead.
    given = argparse.Namespace(**{**vars(args), "steps": step.WARM + args.steps + 1})
    ours, theirs = step.questions(folder, args.prompts * given.steps)
    runs, files = [], {}
    for way in args.ways:
        command, files[way] = step.command(way, given, folder, ours, theirs, "bench.paced")
        if not way.startswith("trl"):
            command += ["rollout.timeout_s=86400"]  # it stands still between its turns
        runs.append(Paced(way, command, folder, args.limit))
    try:
        for run in runs:
            run.start()
        for n in range(step.WARM + args.steps + 1):  # turn 0: they have come to their first gate
            for run in runs:
                if run.failed:
                    continue
                try:
                    run.step() if n else run.arrive()
                    what = "is ready" if not n else f"step {n}" + (" (warm-up)" if n <= step.WARM else "")
                    print(f"{run.name:10} {what}", flush=True)
                except RuntimeError as error:
                    print(f"{run.name:10} failed: {error}", flush=True)
    finally:
        for run in runs:
            run.end()
    return [measured(run, files[run.name]) for run in runs]


def measured(run: Paced, file: Path) -> dict[str, Any]:
    if run.failed:
        return {"way": run.name, "failed": run.failed}
    lines = file if file.suffix else file / "metrics.jsonl"
    steps = [json.loads(line) for line in lines.read_text().splitlines()][step.WARM :]
    kept = [{k: s[k] for k in (*step.PHASES, "tokens") if k in s} for s in steps]
    return {"way": run.name, "device_gib": run.peak, "command": " ".join(run.command), "each": kept} | step.medians(kept)


def shares(results: list[dict[str, Any]], tree: dict[str, Any]) -> None:
    """Add each way's share of the product, in whole and for the learner; on a CPU the product says little and there is none."""
    if tree["small"]:
        return
    for r in (r for r in results if "failed" not in r):
        unique = r["tokens"]["median"] + tree["prompts"] * tree["prompt_tokens"]
        for name, phase in (("share_step", "seconds"), ("share_learner", "seconds_learn")):
            r[name] = 6 * tree["parameters"] * unique / r[phase]["median"] / 1e12 / tree["product_tflops"]


def markdown(tree: dict[str, Any]) -> str:
    """What one pastes into a page."""
    t = tree
    work = f"{t['prompts']} prompts of {t['prompt_tokens']:.0f} tokens × {t['group']} × {t['tokens']} at most"
    text = f"{t['device']}, {t['model']} ({t['parameters'] / 1e6:.1f} M parameters), {work}; {t['steps']} steps each after a warm-up, in "
    text += "turn; " + ("" if t["small"] else f"product {t['product_tflops']:.0f} TFLOP/s; ")
    text += f"commit {t['commit']}. Speed: tokens/s against the first.\n"
    lines = [SMALL, ""] if t["small"] else []
    lines += [text, HEAD, "|" + " --- |" * (HEAD.count("|") - 1)]
    good = [r for r in t["ways"] if "failed" not in r]
    base = tokens_a_second(good[0]) if good else 1.0
    for r in t["ways"]:
        if "failed" in r:
            lines.append(f"| {r['way']} | failed: {r['failed'].replace('|', '/')} |" + " |" * 8)
            continue
        s, parts = r["seconds"], [r.get(p, {}).get("median") for p in step.PHASES[1:]]
        cells = [r["way"], f"{s['median']:.2f} [{s['low']:.2f}, {s['high']:.2f}]"]
        cells += ["-" if p is None else f"{p:.2f}" for p in parts]
        cells += [f"{tokens_a_second(r):.0f}"] + [f"{r[k]:.1%}" if k in r else "-" for k in ("share_step", "share_learner")]
        cells += [f"{r['device_gib']:.1f}", f"{tokens_a_second(r) / base:.2f} ×"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def tokens_a_second(way: dict[str, Any]) -> float:
    """Completion tokens of a step over its seconds, medians."""
    return way["tokens"]["median"] / way["seconds"]["median"]


def plot(tree: dict[str, Any], path: Path) -> None:
    """Seconds of a step by phase, one bar a way, with the range of whole steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    good = [r for r in tree["ways"] if "failed" not in r]
    figure, axis = plt.subplots(figsize=(8, 0.6 * len(good) + 1.5), layout="constrained")
    names, left = [r["way"] for r in good], [0.0] * len(good)
    for phase, colour in zip(step.PHASES[1:], ("#4477aa", "#ee6677", "#ccbb44"), strict=True):
        widths = [r.get(phase, {}).get("median", 0.0) for r in good]
        axis.barh(names, widths, left=left, color=colour, label=phase.removeprefix("seconds_"), height=0.6)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    middle = [r["seconds"]["median"] for r in good]
    reach = [[m - r["seconds"]["low"] for m, r in zip(middle, good, strict=True)]]
    reach += [[r["seconds"]["high"] - m for m, r in zip(middle, good, strict=True)]]
    axis.errorbar(middle, names, xerr=reach, fmt="k|", markersize=16, capsize=3, label="whole step, median and range")
    rates, far = [tokens_a_second(r) for r in good], max(r["seconds"]["high"] for r in good)
    for name, r, m, rate in zip(names, good, middle, rates, strict=True):
        axis.annotate(f"{m:.2f} s, {rate / rates[0]:.2f} ×", (r["seconds"]["high"] + 0.01 * far, name), va="center", fontsize=9)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.2 * far)
    axis.set_xlabel("seconds a step")
    axis.set_title(
        f"{tree['device']}, {tree['prompts']} × {tree['group']} × {tree['tokens']}" + (" (small)" if tree["small"] else ""),
        fontsize=10,
    )
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def whole(args: argparse.Namespace, cuda: bool) -> int:
    """All ways, and what is written of them."""
    ceiling = product() if cuda else 0.0
    results = in_turn(args, args.out)
    texts = [json.loads(line)["prompt"] for line in (args.out / "prompts.jsonl").read_text().splitlines()]
    tree = {k: getattr(args, k) for k in ("steps", "prompts", "group", "tokens", "micro")} | {"model": args.shown}
    tree |= {"device": gpu("name") or "CPU", "small": not cuda, "product_tflops": ceiling}
    tree |= {"parameters": parameters(args.model), "versions": versions(), "commit": commit()}
    tree |= {"prompt_tokens": statistics.fmean(map(len, load_tokenizer(args.model)(texts)["input_ids"]))}
    shares(results, tree)
    tree["ways"] = results  # with the command of each
    (args.out / "bench.json").write_text(json.dumps(tree, indent=1) + "\n")
    (args.out / "bench.md").write_text(markdown(tree))
    print("\n" + markdown(tree))
    if all("failed" in r for r in results):
        return 1
    plot(tree, args.out / "bench.png")
    print(f"written: {args.out}/bench.json, bench.md, bench.png")
    return 0


def main() -> int:
    cuda = torch.cuda.is_available()
    size = SIZES[cuda]
    parser = argparse.ArgumentParser(prog="python -m bench", description="Whole steps of this project and of TRL, in turn.")
    parser.add_argument("model", nargs="?", default="", help="folder or hub name; without: random weights (CPU: the nano base)")
    parser.add_argument("--rollout", action="store_true", help="the sampler alone against bare vLLM")
    parser.add_argument("--ways", type=lambda text: text.split(","), default=["turn", "ahead", "trl", "trl-tuned"])
    for name, value in size.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    parser.add_argument("--limit", type=float, default=900, help="seconds for each step, and for a start")
    parser.add_argument("--set", nargs="*", default=[], help="overrides for our recipe")
    parser.add_argument("--out", type=lambda text: Path(text).resolve(), default=Path("runs/bench").resolve())
    args = parser.parse_args()
    if unknown := [w for w in args.ways if w not in step.WAYS]:
        print(f"error: --ways {unknown[0]}: known are {', '.join(step.WAYS)}", file=sys.stderr)
        return 2
    if (args.out / "bench.json").exists() or any((args.out / way).exists() for way in args.ways):
        print(f"error: {args.out} holds a bench already: name another folder with --out", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    if not cuda:
        print(SMALL, flush=True)
    args.shown = args.model or (f"random weights, shape {SHAPE}" if cuda else NANO)
    if not args.model:
        args.model = random_model(args.out / "model") if cuda else str(ROOT / NANO)
    if args.rollout:
        sizes = [f"--{k}={getattr(args, k)}" for k in ("prompts", "group", "tokens")]
        command = ["bench.rollout", args.model, *sizes, f"--rounds={args.steps}", f"--out={args.out / 'rollout.json'}"]
        return subprocess.run([sys.executable, "-m", *command], cwd=ROOT).returncode
    return whole(args, cuda)


def random_model(folder: Path) -> str:
    """Made in a process that leaves nothing on the GPU."""
    command = ["bench.model", SHAPE, str(folder), "--tokenizer", str(ROOT / NANO)]
    subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True)
    return str(folder)


if __name__ == "__main__":
    sys.exit(main())
