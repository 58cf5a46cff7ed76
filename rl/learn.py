"""One rollout -> optimiser updates, over micro-batches of one packed row. Knows ranks.

The loss of an update is a sum over rows with the global counts already in the rows' weights, so neither the number of rows, nor
their order, nor the split over ranks changes it (tests/test_invariance.py, tests/test_ranks.py). Weights and optimiser state are fp32;
on a GPU the forward and backward pass run in bf16 under autocast, log-probs and loss in fp32.

On several ranks (ranks.py) rank 0 packs, every rank takes its share of the rows, filled up with rows without weight so that all take
the same number of passes. There is no context parallelism: accelerate's splits a sequence under plain causal SDPA
(torch.distributed.tensor.experimental.context_parallel) and cannot express that a completion sees its prompt but not its siblings.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from rl import adapters, ranks
from rl.batch import Counts, count, pack, with_logprobs
from rl.config import Config, learning_rate_at
from rl.loss import policy_loss
from rl.optim import make_optimizer
from rl.policy import Policy, graphs_compiled
from rl.records import Batch, Completion, Group, Prompt, Row
from rl.routing import Balance, Routing, biases
from rl.teacher import reverse_kl, with_teacher

GATHERED = 1 << 28  # elements of full weights that a rank holds at once when they are gathered
Advantages = Sequence[Sequence[float | None]]


def accelerator(config: Config, folder: Path) -> Accelerator:
    """bf16 compute on a GPU, fp32 on a CPU; trackers, once `init_trackers` starts them, write below `folder`."""
    cuda = torch.cuda.is_available()
    acc = Accelerator(
        mixed_precision="bf16" if cuda else "no",
        cpu=not cuda,
        log_with=list(config.run.trackers) or None,
        project_dir=str(folder),
    )
    if acc.gradient_accumulation_steps != 1:  # it divides each row's gradient
        raise ValueError(
            f"accelerate's gradient_accumulation_steps = {acc.gradient_accumulation_steps}: an update is cut into rows by learn.row_tokens "
            "here; leave it out of the launch and of accelerate's file"
        )
    return acc


class Learner:
    """The policy with its optimiser, the reference model where there is a KL term, and the teacher where there is one (teacher.py).

    `updates` is the weights' version."""

    def __init__(
        self, config: Config, policy: Policy, reference: Policy | None, acc: Accelerator, teacher: Policy | None = None
    ) -> None:
        self.config, self.acc, self.reference, self.teacher = config, acc, reference, teacher
        if config.model.gradient_checkpointing:
            policy.checkpoint_layers(config.model.checkpoint_share)
        if config.learn.compile == "always" or (config.learn.compile == "cuda" and acc.device.type == "cuda"):
            for each in filter(None, (policy, reference, teacher)):
                each.compile_layers(lean=config.model.gradient_checkpointing)
        policy.train()
        if config.model.routing_replay or config.learn.balance_rate:
            policy.routing = Routing.of(policy.model)
        self.ranks = ranks.Ranks(acc, self)
        self.ranks.wait()  # for the one that read the weights
        self.sharded = ranks.asked_to_shard()
        if self.sharded and config.learn.offload:
            raise ValueError(
                "learn.offload on weights that are sharded over ranks: their moments are spread over the GPUs already; "
                "launch more ranks, or set learn.optimizer=adamw8"
            )
        if self.sharded:
            ranks.shard(policy, policy.model, acc.device)
        optimizer = make_optimizer(policy.parameters(), config.learn)
        self.prepared: Any
        self.optimizer: Any
        self.prepared, self.optimizer = (policy, optimizer) if self.sharded else acc.prepare(policy, optimizer)
        self.policy: Policy = acc.unwrap_model(self.prepared)
        for fixed in filter(None, (reference, teacher)):
            fixed.eval().requires_grad_(False)
            if self.sharded:
                ranks.shard(fixed, fixed.model, acc.device)
            else:
                fixed.to(acc.device)
        self.updates, self.rate = 0, 1.0  # `rate`: a factor of learn.lr, for a run that has gone back (guard.rollbacks)
        # Adapters alone are trained and saved: biases that moved would be neither in final/ nor out of the reference.
        rate = 0.0 if config.model.lora.rank else config.learn.balance_rate
        self.balance = Balance(self.policy.routing, rate, acc) if self.policy.routing else None

    def begin(self) -> None:
        """From here on rank 0 runs the program; the others must `ranks.follow()`."""
        self.ranks.begin()
        if self.ranks.leading and self.sharded:
            self.policy.fetch = self.fetch
            # Whoever asks for log-probs, all ranks gather the weights for it; before accelerate's own hook does on this one.
            self.policy.register_forward_pre_hook(lambda _, args: self.ranks.announce("forward", None, args[:1]), prepend=True)

    def step(self, groups: Sequence[Group], advantages: Advantages, max_tokens: int) -> dict[str, float]:
        """All updates of one rollout; returns its metrics, means over completion tokens but for `*_max`, `grad_norm` and `lr`."""
        algorithm = self.config.algorithm
        cuts = [i * len(groups) // algorithm.minibatches for i in range(algorithm.minibatches + 1)]  # nothing is left over
        parts = [slice(*cut) for cut in pairwise(cuts)]
        batches = [self._batch(groups[part], advantages[part], max_tokens) for part in parts]
        sizes = [(len(batch.rows), batch.samples, batch.tokens) for batch in batches]
        return self.ranks.together("learn", sizes, [row for batch in batches for row in batch.rows])

    def _learn(self, sizes: Sequence[tuple[int, int, int]], rows: Sequence[Row]) -> dict[str, float]:
        """On every rank: the updates of `step`; `sizes` are each batch's rows, samples and tokens."""
        left = iter(rows)
        batches = [self._prepared(Batch(self._mine(tuple(islice(left, n))), *counts)) for n, *counts in sizes]
        sums: dict[str, Any] = defaultdict(float)
        if self.balance and any(row.experts_LMK is not None for row in rows):
            self.balance.compare(batches[0].rows[0], lambda row: self._logprobs(self.policy, row)[0])
        for _ in range(self.config.algorithm.inner_epochs):
            for batch in batches:
                self._update(batch, sums)
        means = self._means(sums) | ({"graphs": float(graphs_compiled())} if self.policy.compiled else {})
        return means | (self.balance.numbers() if self.balance else {})

    def _batch(self, groups: Sequence[Group], advantages: Advantages, max_tokens: int) -> Batch:
        overlong = self.config.algorithm.overlong
        counts = count(groups, advantages, overlong)
        # Where nothing is left to learn from, every weight is 0 and the counts do not matter.
        counts = Counts(max(counts.samples, 1), max(counts.tokens, 1))
        batch = pack(
            groups, advantages, loss=self.config.algorithm.loss, counts=counts, max_tokens=max_tokens,
            row_tokens=self.config.learn.row_tokens, overlong=overlong, ranks=self.ranks.size,
        )  # fmt: skip
        routing = self.policy.routing if self.config.model.routing_replay else None
        if routing is None:
            return replace(batch, rows=tuple(replace(row, experts_LMK=None) for row in batch.rows))
        for row in batch.rows:
            routing.check(row)
        return batch

    def _mine(self, rows: tuple[Row, ...]) -> tuple[Row, ...]:
        """This rank's rows, as many as any rank has: each pass is one that all take part in."""
        if self.ranks.size == 1:
            return rows
        shares = ranks.share([len(row.ids_L) for row in rows], self.ranks.size)
        mine = tuple(rows[i] for i in shares[self.ranks.rank])
        return mine + (_no_row(),) * (max(1, *map(len, shares)) - len(mine))

    @torch.no_grad()
    def _prepared(self, batch: Batch) -> Batch:
        """Rows on the device, with the log-probs that must be taken before the first update."""
        many = self.config.algorithm.minibatches * self.config.algorithm.inner_epochs > 1
        rows = []
        for row in batch.rows:
            row = row.to(self.acc.device)
            if self.teacher is not None:
                row = with_teacher(row, self._logprobs(self.teacher, replace(row, experts_LMK=None))[0])
            old_T = self._logprobs(self.policy, row)[0] if many else None
            ref_T = self._reference_logprobs(row) if self.config.algorithm.kl else None
            rows.append(with_logprobs(row, old_T=old_T, ref_T=ref_T))
        return Batch(tuple(rows), batch.samples, batch.tokens)

    def _reference_logprobs(self, row: Row) -> Tensor:
        row = replace(row, experts_LMK=None)  # another router
        if self.reference is not None:
            return self._logprobs(self.reference, row)[0]
        with adapters.disabled(self.policy.model):  # the base is the reference: no second model
            return self._logprobs(self.policy, row)[0]

    def _logprobs(self, policy: Any, row: Row) -> tuple[Tensor, Tensor]:
        r = self.config.rollout
        with self.acc.autocast():
            return policy(row, r.temperature, r.top_p, r.top_k)

    def _update(self, batch: Batch, sums: dict[str, Any]) -> None:
        a = self.config.algorithm
        lr = self.rate * learning_rate_at(self.config, self.updates)
        for i, row in enumerate(batch.rows):
            with ranks.accumulating(self.acc, self.prepared, last=i == len(batch.rows) - 1):
                logprobs_T, entropy_T = self._logprobs(self.prepared, row)
                if self.balance:
                    self.balance.count(row)
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
            # They stay on the device: reading one would make the host wait for this row before it starts the next.
            metrics |= {"loss": loss.detach(), "entropy": (entropy_T * (row.weights_T > 0)).sum()}
            if self.teacher is not None:
                metrics["reverse_kl"] = reverse_kl(row)
            for name, value in metrics.items():
                before, value = sums[name], value.double()
                sums[name] = value.clamp(min=before) if name.endswith("_max") else before + value
        norm = self.acc.clip_grad_norm_(self.prepared.parameters(), self.config.learn.max_grad_norm)
        norm = float(ranks.gather(norm).item())
        if norm != norm or norm == float("inf"):
            self._forget()
            raise FloatingPointError(
                f"the gradient of update {self.updates + 1} is {norm}: the weights are untouched. Look at the largest log-prob mismatch "
                "and rewards of this step; a lower learn.lr or algorithm.clip_high is the usual remedy"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.balance:
            self.balance.update()
        self.updates += 1
        sums["updates"] += 1
        sums["grad_norm"] += norm
        sums["lr"] = lr

    def _forget(self) -> None:
        """What an update that is not made has left: a run that goes back to a checkpoint begins the next one without it."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.balance:
            self.balance = Balance(self.balance.routing, self.balance.rate, self.acc)

    def _means(self, found: Mapping[str, float | Tensor]) -> dict[str, float]:
        sums = {name: float(value) for name, value in found.items()}
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

    def replace_reference(self) -> None:
        """The reference model becomes the present policy (R1: every 400 steps)."""
        self.ranks.together("replace_reference")

    @torch.no_grad()
    def _replace_reference(self, *_: Any) -> None:
        assert self.reference is not None
        for mine, theirs in zip(self.at_rest(self.reference), self.at_rest(self.policy), strict=True):
            ranks.local(mine).copy_(ranks.local(theirs))
        for mine, theirs in zip(biases(self.reference.model).values(), biases(self.policy.model).values(), strict=True):
            mine.copy_(theirs)

    @staticmethod
    def at_rest(policy: Policy) -> list[Tensor]:
        """The parameters as they are kept: on a sharded policy this rank's shards."""
        return list(ranks.at_rest(policy).parameters())

    def fetch(self, names: Sequence[str], dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
        """Full tensors of the policy's state_dict by name, cast to `dtype` (not routers' biases: they move by less than bf16 resolves),
        a few at a time where they must be gathered."""
        sizes = {name: tensor.numel() for name, tensor in self.policy.model.state_dict().items()}
        bucket: list[str] = []
        for name in [*names, ""]:
            if bucket and (not name or sum(sizes[n] for n in bucket) + sizes[name] > GATHERED):
                yield from zip(bucket, self.ranks.together("gather", [bucket, dtype and str(dtype)]), strict=True)
                bucket = []
            bucket.append(name)

    def _gather(self, argument: tuple[Sequence[str], str | None], _: Any) -> list[Tensor]:
        names, dtype = argument
        state = ranks.at_rest(self.policy).model.state_dict()
        wanted, exact = dtype and getattr(torch, dtype.removeprefix("torch.")), biases(self.policy.model)
        return [ranks.gather(state[n], None if n in exact else wanted) for n in names]

    def _set_rate(self, rate: float, _: Any) -> None:
        self.rate = rate

    @torch.no_grad()
    def _forward(self, _: Any, rows: Sequence[Row]) -> None:
        self._logprobs(self.policy, rows[0].to(self.acc.device))


def state_of(model: Any) -> dict[str, Tensor]:
    """A model's state_dict with tied weights once."""
    twice = {n for n, _ in model.named_parameters(remove_duplicate=False)} - {n for n, _ in model.named_parameters()}
    return {n: t for n, t in model.state_dict().items() if n not in twice}


def _no_row() -> Row:
    """A row without weight: one pass through the model that adds nothing."""
    group = Group(Prompt("", (0,), {}), (Completion((0,), (0.0,), "stop", "", 0),))
    return pack([group], [[None]], loss="dapo", counts=Counts(1, 1), max_tokens=1, row_tokens=2).rows[0]


ranks.JOINT |= {
    "learn": Learner._learn, "replace_reference": Learner._replace_reference, "gather": Learner._gather, "forward": Learner._forward,
    "rate": Learner._set_rate,
}  # fmt: skip
