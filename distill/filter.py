"""Which traces are worth learning from. Each that is dropped is counted under the first filter that wants it gone, with the reason.

DeepSeek-R1's rejection sampling (arXiv 2501.12948, section 2.3.3) keeps right answers and drops "mixed languages, long paragraphs and code
blocks"; it gives no numbers. The filters here, in this order (cheapest first, so that a count says what is wrong and not only that it is):
  cut off       the teacher ran out of tokens, or went round in a circle
  format        think tags missing, doubled, in the wrong order or around nothing, or no answer; `form = "tags"`: the whole of
                rewards/format_tags.py
  length        the reasoning has fewer words than `min_words`, or the trace more than `max_tokens` of its teacher's tokens (or words)
  language      less than `language_share` of the trace's words are of the language (rewards/language.py)
  repetition    more than `repetition` of its n-grams stood in it before (rewards/length.py)
  wrong         the verifier says so of what stands behind the reasoning, by a row's own gold or tests, or cannot grade that gold; what
                has none passes
  duplicate     the same words and signs as an earlier trace of the question
  similar       more than `similar` of its word 3-grams are those of an earlier trace of the question (Jaccard)
  per question  `per_question` traces of its question are kept already
The last three are about a question's traces together; earlier ones win, so traces come in an order that is the same every time.
Kind "general" needs neither reasoning nor gold: of the first six only "cut off", "language" and "repetition" look at all of it, "format"
at whether something is written, and at think tags that are there, with something between them or not.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from distill.traces import CLOSE, OPEN, Trace
from rewards import format_tags, language
from rewards.length import repeated
from rewards.math_answer import accuracy, check_gold
from rewards.score import Score, Text

Judge = Callable[[Trace], Score]  # value 1 right, 0 wrong, None: no verdict was possible
_WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\d+(?:[.,]\d+)*|[^\W\d_]+|[^\w\s]")


@dataclass(frozen=True)
class Filters:
    """Thresholds. One that cannot be reached switches its filter off."""

    form: Literal["think", "tags"] = "think"  # "tags": <think> </think> <answer> </answer> and nothing else
    verify: bool = True
    language: str = "en"  # a row's own column `language` goes before it where it is a code that is known; "": any
    language_share: float = 0.95
    repetition: float = 0.3
    ngram: int = 20  # words, of the repetition
    min_words: int = 3
    max_tokens: int = 0  # 0: any number
    similar: float = 0.9
    per_question: int = 4


@dataclass
class Dropped:
    """What was dropped: how often by filter, and the traces with their reasons."""

    counts: Counter[str] = field(default_factory=Counter)
    traces: list[tuple[Trace, str, str]] = field(default_factory=list)  # (trace, filter, reason)

    def add(self, trace: Trace, by: str, reason: str) -> None:
        self.counts[by] += 1
        self.traces.append((trace, by, reason))


Filter = Callable[[Trace, Filters, Judge], str]  # -> why it is dropped, or ""


def _cut_off(trace: Trace, f: Filters, judge: Judge) -> str:
    return f"finish {trace.finish!r}" if trace.truncated else ""


def _format(trace: Trace, f: Filters, judge: Judge) -> str:
    general = trace.kind == "general"
    if general and OPEN not in trace.text and CLOSE not in trace.text:
        return "" if trace.answer else "nothing is written"
    if f.form == "tags" and not general:
        return format_tags.fault(trace.text)
    for tag in (OPEN, CLOSE):
        if (n := trace.text.count(tag)) != 1:
            return f"{n} x {tag}"
    if trace.text.partition(OPEN)[0].strip():
        return f"text before {OPEN}"
    return "no reasoning" if not trace.think and not general else "" if trace.answer else "no answer behind the reasoning"


def _length(trace: Trace, f: Filters, judge: Judge) -> str:
    words = len(trace.think.split())
    if trace.kind != "general" and words < f.min_words:
        return f"{words} words of reasoning, fewer than {f.min_words}"
    tokens = trace.tokens or len(trace.text.split())
    return f"{tokens} tokens, more than {f.max_tokens}" if f.max_tokens and tokens > f.max_tokens else ""


def _language(trace: Trace, f: Filters, judge: Judge) -> str:
    own = str(trace.columns.get("language"))  # of a program it may be "python"
    wanted = own if own in language.LANGUAGES else f.language
    if not wanted:
        return ""
    if wanted not in language.LANGUAGES:
        raise ValueError(f"filter.language = {wanted!r}: unknown; use one of {', '.join(sorted(language.LANGUAGES))}, or ''")
    # The reply too: a trace that reasons in one language and answers in another teaches to mix them.
    share = language.share(trace.text, wanted)
    return f"{share:.0%} of the words are {wanted}" if share < f.language_share else ""


def _repetition(trace: Trace, f: Filters, judge: Judge) -> str:
    share = repeated(trace.text, f.ngram)
    return f"{share:.0%} of {f.ngram}-grams repeated" if share > f.repetition else ""


def _wrong(trace: Trace, f: Filters, judge: Judge) -> str:
    if not f.verify or trace.kind == "general":
        return ""
    score = judge(trace)
    if score.value is None:
        return f"no verdict: {score.reason}"
    return "" if score.value == 1.0 else score.reason or "wrong"


FILTERS: dict[str, Filter] = {
    "cut off": _cut_off,
    "format": _format,
    "length": _length,
    "language": _language,
    "repetition": _repetition,
    "wrong": _wrong,
}


def right(trace: Trace) -> Score:
    """The verifier of kinds that rules on text alone can judge; programs need one that runs them. Traces without a gold are not judged.

    An answer is what stands behind the reasoning: one that the reasoning named and gave up is none.
    """
    if trace.kind == "code":
        raise ValueError(f"trace {trace.id}: a program is verified by running it; hand in a judge that does")
    if not trace.gold:
        return Score(1.0, reason="nothing to verify it against")
    try:
        check_gold(trace.gold)
    except ValueError as error:
        return Score(None, reason=f"the gold cannot be graded: {error}")
    return accuracy()(Text(trace.answer, trace.tokens, trace.truncated), trace.row)


def sieve(
    traces: Iterable[Trace], settings: Filters, judge: Judge = right, filters: Mapping[str, Filter] | None = None
) -> tuple[list[Trace], Dropped]:
    """The traces that are kept, in their order, and the dropped ones. Each trace is in exactly one of the two."""
    filters, kept, dropped = FILTERS if filters is None else filters, list[Trace](), Dropped()
    of_question: dict[str, list[str]] = defaultdict(list)
    for trace in traces:
        reasons = ((name, why) for name, test in filters.items() if (why := test(trace, settings, judge)))
        by, reason = next(reasons, ("", ""))
        earlier = of_question[trace.problem]
        if not by:
            by, reason = _among(trace.text, earlier, settings)
        if by:
            dropped.add(trace, by, reason)
        else:
            earlier.append(trace.text)
            kept.append(trace)
    return kept, dropped


def _among(text: str, earlier: list[str], f: Filters) -> tuple[str, str]:
    """Diversity: (filter, reason) where earlier traces of the question make this one needless."""
    if earlier and any(_words(text) == _words(other) for other in earlier):
        return "duplicate", "the question has it already"
    if earlier and f.similar < 1:
        likest = max(_jaccard(_grams(text), _grams(other)) for other in earlier)
        if likest > f.similar:
            return "similar", f"{likest:.0%} the 3-grams of an earlier one"
    if len(earlier) >= f.per_question:
        return "per question", f"{f.per_question} are kept already"
    return "", ""


@lru_cache(maxsize=64)  # a question's traces mostly come one after another
def _words(text: str) -> tuple[str, ...]:
    return tuple(w.lower() for w in _WORDS.findall(text))


@lru_cache(maxsize=64)
def _grams(text: str) -> frozenset[tuple[str, ...]]:
    words = _words(text)
    return frozenset(zip(words, words[1:], words[2:], strict=False))


def _jaccard(a: frozenset[tuple[str, ...]], b: frozenset[tuple[str, ...]]) -> float:
    return len(a & b) / len(a | b) if a or b else 0.0
