"""The Sampler protocol, and the sampler over transformers' batched generate: slow, everywhere, and the one to compare with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from rl.policy import load_model, stop_ids
from rl.records import Completion, Sampling

Weights = Iterable[tuple[str, Tensor]]


class Sampler(Protocol):
    """Token ids in, completions out, under weights whose version it knows. Everything that generates is behind this."""

    version: int  # optimiser updates behind the weights in use
    dtype: torch.dtype  # what weights must be cast to before `load`

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[list[Completion]]:
        """`sampling.n` completions a prompt, in the prompts' order; the same seed and weights give the same completions."""
        ...

    def load(self, weights: Weights, version: int) -> None:
        """Take new weights; nothing computed under the old ones (prefix cache) may survive."""
        ...

    def fingerprint(self) -> int:
        """`fingerprint()` over the weights really in use."""
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


def fingerprint(weights: Iterable[Tensor]) -> int:
    """The sum of all elements' bit patterns, modulo 2^64: exact, and the same however an engine fuses or orders its weights.

    Padding with zeros adds nothing. One changed element changes it; the sampler's and the learner's must be equal.
    """
    total = 0
    for weight in weights:
        bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()]
        total += int(weight.detach().contiguous().view(bits).sum(dtype=torch.int64))
    return total % (1 << 64)


def completion(ids: list[int], logprobs: list[float], stops: Sequence[int], text: str, version: int) -> Completion:
    """One completion; it stopped by itself exactly when its last token is an end-of-sequence token."""
    finish = "stop" if ids and ids[-1] in stops else "length"
    return Completion(tuple(ids), tuple(logprobs), finish, text, version)


class TransformersSampler:
    """Batched `generate` on a copy of the model; prompts of like length together, left-padded."""

    def __init__(
        self, path: str, tokenizer: Any, *, device: torch.device, trust_remote_code: bool = False, batch: int = 256
    ) -> None:
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.model = load_model(path, dtype=self.dtype, attention="sdpa", trust_remote_code=trust_remote_code).to(device).eval()
        self.tokenizer, self.batch, self.version = tokenizer, batch, 0
        self.stops = stop_ids(self.model, tokenizer)

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[list[Completion]]:
        torch.manual_seed(sampling.seed)
        out: list[list[Completion]] = [[] for _ in prompts]
        # Neighbours in length share a batch, so that little of it is padding.
        flat = sorted((i for i in range(len(prompts)) for _ in range(sampling.n)), key=lambda i: len(prompts[i]))
        for start in range(0, len(flat), self.batch):
            indices = flat[start : start + self.batch]
            for i, done in zip(indices, self._batch([prompts[i] for i in indices], sampling), strict=True):
                out[i].append(done)
        return out

    def _batch(self, prompts: list[Sequence[int]], sampling: Sampling) -> list[Completion]:
        device, width = self.model.device, max(map(len, prompts))
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.stops[0]
        ids_BL = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)
        mask_BL = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        greedy = sampling.temperature == 0
        warm = {} if greedy else {"temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
        made = self.model.generate(
            input_ids=ids_BL, attention_mask=mask_BL, do_sample=not greedy, max_new_tokens=sampling.max_tokens,
            eos_token_id=list(self.stops), pad_token_id=pad, return_dict_in_generate=True, output_logits=True, **warm,
        )  # fmt: skip
        new_BT = made.sequences[:, width:]
        logprobs_BT = torch.stack(
            [
                (logits_BV.float() / (sampling.temperature or 1.0)).log_softmax(-1).gather(1, ids_B[:, None])[:, 0]
                for logits_BV, ids_B in zip(made.logits, new_BT.T, strict=True)
            ],
            dim=1,
        )
        rows = []
        for ids, logprobs in zip(new_BT.tolist(), logprobs_BT.tolist(), strict=True):
            # The first end-of-sequence token ends it; what follows is padding, whatever id that has.
            length = next((n for n, token in enumerate(ids, 1) if token in self.stops), len(ids))
            rows.append((ids[:length], logprobs[:length]))
        texts = self.tokenizer.batch_decode([ids for ids, _ in rows], skip_special_tokens=True)
        return [completion(ids, lps, self.stops, text, self.version) for (ids, lps), text in zip(rows, texts, strict=True)]

    @torch.no_grad()
    def load(self, weights: Weights, version: int) -> None:
        mine = dict(self.model.named_parameters())
        for name, weight in weights:
            mine.pop(name).copy_(weight)
        if mine:
            raise RuntimeError(f"weight update left {len(mine)} weights of the sampler as they were, e.g. {next(iter(mine))}")
        self.version = version

    def fingerprint(self) -> int:
        return fingerprint(self.model.parameters())

    def close(self) -> None:
        del self.model
