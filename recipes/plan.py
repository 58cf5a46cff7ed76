"""The planner: `python -m recipes.plan recipes/X.toml key.sub=value ... [--card H200] [--shape qwen2.5-7b]`, or `make plan`.

From the recipe and the model's config.json alone: peak memory of learner and engine, seconds a step, hours and cost on a stated card, and
what to change where it does not fit. No weights are read. Every training run is held against its own machine first (`refuse`).
Exit code 0: it fits. 1: it does not, with the remedy. 2: the input cannot be used.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from recipes import engines
from recipes.plan_memory import GIB, Setup, Use, engine, row, use
from recipes.plan_remedy import Remedy, alone, first_that_fits
from recipes.plan_time import Card, Times, cards, times
from recipes.plan_trace import Untraceable
from rl import config as configs
from rl import judge
from rl.config import Config
from rl.policy import resolve, why

SHAPES = Path(__file__).parent / "shapes"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.plan", description="Memory, time and cost of a recipe before it runs."
    )
    parser.add_argument("recipe", help="a TOML file")
    parser.add_argument("overrides", nargs="*", help="key.sub=value")
    parser.add_argument(
        "--shape", help=f"sizes in place of model.path's: a config file (.json, .toml), or {', '.join(shapes())}"
    )
    parser.add_argument("--card", default="H200", choices=list(cards()), help="default: H200")
    parser.add_argument("--ranks", type=int, default=1, help="cards of the learner; its state is sharded over them (FSDP2)")
    parser.add_argument("--separate", action="store_true", help="the engine has cards of its own")
    parser.add_argument("--prompt-tokens", type=int, default=200, help="mean length of a prompt; default: 200")
    parser.add_argument("--mean-tokens", type=int, help="mean length of a completion; default: half of rollout.max_tokens")
    parser.add_argument("--price", type=float, help="dollars an hour of one card, in place of the one assumed in cards.toml")
    parser.add_argument("--json", action="store_true", help="the plan as JSON")
    args = parser.parse_intermixed_args(argv)
    try:
        config = configs.load(args.recipe, args.overrides)
        check(args, config)
        if args.ranks > 1 and config.rollout.placement == "colocated" and config.rollout.sampler == "vllm":
            raise ValueError(f"--ranks {args.ranks} wants engines in processes of their own: add rollout.placement=processes")
        card = cards()[args.card]
        if args.price is not None:
            card = dataclasses.replace(card, price=args.price)
        setup = Setup(
            config, shape(args.shape) if args.shape else shape_of(config), card.memory_gib * GIB, ranks=args.ranks,
            sharded=args.ranks > 1, shared=not args.separate and on_learners(config, args.ranks), places=places(config),
            prompt=min(args.prompt_tokens, config.prompt.max_tokens),
            completion=args.mean_tokens or -(-config.rollout.max_tokens // 2), beside=beside(config, True, args.ranks),
        )  # fmt: skip
        return tell(setup, card, args.json)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def check(args: argparse.Namespace, config: Config) -> None:
    """Raises ValueError for a number of the command line that nothing can be planned with."""
    budgets = [config.rollout.max_tokens, *(tokens for _, tokens in config.rollout.length_jumps)]
    for name, value in [("ranks", args.ranks), ("prompt-tokens", args.prompt_tokens), ("mean-tokens", args.mean_tokens)]:
        if value is not None and value < 1:
            raise ValueError(f"--{name} {value}: must be at least 1")
    if args.mean_tokens and args.mean_tokens > max(budgets):
        raise ValueError(f"--mean-tokens {args.mean_tokens}: a completion ends at rollout.max_tokens = {max(budgets)}")
    if args.price is not None and not 0 <= args.price < math.inf:
        raise ValueError(f"--price {args.price}: must be a number of dollars, at least 0")


def places(config: Config) -> int:
    """Cards, or groups of `tensor_parallel_size`, that rollout.devices gives the workers; 0: it does not say. Raises ValueError."""
    r = config.rollout
    return len(engines.groups(config, [str(d) for d in r.devices])) if r.placement == "processes" else 0


def on_learners(config: Config, ranks: int) -> bool:
    """Whether an engine is on a card of the learner's, which are the first `ranks` ones of the host."""
    r = config.rollout
    return r.placement == "colocated" or (r.placement == "processes" and (not r.devices or min(r.devices) < ranks))


def tell(setup: Setup, card: Card, as_json: bool) -> int:
    """Print the plan; 0 where it fits, else 1."""
    uses = use(setup)
    fitting = fits(setup, uses)
    single = [] if fitting else alone(setup)
    remedy = None if fitting else first_that_fits(setup)
    runs = setup if fitting else remedy.setup if remedy else None  # times only of what can run
    taken = times(runs, card, engine(runs)) if runs else None
    if as_json:
        print(json.dumps(as_dict(setup, card, uses, taken, fitting, remedy), indent=1))
        return 0 if fitting else 1
    out = memory_lines(setup, card, uses) + (["It fits."] if fitting else advice(setup, uses, single, remedy))
    print("\n".join(out + (time_lines(runs, card, taken) if runs and taken else [])))
    return 0 if fitting else 1


def fits(setup: Setup, uses: Sequence[Use]) -> bool:
    return all(u.peak <= setup.memory and not u.needs for u in uses)


def shapes() -> list[str]:
    return sorted(p.stem for p in SHAPES.glob("*.json"))


def shape(name: str) -> Any:
    """A transformers config from a file, or one of recipes/shapes. Raises ValueError."""
    path = Path(name) if Path(name).suffix in (".json", ".toml") else SHAPES / f"{name.lower()}.json"
    if not path.is_file():
        raise ValueError(f"--shape {name}: no such file, and not one of {', '.join(shapes())}")
    text = path.read_text()
    tree = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    tree.pop("source", None)
    if not (kind := tree.pop("model_type", None)):
        raise ValueError(f'{path}: no "model_type", so that the architecture is not known')
    return AutoConfig.for_model(kind, **tree)


def shape_of(config: Config) -> Any:
    return shape_at(config.model.path, config.model.trust_remote_code)


def shape_at(given: str, trust: bool, what: str = "model.path") -> Any:
    """A model's config: from its folder, from recipes/shapes under the same name, from the hub's cache, else from the hub."""
    path = resolve(given, what)
    name = path.rsplit("/", 1)[-1].lower()
    if not Path(path).is_dir() and name in shapes():
        return shape(name)
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust, local_files_only=True)
    except OSError:
        pass
    except ValueError as error:
        raise ValueError(f"{what} = {path!r}: the config does not load: {why(error)}") from None
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust)
    except OSError:
        raise ValueError(
            f"{what} = {path!r}: its config.json cannot be had; name a folder or a shape ({', '.join(shapes())}"
            + ("; or --shape with a file)" if what == "model.path" else ")")
        ) from None


def beside(config: Config, cuda: bool, parts: int = 1) -> dict[str, float]:
    """Bytes on a card of the models that a run only asks: a teacher, in so many parts (rl/teacher.py), a preference model (rl/judge.py)."""
    size, found = 2.0 if cuda else 4.0, dict[str, float]()
    if config.teacher.path:
        teacher = shape_at(config.teacher.path, config.model.trust_remote_code, "teacher.path")
        found["teacher"] = size * parameters(AutoModelForCausalLM, teacher) / parts
    folder = Path(str(config.rewards.get(judge.NAME, {}).get("model", "")))
    if (folder / judge.FILE).is_file():  # else it is a function, or refused when it is loaded
        models = sorted(p.parent for p in folder.glob("*/config.json"))
        shapes = (AutoConfig.from_pretrained(model) for model in models)
        found["preference model"] = size * sum(parameters(AutoModelForSequenceClassification, shape) for shape in shapes)
    return found


def parameters(kind: Any, shape: Any) -> int:
    """Of a model of this shape, tied ones once; nothing is loaded."""
    with torch.device("meta"):
        return sum(p.numel() for p in kind.from_config(shape).parameters())


def refuse(config: Config, prompt_tokens: float, sampling: bool = True) -> None:
    """Raises ValueError where a training run cannot fit on this machine. From config.json, in well under a second."""
    cuda = torch.cuda.is_available()
    memory = torch.cuda.get_device_properties(0).total_memory if cuda else host_memory()
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    r = config.rollout
    first = torch.device("cuda", 0) if cuda else torch.device("cpu")  # the leading rank's, which samples
    cards = engines.devices(config, first) if r.placement == "processes" and sampling else []
    shared = r.placement == "colocated" or (
        r.placement == "processes" and (not cuda or bool({*cards} & engines.learners(first)))
    )
    setup = Setup(
        config, shape_of(config), memory, cuda=cuda, ranks=ranks, here=int(os.environ.get("LOCAL_WORLD_SIZE", ranks)), sharded=sharded,
        shared=shared, places=len(engines.groups(config, cards)), prompt=int(prompt_tokens), completion=-(-r.max_tokens // 2),
        beside=beside(config, cuda, ranks if sharded else 1),
    )  # fmt: skip
    try:
        uses = use(setup, sampling)
    except Untraceable as error:  # a plan that cannot be made must not keep a run from starting
        print(f"not planned: {error}", flush=True)
        return
    if fits(setup, uses):
        return
    remedy = first_that_fits(setup) if sampling else None
    raise ValueError(
        f"this run does not fit: {problem(setup, uses)}. "
        + (
            f"Fits with {' '.join(remedy.changes)} ({remedy.peak / GIB:.1f} GiB). "
            if remedy
            else "Nothing that the planner knows helps. "
        )
        + "More: python -m recipes.plan"
    )


def host_memory() -> float:
    """Bytes of RAM that this process may have: the machine's, or its control group's where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return float(min(total, int(text)) if text.isdigit() else total)


def problem(setup: Setup, uses: Sequence[Use]) -> str:
    needs = [need for u in uses for need in u.needs]
    worst = max(uses, key=lambda u: u.peak)
    if worst.peak > setup.memory:
        where = "card" if setup.cuda else "machine"
        when = "learning" if sum(worst.learn.values()) == worst.peak else "sampling"
        needs.insert(0, f"{worst.peak / GIB:.1f} GiB while {when} on a {where} of {setup.memory / GIB:.1f} GiB")
    return "; ".join(needs)


def memory_lines(setup: Setup, card: Card, uses: Sequence[Use]) -> list[str]:
    c = setup.config
    per = "" if setup.ranks == 1 else f", {setup.ranks} cards for the learner"
    out = [f"{c.name} on {card.name} ({card.memory_gib} GiB{per})", ""]
    for u in uses:
        for title, part in (("while learning", u.learn), ("while sampling", u.generate)):
            if part:
                out += [f"{title:<44}{sum(part.values()) / GIB:8.1f} GiB"]
                out += [f"  {name:<42}{size / GIB:8.1f}" for name, size in part.items()]
        if u.torch_peak:
            out += [f"  {'max_memory_allocated of the learner':<42}{u.torch_peak / GIB:8.1f}"]
        out += [""]
    return out


def time_lines(setup: Setup, card: Card, taken: Times) -> list[str]:
    c, r = setup.config, setup.config.rollout
    return [
        "",
        f"{'a step':<44}{taken.step:8.1f} s",
        f"  {f'generate {taken.tokens:,} tokens':<42}{taken.generate:8.1f}",
        f"  {f'learn from {taken.unique:,} positions':<42}{taken.learn:8.1f}   {taken.unique / taken.learn:,.0f}/s, "
        f"{taken.share:.0%} of the card's product rate",
        f"  {'sync':<42}{taken.sync:8.1f}",
        f"  {'checkpoints, a step':<42}{taken.save:8.1f}",
        f"{f'{c.run.steps} steps with evaluations':<44}{taken.hours:8.2f} h   ${dollars(setup, card, taken):,.2f}, "
        f"a card at ${card.price} an hour (assumed)",
        "",
        f"assumed: prompts of {setup.prompt} tokens and completions of {setup.completion} (of at most {r.max_tokens}) in the mean; "
        "set --prompt-tokens and --mean-tokens",
    ]


def dollars(setup: Setup, card: Card, taken: Times) -> float:
    r = setup.config.rollout
    cards = 0 if setup.shared else min(r.workers, setup.places or r.workers) * engines.width(setup.config)
    return taken.hours * card.price * (setup.ranks + cards)


def advice(setup: Setup, uses: Sequence[Use], single: Sequence[Remedy], remedy: Remedy | None) -> list[str]:
    out = [f"It does not fit: {problem(setup, uses)}.", "", "each change alone:"]
    out += [f"  {' '.join(one.changes):<62}{one.peak / GIB:8.1f} GiB{'  fits' if one.fits else ''}" for one in single]
    if remedy:
        out += ["", f"first combination that fits ({remedy.peak / GIB:.1f} GiB):", "  " + " ".join(remedy.changes)]
    else:
        out += ["", "no combination of these fits"]
    return out


def as_dict(
    setup: Setup, card: Card, uses: Sequence[Use], taken: Times | None, fitting: bool, remedy: Remedy | None
) -> dict[str, Any]:
    """Bytes and seconds; the times are of the remedy where the plan itself does not fit."""
    work = row(setup)
    return {
        "card": dataclasses.asdict(card),
        "fits": fitting,
        "memory": [{"learn": dict(u.learn), "generate": dict(u.generate), "peak": u.peak} for u in uses],
        "torch_peak": max(u.torch_peak for u in uses),
        "kv_room": max(u.room for u in uses),
        "row": dataclasses.asdict(work),
        "times": dataclasses.asdict(taken) if taken else None,
        "dollars": dollars(remedy.setup if remedy else setup, card, taken) if taken else None,
        "assumed": {"prompt": setup.prompt, "completion": setup.completion, "price": card.price},
        "remedy": list(remedy.changes) if remedy else None,
    }


if __name__ == "__main__":
    sys.exit(main())
