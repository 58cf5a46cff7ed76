"""Checkpoints that were changed on disk: no code runs, the reason is named, the one before is used. Half of these are changed so that
the manifest fits: then its hashes say nothing, and what reads the files must."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rl import config as configs
from rl.checkpoint import State, load, save
from rl.config import Config
from rl.learn import Learner
from tests.test_checkpoint import assert_equal, contents, learner, teach
from tests.tiny_run import write_recipe

MODEL, OPTIMIZER = "model.safetensors", "optimizer.safetensors"


@pytest.fixture(scope="module")
def config(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Config:
    return configs.load(write_recipe(tmp_path_factory.mktemp("recipe"), tiny))


@pytest.fixture(scope="module")
def two(config: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """Checkpoints of steps 1 and 2, and what the first holds. Copied before it is changed."""
    folder = tmp_path_factory.mktemp("two")
    one = learner(config, folder)
    teach(one, 1)
    save(folder / "c", one, State(1, one.updates, {}), keep=2)
    first = contents(one)
    teach(one, 2)
    save(folder / "c", one, State(2, one.updates, {}), keep=2)
    return folder / "c", first


@pytest.fixture(scope="module")
def other(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Learner:
    """One that has learned something else; loading must leave nothing of that."""
    one = learner(config, tmp_path_factory.mktemp("other"))
    teach(one, 3)
    return one


def edit(name: str, change: Callable[[bytearray], object]) -> Callable[[Path], None]:
    def harm(path: Path) -> None:
        raw = bytearray((path / name).read_bytes())
        change(raw)
        (path / name).write_bytes(raw)

    return harm


def cut(raw: bytearray) -> None:
    del raw[-100:]


def flip(raw: bytearray) -> None:
    raw[-1] ^= 1


def huge(raw: bytearray) -> None:
    raw[:8] = (1 << 63).to_bytes(8, "little")


def overlap(raw: bytearray) -> None:
    """The last tensor begins, and ends, one element inside the one before it."""
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    last = max((n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"][0])
    header[last]["data_offsets"] = [offset - 4 for offset in header[last]["data_offsets"]]
    text = json.dumps(header).encode().ljust(length)
    raw[:8], raw[8 : 8 + length] = len(text).to_bytes(8, "little"), text


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, where: Path) -> None:
        self.where = where

    def __reduce__(self) -> Any:
        return Path.mkdir, (self.where,)


def pickled(path: Path) -> None:
    (path / OPTIMIZER).write_bytes(pickle.dumps(Bomb(path.parent.parent / "boom")))


def torch_saved(path: Path) -> None:
    torch.save({"state": Bomb(path.parent.parent / "boom")}, path / OPTIMIZER)


def manifest(change: Callable[[dict[str, str]], Any]) -> Callable[[Path], None]:
    def harm(path: Path) -> None:
        tree = json.loads((path / "manifest.json").read_text())
        tree = change(tree) or tree
        (path / "manifest.json").write_text(json.dumps(tree))

    return harm


def one_shard_of_two(path: Path) -> None:
    (path / MODEL).rename(path / "model-00001-of-00002.safetensors")
    manifest(lambda tree: tree.update({"model-00001-of-00002.safetensors": tree.pop(MODEL)}))(path)


def sign(path: Path) -> None:
    """Make the manifest fit the files."""
    names = json.loads((path / "manifest.json").read_text())
    tree = {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in names}
    (path / "manifest.json").write_text(json.dumps(tree))


def signed(harm: Callable[[Path], None]) -> Callable[[Path], None]:
    def both(path: Path) -> None:
        harm(path)
        sign(path)

    return both


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda path: (path / name).write_text(text) and None


HASH = "does not have its recorded hash"
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (edit(MODEL, cut), f"{MODEL} {HASH}"),
    "bit flipped": (edit(OPTIMIZER, flip), f"{OPTIMIZER} {HASH}"),
    "header length 2^63": (edit(MODEL, huge), f"{MODEL} {HASH}"),
    "overlapping offsets": (edit(MODEL, overlap), f"{MODEL} {HASH}"),
    "pickled optimiser": (pickled, f"{OPTIMIZER} {HASH}"),
    "counters changed": (write("state.json", "{}"), f"state.json {HASH}"),
    "random generators changed": (write("random.json", "{}"), f"random.json {HASH}"),
    "file missing": (lambda p: (p / "reference.safetensors").unlink(), "No such file or directory"),
    "a folder in a file's place": (lambda p: ((p / MODEL).unlink(), (p / MODEL).mkdir()), "IsADirectoryError"),
    "no manifest": (lambda p: (p / "manifest.json").unlink(), "manifest.json"),
    "empty manifest": (write("manifest.json", ""), "JSONDecodeError"),
    "manifest of nothing": (write("manifest.json", "{}"), "its manifest lacks files"),
    "manifest is no table": (write("manifest.json", "[]"), "its manifest is no list of its files"),
    "manifest is no text": (lambda p: (p / "manifest.json").write_bytes(b"\xff" * 9), "UnicodeDecodeError"),
    "manifest names a file elsewhere": (manifest(lambda t: t | {"../../tiny.toml": ""}), "its manifest is no list of its files"),
    "manifest without random generators": (manifest(lambda t: t.pop("random.json") and None), "its manifest lacks files"),
    "missing shard": (one_shard_of_two, "its manifest lacks files"),
    "empty folder": (lambda p: [f.unlink() for f in p.iterdir()], "manifest.json"),
    "truncated, signed": (signed(edit(MODEL, cut)), "model is no safetensors file"),
    "header length 2^63, signed": (signed(edit(MODEL, huge)), "model is no safetensors file: Error while deserializing header"),
    "overlapping offsets, signed": (signed(edit(MODEL, overlap)), "model is no safetensors file: Error while deserializing header"),
    "pickled optimiser, signed": (signed(pickled), "optimizer is no safetensors file"),
    "optimiser of torch.save, signed": (signed(torch_saved), "optimizer is no safetensors file"),
    "random generators missing, signed": (signed(write("random.json", "{}")), "random.json holds no states of random generators"),
    "counters missing, signed": (signed(write("state.json", "{}")), "state.json holds other counters"),
    "counters of text, signed": (
        signed(write("state.json", '{"step": "2", "updates": 4, "guard": {}, "cursor": 0, "window": []}')),
        "state.json holds counters that are none",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_it_is_named_and_the_one_before_is_used(
    other: Learner, two: tuple[Path, dict[str, Tensor]], tmp_path: Path, damage: str
) -> None:
    shutil.copytree(two[0], tmp_path / "c")
    harm, reason = DAMAGE[damage]
    harm(tmp_path / "c" / "step-000002")
    state, damaged = load(tmp_path / "c", other)
    assert state.step == 1
    assert len(damaged) == 1
    assert damaged[0].startswith("step-000002: ")
    assert reason in damaged[0]
    assert_equal(contents(other), two[1])
    assert not (tmp_path / "boom").exists()


def test_the_bomb_is_one(tmp_path: Path) -> None:
    """What must not happen above does happen where a pickle is loaded."""
    pickle.loads(pickle.dumps(Bomb(tmp_path / "boom")))
    assert (tmp_path / "boom").is_dir()
