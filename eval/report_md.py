"""report.md: what one pastes into a pull request. Contamination first, then the table, the largest gaps, how it was made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from eval.report_words import facts, gap, measured, measures, overlap, remarks, share
from rl.report_plots import percent

if TYPE_CHECKING:
    from eval.report import Evaluation

NOT_LOOKED = "not looked for: name what the model was trained on with `--train FILE`"


def markdown(evaluation: Evaluation) -> str:
    """Ends with a line's end; equal evaluations give equal bytes."""
    lines = [f"# Evaluation of {_cell(evaluation.name)}", "", "Training questions in the test sets:", *_overlap(evaluation), ""]
    lines += [*_table(evaluation), "", *_notes(evaluation)]
    lines += [f"- {name}: {_cell(value)}" for name, value in facts(evaluation.settings.values()).items()]
    return "\n".join(lines) + "\n"


def _overlap(evaluation: Evaluation) -> Iterator[str]:
    lines = overlap(evaluation.overlap)
    yield from (f"- {_cell(line)}" for line in lines or [NOT_LOOKED])
    for task, e in evaluation.clean.items():
        yield f"- {task} without those {e['left_out']}: lenient {measured(e)}"


def _table(evaluation: Evaluation) -> Iterator[str]:
    yield "| task | questions | samples | strict | lenient | maj@k | pass@k | truncated | tokens an answer |"
    yield "|---" * 9 + "|"
    for task, found in evaluation.figures.items():
        m = measures(found)
        cells = [task, str(found["questions"]), str(found["samples"]), *(measured(m[key]) for key in ("strict", "lenient"))]
        cells += [measured(m[key]) for key in ("maj", "pass")]
        sampled = evaluation.settings[task].mode != "loglikelihood"
        cells += [share(found["truncated"]), f"{found['tokens']['value']:.0f}"] if sampled else ["-", "-"]
        yield "| " + " | ".join(cells) + " |"


def _notes(evaluation: Evaluation) -> Iterator[str]:
    yield "Accuracy in per cent with its 95 % interval over questions; a sample without a verdict counts as not right."
    yield ""
    for task, found in evaluation.figures.items():
        for column, spread in found["spread"].items():
            yield f"- {task}: {_cell(gap(column, found['by'][column], spread))}"
        yield from (f"- {line}" for line in remarks(task, evaluation.settings[task], found))
    for task, c in evaluation.chains.items():
        saved = c["tokens"]["saved"]
        yield (
            f"- {task}, rules first: they decide {share(c['rule']['coverage'])} of the questions and are right in "
            f"{measured(c['rule']['precision'])} of these; with the vote of {c['samples']} for the rest "
            f"{measured(c['combined']['accuracy'])} of all are right"
            + (f", {percent(saved['value'])} of the tokens saved" if saved else "")
        )


def _cell(text: str) -> str:
    """One line without what Markdown would read as its own."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
