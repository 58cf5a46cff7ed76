"""What a figure was made with."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from eval import provenance


def test_versions_and_commit_are_those_in_use() -> None:
    import torch
    import transformers

    found = provenance.versions()
    assert found["torch"] == torch.__version__ or torch.__version__.startswith(found["torch"])
    assert found["transformers"] == transformers.__version__
    assert "python" in found
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=provenance.ROOT, capture_output=True, text=True)
    if head.returncode == 0:
        assert head.stdout.startswith(provenance.commit().removesuffix("+changes"))


def test_the_commit_outside_of_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.commit() == "unknown"
    monkeypatch.setenv("PATH", "")
    assert provenance.commit() == "unknown"


def test_changed_files_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def git(*args: str) -> None:
        subprocess.run(
            ["git", "-c", "user.name=n", "-c", "user.email=e@example.com", *args], cwd=tmp_path, check=True, capture_output=True
        )

    git("init")
    (tmp_path / "f").write_text("1")
    git("add", "f")
    git("commit", "-m", "m")
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    clean = provenance.commit()
    assert len(clean) == 12
    (tmp_path / "f").write_text("2")
    assert provenance.commit() == clean + "+changes"


def test_a_model_is_its_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="safetensors"):
        provenance.model_hash(str(tmp_path))
    (tmp_path / "model-2.safetensors").write_bytes(b"bc")
    (tmp_path / "model-1.safetensors").write_bytes(b"a")
    assert provenance.model_hash(str(tmp_path)) == hashlib.sha256(b"abc").hexdigest()
    (tmp_path / "config.json").write_text('{"a": 1}')
    assert provenance.model_hash(str(tmp_path)) == hashlib.sha256(b"abc").hexdigest()


def test_weights_have_a_mark(tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    model.write_bytes(bytes(1000))
    before = provenance.weights_mark(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert provenance.weights_mark(str(tmp_path)) == before
    for at in (0, 1, 499, 998, 999):  # of a small file every byte counts
        model.write_bytes(bytes(at) + b"x" + bytes(999 - at))
        assert provenance.weights_mark(str(tmp_path)) != before
    model.write_bytes(bytes(1001))
    assert provenance.weights_mark(str(tmp_path)) != before
    with model.open("r+b") as file:  # a large one is sampled, in its last part too
        file.truncate(200 * provenance.MARK)
    large = provenance.weights_mark(str(tmp_path))
    with model.open("r+b") as file:
        file.seek(63 * 200 * provenance.MARK // 64)
        file.write(b"x")
    assert provenance.weights_mark(str(tmp_path)) != large
    model.rename(tmp_path / "pytorch_model.bin")
    assert provenance.weights_mark(str(tmp_path)) not in (large, tmp_path.name)
    (tmp_path / "pytorch_model.bin").unlink()
    assert provenance.weights_mark(str(tmp_path)) == tmp_path.name


def test_a_grader_is_its_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards/a.py").write_text("x = 1")
    (tmp_path / "rewards/notes.txt").write_text("not a source")
    (tmp_path / "one.py").write_text("y")
    before = provenance.grader_hash("rewards", "one.py")
    assert before == hashlib.sha256(b"x = 1y").hexdigest()
    (tmp_path / "rewards/a.py").write_text("x = 2")
    assert provenance.grader_hash("rewards", "one.py") != before
