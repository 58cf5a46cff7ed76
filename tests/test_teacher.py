"""On-policy distillation by hand: advantage, loss and gradient of a teacher's log-probs; the loop with one; teachers that are refused.

Axes: T completion tokens of a row, V vocabulary.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recipes import run as door
from rl.batch import Counts, pack
from rl.config import load
from rl.loss import policy_loss
from rl.policy import load_model
from rl.records import Completion, Group, Prompt, Row
from rl.rollout import load as read_groups
from rl.teacher import check_tokenizer, load_teacher, reverse_kl, with_teacher
from tests import tiny as models
from tests.tiny_run import refused, timeless, tiny_model, write_recipe

HALF, QUARTER, EIGHTH = math.log(0.5), math.log(0.25), math.log(0.125)


def row_of_two(masked: bool = False) -> Row:
    """Two completions, of two tokens and one; the student gave each token 1/2, 1/4 and 1/8."""
    made = (Completion((3, 4), (HALF, QUARTER), "stop", "", 0), Completion((5,), (EIGHTH,), "stop", "", 0))
    group = Group(Prompt("p", (1, 2), {}), made)
    kept = [1.0, None] if masked else [1.0, 1.0]
    counts = Counts(1, 2) if masked else Counts(2, 3)
    return pack([group], [kept], loss="dapo", counts=counts, max_tokens=2, row_tokens=64).rows[0]


def graded(row: Row, logprobs_T: Tensor) -> Tensor:
    """The gradient of the loss by each log-prob."""
    logprobs_T = logprobs_T.clone().requires_grad_()
    loss, _ = policy_loss("dapo", logprobs_T, row, clip_low=0.2, clip_high=0.2, kl_coef=0.0, tis_cap=None)
    (gradient_T,) = torch.autograd.grad(loss, logprobs_T)
    return gradient_T


def test_advantage_loss_and_gradient_by_hand() -> None:
    teacher_T = torch.tensor([QUARTER, HALF, EIGHTH])
    row = with_teacher(row_of_two(), teacher_T)
    two = math.log(2)
    torch.testing.assert_close(row.advantages_T, torch.tensor([-two, two, 0.0]))  # less likely, more likely, alike
    assert reverse_kl(row).item() == pytest.approx(two - two)
    loss, _ = policy_loss("dapo", row.sampled_T, row, clip_low=0.2, clip_high=0.2, kl_coef=0.0, tis_cap=None)
    assert loss.item() == pytest.approx(0.0)  # -(-ln 2 + ln 2 + 0) / 3
    # -w A, w = 1/3 a token: the first token is pushed down, the second up, the third left alone.
    torch.testing.assert_close(graded(row, row.sampled_T), torch.tensor([two / 3, -two / 3, 0.0]))


def test_a_masked_sample_teaches_nothing_even_where_the_teacher_has_no_number() -> None:
    row = with_teacher(row_of_two(masked=True), torch.tensor([QUARTER, HALF, -math.inf]))
    torch.testing.assert_close(row.advantages_T[2], torch.tensor(0.0))
    torch.testing.assert_close(graded(row, row.sampled_T), torch.tensor([math.log(2) / 2, -math.log(2) / 2, 0.0]))
    with pytest.raises(ValueError, match="shape"):
        with_teacher(row, torch.zeros(3, 1))


def test_the_expected_gradient_is_that_of_the_reverse_kl() -> None:
    """One position, V = 4: summed over what the student may sample, with its probability, against autograd through the exact KL."""
    logits_V = torch.tensor([0.3, -1.0, 0.8, 0.1], dtype=torch.float64, requires_grad=True)
    teacher_V = torch.tensor([1.0, 0.2, -0.5, 0.0], dtype=torch.float64).log_softmax(-1)
    student_V = logits_V.log_softmax(-1)
    (wanted_V,) = torch.autograd.grad((student_V.exp() * (student_V - teacher_V)).sum(), logits_V, retain_graph=True)
    found_V = torch.zeros(4, dtype=torch.float64)
    for token in range(4):
        group = Group(Prompt("p", (1,), {}), (Completion((token,), (student_V[token].item(),), "stop", "", 0),))
        row = pack([group], [[1.0]], loss="dapo", counts=Counts(1, 1), max_tokens=1, row_tokens=8).rows[0]
        row = with_teacher(row, teacher_V[token][None])
        loss, _ = policy_loss("dapo", student_V[token][None], row, clip_low=0.2, clip_high=0.2, kl_coef=0.0, tis_cap=None)
        (gradient_V,) = torch.autograd.grad(loss, logits_V, retain_graph=True)
        found_V += student_V[token].exp().item() * gradient_V
    torch.testing.assert_close(found_V, wanted_V, atol=1e-6, rtol=1e-5)


def settings(teacher: str, out: Path) -> list[str]:
    """A run that only learns from a teacher, from a whole rollout at once."""
    made = [f"teacher.path={teacher}", f"run.out={out}", "learn.lr=5e-3", "learn.schedule=constant", "algorithm.minibatches=1"]
    return [*made, "algorithm.kl=0", "algorithm.reference_every=0", "evaluate.problems=0", "guard.probe_every=0"]


def test_a_run_draws_the_student_to_its_teacher(tmp_path: Path, tiny: str) -> None:
    """Samples of the student, log-probs of the teacher, rewards that teach nothing: their distance falls."""
    teacher, recipe = tiny_model(tmp_path / "teacher", seed=1), write_recipe(tmp_path, tiny)
    assert door.main([str(recipe), *settings(teacher, tmp_path / "run"), "run.steps=9", "rollout.group=48"]) == 0
    distance = [m["reverse_kl"] for m in timeless(tmp_path / "run")]
    assert distance[-1] < 0.7 * distance[0], distance


def test_the_distance_is_that_of_the_plain_models(tmp_path: Path, tiny: str) -> None:
    """log student - log teacher over every sampled token, in packed rows by the learner and one answer at a time by transformers."""
    teacher, recipe = tiny_model(tmp_path / "teacher", seed=1), write_recipe(tmp_path, tiny)
    assert door.main([str(recipe), "--only", "rollout", "run.steps=1", f"run.out={tmp_path}/made"]) == 0
    groups = f"{tmp_path}/made/groups.jsonl"
    assert door.main([str(recipe), *settings(teacher, tmp_path / "run"), "--replay", groups]) == 0
    both = [load_model(path, dtype=torch.float32, attention="sdpa") for path in (tiny, teacher)]
    answers = [(g.prompt.ids, c.ids) for _, step in read_groups(groups) for g in step for c in g.completions]
    ratios = [logprobs(both[0], *answer) - logprobs(both[1], *answer) for answer in answers]
    found = timeless(tmp_path / "run")[0]["reverse_kl"]
    assert found == pytest.approx(torch.cat(ratios).mean().item(), abs=1e-5)


@torch.no_grad()
def logprobs(model: Any, prompt: tuple[int, ...], ids: tuple[int, ...]) -> Tensor:
    logits_LV = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    return logits_LV.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]


def test_a_teacher_of_another_tokenizer_is_refused_in_one_line(
    tmp_path: Path, tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, tiny)
    told = refused(capsys, [str(recipe), f"teacher.path={models.path()}", f"run.out={tmp_path}/run"])
    assert "another tokenizer" in told
    assert "SFT" in told
    other = copy.deepcopy(models.tokenizer())
    other.eos_token = "<|pad|>"
    with pytest.raises(ValueError, match="ends text differently"):
        check_tokenizer("other", other, models.tokenizer())


def test_a_teacher_with_fewer_ids_is_refused() -> None:
    with pytest.raises(ValueError, match="knows 330 token ids, the student 331"):
        load_teacher(models.path(), models.tokenizer(), 331, torch.float32)


@pytest.mark.parametrize(
    ("setting", "why"),
    [("rollout.top_p=0.9", "cuts off"), ("rollout.refill=1.0", "useless"), ("learner=trl", "takes no teacher")],
)
def test_settings_that_make_no_sense_with_a_teacher(tmp_path: Path, tiny: str, setting: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        load(write_recipe(tmp_path, tiny), ["teacher.path=x", setting])
