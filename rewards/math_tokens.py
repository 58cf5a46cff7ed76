r"""LaTeX or plain-text mathematics -> tokens, with the limits that are checked before anything is parsed.

A token is `(kind, value, gap)`: kind is "num" (value as written, no separators), "word" (letters), "cmd" (a LaTeX command without
its backslash), "text" (content of `\text{}`), or "op" (one of the operators, also for commands that are one, like `\le`);
gap says that white space stood before it. Nothing is evaluated here; the cost is linear in the text.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_LENGTH = 10_000  # characters of an answer
MAX_TOKENS = 600
MAX_NESTING = 40  # open brackets
MAX_DIGITS = 1_000  # of one number


class MathError(ValueError):
    """The text is no mathematics that this grader reads, or is beyond its limits."""


class Token(NamedTuple):
    kind: str
    value: str
    gap: bool


_UNICODE = {
    **dict(zip("−–—‐×⋅·∙∗÷′’", ["-"] * 4 + ["*"] * 5 + ["/", "'", "'"], strict=True)),
    **{"≤": "<=", "≥": ">=", "⩽": "<=", "⩾": ">=", "≠": "!=", "≈": "\\approx ", "∞": "\\infty ", "√": "\\sqrt ", "∪": "\\cup "},
    **{
        "∩": "\\cap ",
        "∈": "\\in ",
        "°": "^\\circ ",
        "º": "^\\circ ",
        "π": "\\pi ",
        "±": "\\pm ",
        "∓": "\\mp ",
        "∅": "\\emptyset ",
    },
    **{"²": "^2", "³": "^3", "⁴": "^4", "½": "(1/2)", "¼": "(1/4)", "¾": "(3/4)", "⅓": "(1/3)", "⅔": "(2/3)", "％": "%"},
    **{"，": ",", "（": "(", "）": ")", "：": ":", "；": ";", "＝": "=", "ℝ": "\\mathbb{R}", "∖": "\\setminus ", "→": "="},
    **{
        "θ": "\\theta ",
        "α": "\\alpha ",
        "β": "\\beta ",
        "λ": "\\lambda ",
        "ω": "\\omega ",
        "φ": "\\phi ",
        "€": "\\euro ",
        "£": "\\pound ",
    },
    **{
        "⌊": "\\lfloor ",
        "⌋": "\\rfloor ",
        "⌈": "\\lceil ",
        "⌉": "\\rceil ",
        "⟨": "\\langle ",
        "⟩": "\\rangle ",
        "…": "\\dots ",
    },
    **{"\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u200b": ""},
}
_TRANSLATE = str.maketrans(_UNICODE)
_OPERATORS = {
    **{
        "cdot": "*",
        "times": "*",
        "ast": "*",
        "cdotp": "*",
        "div": "/",
        "le": "<=",
        "leq": "<=",
        "leqslant": "<=",
        "leqq": "<=",
    },
    **{"ge": ">=", "geq": ">=", "geqslant": ">=", "geqq": ">=", "lt": "<", "gt": ">", "ne": "!=", "neq": "!=", "approx": "~"},
    **{"simeq": "~", "in": "in", "cup": "cup", "cap": "cap", "setminus": "setminus", "backslash": "setminus", "pm": "+-"},
    **{"mp": "-+", "lbrace": "\\{", "rbrace": "\\}", "lbrack": "[", "rbrack": "]", "vert": "|", "lvert": "|", "rvert": "|"},
    **{"langle": "<(", "rangle": ")>", "colon": ":", "land": "and", "wedge": "and", "lor": "or", "vee": "or", "to": "="},
    **{"rightarrow": "=", "implies": "=", "Rightarrow": "=", "equiv": "=", "mid": "mid", "|": "|"},
}
_SPACES = """
quad qquad displaystyle textstyle limits nolimits mathstrut hfill left right middle big Big bigg Bigg bigl bigr Bigl
Bigr biggl biggr Biggl Biggr enspace thinspace cr rm bf it boldsymbol mathop nonumber space hspace
"""
_TEXTS = """
text mbox textbf textit textrm textnormal mathrm mathbf mathit mathsf mathtt hbox operatorname texttt textsf mathcal
mathnormal bm underline emph
"""
_SPACING = {",", ";", ":", "!", " ", "\n", "(", ")", "[", "]", "/"} | set(_SPACES.split())
_TEXT = set(_TEXTS.split())
_FRACTIONS = {"dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom", "tbinom": "binom"}
_TOKEN = re.compile(
    r"(?P<gap>[\s~]+)|(?P<num>\d{1,3}(?:,\d{3})+(?![\d])(?:\.\d+)?|\d{1,3}(?:[ ]\d{3})+(?!\d)(?:\.\d+)?"
    r"|\d+(?:\.\d*)?(?:[eE][-+]?\d{1,4}(?![\d]))?|\.\d+)"
    r"|(?P<word>[A-Za-z]+)|\\(?P<cmd>[A-Za-z]+|.|\n)|(?P<op><=|>=|!=|==|\*\*|:=|=<|=>|[-+*/^_=<>()\[\]{}|,;:!%'&?]|\.{3})"
    r"|(?P<dot>\.)|(?P<bad>.)",
    re.DOTALL,
)
_SEPARATED = re.compile(r"\d,\d{3}(?!\d)")
_SAME = {"==": "=", "**": "^", ":=": "=", "=<": "<=", "=>": "="}


def ambiguous(text: str) -> bool:
    """Whether `1,234` occurs, which is one number or two."""
    return _SEPARATED.search(text) is not None


def clean(text: str) -> str:
    r"""The text without dollar signs around formulas, with one spelling for Unicode symbols and separators inside numbers."""
    if len(text) > MAX_LENGTH:
        raise MathError(f"longer than {MAX_LENGTH} characters")
    text = text.strip().translate(_TRANSLATE)
    if "\\begin" not in text:
        text = re.sub(r"\\\\(?=[A-Za-z]{2})", r"\\", text)  # doubly escaped commands
    text = re.sub(r"(?<!\\)\$+", " ", text).replace("\\(", " ").replace("\\)", " ").replace("\\[", " ").replace("\\]", " ")
    text = re.sub(r"(?<=\d)\s*(?:\{\s*,\s*\}|\\,|,\s*\\!|\\!|\\;|\\:)\s*(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"\b(?:np|math|sympy)\.(?=[a-z])", "", text)
    text = re.sub(r"(?<=[\d)\]}])(or|and)(?=[A-Z(\[{\\$\d-])", r" \1 ", text)
    text = re.sub(r"^\\?[\"'`]+|\\?[\"'`]+$", "", text) if text[:1] in "\\\"'`" and text[-1:] in "\"'`" else text
    text = re.sub(
        r"^\s*(?:\\approx|approximately|about|exactly|roughly|therefore|thus|simply|just|hence),?\s+|\*\*(?=\s*$)|^\s*\*\*",
        "",
        text,
        flags=re.IGNORECASE,
    )
    text = text.strip().rstrip(" .,;\n\t\r")
    return text.rstrip(" \\") if text.endswith("\\") else text


def tokens(text: str, thousands: bool = True) -> list[Token]:
    """Tokens of a cleaned text; with `thousands` false `1,234` is two numbers. MathError beyond the limits."""
    found: list[Token] = []
    at, gap, depth, end = 0, False, 0, len(text)
    while at < end:
        match = _TOKEN.match(text, at)
        assert match is not None
        kind, value = match.lastgroup or "bad", match[0]
        at = match.end()
        if kind == "gap":
            gap = True
            continue
        if kind == "num" and "," in value and not thousands:
            value = value.split(",")[0]
            at = match.start() + len(value)
        if kind == "cmd":
            kind, value, at = _command(match["cmd"], text, at)
        if kind == "word" and value.lower() in ("and", "or"):
            kind, value = "op", value.lower()
        if kind in ("bad", "dot"):
            raise MathError(f"cannot read {value[:20]!r}")
        if kind == "gap":
            gap = True
            continue
        if kind == "num":
            value = re.sub(r"[ ,]", "", value)
            if len(value) > MAX_DIGITS:
                raise MathError(f"a number of more than {MAX_DIGITS} digits")
        if kind == "op":
            value = _SAME.get(value, value)
            depth += (value in _OPENING) - (value in _CLOSING)
            if depth > MAX_NESTING:
                raise MathError(f"nested deeper than {MAX_NESTING}")
        found.append(Token(kind, value, gap))
        gap = False
        if len(found) > MAX_TOKENS:
            raise MathError(f"more than {MAX_TOKENS} symbols")
    return found


_OPENING, _CLOSING = {"(", "[", "{", "\\{", "<("}, {")", "]", "}", "\\}", ")>"}


def _command(name: str, text: str, at: int) -> tuple[str, str, int]:
    """Kind, value and end of a LaTeX command that starts before `at`."""
    if name in _SPACING:
        return "gap", "", at
    if name in _TEXT:
        content, after = _braced(text, at)
        return _text(content, after) if after > at else ("gap", "", at)
    if name in ("{", "}"):
        return "op", "\\" + name, at
    if name in ("%", "$", "&", "#", "_"):
        return ("op", "%", at) if name == "%" else ("cmd", name, at)
    if name in _OPERATORS:
        return "op", _OPERATORS[name], at
    if name in ("phantom", "label", "tag", "color"):
        return "gap", "", _braced(text, at)[1]
    return "cmd", _FRACTIONS.get(name, name), at


def _text(content: str, at: int) -> tuple[str, str, int]:
    content = re.sub(r"\\[,;: ]|~", " ", content).strip().strip(".,").strip()
    if not content:
        return "gap", "", at
    if content.lower() in ("and", "or"):
        return "op", content.lower(), at
    if re.fullmatch(r"\d+(?:\.\d+)?", content):
        return "num", content, at
    return ("word" if len(content) == 1 and content.isalpha() and content not in "msghl" else "text"), content, at


def _braced(text: str, at: int) -> tuple[str, int]:
    """The content of the `{...}` at `at` and the position behind it; ("", at) where none stands there."""
    match = re.compile(r"\s*\{").match(text, at)
    if match is None:
        return "", at
    depth, start = 1, match.end()
    for i in range(start, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return text[start:i], i + 1
    raise MathError("a brace is never closed")
