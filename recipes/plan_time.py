"""Seconds a step and of the whole run on a stated card.

Learner: products at a share of the card's rate, everything else at a share of its bandwidth; both counted in plan_trace.py. Generation:
a step of the engine takes the longer of its host's work and its card's: weights are read or multiplied with (2 operations a weight and
token), whichever takes longer, and cached keys are read; prompts are read once a group. The constants were fitted to measurements on
one H200 (November 2026), named beside each; hosts differ by up to 2x in what the host does, so generation of small models is known no
better than that.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.plan_memory import EngineUse, Setup, kv_bytes, layers, row
from recipes.plan_trace import EXPERTS

# 1.5B, packed rows of 16k and 32k, forward + backward: 40,075, 52,532, 50,811, 43,439 (checkpointed), 64,803 (compiled) tokens/s.
PRODUCTS = 0.80  # of the rate of one large product
ATTENTION = 0.4  # of the card's stated rate
TRAFFIC = 0.6  # of its bandwidth
FUSED = 0.4  # of the layers' traffic that is left when they are compiled
LAUNCH_S = 6e-6  # the host's work for one operation
# 512 sequences x 512 tokens: 48,000 tokens/s with log-probs, 0.5B and 1.5B alike.
STEP_S, TOKEN_S = 3e-3, 15e-6  # the host's work for a step of the engine, and for a token
DECODE = 0.7  # of the bandwidth
PREFILL = 0.5  # of the rate of one large product
OVERLAP = 0.66  # engine and learner at work on one card at once: 9.5 s instead of 14.3
LINK = 0.6  # of the rate between cards
SYNC_PASSES = 8  # over the bf16 weights: cast, copy, fingerprints on both sides
DISK = 1.5e9  # bytes/s of a checkpoint
HOST_LINK = 25e9  # bytes/s between card and host
START_S = 120  # packages, weights, engine


@dataclass(frozen=True)
class Card:
    """One kind of card; see cards.toml."""

    name: str
    memory_gib: float
    tflops: float
    bandwidth_gbs: float
    link_gbs: float
    matmul: float
    price: float

    @property
    def rate(self) -> float:
        """Operations a second of a large bf16 product."""
        return self.tflops * 1e12 * self.matmul

    @property
    def bandwidth(self) -> float:
        return self.bandwidth_gbs * 1e9


def cards() -> dict[str, Card]:
    tree: dict[str, Any] = tomllib.loads((Path(__file__).parent / "cards.toml").read_text())
    return {name: Card(name=name, **values) for name, values in tree.items()}


@dataclass(frozen=True)
class Times:
    """Seconds of one step by phase, and hours of the run with its evaluations."""

    generate: float
    learn: float
    sync: float
    save: float  # a step's share of a checkpoint
    step: float
    hours: float
    tokens: int  # completion tokens a step
    unique: int  # positions that the learner runs over a step
    rows: float
    share: float  # of the card's measured product rate that the learner reaches, at 6 operations a weight and position


def times(setup: Setup, card: Card, other: EngineUse) -> Times:
    c = setup.config
    r = c.rollout
    sequences = r.prompts * r.group
    tokens = sequences * setup.completion
    unique = r.prompts * setup.prompt + tokens
    generate = generation(setup, card, other, r.prompts, sequences, setup.completion)
    work = row(setup)
    rows = max(1.0, unique / work.positions)
    of = layers(setup, c.model.gradient_checkpointing, work)
    a_row = row_seconds(setup, card)
    passes = c.algorithm.inner_epochs + (c.algorithm.minibatches * c.algorithm.inner_epochs > 1) / 3 + bool(c.algorithm.kl) / 3
    updates = c.algorithm.minibatches * c.algorithm.inner_epochs
    learn = rows / setup.ranks * a_row * passes + updates * update_seconds(setup, card, of.trained)
    sync = 0.05 + SYNC_PASSES * 2 * of.parameters / card.bandwidth
    save = (of.trained * 12 / DISK + 1) / c.run.save_every if c.run.save_every else 0.0
    step = generate + learn
    if r.max_staleness:
        step = OVERLAP * step if setup.shared else max(generate, learn)
    step += sync + save
    held_out = c.evaluate.problems if c.data.heldout else 0
    asked = held_out * (c.evaluate.samples + 1)
    evaluation = 2 * generation(setup, card, other, held_out, asked, setup.completion) if asked else 0.0
    return Times(
        generate, learn, sync, save, step, (c.run.steps * step + evaluation + START_S) / 3600, tokens, unique, rows,
        6 * (of.parameters - idle_experts(setup.shape)) * work.positions / a_row / card.rate,
    )  # fmt: skip


def row_seconds(setup: Setup, card: Card) -> float:
    """Forward and backward pass of one row on one card."""
    work, model, shape = row(setup), setup.config.model, setup.shape
    n = shape.num_hidden_layers
    plain = layers(setup, False, work)
    share = int(n * model.checkpoint_share + 1e-9) / n if model.gradient_checkpointing else 0.0
    again = layers(setup, True, work) if share else plain

    def mixed(name: str) -> float:
        return (1 - share) * getattr(plain, name) + share * getattr(again, name)

    logits = work.targets * shape.vocab_size
    trained = not model.lora.rank
    # Forward, again in the backward pass, gradient of the hidden states, gradient of the matrix.
    products = (8 if trained else 6) * logits * shape.hidden_size * (4 if model.fp32_head else 1)
    passes = 6 if setup.compiled else 60  # bytes a logit; compiled, each chunk is read twice and written once
    busy = (mixed("matmul") + products) / (PRODUCTS * card.rate) + mixed("attention") / (ATTENTION * card.tflops * 1e12)
    busy += (mixed("moved") * (FUSED if setup.compiled else 1) + logits * passes) / (TRAFFIC * card.bandwidth)
    host = mixed("launches") * LAUNCH_S * (FUSED if setup.compiled else 1)
    between = 0.0
    if setup.sharded and setup.ranks > 1:  # gathered for the forward pass and the backward pass, gradients scattered in fp32
        moved = (4 * plain.parameters + 4 * plain.trained) * (setup.ranks - 1) / setup.ranks
        between = moved / (LINK * card.link_gbs * 1e9)
    return max(busy, host, between)


def update_seconds(setup: Setup, card: Card, trained: float) -> float:
    """AdamW reads weight, gradient and moments and writes all but the gradient; the norm reads the gradient once more."""
    learn, trained = setup.config.learn, trained / (setup.ranks if setup.sharded else 1)
    moments = 4 if learn.optimizer == "adamw8" else 16  # bytes read and written
    seconds = trained * (16 + moments) / (TRAFFIC * card.bandwidth)
    return seconds + (trained * moments / HOST_LINK if learn.offload else 0)


def generation(setup: Setup, card: Card, other: EngineUse, prompts: int, sequences: int, mean: int) -> float:
    """`sequences` completions of `mean` tokens, the longest of them `rollout.max_tokens`, to `prompts` prompts."""
    r, shape = setup.config.rollout, setup.shape
    options = r.engine
    parallel = int(options.get("tensor_parallel_size", 1))
    sequences, prompts = -(-sequences // r.workers), -(-prompts // r.workers)
    parameters = layers(setup, setup.config.model.gradient_checkpointing, row(setup)).parameters
    each = (setup.prompt / r.group + mean) * kv_bytes(shape)
    fit = max(1, min(sequences, int(options.get("max_num_seqs", 1024)), int(other.room / each)))
    longest = max(mean, r.max_tokens)
    steps = longest if fit >= sequences else sequences * mean / fit + longest / 2
    tokens = sequences * mean
    host = steps * STEP_S + tokens * TOKEN_S
    used = parameters - idle_experts(shape)  # by a token
    read = parameters - idle_experts(shape, fit)  # by the tokens of a step together
    weights = max(steps * 2 * read / (DECODE * card.bandwidth), 2 * used * tokens / (PREFILL * card.rate))
    cached = tokens * (setup.prompt + mean / 2) * kv_bytes(shape) / (DECODE * card.bandwidth)
    busy = (weights + cached) / parallel
    prefill = 2 * used * prompts * setup.prompt / parallel / (PREFILL * card.rate)
    return max(host, busy) + prefill


def idle_experts(shape: Any, tokens: int = 1) -> float:
    """Parameters of a mixture's experts that `tokens` tokens leave unused in the mean, where each takes K of E at random; 0 if dense."""
    experts = next((n for name in EXPERTS if (n := getattr(shape, name, None))), 0)
    if not experts:
        return 0.0
    sparse = shape.num_hidden_layers - int(getattr(shape, "first_k_dense_replace", 0) or 0)
    each = 3 * shape.hidden_size * (getattr(shape, "moe_intermediate_size", None) or shape.intermediate_size)
    return sparse * experts * each * (1 - shape.num_experts_per_tok / experts) ** tokens
