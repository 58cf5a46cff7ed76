"""A smaller model cut out of a nano one: `python -m recipes.nano.prune --model DIR --out DIR [--layers 0,1,2,3 --width 80]`.

Some of the layers, and of each MLP the neurons that matter most (pruning as in Minitron, arXiv 2407.14679: by the size of what a neuron
adds to the residual stream, its activation times its column of the down projection, over problems). By itself it answers nothing. Trained
on over the base's text (recipes/nano/pretrain.py --start) it is a base of its own: recipes/nano/student_base.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recipes.nano.problems import problems
from rl.policy import load_model, load_tokenizer
from rl.prompts import render

CALIBRATION = 64  # problems


@torch.no_grad()
def prune(model: Any, prompts: list[tuple[int, ...]], layers: list[int], width: int) -> Any:
    """A copy with these layers and MLPs of `width` neurons. Raises ValueError for layers that are not there."""
    have, wide = model.config.num_hidden_layers, model.config.intermediate_size
    if not layers or any(not 0 <= i < have for i in layers) or not 0 < width <= wide:
        raise ValueError(f"layers {layers} of width {width}: the model has {have} layers, from 0 on, of width {wide}")
    size = importance(model, prompts)
    config = copy.deepcopy(model.config)
    config.num_hidden_layers, config.intermediate_size = len(layers), width
    config.layer_types = [model.config.layer_types[i] for i in layers]
    small = type(model)(config).to(model.dtype)
    names = {f"model.layers.{old}.": f"model.layers.{new}." for new, old in enumerate(layers)}
    state: dict[str, Tensor] = {}
    for name, weight in model.state_dict().items():
        part = next((old for old in names if name.startswith(old)), "")
        if ".layers." in name and not part:
            continue
        if ".mlp." in name:
            kept = size[int(part.split(".")[2])].topk(width).indices.sort().values
            weight = weight[:, kept] if "down_proj" in name else weight[kept]
        state[name.replace(part, names[part], 1) if part else name] = weight
    small.load_state_dict(state)
    return small


def importance(model: Any, prompts: list[tuple[int, ...]]) -> list[Tensor]:
    """Of each layer's MLP neurons: the root mean square activation times the norm of what it writes."""
    found: list[list[Tensor]] = [[] for _ in model.model.layers]
    hooks = [
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, inputs, i=i: found[i].append(inputs[0][0].square()))
        for i, layer in enumerate(model.model.layers)
    ]
    for ids in prompts:
        model(input_ids=torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    columns = [layer.mlp.down_proj.weight.norm(dim=0) for layer in model.model.layers]
    return [torch.cat(parts).mean(0).sqrt() * column for parts, column in zip(found, columns, strict=True)]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a nano model's folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layers", default="0,1,2,3")
    parser.add_argument("--width", type=int, default=80)
    options = parser.parse_args(argv)
    tokenizer = load_tokenizer(options.model)
    model = load_model(options.model, dtype=torch.float32, attention="sdpa")
    prompts = [render(row["question"], "r1_zero", tokenizer) for row in problems("train", CALIBRATION, 1)]
    small = prune(model, prompts, [int(i) for i in options.layers.split(",")], options.width)
    small.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    sizes = [sum(p.numel() for p in m.parameters()) for m in (model, small)]
    print(f"{sizes[1]:,} of {sizes[0]:,} parameters ({sizes[1] / sizes[0]:.0%}): {options.out}")


if __name__ == "__main__":
    main()
