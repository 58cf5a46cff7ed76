"""The Sampler protocol, and the sampler over transformers' batched generate: slow, everywhere, and the one to compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, TopKLogitsWarper, TopPLogitsWarper

from rl.policy import load_model, stop_ids
from rl.records import Completion, Sampling
from rl.routing import Routing, carried

Weights = Iterable[tuple[str, Tensor]]
Prompts = Sequence[Sequence[int]]
# (index of the prompt, its completions) -> further prompts, which take the next indices and are sampled beside the others
Done = Callable[[int, Sequence[Completion]], Prompts | None]


class WorkerLost(RuntimeError):
    """A sampler in another process died, fell silent or gave garbage."""


class Sampler(Protocol):
    """Token ids in, completions out, under weights whose version it knows. Everything that generates is behind this."""

    version: int  # optimiser updates behind the weights in use
    dtype: torch.dtype  # what weights must be cast to before `load`
    adapter: bool  # whether it holds a frozen base itself and is sent a LoRA adapter alone

    def generate(self, prompts: Prompts, sampling: Sampling, done: Done | None = None) -> list[list[Completion]]:
        """`sampling.n` completions a prompt, in the prompts' order; the same seed and weights give the same completions.

        `done` is called once for each prompt, one call at a time, as soon as all its completions are finished.
        """
        ...

    def load(self, weights: Weights, version: int) -> None:
        """Take new weights; nothing computed under the old ones (prefix cache) may survive."""
        ...

    def fingerprint(self) -> dict[str, int]:
        """`fingerprint()` over the weights really in use, under the engine's names."""
        ...

    def replicas(self) -> Sequence[tuple[str, Sampler]]:
        """Each engine with a name for messages: after an update every one of them must prove its weights."""
        ...

    def rest(self) -> None:
        """Nothing is sampled before the next `load`: memory that can be lent to the learner is."""
        ...

    def stats(self) -> dict[str, float]:
        """Since the last call: accidents and what was lost by them, for the step's metrics."""
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


class Alone:
    """What every sampler that is one engine, in this process, has in common.

    While it generates it calls `between` where other calls may be served (new weights, canaries), `alive` at least as often.
    """

    adapter = False
    between: Callable[[], object] = staticmethod(lambda: None)
    alive: Callable[[], object] = staticmethod(lambda: None)

    def replicas(self) -> Sequence[tuple[str, Any]]:
        return [("the sampler", self)]

    def rest(self) -> None:
        pass

    def stats(self) -> dict[str, float]:
        return {}


def fingerprint(weights: Weights) -> dict[str, int]:
    """For each weight the sum of its elements' bit patterns, modulo 2^64: exact, and one changed element changes it.

    Sums add up, so that the total is the same however an engine fuses or orders its weights, and padding with zeros adds nothing.
    """
    sums = {}
    for name, weight in weights:
        bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()]
        sums[name] = int(weight.detach().contiguous().view(bits).sum(dtype=torch.int64)) % (1 << 64)
    return sums


def completion(
    ids: list[int], logprobs: list[float], stops: Sequence[int], text: str, version: int,
    switches: Sequence[tuple[int, int]] = (), looped: bool = False, experts: np.ndarray | None = None,
) -> Completion:  # fmt: skip
    """One completion; it stopped by itself exactly when its last token is an end-of-sequence token."""
    finish = "stop" if ids and ids[-1] in stops else "loop" if looped else "length"
    if experts is not None:
        experts.setflags(write=False)
    return Completion(tuple(ids), tuple(logprobs), finish, text, version, tuple(switches), experts)


class _Recorder(LogitsProcessor):
    """Applies temperature, top-k and top-p and keeps the log-prob of each token drawn: one step's logits at a time, never [B, T, V]."""

    def __init__(self, sampling: Sampling, alive: Callable[[], object]) -> None:
        self.temperature, self.alive = sampling.temperature or 1.0, alive
        self.cuts: list[Any] = [TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
        if sampling.top_p < 1:
            self.cuts.append(TopPLogitsWarper(sampling.top_p))
        self.logits_BV: Tensor | None = None  # of the step whose token is not known yet
        self.steps: list[Tensor] = []

    def __call__(self, ids_BL: Tensor, logits_BV: Tensor) -> Tensor:
        self.alive()
        self.drawn(ids_BL[:, -1])
        self.logits_BV = logits_BV.float() / self.temperature
        for cut in self.cuts:
            self.logits_BV = cut(ids_BL, self.logits_BV)
        return self.logits_BV

    def drawn(self, ids_B: Tensor) -> None:
        if self.logits_BV is not None:
            self.steps.append(self.logits_BV.log_softmax(-1).gather(1, ids_B[:, None])[:, 0])


class TransformersSampler(Alone):
    """Batched `generate` on a copy of the model; prompts of like length together, left-padded."""

    def __init__(
        self, path: str, tokenizer: Any, *, device: torch.device, trust_remote_code: bool = False, batch: int = 256
    ) -> None:
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.model = load_model(path, dtype=self.dtype, attention="sdpa", trust_remote_code=trust_remote_code).to(device).eval()
        self.tokenizer, self.batch, self.version, self.busy = tokenizer, batch, 0, False
        self.stops = stop_ids(self.model, tokenizer)
        self.routing: Routing | None = None
        # A model's own sampling defaults (repetition_penalty, top_k, ...) would bend the distribution behind the log-probs' back.
        self.model.generation_config = GenerationConfig()

    @torch.no_grad()
    def generate(self, prompts: Prompts, sampling: Sampling, done: Done | None = None) -> list[list[Completion]]:
        if not self.busy:  # a call that `between` serves must not set the outer one's draws back
            torch.manual_seed(sampling.seed)
        outer, self.busy = self.busy, True
        try:
            return self._rounds(prompts, sampling, done)
        finally:
            self.busy = outer

    def _rounds(self, prompts: Prompts, sampling: Sampling, done: Done | None) -> list[list[Completion]]:
        every, out, new = list(prompts), list[list[Completion]](), list(prompts)
        while new:
            # Neighbours in length share a batch, so that little of it is padding.
            flat = sorted((len(out) + i for i in range(len(new)) for _ in range(sampling.n)), key=lambda i: len(every[i]))
            out, new = out + [[] for _ in new], []
            for start in range(0, len(flat), self.batch):
                indices = flat[start : start + self.batch]
                for i, made in zip(indices, self._batch([every[i] for i in indices], sampling), strict=True):
                    out[i].append(made)
                    if done and len(out[i]) == sampling.n:
                        new += done(i, out[i]) or []
                self.between()
            every += new
        return out

    def _batch(self, prompts: list[Sequence[int]], sampling: Sampling) -> list[Completion]:
        device, width = self.model.device, max(map(len, prompts))
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.stops[0]
        ids_BL = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)
        mask_BL = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        greedy = sampling.temperature == 0
        recorder = _Recorder(replace(sampling, top_k=0, top_p=1.0) if greedy else sampling, self.alive)
        everything = {} if greedy else {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
        routing = self._routing(sampling)
        made_BL = self.model.generate(
            input_ids=ids_BL, attention_mask=mask_BL, do_sample=not greedy, max_new_tokens=sampling.max_tokens,
            eos_token_id=list(self.stops), pad_token_id=pad, logits_processor=[recorder], **everything,
        )  # fmt: skip
        experts_BLMK = routing.recorded(len(prompts)) if routing else None
        recorder.drawn(made_BL[:, -1])
        new_BT, logprobs_BT = made_BL[:, width:], torch.stack(recorder.steps, dim=1)
        rows = []
        for i, (ids, logprobs) in enumerate(zip(new_BT.tolist(), logprobs_BT.tolist(), strict=True)):
            # The first end-of-sequence token ends it; what follows is padding, whatever id that has.
            length = next((n for n, token in enumerate(ids, 1) if token in self.stops), len(ids))
            told = None if experts_BLMK is None else experts_BLMK[i, width - len(prompts[i]) : width + length - 1].copy()
            rows.append((ids[:length], logprobs[:length], told))
        texts = self.tokenizer.batch_decode([ids for ids, _, _ in rows], skip_special_tokens=True)
        return [
            completion(ids, lps, self.stops, text, self.version, experts=told)
            for (ids, lps, told), text in zip(rows, texts, strict=True)
        ]

    def _routing(self, sampling: Sampling) -> Routing | None:
        """The model's routers, recording; None for a dense model, or where nobody asks for experts."""
        if not sampling.experts:
            return None
        if self.routing is None:
            self.routing = Routing.of(self.model)
        if self.routing:
            self.routing.record()
        return self.routing

    @torch.no_grad()
    def load(self, weights: Weights, version: int) -> None:
        mine = carried(self.model)
        for name, weight in weights:
            mine.pop(name).copy_(weight)
        if mine:
            raise RuntimeError(f"weight update left {len(mine)} weights of the sampler as they were, e.g. {next(iter(mine))}")
        self.version = version

    def fingerprint(self) -> dict[str, int]:
        return fingerprint(carried(self.model).items())

    def close(self) -> None:
        del self.model
