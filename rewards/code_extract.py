"""From a completion to the program that it proposes: text only, nothing is parsed or run here (model text can break a parser)."""

from __future__ import annotations

import re

FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
PYTHON = ("", "python", "py", "python3")
# a base model goes on after its function; HumanEval's convention is to cut there
STOPS = re.compile(r"\n(?:```|if __name__|print\(|assert |# ?(?:Test|Example)|<\||</)")


def extract_code(completion: str, prompt: str = "", entry: str = "") -> str:
    """The program of `completion`, empty if there is none.

    The last fenced Python block after the thinking; without one the text itself: with a `prompt` (HumanEval's: imports, helpers and
    the head of the function `entry`) it is taken for the continuation of that prompt unless it defines `entry` itself.

    >>> extract_code("Sure:\\n```python\\nx = 1\\n```\\nDone.")
    'x = 1\\n'
    >>> extract_code("    return 1\\n", "def f():\\n", "f")
    'def f():\\n    return 1\\n'
    """
    answer = completion.rpartition("</think>")[2]
    blocks = [body for language, body in FENCE.findall(answer) if language.lower() in PYTHON]
    if blocks:
        code = blocks[-1]
        if entry and not defines(code, entry):  # the last block may be a usage example
            code = next((b for b in reversed(blocks) if defines(b, entry)), code)
    else:
        if "<answer>" in answer:
            answer = answer.rpartition("<answer>")[2].partition("</answer>")[0]
        if not prompt and not looks_like_code(answer):
            return ""
        code = answer if not prompt else STOPS.split(answer, maxsplit=1)[0]
    if not prompt or re.search(r"^from __future__", code, re.MULTILINE):
        return code
    if defines(code, entry):
        return f"{prompt}\n    pass\n\n{code}" if prompt.rstrip().endswith(('"""', "'''", ":")) else f"{prompt}\n\n{code}"
    return prompt + code


def defines(code: str, entry: str) -> bool:
    """Does `code` define `entry` (the first part of a dotted name) at the left margin?"""
    return (
        bool(entry)
        and re.search(rf"^(?:async +def|def|class) +{re.escape(entry.partition('.')[0])}\b|^{re.escape(entry)} *=", code, re.M)
        is not None
    )


def looks_like_code(text: str) -> bool:
    return (
        re.search(r"^(?:def |class |import |from \w|print\(|for |while |[A-Za-z_][\w, ]* *=)", text, re.MULTILINE) is not None
    )
