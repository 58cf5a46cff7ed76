"""What to change when a run does not fit: each change with its effect, and the first combination that fits.

In the order of what a change costs: first those that cost little time, then those that change what is learned, then money.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from recipes.plan_memory import Setup, engine, kv_bytes, use

Change = Callable[[Setup], tuple[Setup, str] | None]  # None: it changes nothing here
SEQUENCES = 64  # that an engine should be able to hold at once
RANK = 32


@dataclass(frozen=True)
class Remedy:
    changes: tuple[str, ...]  # as they are written on the command line
    peak: float  # bytes
    fits: bool
    setup: Setup  # with the changes


def _set(setup: Setup, section: str, text: str, **values: object) -> tuple[Setup, str]:
    part = replace(getattr(setup.config, section), **values)
    return replace(setup, config=replace(setup.config, **{section: part})), text


def shorter_rows(setup: Setup) -> tuple[Setup, str] | None:
    """Half the row, down to a group of two mean completions."""
    tokens = setup.config.learn.row_tokens // 2
    if tokens < max(2048, setup.prompt + 2 * setup.completion):
        return None
    return _set(setup, "learn", f"learn.row_tokens={tokens}", row_tokens=tokens)


def checkpointing(setup: Setup) -> tuple[Setup, str] | None:
    model = setup.config.model
    if model.gradient_checkpointing and model.checkpoint_share == 1:
        return None
    text = "model.gradient_checkpointing=true" + " model.checkpoint_share=1.0" * (model.checkpoint_share != 1)
    return _set(setup, "model", text, gradient_checkpointing=True, checkpoint_share=1.0)


def sleep(setup: Setup) -> tuple[Setup, str] | None:
    r = setup.config.rollout
    if r.sleep or not (setup.cuda and setup.shared and r.placement == "colocated" and r.sampler == "vllm"):
        return None
    if int(r.engine.get("tensor_parallel_size", 1)) > 1:  # rl/sampler_vllm.py refuses it
        return None
    return _set(setup, "rollout", "rollout.sleep=true", sleep=True)


def fewer_workers(setup: Setup) -> tuple[Setup, str] | None:
    """One engine where several share a card, or a host without one."""
    r = setup.config.rollout
    workers = max(1, setup.places) if setup.cuda else 1
    if setup.engines == 1 or r.workers <= workers:
        return None
    text = f"rollout.workers={workers}" + f" rollout.min_workers={workers}" * (r.min_workers > workers)
    return _set(setup, "rollout", text, workers=workers, min_workers=min(r.min_workers, workers))


def smaller_engine(setup: Setup) -> tuple[Setup, str] | None:
    """The share that holds the weights, the workspace and SEQUENCES completions (at least one of the full length)."""
    r = setup.config.rollout
    if not setup.cuda or r.sampler != "vllm":
        return None
    now = engine(setup)
    fixed = now.awake["engine: weights"] + now.awake["engine: workspace"]
    context = setup.config.prompt.max_tokens + setup.longest
    cards = int(r.engine.get("tensor_parallel_size", 1))
    room = max(context, SEQUENCES * (setup.prompt + setup.completion)) * kv_bytes(setup.shape) / cards
    share = math.ceil(100 * (fixed + 1.05 * room) / setup.memory) / 100
    if share > 0.95 or (share >= float(r.engine.get("gpu_memory_utilization", 0.4)) and not now.needs):
        return None
    text = f"rollout.engine.gpu_memory_utilization={share}"
    return _set(setup, "rollout", text, engine={**r.engine, "gpu_memory_utilization": share})


def wider_engine(setup: Setup) -> tuple[Setup, str] | None:
    """An engine that is too large for one card, split over the learner's cards."""
    r = setup.config.rollout
    if int(r.engine.get("tensor_parallel_size", 1)) >= setup.ranks or r.sampler != "vllm" or not engine(setup).needs:
        return None
    text = f"rollout.engine.tensor_parallel_size={setup.ranks}"
    return _set(setup, "rollout", text, engine={**r.engine, "tensor_parallel_size": setup.ranks})


def eight_bit(setup: Setup) -> tuple[Setup, str] | None:
    if setup.config.learn.optimizer == "adamw8" or not setup.cuda:
        return None
    return _set(setup, "learn", "learn.optimizer=adamw8", optimizer="adamw8")


def offload(setup: Setup) -> tuple[Setup, str] | None:
    if setup.config.learn.offload or setup.sharded or not setup.cuda:
        return None
    return _set(setup, "learn", "learn.offload=true", offload=True)


def adapters(setup: Setup) -> tuple[Setup, str] | None:
    lora = setup.config.model.lora
    if lora.rank:
        return None
    return _set(setup, "model", f"model.lora.rank={RANK}", lora=replace(lora, rank=RANK))


def four_bits(setup: Setup) -> tuple[Setup, str] | None:
    model = setup.config.model
    if model.qlora or setup.sharded or not setup.cuda:
        return None
    lora = replace(model.lora, rank=model.lora.rank or RANK)
    text = "model.qlora=true" if model.lora.rank else f"model.qlora=true model.lora.rank={RANK}"
    return _set(setup, "model", text, qlora=True, lora=lora)


def more_cards(setup: Setup) -> tuple[Setup, str] | None:
    """Twice the cards, the learner's state sharded over them; the engine is then in a process of its own, on one of them."""
    c = setup.config
    if not setup.cuda or setup.ranks >= 8 or c.model.qlora or c.learn.offload:
        return None
    text = f"--ranks={2 * setup.ranks}"
    if c.rollout.placement == "colocated" and c.rollout.sampler == "vllm":
        text += " rollout.placement=processes" + " rollout.sleep=false" * c.rollout.sleep
        setup, text = _set(setup, "rollout", text, placement="processes", sleep=False)
    return replace(setup, ranks=2 * setup.ranks, sharded=True), text


ORDER: tuple[Change, ...] = (
    wider_engine, checkpointing, shorter_rows, sleep, fewer_workers, smaller_engine, eight_bit, offload, adapters, four_bits,
    more_cards,
)  # fmt: skip
ALONE = (offload, four_bits)  # changes that a sharded learner refuses
TIMES: dict[Change, int] = {shorter_rows: 4, more_cards: 3}  # a change that halves or doubles


def alone(setup: Setup) -> list[Remedy]:
    """Each change by itself, where it changes anything."""
    return [_remedy(made, tuple(text.split())) for change in ORDER if (one := change(setup)) for made, text in [one]]


def first_that_fits(setup: Setup) -> Remedy | None:
    """Changes are added in ORDER until it fits (rows are halved as far as they go); then those are taken back that it fits without.

    What does not fit on one card so is tried on more of them, without the changes that a sharded learner refuses.
    """
    return _first(setup, ORDER) or _first(setup, [c for c in ORDER if c not in ALONE])


def _first(setup: Setup, order: Sequence[Change]) -> Remedy | None:
    chosen: list[Change] = []
    for change in itertools.chain.from_iterable([c] * TIMES.get(c, 1) for c in order):
        chosen.append(change)
        if (found := _apply(setup, chosen)) and found.fits:
            break
    else:
        return None
    for change in reversed(list(chosen)):  # the dearest first
        fewer = [c for c in chosen if c is not change]
        if (less := _apply(setup, fewer)) and less.fits:
            chosen, found = fewer, less
    return found


def _apply(setup: Setup, changes: Sequence[Change]) -> Remedy | None:
    texts: dict[str, str] = {}  # by setting: a later value replaces the earlier
    slept = setup.config.rollout.sleep
    for change in changes:
        for again in (change, wider_engine, smaller_engine) if change is more_cards else (change,):
            if one := again(setup):
                setup, text = one
                texts |= {setting.partition("=")[0]: setting for setting in text.split()}
    if setup.config.rollout.sleep == slept:  # set by one change, taken back by another
        texts.pop("rollout.sleep", None)
    return _remedy(setup, tuple(texts.values()))


def _remedy(setup: Setup, texts: tuple[str, ...]) -> Remedy:
    uses = use(setup)
    peak = max(u.peak for u in uses)
    return Remedy(texts, peak, peak <= setup.memory and not any(u.needs for u in uses), setup)
