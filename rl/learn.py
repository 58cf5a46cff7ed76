"""One rollout -> optimiser updates, over micro-batches of one packed row. Knows ranks.

The loss of an update is a sum over rows with the global counts already in the rows' weights, so neither the number of rows, nor
their order, nor the split over ranks changes it (tests/test_invariance.py). Weights and optimiser state are fp32; on a GPU the forward
and backward pass run in bf16 under autocast, log-probs and loss in fp32.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from rl.batch import Counts, count, pack, with_logprobs
from rl.config import Config, learning_rate_at
from rl.loss import policy_loss
from rl.policy import Policy
from rl.records import Batch, Group, Row

Advantages = Sequence[Sequence[float | None]]


def accelerator(config: Config, folder: Path) -> Accelerator:
    """bf16 compute on a GPU, fp32 on a CPU; trackers write below `folder`."""
    cuda = torch.cuda.is_available()
    acc = Accelerator(
        mixed_precision="bf16" if cuda else "no",
        cpu=not cuda,
        log_with=list(config.run.trackers) or None,
        project_dir=str(folder),
    )
    acc.init_trackers(config.name)
    return acc


class Learner:
    """The policy with its optimiser, and the reference model where there is a KL term. `updates` is the weights' version."""

    def __init__(self, config: Config, policy: Policy, reference: Policy | None, acc: Accelerator) -> None:
        self.config, self.acc, self.reference = config, acc, reference
        if config.model.gradient_checkpointing:
            policy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        policy.train()
        learn = config.learn
        optimizer = torch.optim.AdamW(
            policy.parameters(), lr=learn.lr, betas=learn.betas, weight_decay=learn.weight_decay, fused=True
        )
        self.prepared, self.optimizer = acc.prepare(policy, optimizer)
        self.policy: Policy = acc.unwrap_model(self.prepared)
        if reference is not None:
            reference.to(acc.device).eval().requires_grad_(False)
        self.updates = 0

    def step(self, groups: Sequence[Group], advantages: Advantages, max_tokens: int) -> dict[str, float]:
        """All updates of one rollout; returns its metrics, means over completion tokens but for `*_max`, `grad_norm` and `lr`."""
        algorithm = self.config.algorithm
        cuts = [i * len(groups) // algorithm.minibatches for i in range(algorithm.minibatches + 1)]  # nothing is left over
        parts = [slice(*cut) for cut in pairwise(cuts)]
        batches = [self._prepared(self._batch(groups[part], advantages[part], max_tokens)) for part in parts]
        sums: dict[str, float] = defaultdict(float)
        for _ in range(algorithm.inner_epochs):
            for batch in batches:
                self._update(batch, sums)
        return self._means(sums)

    def _batch(self, groups: Sequence[Group], advantages: Advantages, max_tokens: int) -> Batch:
        overlong = self.config.algorithm.overlong
        mine = count(groups, advantages, overlong)
        both = torch.tensor([mine.samples, mine.tokens], device=self.acc.device)
        samples, tokens = self.acc.reduce(both, "sum").tolist()
        # Where nothing is left to learn from, every weight is 0 and the counts do not matter.
        counts = Counts(max(samples, 1), max(tokens, 1))
        return pack(
            groups, advantages, loss=self.config.algorithm.loss, counts=counts, max_tokens=max_tokens,
            row_tokens=self.config.learn.row_tokens, overlong=overlong,
        )  # fmt: skip

    @torch.no_grad()
    def _prepared(self, batch: Batch) -> Batch:
        """Rows on the device, with the log-probs that must be taken before the first update."""
        many = self.config.algorithm.minibatches * self.config.algorithm.inner_epochs > 1
        rows = []
        for row in batch.rows:
            row = row.to(self.acc.device)
            old_T = self._logprobs(self.policy, row)[0] if many else None
            ref_T = self._logprobs(self.reference, row)[0] if self.reference is not None else None
            rows.append(with_logprobs(row, old_T=old_T, ref_T=ref_T))
        return Batch(tuple(rows), batch.samples, batch.tokens)

    def _logprobs(self, policy: Any, row: Row) -> tuple[Tensor, Tensor]:
        with self.acc.autocast():
            return policy(row, self.config.rollout.temperature)

    def _update(self, batch: Batch, sums: dict[str, float]) -> None:
        a = self.config.algorithm
        lr = learning_rate_at(self.config, self.updates)
        for i, row in enumerate(batch.rows):
            last = i == len(batch.rows) - 1
            with self.acc.no_sync(self.prepared) if not last else nullcontext():
                logprobs_T, entropy_T = self._logprobs(self.prepared, row)
                loss, metrics = policy_loss(
                    a.loss,
                    logprobs_T,
                    row,
                    clip_low=a.clip_low,
                    clip_high=a.clip_high,
                    kl_coef=a.kl,
                    tis_cap=a.importance_cap or None,
                )
                # Data parallelism averages gradients over ranks; the loss is a sum.
                self.acc.backward(loss * self.acc.num_processes)
            sums["loss"] += loss.item()
            sums["entropy"] += (entropy_T * (row.weights_T > 0)).sum().item()
            for name, value in metrics.items():
                sums[name] = max(sums[name], value.item()) if name.endswith("_max") else sums[name] + value.item()
        norm = self.acc.clip_grad_norm_(self.prepared.parameters(), self.config.learn.max_grad_norm)
        norm = float(norm.item())
        if norm != norm or norm == float("inf"):
            raise FloatingPointError(
                f"the gradient of update {self.updates + 1} is {norm}: the weights are untouched. Look at the largest log-prob mismatch "
                "and rewards of this step; a lower learn.lr or algorithm.clip_high is the usual remedy"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.updates += 1
        sums["updates"] += 1
        sums["grad_norm"] += norm
        sums["lr"] = lr

    def _means(self, sums: dict[str, float]) -> dict[str, float]:
        names = sorted(set(sums) - {"updates", "lr", "loss", "grad_norm", "mismatch_max"})
        totals = torch.tensor([sums[n] for n in names] + [sums["loss"]], dtype=torch.float64, device=self.acc.device)
        *values, loss = self.acc.reduce(totals, "sum").tolist()
        by_name = dict(zip(names, values, strict=True))
        tokens = max(by_name.pop("tokens", 0.0), 1.0)
        means = {("mismatch" if n == "mismatch_abs" else n): v / tokens for n, v in by_name.items()}
        updates = max(sums["updates"], 1)
        worst = self.acc.gather(torch.tensor([sums["mismatch_max"]], device=self.acc.device)).max().item()
        return means | {
            "mismatch_max": worst, "loss": loss / updates, "grad_norm": sums["grad_norm"] / updates, "lr": sums["lr"],
        }  # fmt: skip

    @torch.no_grad()
    def replace_reference(self) -> None:
        """The reference model becomes the present policy (R1: every 400 steps)."""
        assert self.reference is not None
        for mine, theirs in zip(self.reference.parameters(), self.policy.parameters(), strict=True):
            mine.copy_(theirs)
