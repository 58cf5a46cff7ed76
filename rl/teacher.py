"""On-policy distillation: the student samples, a teacher scores each of its tokens, and what it thinks less likely is unlearned.

  KL(student || teacher) = E_{y ~ student} sum_t [log student(y_t | y_<t) - log teacher(y_t | y_<t)]
  A_t = log teacher(y_t | y_<t) - log sampler(y_t | y_<t)        one advantage a token, in place of the group's reward

GKD (Agarwal et al., arXiv 2306.13649) trains a student on its own samples; MiniLLM (Gu et al., arXiv 2306.08543) minimises the reverse
KL by policy gradient. What differs:
 1. Each token answers for its own log-ratio alone (a discount of 0): no sum over the later ones, as in MiniLLM's eq. 2, whose variance
    it must then fight. In expectation over the prefixes as sampled this is the gradient of every next token's reverse KL.
 2. Only the sampled token's log-probs are used: GKD's divergence over the whole vocabulary needs both models' logits at once.
 3. The loss, its clip and the correction for stale samples are the recipe's (loss.py), so that everything else of a run stays as it is;
    rewards are computed and shown, but teach nothing.
 4. Both log-probs are taken at the rollout's temperature: the student at that temperature is drawn towards the teacher at the same.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rl.policy import Policy, load_model, load_tokenizer
from rl.records import Row

SAMPLE = "A farmer has 12 apples.\n<think>12 - 5 = 7</think> <answer>7</answer> \u00e9\u4e2d"  # what tokenizers cut differently


def with_teacher(row: Row, teacher_T: Tensor) -> Row:
    """The row with A_t = teacher - sampler, nats; 0 where a sample is masked. ValueError for shapes that would broadcast.

    The gradient by a token's log-prob, on-policy, is -w_t A_t: it rises where the teacher gives the token more than the student did.
    """
    if teacher_T.shape != row.sampled_T.shape:
        raise ValueError(f"the teacher's log-probs have shape {tuple(teacher_T.shape)}, the row {tuple(row.sampled_T.shape)}")
    gain_T = teacher_T.detach().float() - row.sampled_T
    return replace(row, advantages_T=torch.where(row.weights_T > 0, gain_T, torch.zeros_like(gain_T)))


def reverse_kl(row: Row) -> Tensor:
    """The row's sum over unmasked tokens of log sampler - log teacher: its mean estimates KL(student || teacher), nats a token."""
    return -row.advantages_T.sum()


def load_teacher(path: str, student: Any, vocabulary: int, dtype: torch.dtype, trust_remote_code: bool = False) -> Policy:
    """The teacher, where its tokens are the student's. `student`: the student's tokenizer; `vocabulary`: rows of its embedding.

    Raises ValueError in one line for another tokenizer: its log-probs would be those of other texts.
    """
    check_tokenizer(path, load_tokenizer(path, trust_remote_code), student)
    model = load_model(path, dtype=dtype, trust_remote_code=trust_remote_code)
    if (known := model.get_input_embeddings().num_embeddings) < vocabulary:
        raise ValueError(
            f"teacher.path = {path!r} knows {known} token ids, the student {vocabulary}: it cannot score all that the student may sample; "
            "take a teacher with at least as many"
        )
    return Policy(model)


def check_tokenizer(path: str, teacher: Any, student: Any) -> None:
    """Raises ValueError where teacher and student do not read the same ids as the same text, and end it alike."""
    remedy = (
        "on-policy distillation needs one tokenizer; take a teacher of the student's family, or distill from its text by SFT"
    )
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours != theirs:
        other = sum(theirs.get(token) != n for token, n in ours.items()) + sum(token not in ours for token in theirs)
        raise ValueError(f"teacher.path = {path!r} has another tokenizer than the student ({other} tokens differ): {remedy}")
    if student.eos_token_id != teacher.eos_token_id or student(SAMPLE)["input_ids"] != teacher(SAMPLE)["input_ids"]:
        raise ValueError(
            f"teacher.path = {path!r} cuts or ends text differently from the student, with the same tokens: {remedy}"
        )
