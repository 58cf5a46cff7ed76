r"""Language consistency: the share of a text's words that are written in the target language.

DeepSeek-R1 (arXiv 2501.12948 v2, "language consistency reward"): reward = words of the target language in the chain of thought /
all words of it, added to the task's reward. Differences:
1. A word counts for a language by its script (Latin, Han, Cyrillic, ...), so any two languages of one script are not told apart;
   for Latin-script targets other than English that is all this reward can see. No dictionary and no model is needed.
2. Han, Kana and Hangul are not written with spaces: there every character is a word, as in character-level tokenisers.
3. Formulas, code blocks, tags and numbers belong to no language and are not counted; a text without words is consistent (1).
   Two dollar signs hold a formula where both or neither have a space inside, no digit follows and no six words in a row stand between:
   amounts of money are no formula, nor is the prose between them.
4. Where there is no `<think>` part the whole text is judged.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rewards.score import Reward, Sampled, Score

_LATIN = r"A-Za-z\u00c0-\u024f\u1e00-\u1eff"
_SCRIPTS = {
    "latin": f"[{_LATIN}][{_LATIN}'\u2019-]*",
    "han": r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]",
    "kana": r"[\u3040-\u30ff]",
    "hangul": r"[\uac00-\ud7af\u1100-\u11ff]",
    "cyrillic": r"[\u0400-\u052f]+",
    "greek": r"[\u0370-\u03ff]+",
    "arabic": r"[\u0600-\u06ff\u0750-\u077f]+",
    "hebrew": r"[\u0590-\u05ff]+",
    "devanagari": r"[\u0900-\u097f]+",
    "thai": r"[\u0e00-\u0e7f]+",
}
LANGUAGES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("en", "de", "fr", "es", "it", "pt", "nl", "sv", "pl", "tr", "vi", "id"), ("latin",)),
    **{"zh": ("han",), "ja": ("han", "kana"), "ko": ("hangul",), "ru": ("cyrillic",), "uk": ("cyrillic",), "el": ("greek",)},
    **{"ar": ("arabic",), "fa": ("arabic",), "he": ("hebrew",), "hi": ("devanagari",), "th": ("thai",)},
}
_WORD = re.compile("|".join(f"(?P<{name}>{pattern})" for name, pattern in _SCRIPTS.items()))
_INSIDE = r"(?:\\[^\n]|[^\\$\n])"
_CHARACTER, _LOWER = r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]", r"[^\W\d_A-Z][^\W\d_]"  # AB, BC, CD are no words
_PROSE = rf"(?:{_CHARACTER}[\s,\uff0c\u3002\u3001]{{0,2}}|{_LOWER}{{1,19}}[ ,.]{{1,3}}){{5}}(?:{_CHARACTER}|{_LOWER})"  # six words in a row
_FORMULA = rf"(?<!\\)\$(?!{_INSIDE}*?{_PROSE})(?:(?=\S){_INSIDE}+(?<=\S)|(?=\s){_INSIDE}+(?<=\s))\$(?!\d)"
_NO_LANGUAGE = re.compile(
    rf"```.*?(?:```|\Z)|`[^`\n]*`|\$\$.*?\$\$|{_FORMULA}|\\\[.*?\\\]|\\\(.*?\\\)|\\[A-Za-z]+(?:\{{[^{{}}]*\}})*|</?\w+>",
    re.DOTALL,
)
_THINK = re.compile(r"<think>(.*?)(?:</think>|\Z)", re.DOTALL)


def share(text: str, language: str = "en") -> float:
    """Words of the language / all words, in [0, 1].

    >>> share("The sum is 5, \\u6240\\u4ee5 yes.", "en")
    0.6666666666666666
    """
    found = [script in LANGUAGES[language] for script in scripts(text)]
    return sum(found) / len(found) if found else 1.0


def scripts(text: str) -> list[str]:
    """The script of each word, formulas, code and tags left out: "latin", "han", ..."""
    return [str(match.lastgroup) for match in _WORD.finditer(_NO_LANGUAGE.sub(" ", text))]


def language(target: str = "en") -> Reward:
    """The reward; `target` is a language code (`en`, `zh`, ...); a problem's own column `language` goes before it."""
    _known(target)

    def reward(completion: Sampled, problem: Mapping[str, Any]) -> Score:
        code = problem.get("language") or target
        _known(code)
        match = _THINK.search(completion.text)
        value = share(match[1] if match else completion.text, code)
        return Score(value, {"language": value}, f"language {code}: {value:.2f}")

    return reward


def _known(code: str) -> None:
    if code not in LANGUAGES:
        raise ValueError(f"language {code!r} is unknown: use one of {sorted(LANGUAGES)}")
