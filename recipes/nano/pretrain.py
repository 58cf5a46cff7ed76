"""The tiny base model, pretrained from scratch: `python -m recipes.nano.pretrain --out DIR --documents 2000000 --seed 0`.

Writes a folder that transformers and vLLM load as they do any model, with manifest.json beside it: what it was made of. Needs a
GPU for a few minutes; on a CPU it runs too, for tests and for what is small (--start: a model's weights are trained on, as those that
recipes/nano/prune.py has cut out). Everything is tokenised first and stays on the device.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.nano.corpus import PREFIX, Encoded, Mix, encode
from recipes.nano.problems import heldout
from recipes.nano.tokenizer import VOCABULARY, train_tokenizer
from rl import experts
from rl.attention import PACKED, layout
from rl.policy import load_model, load_tokenizer
from rl.records import Span
from rl.routing import Routing

HEAD_DIM = 64
BALANCE_RATE = 1e-3
CONTEXT = 2048
PROMPT_WEIGHT = 0.1  # of a prompt token in the loss: a question's numbers cannot be predicted
_BUCKET = 16  # documents are padded to a multiple of this
WARM_UP = 0.03
FINAL_RATE = 0.02  # of the peak, at the end of the cosine


def build_model(
    hidden: int, layers: int, heads: int, intermediate: int, tokenizer: Any, vocabulary: int = VOCABULARY, key_heads: int = 1
) -> Any:
    """A Qwen3 with random weights and tied embeddings."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        head_dim=HEAD_DIM,
        intermediate_size=intermediate,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def to_buckets(encoded: Encoded, pad: int, device: str) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Documents grouped by length: (ids [N, L] int16, lengths [N], prompt lengths [N]) of each padded length L."""
    starts = np.cumsum(encoded.lengths) - encoded.lengths
    padded: np.ndarray = -(-encoded.lengths // _BUCKET) * _BUCKET
    buckets = []
    for width in np.unique(padded):
        at = np.flatnonzero(padded == width)
        columns = np.arange(width)
        inside = columns < encoded.lengths[at, None]
        index = np.minimum(starts[at, None] + columns, len(encoded.ids) - 1)
        ids = np.where(inside, encoded.ids[index], pad).astype(np.int16)
        buckets.append(tuple(torch.from_numpy(part).to(device) for part in (ids, encoded.lengths[at], encoded.prompts[at])))
    return buckets


def batches(buckets: list[tuple[Tensor, Tensor, Tensor]], tokens: int, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Every document once, in batches of about `tokens` padded tokens and one length each, in random order."""
    generator = torch.Generator().manual_seed(seed)
    plan = []
    for number, (ids, _, _) in enumerate(buckets):
        size = max(1, tokens // ids.shape[1])
        plan += [(number, i, min(i + size, len(ids))) for i in range(0, len(ids), size)]
    for i in torch.randperm(len(plan), generator=generator).tolist():
        number, start, stop = plan[i]
        yield tuple(part[start:stop] for part in buckets[number])  # type: ignore[misc]


def document_loss(model: Any, ids: Tensor, lengths: Tensor, prompts: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    """The weighted mean loss of next tokens, and that of the completions' tokens alone. ids [N, L].

    The first `prefix` tokens are the template, the same in every document: nothing to predict there, and all documents stand behind it
    in one packed row (rl/attention.py), so that it is computed once.
    """
    ids = ids.long()
    targets, rest = ids[:, prefix:], ids.shape[1] - 1 - prefix
    row = torch.cat([ids[0, :prefix], ids[:, prefix:-1].flatten()])
    positions = torch.cat([torch.arange(prefix), torch.arange(prefix, prefix + rest).repeat(len(ids))]).to(ids.device)
    spans = [Span(prefix + i * rest, prefix + (i + 1) * rest, 0, prefix) for i in range(len(ids))]
    packing = layout(spans, len(row), ids.device)
    position = torch.arange(prefix, ids.shape[1], device=ids.device)
    completion = (position >= prompts[:, None]) & (position < lengths[:, None])
    weight = completion + PROMPT_WEIGHT * (position < prompts[:, None])
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=ids.device.type == "cuda"):
        out = model.model(row[None], position_ids=positions[None], use_cache=False, packing=packing).last_hidden_state[0]
        first = out[prefix - 1].expand(len(ids), 1, -1)  # predicts the first token behind the template, in each document
        logits = model.lm_head(torch.cat([first, out[prefix:].view(len(ids), rest, -1)], 1))
    each = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    return (each * weight).sum() / weight.sum(), (each.detach() * completion).sum() / completion.sum()


def rate_at(step: int, steps: int) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine."""
    warm = max(1, int(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def train(model: Any, encoded: Encoded, prefix: int, pad: int, rate: float, tokens: int, seed: int, device: str) -> list[float]:
    """One pass over the documents. Returns the completions' loss, the mean of each 2 % of the run.

    Where the model has experts their biases balance their load, as in reinforcement learning (rl/experts.py).
    """
    model.set_attn_implementation(PACKED)
    routing, spread = Routing.of(model), list[Tensor]()
    buckets = to_buckets(encoded, pad, device)
    order = list(batches(buckets, tokens, seed))
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}],
        lr=rate,
        betas=(0.9, 0.95),
        fused=device == "cuda",
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, len(order)))
    curve: list[float] = []
    recent: list[Tensor] = []
    every = max(1, len(order) // 50)
    started = time.time()
    for step, batch in enumerate(order, 1):
        loss, shown = document_loss(model, *batch, prefix)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if routing:
            spread.append(rebalance(routing, batch[0].shape[1], batch[1], prefix))
        recent.append(shown)
        if step % every == 0 or step == len(order):
            curve.append(float(torch.stack(recent).mean()))
            uneven = f"  MaxVio {float(torch.stack(spread).mean()):.2f}" if spread else ""
            recent, spread = [], []
            speed = step / len(order) * len(encoded.ids) / (time.time() - started)
            print(f"step {step}/{len(order)}  loss {curve[-1]:.4f}  {speed:,.0f} tokens/s{uneven}", flush=True)
    return curve


def rebalance(routing: Routing, width: int, lengths: Tensor, prefix: int) -> Tensor:
    """The experts' biases after a step on documents [N, width], by the load of what is no padding; returns the mean MaxVio."""
    inside = torch.arange(prefix, width - 1, device=lengths.device) < lengths[:, None] - 1
    counted = torch.cat([inside.new_ones(prefix), inside.flatten()])
    load = experts.load(routing.chosen(), counted, routing.experts)
    routing.rebalance(load, BALANCE_RATE)
    return experts.violation(load).mean()


def save(model: Any, tokenizer: Any, out: Path) -> None:
    """In the Hugging Face format. Half precision: rounding these weights changes a log-prob less than one update does."""
    out.mkdir(parents=True, exist_ok=True)
    model.to("cpu", torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def pretrain(options: argparse.Namespace) -> dict[str, Any]:
    """Make the base and write it to `options.out`; returns its manifest."""
    import transformers

    started = time.time()
    torch.manual_seed(options.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    mix = Mix(**json.loads(options.mix))
    tokenizer = load_tokenizer(options.start) if options.start else train_tokenizer(options.seed)
    standard = heldout(500)
    encoded = encode(options.documents, options.seed, mix, tokenizer.backend_tokenizer.to_str(), standard, options.processes)
    print(f"{len(encoded.ids):,} tokens in {options.documents:,} documents after {time.time() - started:.1f} s", flush=True)
    if encoded.overlap:
        raise RuntimeError(f"{encoded.overlap} documents share a problem with the held-out ones: the splits are broken")
    if options.start:
        model = load_model(options.start, dtype=torch.float32)
    else:
        model = build_model(options.hidden, options.layers, options.heads, options.intermediate, tokenizer)
    model.to(device)
    prefix = len(tokenizer(PREFIX)["input_ids"])
    curve = train(model, encoded, prefix, tokenizer.pad_token_id, options.rate, options.batch_tokens, options.seed, device)
    manifest = {
        "command": "python -m recipes.nano.pretrain",
        "settings": {key: value for key, value in vars(options).items() if key not in ("out", "mix", "processes", "start")},
        "mix": asdict(mix),
        "start": Path(options.start).name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "documents": options.documents,
        "tokens": len(encoded.ids),
        "completion_tokens": int((encoded.lengths - encoded.prompts).sum()),
        "minutes": round((time.time() - started) / 60, 2),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "final_loss": curve[-1],
        "loss_curve": curve,
        "heldout_problems": len(standard),
        "heldout_overlap": encoded.overlap,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    save(model, tokenizer, options.out)
    (options.out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=2_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--intermediate", type=int, default=384)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--start", default="", help="a folder: its weights are trained on, its sizes and tokenizer kept")
    parser.add_argument("--batch-tokens", type=int, default=65_536)
    parser.add_argument("--mix", default="{}", help='JSON of what differs from corpus.Mix, such as {"error": 0.12}')
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    return parser.parse_args(arguments)


if __name__ == "__main__":
    pretrain(parse())
