"""Two GPUs through NCCL: what one rank learns, replicated and sharded, up to bf16. The bench is what is run; here it is held to bounds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")]


def test_two_gpus_learn_what_one_does(root: Path, tmp_path: Path) -> None:
    sizes = ["--shape", "tiny", "--prompts", "5", "--prompt", "7", "--longest", "24", "--row-tokens", "256", "--kl", "0.05"]
    command = [
        sys.executable,
        "-m",
        "bench.two_ranks",
        *sizes,
        "--steps",
        "3",
        "--warm",
        "1",
        "--json",
        str(tmp_path / "found.json"),
    ]
    subprocess.run(command, cwd=root, check=True, timeout=900)
    found = {name: rounds[0]["curve"] for name, rounds in json.loads((tmp_path / "found.json").read_text())["found"].items()}
    # The same kernels on the same rows: only the order of fp32 sums differs. Sharded, the residual stream is bf16, not fp32.
    for name, like, bound in [
        ("2 ranks, DDP", "1 rank", 1e-3), ("2 ranks, FSDP2", "1 rank, FSDP2", 1e-3),
        ("2 ranks, FSDP2, gradients held", "1 rank, FSDP2", 1e-3), ("1 rank, FSDP2", "1 rank", 2e-2),
    ]:  # fmt: skip
        for mine, other in zip(found[name], found[like], strict=True):
            for metric in ("grad_norm", "entropy", "kl"):
                assert mine[metric] == pytest.approx(other[metric], rel=bound, abs=bound), (name, metric)
