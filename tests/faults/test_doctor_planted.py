"""Every line of the doctor fails for its planted fault, and says what to do; a recipe in good health passes them all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.faults import ill
from tests.faults.ill import ILLS, LINES, Ill
from tests.faults.planted import NoPlace


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model is slower on two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def verdicts(said: str) -> dict[str, str]:
    return {m[2].strip(): m[1] for m in re.finditer(r"^(ok  |WARN|FAIL|-   ) (.{10}) ", said, re.M)}


def test_every_line_has_a_fault() -> None:
    assert tuple(i.line for i in ILLS) == LINES


@pytest.mark.parametrize("fault", ILLS, ids=lambda i: i.line)
def test_told(fault: Ill, tmp_path: Path) -> None:
    try:
        code, said = ill.examine(fault, tmp_path)
    except NoPlace as why:
        pytest.skip(str(why))
    found = verdicts(said)
    assert code == 1, said
    assert tuple(found) == LINES
    assert [name for name, verdict in found.items() if verdict == "FAIL"] == [fault.line], said
    told = said[said.index(f"FAIL {fault.line}") :].splitlines()
    assert fault.told in told[0]
    assert re.match(r" +-> \w", told[1])  # what to do
    assert not list(tmp_path.glob(".doctor-*"))
    assert not (tmp_path / "run").exists()


def test_in_good_health(tmp_path: Path) -> None:
    code, said = ill.examine(None, tmp_path)
    assert code == 0, said
    assert verdicts(said) == {line: "-   " if line == "sandbox" else "ok  " for line in LINES}, said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["heldout.jsonl", "model", "tiny.toml", "train.jsonl"]
