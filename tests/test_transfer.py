"""Weights through a window to other processes: equal bit for bit, whatever the buckets; and what is left behind (nothing)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rl.transfer import ALIGN, GroupWindow, SharedWindow, pack, unpack, window_size

# The other side: opens the window, takes every bucket and writes what arrived into a file.
CHILD = """
import json, sys, torch
from safetensors.torch import save_file
from rl.transfer import open_window, unpack

opened, window, got = json.loads(sys.argv[1]), None, {}
window = open_window(opened, torch.device(sys.argv[3]))
print("opened", flush=True)
for line in sys.stdin:
    index, size = json.loads(line)
    if not index:
        break
    got |= {name: weight.to("cpu", copy=True) for name, weight in unpack(index, window.arrived(size))}
    print("taken", flush=True)
del window
save_file(got, sys.argv[2])
print("saved", flush=True)
"""


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    made = {f"w{i}": torch.randn(7, 11 + i) for i in range(9)}
    made |= {
        "large": torch.randn(250, 40),
        "one": torch.randn(1),
        "scalar": torch.tensor(-0.0),
        "half": torch.randn(33).bfloat16(),
    }
    return made | {
        "nan": torch.tensor([float("nan"), float("inf"), 1e-45]),
        "turned": torch.randn(6, 5).T,
        "ids": torch.arange(5),
    }


def bits(weight: torch.Tensor) -> bytes:
    return weight.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def same(ours, theirs) -> bool:
    return ours.keys() == theirs.keys() and all(
        ours[n].shape == theirs[n].shape and ours[n].dtype == theirs[n].dtype and bits(ours[n]) == bits(theirs[n]) for n in ours
    )


def send(window, workers: int, folder: Path, count: int = 1, cards: Sequence[str] = ()) -> list[dict[str, torch.Tensor]]:
    """What arrives at each of so many processes, by the steps that workers.Pool goes through."""
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, json.dumps(window.opened(k)), str(folder / f"{k}.safetensors"), "cuda" if cards else "cpu"],
            env={**os.environ, **({"CUDA_VISIBLE_DEVICES": cards[k]} if cards else {})},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent,
        )
        for k in range(workers)
    ]  # fmt: skip
    try:
        window.join()
        assert [c.stdout.readline() for c in children] == ["opened\n"] * workers
        buckets = 0
        for index, size in pack(((n, w.to(window.bytes_.device)) for n, w in weights().items()), window.bytes_):
            buckets += 1
            for child in children:
                child.stdin.write(json.dumps([index, size]) + "\n")
                child.stdin.flush()
            window.publish(size)
            assert [c.stdout.readline() for c in children] == ["taken\n"] * workers
        assert buckets >= count
        for child in children:
            child.stdin.write("[[], 0]\n")
            child.stdin.flush()
        assert [c.stdout.readline() for c in children] == ["saved\n"] * workers
        return [load_file(folder / f"{k}.safetensors") for k in range(workers)]
    finally:
        for child in children:
            child.kill()
            child.communicate()


@pytest.mark.parametrize("size", [40_000, 40_064, 41_000, 60_000, 1 << 20])
def test_buckets_hold_everything_once_and_in_order(size):
    window, seen, ends = torch.empty(size, dtype=torch.uint8), {}, []
    for index, used in pack(iter(weights().items()), window):
        assert used <= size
        assert all(offset % ALIGN == 0 for *_, offset in index)
        ends.append(index[-1][0])
        seen |= {name: weight.clone() for name, weight in unpack(json.loads(json.dumps(index)), window[:used])}
    assert same(seen, weights())
    assert list(seen) == list(weights())
    assert len(ends) == {40_000: 3, 40_064: 3, 41_000: 2, 60_000: 1, 1 << 20: 1}[size]


def test_the_window_holds_the_largest_weight_and_no_more_than_all():
    assert window_size([10, 16, 3], torch.float32) == 64 + 64 + 64
    assert window_size([1000, 16], torch.bfloat16) == 2048 + 64
    assert window_size([1 << 30, 5], torch.bfloat16) == 2 << 30
    sizes = [w.numel() for w in weights().values()]
    assert window_size(sizes, torch.float32) >= 40_000


def test_shared_memory(tmp_path):
    before = set(os.listdir("/dev/shm"))
    window = SharedWindow(40_000)
    try:
        (one,) = send(window, 1, tmp_path, count=3)
        assert same(one, weights())
        assert set(os.listdir("/dev/shm")) == before  # it never had a name
    finally:
        window.close()
    window.close()


def test_too_little_memory_is_said_before_anything_is_written():
    with pytest.raises(ValueError, match=r"MiB of shared memory for weights cannot be had"):
        SharedWindow(1 << 60)


def test_a_process_group(tmp_path):
    window = GroupWindow(40_000, torch.device("cpu"), workers=2, timeout_s=60)
    try:
        one, other = send(window, 2, tmp_path, count=3)
        assert same(one, weights())
        assert same(other, weights())
    finally:
        window.close()


def test_a_worker_that_does_not_meet_the_group_is_a_time_out():
    window, begun = GroupWindow(1000, torch.device("cpu"), workers=1, timeout_s=1), time.monotonic()
    with pytest.raises(RuntimeError):
        window.join()
    assert time.monotonic() - begun < 60
    window.close()


def test_a_worker_that_leaves_the_group_ends_the_broadcast(tmp_path):
    window = GroupWindow(1 << 20, torch.device("cpu"), workers=1, timeout_s=60)
    leaves = CHILD.replace('print("opened", flush=True)', 'print("opened", flush=True); sys.exit()')
    child = subprocess.Popen(
        [sys.executable, "-c", leaves, json.dumps(window.opened(0)), "-", "cpu"],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
    )
    window.join()
    child.communicate()
    with pytest.raises(RuntimeError):
        window.publish(1 << 20)
    window.close()
