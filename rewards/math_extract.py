r"""Finds the answer a text commits to: `<answer>`, `\boxed{}`, `####`, "the answer is".

strict: only the content of the last complete `<answer> ... </answer>`.
lenient: of all forms the one that stands last in the text.
A `\boxed{}` inside of the found answer is opened. Only string search, linear in the text.
"""

from __future__ import annotations

import re

_BOX = re.compile(r"\\(?:boxed|fbox)\b\s*")
_SAYS = re.compile(r"(?:final\s+)?answer\s*(?:is|are|:|=)\s*:?\s*", re.IGNORECASE)
_HASHES = re.compile(r"####[ \t]*")
_OPEN, _CLOSE = "<answer>", "</answer>"


def extract(text: str, mode: str = "lenient") -> str | None:
    r"""The committed answer as it was written, or None.

    >>> extract("<think>7</think> <answer> \\boxed{\\frac{1}{2}} </answer>", "strict")
    '\\frac{1}{2}'
    >>> extract("so 3 + 4 = 7\n#### 7"), extract("seven")
    ('7', None)
    """
    found = [_tagged(text)]
    if mode == "lenient":
        found += [_boxed(text), _hashes(text), _says(text)]
    last = max((f for f in found if f is not None), default=None)
    if last is None:
        return None
    return _open(last[1])


def _open(answer: str) -> str | None:
    """Opens what stands in an answer: a box, or a sentence that names the answer."""
    for inner in (_boxed(answer), _says(answer)):
        if inner is not None:
            return inner[1].strip() or None
    return answer.strip() or None


def _tagged(text: str) -> tuple[int, str] | None:
    end = text.rfind(_CLOSE)
    start = text.rfind(_OPEN, 0, max(end, 0))
    return None if end < 0 or start < 0 else (end, text[start + len(_OPEN) : end])


def _boxed(text: str) -> tuple[int, str] | None:
    r"""The last `\boxed`: up to its closing brace; one that never closes gives what stands on its line."""
    match = None
    for match in _BOX.finditer(text):
        pass
    if match is None:
        return None
    at = match.end()
    if at >= len(text) or text[at] != "{":
        rest = re.match(r"[^\s$.,;]+", text[at:])
        return (at, rest[0]) if rest else None
    depth = 0
    for i in range(at, len(text)):
        if text[i] == "\\":
            continue
        if text[i] in "{}" and text[i - 1] != "\\":
            depth += 1 if text[i] == "{" else -1
            if depth == 0:
                return i, text[at + 1 : i]
    return at, text[at + 1 :].split("\n")[0].split("$")[0].strip()


def _hashes(text: str) -> tuple[int, str] | None:
    at = text.rfind("####")
    return None if at < 0 else (at, text[at + 4 :].strip().split("\n")[0])


def _says(text: str) -> tuple[int, str] | None:
    match = None
    for match in _SAYS.finditer(text):
        pass
    if match is None:
        return None
    rest = text[match.end() :].lstrip()
    if rest.startswith("$") and (end := rest.find("$", 2)) > 0 and not rest[1:2].isdigit():
        return match.end(), rest[: end + 1]
    sentence = re.split(r"\n|\.(?:\s|$)|</", rest, maxsplit=1)[0].strip()
    return (match.end(), sentence) if sentence else None
