"""Token ids and log-probs taken inside vLLM, where its scheduler receives a step's result, as numbers of the whole batch.

vLLM's own way makes Python objects for every token of every request (48,000 tokens/s where the engine alone does 67,000: one H200, 0.5B,
512 sequences). Here a step's log-probs are one array, each request's ids and log-probs two flat lists, and the engine's output processing
sees a request only when it has finished. What is relied on in vLLM 0.26 to 0.31: `scheduler.update_from_output(scheduler_output,
model_output)`, `model_output.logprobs.logprobs[:, 0]` (the sampled token's), `.req_id_to_index`, `.cu_num_generated_tokens`.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from rl.engine_experts import Listener

LOOK_EVERY = 32  # tokens between two looks for a loop
LOOP_ROUNDS = 4  # a loop is a tail that goes round at least so often


@dataclass(eq=False)
class Request:
    """One sample in the engine."""

    prompt: Sequence[int]
    params: Any
    version: int  # of the weights behind its first token
    name: str = ""  # the engine's
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    switches: list[tuple[int, int]] = field(default_factory=list)  # (token index, version from there on)
    looped: bool = False
    adapted: bool = False  # it was enqueued with the adapter
    routed: list[tuple[int, Any]] | None = None  # (first position, experts from there on), as they come; None: nobody asked

    def switch(self, version: int) -> None:
        """New weights from the next token on."""
        if not self.ids:
            self.version = version
            return
        if self.switches and self.switches[-1][0] == len(self.ids):
            self.switches.pop()  # no token was sampled under those
        self.switches.append((len(self.ids), version))


class Tap:
    """The requests of one `vllm.LLM`, and its steps. `stop_loops`: see rollout.stop_loops."""

    def __init__(self, llm: Any, stop_loops: int = 0) -> None:
        self.llm, self.stop_loops = llm, stop_loops
        self.requests: dict[str, Request] = {}  # under way, by the engine's name
        self._finished: list[Request] = []
        self._loops: list[Request] = []
        self.adapter: Any = None  # a LoRARequest that goes with every sample
        self.listener: Listener | None = None  # to the routers of a mixture of experts; or the engine tells itself:
        self.layers: list[int] = []  # those with experts
        self.scheduler = scheduler = llm.llm_engine.engine_core.engine_core.scheduler
        inner = scheduler.update_from_output

        def update_from_output(scheduler_output: Any, model_output: Any) -> Any:
            self._hear(scheduler_output, model_output)
            if not self.requests:  # somebody uses the engine by itself
                return inner(scheduler_output, model_output)
            logprobs, model_output.logprobs = model_output.logprobs, None
            results = inner(scheduler_output, model_output)
            for result in results.values():
                result.outputs = self._take(result.outputs, model_output, logprobs)
            return results

        scheduler.update_from_output = update_from_output

    def add(self, prompts: Iterable[Sequence[int]], params: Any, version: int, experts: bool = False) -> list[Request]:
        """Enqueue a request for each prompt; `experts`: keep what its tokens were routed to."""
        new = [Request(prompt, params, version, routed=[] if experts else None) for prompt in prompts]
        self._enqueue(new)
        return new

    def _enqueue(self, requests: Sequence[Request]) -> None:
        if not requests:
            return
        inputs = [{"prompt_token_ids": list(r.prompt)} for r in requests]
        names = self.llm.enqueue(inputs, requests[0].params, lora_request=self.adapter, use_tqdm=False)
        for request, name in zip(requests, names, strict=True):
            request.name = name.partition("-")[0]  # what follows "-" is the engine's own
            request.adapted = self.adapter is not None
            self.requests[request.name] = request
        newest = islice(reversed(self.scheduler.requests.items()), len(requests))
        held = {name.partition("-")[0]: r.prompt_token_ids for name, r in newest}
        if any(list(held.get(r.name) or ()) != list(r.prompt) for r in requests):
            self.abort(requests)
            raise RuntimeError("vLLM generates from other prompt ids than it was given (a BOS added, a template applied?)")

    def step(self) -> None:
        """One step of the engine; loops that it found are ended."""
        llm_engine = self.llm.llm_engine
        if not llm_engine.has_unfinished_requests():
            raise RuntimeError(f"vLLM gave no answer to {len(self.requests)} requests")
        llm_engine.step()
        if self._loops:
            loops, self._loops = self._loops, []
            self.abort(loops)
            for request in loops:
                request.looped = True
            self._finished += loops

    def finished(self, wanted: Container[int]) -> list[Request]:
        """Those of the finished requests whose `id()` is wanted; the others stay for who waits for them."""
        if not self._finished:
            return []
        mine = [r for r in self._finished if id(r) in wanted]
        self._finished = [r for r in self._finished if id(r) not in wanted]
        return mine

    def abort(self, requests: Sequence[Request]) -> None:
        """Nothing of these requests is left, in the engine or among the finished."""
        flying = [r for r in requests if self.requests.pop(r.name, None)]
        if flying:
            self.llm.llm_engine.abort_request([r.name for r in flying])
        gone = {id(r) for r in requests}
        self._finished = [r for r in self._finished if id(r) not in gone]
        self._loops = [r for r in self._loops if id(r) not in gone]

    def restart(self, flying: Sequence[Request], version: int) -> None:
        """These requests, which are under way, begin again, as the first token's version says."""
        self.abort(flying)
        for r in flying:
            r.ids, r.logprobs, r.switches, r.version = [], [], [], version
            r.routed = None if r.routed is None else []
        by_params: dict[int, list[Request]] = {}
        for r in flying:
            by_params.setdefault(id(r.params), []).append(r)
        for group in by_params.values():
            self._enqueue(group)

    def _hear(self, scheduler_output: Any, model_output: Any) -> None:
        """What the listener has of a step goes to its requests, before the scheduler forgets the finished ones."""
        if self.listener is None:
            return
        told = self.listener.take(scheduler_output.num_scheduled_tokens, model_output.req_id_to_index)
        for name, rows in told.items():
            request, held = self.requests.get(name.partition("-")[0]), self.scheduler.requests.get(name)
            if request is not None and request.routed is not None and held is not None:
                request.routed.append((held.num_computed_tokens - len(rows), rows))

    def _take(self, outputs: Sequence[Any], model_output: Any, logprobs: Any) -> list[Any]:
        """Each request's new ids and log-probs; returns the outputs of the finished ones."""
        if not outputs:
            return []
        flat = logprobs.logprobs[:, 0].tolist() if logprobs is not None else []
        starts = logprobs.cu_num_generated_tokens if logprobs is not None else None
        rows, finished = model_output.req_id_to_index, []
        for output in outputs:
            name = output.request_id.partition("-")[0]
            request = self.requests.get(name)
            if request is None:  # aborted, or not ours
                finished.append(output)
                continue
            new, before = output.new_token_ids, len(request.ids)
            if new:
                row = rows[output.request_id]
                at = starts[row] if starts else row
                request.ids += new
                request.logprobs += flat[at : at + len(new)]
            if request.routed is not None and getattr(output, "routed_experts", None) is not None:
                request.routed.append((sum(len(rows) for _, rows in request.routed), output.routed_experts[:, self.layers]))
            if output.finish_reason is not None:
                finished.append(output)
                self._finished.append(self.requests.pop(name))
                if str(output.finish_reason) not in ("stop", "length"):
                    raise RuntimeError(f"vLLM ended a sample with {output.finish_reason}")
            elif self._look(before, len(request.ids)) and goes_round(request.ids, self.stop_loops):
                self._loops.append(request)
        return finished

    def _look(self, before: int, now: int) -> bool:
        """Whether it is time to look for a loop; a step may bring several tokens."""
        return self.stop_loops > 0 and now // LOOK_EVERY > before // LOOK_EVERY


def goes_round(ids: Sequence[int], window: int) -> bool:
    """Whether the last `window` ids repeat one cycle of at most window / LOOP_ROUNDS ids.

    >>> goes_round([9, 1, 2, 1, 2, 1, 2, 1, 2], 8), goes_round([1, 2, 3, 4, 5, 6, 7, 8], 8)
    (True, False)
    """
    if len(ids) < window:
        return False
    tail = ids[-window:]
    # The shortest period of a text is its length less that of its longest proper border (Knuth, Morris, Pratt).
    border = [0] * window
    k = 0
    for i in range(1, window):
        while k and tail[i] != tail[k]:
            k = border[k - 1]
        k += tail[i] == tail[k]
        border[i] = k
    return window - border[-1] <= window // LOOP_ROUNDS
