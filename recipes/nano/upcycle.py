"""A tiny base of DeepSeek-V3's architecture from the dense one: `python -m recipes.nano.upcycle --out DIR`. Minutes on a CPU.

Sparse upcycling (Komatsuzaki et al., arXiv 2212.05055), and grouped-query attention turned into latent attention. What becomes of what:
1. A layer's MLP is cut. Its first neurons become the shared experts (DeepSeek-V3's are one wider MLP); the rest, two experts wide, is
   dealt out to the routed ones, each half to every other expert with some noise, twice as strong: a token that goes to one of either
   kind, half by half, finds the whole MLP again. Which tokens go where is learned.
2. Keys go into the rotary part, which all heads share as they shared the one key head; values are the latent. Qwen3 normalises queries and
   keys, latent attention the query's and the value's latent: where they differ, a norm becomes its mean, measured on documents.
3. The part of queries and keys without positions is new and begins at zero.
Then the model is pretrained on for a while (pretrain.py), which heals the second and gives the experts their work.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recipes.nano.corpus import PREFIX, Encoded, Mix, encode
from recipes.nano.pretrain import save, train
from recipes.nano.problems import heldout
from rl.policy import ROOT, load_tokenizer

DENSE = ROOT / "recipes/nano/base"
NOPE = 32  # width of a query's and a key's part without positions
CALIBRATION = 64  # documents
NOISE = 0.1  # of a weight, so that copies of one half can part


def build(dense: Any, number: int, width: int, first: int) -> Any:
    """A DeepSeek-V3 of the dense model's sizes: `number` routed experts of `width`, 2 a token, from layer `first` on."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    c = dense.config
    same = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
    )
    config = DeepseekV3Config(
        **{name: getattr(c, name) for name in (*same, "rms_norm_eps", "rope_parameters", "eos_token_id", "pad_token_id")},
        bos_token_id=None, num_key_value_heads=c.num_attention_heads, moe_intermediate_size=width, n_routed_experts=number,
        n_shared_experts=c.intermediate_size // width - 2, num_experts_per_tok=2, n_group=1, topk_group=1, routed_scaling_factor=1.0,
        first_k_dense_replace=first, kv_lora_rank=c.head_dim, q_lora_rank=c.num_attention_heads * c.head_dim, qk_nope_head_dim=NOPE,
        qk_rope_head_dim=c.head_dim, v_head_dim=c.head_dim, num_mtp_layers=0,
        topk_method="noaux_tc", scoring_func="sigmoid",  # vLLM reads these two, as the published config has them
    )  # fmt: skip
    return DeepseekV3ForCausalLM(config)


@torch.no_grad()
def upcycle(dense: Any, model: Any, encoded: Encoded) -> None:
    """Fill `model` (from `build`) with the dense model's weights."""
    size = norms(dense, encoded)
    model.model.embed_tokens.weight.copy_(dense.model.embed_tokens.weight)
    model.lm_head.weight.copy_(dense.lm_head.weight)
    model.model.norm.weight.copy_(dense.model.norm.weight)
    for i, (old, new) in enumerate(zip(dense.model.layers, model.model.layers, strict=True)):
        new.input_layernorm.weight.copy_(old.input_layernorm.weight)
        new.post_attention_layernorm.weight.copy_(old.post_attention_layernorm.weight)
        feed_forward(old.mlp.gate_proj.weight, old.mlp.up_proj.weight, old.mlp.down_proj.weight, new.mlp)
        attention(old.self_attn, new.self_attn, {part: size[f"{i}.{part}"] for part in ("q_proj", "k_proj", "v_proj")})


def feed_forward(gate: Tensor, up: Tensor, down: Tensor, new: Any) -> None:
    """An MLP's matrices [I, H], [I, H], [H, I] -> the same MLP, or shared and routed experts."""
    mlp, routed = getattr(new, "shared_experts", new), getattr(new, "experts", None)
    kept = len(mlp.gate_proj.weight)
    mlp.gate_proj.weight.copy_(gate[:kept])
    mlp.up_proj.weight.copy_(up[:kept])
    mlp.down_proj.weight.copy_(down[:, :kept])
    if routed is None:
        return
    halves = zip(gate[kept:].chunk(2), up[kept:].chunk(2), down[:, kept:].chunk(2, 1), strict=True)
    dealt = [(torch.cat([g, u]), 2 * d) for g, u, d in halves]
    for expert in range(routed.num_experts):
        for matrix, source in zip((routed.gate_up_proj[expert], routed.down_proj[expert]), dealt[expert % 2], strict=True):
            matrix.copy_(source * (1 + NOISE * torch.randn_like(source)))


def attention(old: Any, new: Any, size: dict[str, Tensor]) -> None:
    """Qwen3's attention with one key head -> latent attention. `size`: the root mean square of each head's projection."""
    heads, wide = new.num_heads, old.head_dim
    # Rotary pairs lie side by side in DeepSeek's keys, half a head apart in Qwen3's.
    order = torch.stack([torch.arange(wide // 2), torch.arange(wide // 2, wide)], 1).flatten()
    new.q_a_proj.weight.copy_(old.q_proj.weight)
    joint = size["q_proj"].square().mean().sqrt()
    scale = math.sqrt((NOPE + wide) / wide) * joint / size["q_proj"]  # of each head; scores are divided by a wider head's root
    queries = torch.zeros(heads, NOPE + wide, heads, wide)
    for head in range(heads):
        queries[head, NOPE:, head] = (torch.diag(old.q_norm.weight) * scale[head])[order]
    queries[:, :NOPE].normal_(std=0.02)  # keys there are zero, so that nothing comes of it yet
    new.q_b_proj.weight.copy_(queries.flatten(0, 1).flatten(1))
    keys = (old.k_norm.weight[:, None] / size["k_proj"] * old.k_proj.weight)[order]
    new.kv_a_proj_with_mqa.weight.copy_(torch.cat([old.v_proj.weight, keys]))
    new.kv_a_layernorm.weight.fill_(float(size["v_proj"]))
    values = torch.zeros(heads, NOPE + wide, wide)
    values[:, NOPE:] = torch.eye(wide)
    new.kv_b_proj.weight.copy_(values.flatten(0, 1))
    new.o_proj.weight.copy_(old.o_proj.weight)


def norms(dense: Any, encoded: Encoded) -> dict[str, Tensor]:
    """The root mean square of each head's queries, keys and values, means over positions: "layer.part" -> [heads]."""
    seen: dict[str, list[Tensor]] = defaultdict(list)
    hooks = []
    for i, layer in enumerate(dense.model.layers):
        for part in ("q_proj", "k_proj", "v_proj"):

            def keep(_: Any, __: Any, out: Tensor, name: str = f"{i}.{part}") -> None:
                seen[name].append(out[0].unflatten(-1, (-1, dense.config.head_dim)).square().mean(-1).sqrt())

            hooks.append(getattr(layer.self_attn, part).register_forward_hook(keep))
    start = 0
    for length in encoded.lengths[:CALIBRATION].tolist():
        dense(torch.from_numpy(encoded.ids[start : start + length].astype("int64"))[None])
        start += length
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts).mean(0) for name, parts in seen.items()}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    options, started = parse(argv), time.time()
    torch.manual_seed(options.seed)
    tokenizer = load_tokenizer(str(DENSE))
    encoded = encode(options.documents, 1000 + options.seed, Mix(), tokenizer.backend_tokenizer.to_str(), heldout(500), 1)
    if encoded.overlap:
        raise RuntimeError(f"{encoded.overlap} documents share a problem with the held-out ones: the splits are broken")
    dense = AutoModelForCausalLM.from_pretrained(DENSE, dtype=torch.float32).eval()
    model = build(dense, options.experts, options.width, options.first)
    upcycle(dense, model, encoded)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    prefix = len(tokenizer(PREFIX)["input_ids"])
    curve = train(
        model.to(device), encoded, prefix, tokenizer.pad_token_id, options.rate, options.batch_tokens, options.seed, device
    )
    manifest = {
        "command": "python -m recipes.nano.upcycle",
        "settings": {key: value for key, value in vars(options).items() if key != "out"},
        "parameters": sum(p.numel() for p in model.parameters()),
        "documents": options.documents,
        "tokens": len(encoded.ids),
        "minutes": round((time.time() - started) / 60, 2),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "loss_curve": curve,
        "heldout_overlap": encoded.overlap,
    }
    save(model, tokenizer, options.out)
    (options.out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m recipes.nano.upcycle", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=8_000)
    parser.add_argument("--experts", type=int, default=8, help="routed experts of a layer")
    parser.add_argument("--width", type=int, default=64, help="of an expert")
    parser.add_argument("--first", type=int, default=2, help="the first layer with experts")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
