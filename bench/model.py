"""A model folder with random weights for benches: `python -m bench.model SHAPE OUT --tokenizer FOLDER [--mean-length 457]`.

SHAPE is a file of recipes/shapes/ without .json, or "nano". Weights are drawn on the device at hand in bf16; the tokenizer is copied from a
folder or the hub. Under random weights every token is about equally likely, so completions run to their budget; with --mean-length as
many ids as that takes are declared ends of sequence, and lengths are geometric, cut at the budget.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

SHAPES = Path(__file__).resolve().parent.parent / "recipes" / "shapes"


def make(shape: str, out: Path, tokenizer: str, mean_length: int = 0, seed: int = 0) -> Path:
    """Write the folder; a folder that is there already is kept as it is."""
    if (out / "config.json").exists():
        return out
    fields = json.loads((SHAPES / f"{shape}.json").read_text())
    fields.pop("source", None)
    tok = AutoTokenizer.from_pretrained(tokenizer)
    config = AutoConfig.for_model(fields.pop("model_type"), **fields, eos_token_id=tok.eos_token_id, bos_token_id=None)
    torch.manual_seed(seed)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    ends = [tok.eos_token_id]
    if mean_length:
        step = mean_length
        ends += list(range(1000, config.vocab_size, step))  # one token in `mean_length` ends
    model.generation_config = GenerationConfig(eos_token_id=ends)
    model.save_pretrained(out)
    tok.save_pretrained(out)
    return out


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.model", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("shape")
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", required=True, help="folder or hub name")
    parser.add_argument("--mean-length", type=int, default=0, help="tokens; 0: completions run to their budget")
    args = parser.parse_args()
    print(make(args.shape, args.out, args.tokenizer, args.mean_length))
    return 0


if __name__ == "__main__":
    sys.exit(main())
