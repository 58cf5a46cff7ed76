"""Traces from a real sampler: the same files after kill -9 as without it; other settings are refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from distill import generate
from distill.traces import read
from rl import data
from rl.policy import load_tokenizer
from rl.records import Completion, Prompt, Sampling
from rl.sampler import TransformersSampler

QUESTIONS, SHARD = 7, 2
SAMPLING = Sampling(2, 8, 1.0, seed=3)

CHILD = """
import sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from tests import test_generate as t
said = lambda line: print(line, flush=True)
t.make(sys.argv[1], Path(sys.argv[2]), said)
"""


def prompts(tiny: str) -> list[Prompt]:
    rows = [{"id": f"q{i}", "question": f"{i} + 1?", "gold": str(i + 1), "kind": "math", "steps": 1} for i in range(QUESTIONS)]
    return data.prompts(rows, "r1_zero", load_tokenizer(tiny), 300)


def make(
    tiny: str, folder: Path, say: Callable[[str], None] = print, sampling: Sampling = SAMPLING, model: str = "t"
) -> list[Path]:
    sampler = TransformersSampler(tiny, load_tokenizer(tiny), device=torch.device("cpu"), batch=4)
    return generate.generate(sampler, prompts(tiny), sampling, folder, shard=SHARD, teacher={"name": model}, say=say)


@pytest.fixture(scope="module")
def whole(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make(tiny, tmp_path_factory.mktemp("whole"))


def test_every_question_has_its_traces_in_order(whole: list[Path]) -> None:
    assert [p.name for p in whole] == ["00000.jsonl", "00001.jsonl", "00002.jsonl", "00003.jsonl"]
    traces = list(generate.load(whole))
    assert [t.id for t in traces] == [f"q{i}#{n}" for i in range(QUESTIONS) for n in range(2)]
    assert len({t.text for t in traces}) > QUESTIONS  # draws differ
    first = traces[0]
    assert (first.question, first.gold, first.source, first.columns) == ("0 + 1?", "1", "t", {"steps": 1})
    assert all(0 < t.tokens <= 8 for t in traces)
    assert {t.finish for t in traces} <= {"stop", "length"}


def test_killed_and_started_again_it_ends_with_the_same_files(tiny: str, tmp_path: Path, whole: list[Path]) -> None:
    command = [sys.executable, "-c", CHILD, tiny, str(tmp_path)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert child.stdout is not None
    assert "shard 1/4" in child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    child.wait()
    (tmp_path / "traces" / ".00002.jsonl.part").write_text("half a li")  # as a kill during a write leaves it
    there = sorted((tmp_path / "traces").glob("*.jsonl"))
    assert 1 <= len(there) < 4
    before = there[0].stat().st_mtime_ns
    said: list[str] = []
    files = make(tiny, tmp_path, said.append)
    assert "shards are there already" in said[0]
    assert "tokens/s" in said[-1]
    assert there[0].stat().st_mtime_ns == before
    assert [p.read_bytes() for p in files] == [p.read_bytes() for p in whole]


@pytest.mark.parametrize(
    ("changes", "named"), [({"sampling": Sampling(2, 9, 1.0, seed=3)}, "max_tokens"), ({"model": "another"}, "another")]
)
def test_traces_made_otherwise_are_not_mixed_in(tiny: str, whole: list[Path], changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"made otherwise .*{named}"):
        make(tiny, whole[0].parent.parent, **changes)


class Says:
    """A sampler of one text each."""

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)

    def generate(self, prompts: Any, sampling: Sampling) -> list[list[Completion]]:
        return [[Completion((1,), (0.0,), "stop", self.texts.pop(0), 0)] for _ in prompts]


@pytest.mark.parametrize("opened", [True, False])
def test_the_tag_that_the_prompt_opened_is_put_back(opened: bool, tmp_path: Path) -> None:
    """Whether it did is seen from all shards: a teacher that opens the tag itself and forgot it once is not mended."""
    told = "one more\n</think>\n\n\\boxed{2}"
    asked = [Prompt(f"q{i}", (1, i), {"id": f"q{i}", "question": "1 + 1?", "gold": "2"}) for i in range(3)]
    texts = [told, told, "<think>\n" + told] if opened else [told, "<think>\n" + told, "<think>\n" + told]
    files = generate.generate(Says(*texts), asked, SAMPLING, tmp_path, shard=1, teacher={"name": "t"})  # type: ignore[arg-type]
    assert [t.text for path in files for t in read(path)] == texts  # as they were written
    assert [t.text for t in generate.load(files)] == (["<think>\n" + told] * 3 if opened else texts)


def test_a_damaged_shard_is_said_with_its_line(whole: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(whole[0].read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"x\.jsonl, line 4"):
        list(read(path))
    assert json.loads((whole[0].parent.parent / "settings.json").read_text())["shard"] == SHARD
