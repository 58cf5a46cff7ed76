"""A save that dies, or finds the disk full, at its system calls; and the order in which these make a checkpoint last.

A sample of the calls of bench/save_sweep.py, which tries them all (recipes/README.md has its figures).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from bench.syscalls import SUPPORTED

MEMORY = ("brk", "mmap", "munmap", "mremap", "madvise")  # not the same in each run
# One fresh process for all: forked children of one that has run a test suite have its threads' locks.
SWEEP = """
import json, os, subprocess, sys
from pathlib import Path

import torch

from bench.save_sweep import Sweep
from bench.syscalls import CHANGES

torch.set_num_threads(1)
sweep, strace = Sweep(Path(sys.argv[1])), sys.argv[2]
kills = {i: sweep.fault(i, full=False) for i in range(0, len(sweep.calls), 5)}
fulls = {i: sweep.fault(i, full=True) for i in range(3, len(sweep.calls), 5) if sweep.calls[i].name in CHANGES}
seen = []
if strace:
    sweep.reset()
    ready, go = os.pipe()
    child = os.fork()
    if not child:
        os.read(ready, 1)
        os._exit(sweep.work())
    log = Path(sys.argv[1], "strace.txt")
    tracer = subprocess.Popen([strace, "-o", log, "-p", str(child)], stderr=subprocess.PIPE, text=True)
    said = tracer.stderr.readline()
    os.write(go, b"x")
    os.waitpid(child, 0)
    tracer.communicate()
    seen = log.read_text().splitlines() if "attached" in said else [said]
print(json.dumps({"calls": [[c.name, c.path] for c in sweep.calls], "kills": kills, "fulls": fulls, "strace": seen}))
"""


@pytest.fixture(scope="module")
def swept(root: Path) -> dict[str, Any]:
    if not SUPPORTED:
        pytest.skip("faults at system calls: x86-64 only")
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # thousands of fsyncs: on a disk they take minutes
    options = {"cwd": root, "env": os.environ | {"OMP_NUM_THREADS": "1"}, "capture_output": True, "text": True, "timeout": 300}
    with tempfile.TemporaryDirectory(prefix="save-sweep-", dir=memory) as folder:
        ended = subprocess.run([sys.executable, "-c", SWEEP, folder, shutil.which("strace") or ""], **options)
    if "does not allow ptrace" in ended.stderr:
        pytest.skip("faults at system calls: this host does not allow ptrace")
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout)


def test_killed_at_system_calls_a_save_leaves_a_whole_checkpoint(swept: dict[str, Any]) -> None:
    assert len(swept["kills"]) > 30
    assert set(swept["kills"].values()) <= {"old", "new", "not reached"}, swept["kills"]
    assert {"old", "new"} <= set(swept["kills"].values())


def test_a_full_disk_at_a_system_call_is_said_and_leaves_a_whole_checkpoint(swept: dict[str, Any]) -> None:
    assert len(swept["fulls"]) > 8
    assert set(swept["fulls"].values()) <= {"old", "new", "not reached"}, swept["fulls"]


def test_files_manifest_folder_name_folder_above(swept: dict[str, Any]) -> None:
    """Every file is on disk before the manifest is written, that before the folder, that before the name, that before what it replaces
    is removed."""
    calls = [tuple(call) for call in swept["calls"]]
    temporary, final, above = ".tmp-step-000002", "step-000002", "checkpoints"

    def first(*call: str, after: int = 0) -> int:
        return calls.index(call, after)

    begun = first("mkdir", temporary)
    manifest = first("openat", "manifest.json", after=begun)
    for name in ("model.safetensors", "optimizer.safetensors", "reference.safetensors", "random.json", "state.json"):
        assert begun < first("fsync", name, after=begun) < manifest, name
    synced = first("fsync", "manifest.json", after=manifest)
    folder = first("fsync", temporary, after=synced)
    away = first("rename", final, after=folder)
    named = first("rename", temporary, after=away)
    lasting = first("fsync", above, after=named)
    removed = [i for i, call in enumerate(calls) if call[0] in ("unlinkat", "unlink", "rmdir") and i > begun]
    assert manifest < synced < folder < away < named < lasting < min(removed)
    assert lasting < first("rename", "step-000001")  # the older one goes last
    assert not [call for i, call in enumerate(calls) if i > synced and call[0] in ("write", "writev", "pwrite64")]


def test_strace_sees_the_same_calls(swept: dict[str, Any]) -> None:
    """The faults are planted by ptrace from Python; the tool that everyone trusts counts the same calls."""
    if not swept["strace"]:
        pytest.skip("no strace here: the faults above are planted without it")
    if not swept["strace"][-1].startswith("+++ exited with 0"):
        pytest.skip(f"strace cannot attach here: {swept['strace'][-1]}")
    names = [line.split("(")[0] for line in swept["strace"][:-1]]
    ours = [name for name, _ in swept["calls"]]
    kept = [n for n in names[names[0] == "read" :] if n not in MEMORY]  # the read is the one that the child waited in
    assert kept == [n for n in ours if n not in MEMORY]
