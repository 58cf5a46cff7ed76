r"""Finds the answer a text commits to: `<answer>`, `\boxed{}`, `####`, "the answer is".

strict: only the content of the last complete `<answer> ... </answer>`.
lenient: of all forms the one that stands last in the text. Boxes side by side (`\boxed{1}, \boxed{2}`) are one list.
A `\boxed{}` inside of the found answer is opened. Only string search, linear in the text.
"""

from __future__ import annotations

import re

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_SAYS = re.compile(r"\banswers?(?:\*\*)?\s*(?:is|are|was|:|=|to the (?:question|problem) is)(?:\*\*)?\s*:?\s*", re.IGNORECASE)
_JOINS = re.compile(r"(?:[\s,;$.]|\+\+|\\\Z|\\q?quad|\\[,;! )(\]\[]|\\text\{|[{}]|\b(?:and|or)\b)*")
_LABEL = re.compile(r"(?:[\s$]|\\[,;!)(])*[A-Za-z]\w*(?:_\{?\w+\}?)?\s*=[\s$]*")
_FORMULA = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|(?<!\\)\$((?:\\.|[^$\\])+)\$", re.DOTALL)
_NUMBER = re.compile(r"(?:-\$?)?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?%?")
_LOOSE = re.compile(r"-?\d+(?:[.,]\d+)*")
_STATES = re.compile(r".*[A-Za-z$}]\s+(?:is|are|equals?)\s+(?=[^A-Za-z]|[A-Za-z]\b)", re.DOTALL)
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
    return _opened(last[1])


def final(text: str) -> str:
    """The answer of a text that may also be an answer and nothing else: committed, else its last formula or number.

    For judging given answers (`rewards.grade`); the reward itself reads committed answers only.
    """
    text = text.rpartition("</think>")[2].strip() or text
    if (answer := extract(text)) is not None:
        return answer
    if len(text) > 20_000:
        return text
    formulas = list(_FORMULA.finditer(text))
    outside = _FORMULA.sub(" ", text)
    if formulas and re.search(r"[A-Za-z]{3}", re.sub(r"\b(?:and|or|percent|percentage|pct)\b", "", outside)):
        if number := list(_NUMBER.finditer(text, formulas[-1].end())):
            return number[-1][0]
        return next(g for g in formulas[-1].groups() if g is not None).strip()
    words = re.findall(r"[A-Za-z]{2,}", outside)
    numbers = list(_NUMBER.finditer(text))
    if not formulas and re.match(r"\s*[A-Za-z]{4,}\s*:", text) and (loose := _LOOSE.findall(text)):
        return loose[-1]
    if not formulas and len(words) >= 3 and text[:1].isalpha() and numbers and "\\" not in text:
        return numbers[-1][0]
    return text.strip()


def _opened(answer: str) -> str | None:
    """Opens what stands in an answer: a box, or a sentence that names the answer."""
    for inner in (_boxed(answer), _says(answer)):
        if inner is not None:
            return inner[1].strip() or None
    if len(answer) > 1_000:
        return answer.strip()
    if (states := _STATES.match(answer)) and re.search(r"[A-Za-z]{3}", states[0][:-4]):
        answer = answer[states.end() :]
    elif "\\" not in answer and "$" not in answer and len(re.findall(r"[A-Za-z]{2,}", answer)) > 3:
        numbers = _NUMBER.findall(answer)
        answer = numbers[0] if len(numbers) == 1 else answer
    return answer.strip() or None


def _tagged(text: str) -> tuple[int, str] | None:
    end = text.rfind(_CLOSE)
    start = text.rfind(_OPEN, 0, max(end, 0))
    return None if end < 0 or start < 0 else (end, text[start + len(_OPEN) : end])


def _boxed(text: str) -> tuple[int, str] | None:
    r"""The last `\boxed` with content, joined with those directly before it."""
    boxes: list[tuple[int, int, str]] = []
    for match in list(_BOX.finditer(text))[-30:]:
        if match.start() < (boxes[-1][1] if boxes else 0):
            continue  # a box in a box
        start, (end, content) = match.start(), _box(text, match.end())
        if content.strip():
            boxes.append((start, end, content.strip()))
    if not boxes:
        return None
    start, end, content = boxes.pop()
    if _BOX.search(content):
        return end, (_boxed(content) or (0, content))[1]
    while boxes:
        gap = text[boxes[-1][1] : start]
        if len(gap) > 60 or not (_JOINS.fullmatch(gap) or _JOINS.fullmatch(_LABEL.sub("", gap)) or _words_between(gap)):
            break
        start, _, before = boxes.pop()
        if before != content:
            content = f"{before}, {content}"
    return end, content


def _words_between(gap: str) -> bool:
    """`\boxed{1} papers and \boxed{2} bins`: at most three words, one of them "and"."""
    words = re.findall(r"[A-Za-z]+", gap.replace("\\text", ""))
    return len(words) <= 5 and "and" in words and not re.search(r"[\d=<>+*/]|\b(?:not|no)\b", gap)


def _box(text: str, at: int) -> tuple[int, str]:
    """End and content of the box whose brace stands at `at`; one that never closes gives the rest of its line."""
    if at >= len(text) or text[at] != "{":
        rest = re.match(r"[^\s$.,;]+", text[at:])
        return (at + len(rest[0]), rest[0]) if rest else (at, "")
    depth = 0
    for match in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, at):
        if match[0] in "{}":
            depth += 1 if match[0] == "{" else -1
            if depth == 0:
                return match.end(), text[at + 1 : match.start()]
    line = text[at + 1 :].split("\n")[0]
    return len(text), re.split(r"(?<!\\)\$", line)[0].strip()


def _hashes(text: str) -> tuple[int, str] | None:
    at = text.rfind("####")
    return None if at < 0 else (at, text[at + 4 :].strip().split("\n")[0])


def _says(text: str) -> tuple[int, str] | None:
    """The last "the answer is": up to the end of its sentence, or to the end of the formula in which that lies."""
    matches = list(_SAYS.finditer(text))
    if not matches:
        return None
    inside, start = False, matches[-1].end()
    for stop in re.compile(r"\\.|\$+|\n\s*\n|\n|\.(?=\s|$)|</|\*\*", re.DOTALL).finditer(text, start):
        if stop[0].startswith("$"):
            inside = not inside
        elif stop[0].startswith("\\") and stop[0] in ("\\(", "\\[", "\\)", "\\]"):
            inside = stop[0] in ("\\(", "\\[")
        elif stop[0][0] in "\n.<*" and not inside and text[start : stop.start()].strip():
            sentence = text[start : stop.start()]
            break
    else:
        sentence = text[start:].split("\n\n")[0] if not inside else text[start:].split("\n")[0]
    return (start, sentence.strip()) if sentence.strip(" .\n*") else None
