"""Peak memory of learner and engine, in bytes, by what it is for. See plan_trace.py for what is counted and not computed by formula.

The learner's peak lies either in the log-probs (all layers' activations are alive, and a chunk of logits) or in the backward pass of
the layers. What is not PyTorch's (the CUDA context, libraries' workspaces, blocks that its allocator cannot fill) is an allowance.
Axes: L positions of a row, T completion tokens, V vocabulary, H hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from recipes.plan_trace import Cost, Kind, Work, cost
from rl.config import Config
from rl.logprobs import CHUNK_ELEMENTS

GIB = 1 << 30
CONTEXT = 0.8 * GIB  # CUDA context and the libraries' workspaces, of one process
FRAGMENTS = 0.03  # of a row's memory: blocks that the allocator holds and cannot fill
NCCL = 1.0 * GIB
GRAPHS = 1.2 * GIB  # vLLM's CUDA graphs, captured beyond its budget
ASLEEP = 1.5 * GIB  # what a sleeping engine keeps
EIGHT_BIT = 2 * (1 + 4 / 256)  # bytes of two 8-bit moments of a parameter, with an fp32 scale a block of 256
FOUR_BIT = 0.5 + 4 / 64  # bytes of a 4-bit weight, with an fp32 scale a block of 64
TILE = 4096 * 32768  # logits that TRL's fused head holds at once (trl/kernels/chunked_logprob.py)
CPU_PROCESS = 1.0 * GIB  # Python, PyTorch and vLLM on a CPU machine
CPU_CACHE = 1.0 * GIB  # vLLM's keys and values there, as rl/sampler_vllm.py sets them


@dataclass(frozen=True)
class Setup:
    """What is planned: a recipe, the model's transformers config, and where it runs."""

    config: Config
    shape: Any
    memory: float  # bytes of one card, or of the host where `cuda` is False
    cuda: bool = True
    ranks: int = 1  # processes of the learner, on a card each
    here: int = 1  # of them on this host: on a CPU they share its memory
    sharded: bool = False  # FSDP2 over them
    shared: bool = True  # learner and engine on the same card
    places: int = 0  # cards (or groups of them) that the workers take in turn; 0: one for each, or the learner's where shared
    prompt: int = 256  # tokens, mean
    completion: int = 512  # tokens, mean
    repeat: bool = False  # see plan_trace.Kind
    tiled_head: bool = False  # log-probs as TRL's SFTTrainer computes them, not as rl/logprobs.py does
    beside: Mapping[str, float] = field(default_factory=dict)  # bytes of models that are only asked, on the learner's card

    @property
    def compiled(self) -> bool:
        wanted = self.config.learn.compile
        return wanted == "always" or (wanted == "cuda" and self.cuda)

    @property
    def engines(self) -> int:
        """Rollout workers on one card, or on the host where `cuda` is False."""
        workers = self.config.rollout.workers
        if self.shared and not (self.cuda and self.places):
            return workers
        return -(-workers // self.places) if self.places else 1

    @property
    def longest(self) -> int:
        """Tokens of the longest completion in the run."""
        r = self.config.rollout
        return max([r.max_tokens, *(tokens for _, tokens in r.length_jumps)])


@dataclass(frozen=True)
class Use:
    """Bytes on one card by phase; a phase's total is the sum of its parts."""

    learn: Mapping[str, float]
    generate: Mapping[str, float]
    torch_peak: float  # of the learner: what torch.cuda.max_memory_allocated() should say
    room: float = 0.0  # bytes of keys and values that the engine has
    needs: tuple[str, ...] = field(default=())  # what cannot be, whatever the sum says

    @property
    def peak(self) -> float:
        return max(sum(self.learn.values()), sum(self.generate.values()))


def row(setup: Setup) -> Work:
    """The largest packed row of a run: groups of the mean size until `row_tokens` is full; a single completion may be longer."""
    c = setup.config
    group, prompt, mean = c.rollout.group, setup.prompt, setup.completion
    step = c.rollout.prompts // c.algorithm.minibatches * (prompt + group * mean)
    positions = max(min(c.learn.row_tokens, step), min(step, prompt + setup.longest))
    # A group that is larger than the row is cut: the completions that fit share a prompt.
    together = max(1, min(group, (positions - prompt) // max(1, mean)))
    groups = positions / (prompt + together * mean)
    completions = groups * together
    return Work(
        positions=int(positions),
        targets=int(min(positions - prompt, completions * mean)) or 1,
        keys=int(groups * prompt + completions * (prompt + mean)),
        pairs=int(groups * prompt * prompt / 2 + completions * (prompt * mean + mean * mean / 2)),
    )


def layers(setup: Setup, checkpointing: bool, work: Work) -> Cost:
    """What the layers cost over a row: as they compute in this setup."""
    lora = setup.config.model.lora
    sharded = setup.sharded and setup.cuda  # FSDP2 casts a layer's shards to bf16 when it gathers them
    return cost(
        setup.shape,
        work,
        Kind(
            base="bfloat16" if sharded or (lora.rank and setup.cuda) else "float32",
            autocast=setup.cuda and not sharded,
            checkpointing=checkpointing,
            lora=lora.rank,
            targets=lora.targets,
            repeat=setup.repeat,
        ),
    )


def activations(setup: Setup, work: Work) -> float:
    """Bytes at the peak of one row's forward and backward pass, beside weights, gradients and optimiser state."""
    n, model = setup.shape.num_hidden_layers, setup.config.model
    plain = layers(setup, False, work)
    residual = 2 * n * work.positions * plain.state  # of each layer, before attention and before the MLP
    kept = plain.forward
    if setup.compiled:  # with checkpointing they are compiled for little memory
        kept = min(plain.forward, (plain.lean if model.gradient_checkpointing else plain.kept) + residual)
    casts, forward, transient = plain.casts, kept, plain.backward - plain.forward
    if model.gradient_checkpointing:
        again = layers(setup, True, work)
        share = int(n * model.checkpoint_share + 1e-9) / n
        forward = share * again.forward + (1 - share) * kept
        # A layer is run again before it is differentiated; compiled it keeps less then, too.
        transient = again.backward - again.forward - (plain.forward - kept) / n
        casts = again.casts * share
    if setup.compiled:
        casts = 0.0  # compiled layers cast inside
    head_forward, head_backward, held = head(setup, work)
    return max(forward + casts + head_forward, forward + head_backward, forward + transient + held, plain.end + held)


def head(setup: Setup, work: Work) -> tuple[float, float, float]:
    """Bytes beside the layers' while log-probs are computed, while they are differentiated, and what is held after that (a tied
    embedding's gradient waits for its second half). See rl/logprobs.py."""
    c, shape = setup.config, setup.shape
    hidden, vocabulary = shape.hidden_size, shape.vocab_size
    size = 4 if c.model.fp32_head or not setup.cuda else 2
    if setup.tiled_head:
        states, tile = work.targets * hidden * size, min(TILE, work.targets * vocabulary) * size
        gradient = 0 if c.model.lora.rank else 4 * vocabulary * hidden
        return states + tile, 3 * states + gradient + tile, gradient if shape.tie_word_embeddings else 0
    most = CHUNK_ELEMENTS["cuda" if setup.cuda else "cpu"] // vocabulary
    chunk = min(work.targets, max(1, most)) * vocabulary
    trained = not c.model.lora.rank
    matrix = vocabulary * hidden
    stored = 2 if c.model.lora.rank or setup.sharded else 4
    cast = matrix * size if size != stored and setup.cuda else 0
    states = work.targets * hidden * size
    # Compiled, a chunk's passes run inside its logits; else fp32 copies of it stand side by side.
    extra = 0 if setup.compiled and setup.cuda else 16 * chunk
    forward = states + cast + size * chunk + extra
    gradient = 4 * matrix if trained else 0
    backward = 2 * states + cast + gradient + size * chunk + max(extra, size * matrix if trained else 0)
    return forward, backward, gradient if shape.tie_word_embeddings else 0


def learner(setup: Setup) -> tuple[dict[str, float], dict[str, float]]:
    """Bytes of the learner on one card while it learns, and while it does not: what stays between updates."""
    c, work = setup.config, row(setup)
    of = layers(setup, c.model.gradient_checkpointing, work)
    ranks = setup.ranks if setup.sharded else 1
    frozen, trained = of.parameters - of.trained, of.trained
    held = 2.0 if setup.cuda else 4.0  # bytes of a frozen weight
    weights = (trained * 4 + (frozen - of.projections) * held + of.projections * (FOUR_BIT if c.model.qlora else held)) / ranks
    moments = trained * (EIGHT_BIT if c.learn.optimizer == "adamw8" else 8) / ranks
    stays = {"weights": weights, "optimiser state": 0.0 if c.learn.offload and setup.cuda else moments}
    if c.algorithm.kl and not c.model.lora.rank:
        stays["reference model"] = of.parameters * held / ranks
    stays |= setup.beside
    peak = activations(setup, work)
    learns = stays | {"gradients": trained * 4 / ranks, f"one row of {work.positions:,} tokens": peak}
    if setup.sharded:
        layer = (of.parameters - _embeddings(setup.shape)) / setup.shape.num_hidden_layers
        # The layer at work and the next one in bf16, gradients of one as they are and in fp32 for the reduction; the root stays whole.
        learns["gathered layers"] = 2 * 2 * layer + 2 * _embeddings(setup.shape) + (6 * layer if not c.model.lora.rank else 0)
    elif setup.ranks > 1:
        learns["buckets of the gradients"] = trained * 4
    if c.model.qlora:
        learns["weights of one layer in bf16"] = 2 * of.projections / setup.shape.num_hidden_layers
    if setup.cuda:
        other = CONTEXT + (NCCL if setup.ranks > 1 else 0)
        stays["context"] = other
        learns["context and fragments"] = other + FRAGMENTS * peak
    return learns, stays


def _embeddings(shape: Any) -> float:
    return shape.vocab_size * shape.hidden_size * (1 if shape.tie_word_embeddings else 2)


def kv_bytes(shape: Any, size: int = 2) -> float:
    """Keys and values of one token in every layer."""
    if rank := getattr(shape, "kv_lora_rank", None):  # MLA keeps the compressed form
        return shape.num_hidden_layers * (rank + shape.qk_rope_head_dim) * size
    width = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    return (
        2 * shape.num_hidden_layers * (getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads) * width * size
    )


@dataclass(frozen=True)
class EngineUse:
    """Bytes of the engine on one of its cards."""

    awake: dict[str, float]
    asleep: float
    room: float  # for keys and values, of all its cards together
    needs: tuple[str, ...] = ()


def engine(setup: Setup) -> EngineUse:
    """vLLM takes its share of the card and fills what weights and workspace leave with keys and values."""
    c, shape = setup.config, setup.shape
    parameters = layers(setup, c.model.gradient_checkpointing, row(setup)).parameters
    context = c.prompt.max_tokens + setup.longest
    if c.rollout.sampler == "transformers":
        size = 2 if setup.cuda else 4
        cache = min(64, c.rollout.prompts * c.rollout.group) * context * kv_bytes(shape, size)
        return EngineUse({"sampler's weights": parameters * size, "sampler's cache": cache}, parameters * size, cache)
    if not setup.cuda:
        return EngineUse(
            {"engine's weights": parameters * 4, "engine's cache": CPU_CACHE}, parameters * 4 + CPU_CACHE, CPU_CACHE
        )
    options = c.rollout.engine
    cards = int(options.get("tensor_parallel_size", 1))
    pool = float(options.get("gpu_memory_utilization", 0.4)) * setup.memory
    weights = parameters * 2 / cards
    tokens = int(options.get("max_num_batched_tokens", 16384 if setup.memory > 70 * GIB else 8192))
    wide = getattr(shape, "intermediate_size", 4 * shape.hidden_size)
    work = (
        tokens * (3 * wide / cards + 8 * shape.hidden_size) * 2 + int(options.get("max_num_seqs", 1024)) * shape.vocab_size * 12
    )
    room = (pool - weights - work) * cards
    needs = []
    if room < context * kv_bytes(shape):
        least = (weights + work + context * kv_bytes(shape) / cards) / setup.memory
        needs.append(
            f"the engine's share of {pool / GIB:.1f} GiB (rollout.engine.gpu_memory_utilization) cannot hold the weights "
            f"({weights / GIB:.1f} GiB), its workspace ({work / GIB:.1f}) and one sequence of {context:,} tokens: it needs {least:.2f}"
        )
    graphs = 0.0 if options.get("enforce_eager") else GRAPHS
    awake = {"engine: weights": weights, "engine: workspace": work, "engine: keys and values": max(0.0, room / cards)}
    return EngineUse(awake | {"engine: CUDA graphs": graphs}, ASLEEP, max(0.0, room), tuple(needs))


def use(setup: Setup, sampling: bool = True) -> tuple[Use, ...]:
    """Memory by phase: of the card that both share, or of the learner's and then the engine's (none where nothing is sampled)."""
    learns, stays = learner(setup)
    other = engine(setup) if sampling else EngineUse({}, 0.0, 0.0)
    inside = {k: v for k, v in learns.items() if not k.startswith("context")}
    torch_peak = sum(inside.values())
    if not setup.cuda:
        learns, stays = (_times({"the process": CPU_PROCESS} | part, setup.here) for part in (learns, stays))
    c, awake = setup.config.rollout, dict(other.awake)
    if sampling and (c.placement != "colocated" or not setup.shared):
        awake |= {"engine: process": CPU_PROCESS} if not setup.cuda else {"engine: context": CONTEXT}
    awake = _times(awake, setup.engines)
    if not setup.shared:
        return Use(learns, stays, torch_peak, needs=unsharded(setup)), Use({}, awake, 0.0, other.room, other.needs)
    while_learning = {"engine asleep": other.asleep} if c.sleep and setup.cuda else awake  # only a colocated one sleeps
    return (Use(learns | while_learning, stays | awake, torch_peak, other.room, unsharded(setup) + other.needs),)


def _times(parts: Mapping[str, float], processes: int) -> dict[str, float]:
    """The same parts of so many processes."""
    return {name + (f", {processes} times" if processes > 1 else ""): processes * size for name, size in parts.items()}


def unsharded(setup: Setup) -> tuple[str, ...]:
    """What a learner whose state is sharded over its ranks refuses (rl/learn.py, rl/ranks.py)."""
    c = setup.config
    refused = (("learn.offload", c.learn.offload), ("model.qlora", c.model.qlora))
    return tuple(
        f"{name} cannot be on a learner that is sharded over ranks: leave it out, or run on one card"
        for name, wanted in refused
        if setup.sharded and wanted
    )
