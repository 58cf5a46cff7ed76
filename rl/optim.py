"""AdamW over fp32 weights: fused, or with moments that take less of the GPU's memory.

learn.optimizer = "adamw"    torch's own, fused: 8 bytes of moments a parameter
learn.optimizer = "adamw8"   moments in 8 bits, 2.03 bytes a parameter; matrices only, vectors and small tensors stay in fp32
learn.offload = true         either's moments lie in the host's memory and visit the GPU during an update: 0 bytes of its memory, and
                             2 or 16 bytes a parameter over the bus at each update

8 bits: absolute maxima of blocks of 256 neighbours in a row (Dettmers et al., arXiv 2110.02861), but a code is a power of its value and
not an entry of a table:  m = max * sign(c) (|c| / 127)^3,  sqrt(v) = max * (c / 255)^3. Rounding is stochastic: with beta2 = 0.999 an
average moves by less than half a code a step, and rounding to the nearest would hold it still. The draw is a function of step and
parameter, so a resumed run repeats it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from rl import ranks
from rl.config import Learn

BLOCK = 256  # neighbours in a row that share a maximum
SMALLEST = 4096  # elements; below, 8 bits save nothing worth having
SLICE = 1 << 24  # elements whose moments are in fp32 at once
POWER = 3  # odd: it carries the sign
MOMENTS = ("exp_avg", "exp_avg_sq")


def make_optimizer(parameters: Iterable[Tensor], learn: Learn) -> torch.optim.Optimizer:
    """The optimiser that `learn` asks for, over the parameters that are trained."""
    trained = [p for p in parameters if p.requires_grad]
    options: dict[str, Any] = {"lr": learn.lr, "betas": learn.betas, "weight_decay": learn.weight_decay}
    if learn.optimizer == "adamw" and not learn.offload:
        return torch.optim.AdamW(trained, fused=True, **options)
    return SmallAdamW(trained, eight=learn.optimizer == "adamw8", offload=learn.offload, **options)


class SmallAdamW(torch.optim.Optimizer):
    """AdamW whose moments are in 8 bits (`eight`), in the host's memory (`offload`), or both."""

    def __init__(
        self, parameters: Iterable[Tensor], *, lr: float, betas: tuple[float, float], weight_decay: float, eight: bool, offload: bool,
        eps: float = 1e-8,
    ) -> None:  # fmt: skip
        self.eight, self.offload = eight, offload
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "eps": eps})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """torch's own makes everything of the weights' type; codes are bytes again here, which loses nothing."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            for name in MOMENTS:
                if f"{name}_max" in state:
                    state[name] = state[name].to(torch.uint8)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for index, p in enumerate(group["params"]):
                if p.grad is not None:
                    self._update(p, group, index)

    def _update(self, p: Tensor, group: dict[str, Any], index: int) -> None:
        state = self.state[p]
        if not state:
            state |= self._zeros(p)
        elif self.offload:  # a checkpoint puts them where the weights are
            state |= {name: self._kept(p, value) for name, value in state.items() if value.is_cuda}
        weight, gradient = ranks.local(p), ranks.local(p.grad).to(torch.float32)
        store = {name: ranks.local(value) for name, value in state.items() if name != "step"}
        draw = torch.Generator(weight.device).manual_seed(int(state["step"]) * 1_000_003 + index)
        rows = max(1, SLICE // max(1, weight[:1].numel())) if weight.ndim else 1
        for start in range(0, len(weight) if weight.ndim else 1, rows):
            part: Any = slice(start, start + rows) if weight.ndim else ...
            here = {name: value[part].to(weight.device, non_blocking=True) for name, value in store.items()}
            moments = _opened(here)
            adamw(
                [weight[part]], [gradient[part]], [moments["exp_avg"]], [moments["exp_avg_sq"]], [],
                [state["step"].to(weight.device, copy=True)], fused=True, amsgrad=False, beta1=group["betas"][0],
                beta2=group["betas"][1], lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
            )  # fmt: skip
            for name, value in _closed(moments, here, draw).items():
                store[name][part].copy_(value, non_blocking=True)
        if self.offload and weight.is_cuda:
            torch.cuda.current_stream().synchronize()  # before the host reads them, or the next parameter's copies pile up
        state["step"] += 1

    def _zeros(self, p: Tensor) -> dict[str, Tensor]:
        weight = ranks.local(p)
        made: dict[str, Tensor] = {"step": torch.zeros(())}
        for name in MOMENTS:
            if not (self.eight and p.ndim > 1 and p.numel() >= SMALLEST):
                made[name] = self._kept(p, torch.zeros_like(weight, dtype=torch.float32))
                continue
            made[name] = self._kept(p, torch.full_like(weight, 0 if name == "exp_avg_sq" else 127, dtype=torch.uint8))
            blocks = -(-weight.shape[-1] // BLOCK)
            made[f"{name}_max"] = self._kept(p, weight.new_zeros((*weight.shape[:-1], blocks), dtype=torch.float32))
        return made

    def _kept(self, p: Tensor, moment: Tensor) -> Tensor:
        if self.offload:
            moment = moment.cpu()
            return moment.pin_memory() if p.is_cuda else moment
        return ranks.like(p, moment)


def _opened(here: dict[str, Tensor]) -> dict[str, Tensor]:
    """Both moments in fp32."""
    made = {}
    for name in MOMENTS:
        made[name] = here[name]
        if here[name].dtype == torch.uint8:
            made[name] = unpack(here[name], here[f"{name}_max"], signed=name == "exp_avg")
            if name == "exp_avg_sq":
                made[name].square_()
    return made


def _closed(moments: dict[str, Tensor], here: dict[str, Tensor], draw: torch.Generator) -> dict[str, Tensor]:
    """As they are stored."""
    made = {}
    for name in MOMENTS:
        made[name] = moments[name]
        if here[name].dtype == torch.uint8:
            value = moments[name].sqrt_() if name == "exp_avg_sq" else moments[name]
            made[name], made[f"{name}_max"] = pack(value, signed=name == "exp_avg", draw=draw)
    return made


def pack(x: Tensor, signed: bool, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """[..., N] fp32 -> codes [..., N] in uint8 and the maxima of blocks [..., blocks]."""
    width, levels = x.shape[-1], 127 if signed else 255
    blocks = torch.nn.functional.pad(x, (0, -width % BLOCK)).unflatten(-1, (-1, BLOCK))
    top = blocks.abs().amax(-1)
    root = (blocks.abs() / top.clamp(min=1e-38)[..., None]).pow_(1 / POWER).mul_(levels)
    # Between two codes the nearer in value, not in its root, is drawn more often: the mean is x.
    low = root.floor()
    share = (root.pow(POWER) - low.pow(POWER)) / ((low + 1).pow(POWER) - low.pow(POWER))
    code = low + (torch.rand(share.shape, generator=draw, device=x.device) < share)
    # A second moment above 0 never becomes 0, nor lower against its maximum than the first moment's smallest code against its own:
    # else a first moment that was rounded up would be divided by next to nothing.
    code = code * blocks.sign() + levels if signed else code.clamp(min=2).mul_(blocks > 0)
    return code.flatten(-2)[..., :width].to(torch.uint8), top


def unpack(codes: Tensor, top: Tensor, signed: bool) -> Tensor:
    """The inverse: [..., N] in fp32."""
    x = codes.float()
    x = (x - 127) / 127 if signed else x / 255
    return x.pow_(POWER).mul_(top.repeat_interleave(BLOCK, -1)[..., : codes.shape[-1]])
