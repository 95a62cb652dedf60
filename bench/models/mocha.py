"""mocha: disparity of a rectified pair by `pyops.models.MoChaStereo`. Its peers are in `bench/peers/mocha.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .. import inputs as make
from ..case import Case, Contestant, Inputs, Tolerance, size_name
from ..limits import launches_of

SHIFT = 24  # pixels between the views
WEIGHTS = 1_923_595


@cache
def state(seed: int = 0) -> dict[str, Tensor]:
    """Random weights; the first cost volume is made to prefer some disparities, as that of a trained model does."""
    from pyops.models import MoChaStereo

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = MoChaStereo().state_dict()
    return found | {"classifier.weight": 20 * found["classifier.weight"]}


@dataclass(frozen=True)
class Mocha(Case):
    shape: tuple[int, int] = (256, 512)
    iters: int = 8
    max_disparity: int = 192
    seconds: float = 16.0

    @property
    def words(self) -> list[str]:
        return [size_name(self.shape), f"{self.iters} updates", f"{self.max_disparity} disparities"]

    def inputs(self, device: torch.device, seed: int = 0) -> Inputs:
        height, width = self.shape
        scene = 255 * make.photo(1, height, width + SHIFT, seed)
        weights = {name: value.to(device) for name, value in state(seed).items()}
        left, right = scene[..., :width].to(device), scene[..., SHIFT:].to(device)
        return {"left": left.contiguous(), "right": right.contiguous(), "state": weights, "models": {}}

    def model(self, ops: Any, x: Inputs, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
        """With operators from `ops`; made once for all copies of a pair."""
        from pyops import models

        made, key = x["models"], (id(ops), dtype)
        if key not in made:
            model = models.MoChaStereo(max_disparity=self.max_disparity, ops=ops).to(x["left"].device)
            model.load_state_dict(x["state"])
            made[key] = model.eval().requires_grad_(False).to(dtype)
        return made[key]

    def task(self, ops: Any, x: Inputs, **how: Any) -> Callable[[], Tensor]:
        return partial(self.model(ops, x), x["left"], x["right"], iters=self.iters, **how)

    def ours(self, device: torch.device) -> dict[str, Callable[[Inputs], Contestant]]:
        import pyops

        ours = {"pyops": lambda x: Contestant(self.task(pyops, x))}
        if self.latency and device.type == "cuda":
            # Features and volume as ever, one update captured and replayed.
            ours["pyops, CUDA graph"] = lambda x: Contestant(
                self.task(pyops, x, cuda_graph=True), graph=False
            )
        return ours

    def reference(self, inputs: Inputs) -> list[Tensor]:
        from pyops import reference

        model = self.model(reference, {**inputs, "models": {}}, torch.float64)
        return [model(inputs["left"].double(), inputs["right"].double(), iters=self.iters)]

    def tolerances(self) -> list[Tolerance]:
        """Pixels. Every update starts where rounding has left the one before."""
        return [Tolerance(5e-3, flips=1e-3, ceiling=0.1)]

    @property
    def bytes(self) -> int:
        """Both views and the weights once, and the result; what lies between would fit into no cache, but need not."""
        return 4 * (7 * self.shape[0] * self.shape[1] + WEIGHTS)

    @property
    def flops(self) -> int:
        """Of convolutions and correlations, as torch counts them; motif attention as its operators have it."""
        return _flops(self.shape, self.iters, self.max_disparity)

    @property
    def launches(self) -> int:
        first, second = (_launches(iters) for iters in (1, 2))
        return first + (self.iters - 1) * (second - first)


@dataclass(frozen=True)
class Update(Mocha):
    """One update of a pair whose features and volume are there; how much of it the operators take, see the peers."""

    shape: tuple[int, int] = (544, 960)  # multiples of 32: 960x540 is padded to it
    iters: int = 1
    seconds: float = 6.0

    @property
    def words(self) -> list[str]:
        return ["one update", size_name(self.shape), f"{self.max_disparity} disparities"]

    def pair(self, ops: Any, x: Inputs, dtype: torch.dtype = torch.float32) -> Any:
        from pyops.models.mocha_pair import Pair

        with torch.inference_mode():
            return Pair(self.model(ops, x, dtype), x["left"].to(dtype), x["right"].to(dtype))

    def task(self, ops: Any, x: Inputs, **how: Any) -> Callable[[], Any]:
        pair = self.pair(ops, x)

        def update() -> list[Tensor]:
            disparity, hidden = pair._step(pair.first, pair.hidden)
            return [disparity, *hidden]

        return update

    def reference(self, inputs: Inputs) -> list[Tensor]:
        from pyops import reference

        pair = self.pair(reference, {**inputs, "models": {}}, torch.float64)
        disparity, hidden = pair._step(pair.first, pair.hidden)
        return [disparity, *hidden]

    def tolerances(self) -> list[Tolerance]:
        """A volume from rounded features moves the first disparity, and a lookup follows it."""
        return [Tolerance(5e-3, flips=1e-3, ceiling=0.1), *[Tolerance(1e-2, flips=1e-3, ceiling=0.1)] * 3]

    @property
    def bytes(self) -> int:
        """Of a pixel at a quarter, with a third more for the coarser states: hidden states read and written, their
        context read; windows of correlations and eight channels of costs at two levels; disparities."""
        from pyops.models.mocha_stereo import SMALL

        states, taps = SMALL.hidden * 5 * 4 // 3, 2 * 9 * 10
        return 4 * (self.shape[0] * self.shape[1] // 16) * (states + taps + 2)

    @property
    def flops(self) -> int:
        one, two = (_flops(self.shape, iters, self.max_disparity) for iters in (1, 2))
        return two - one

    @property
    def launches(self) -> int:
        return _launches(2) - _launches(1)


@cache
def _launches(iters: int) -> int:
    import pyops

    case = Mocha(shape=(64, 64), iters=iters, max_disparity=64)
    x = case.inputs(torch.device("cpu"))
    with torch.inference_mode():
        return launches_of(case.task(pyops, x))


@cache
def _flops(shape: tuple[int, int], iters: int, max_disparity: int) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    from pyops import models, reference

    operators = 0

    def correlation(left: Tensor, right: Tensor, disparities: int, groups: int) -> Tensor:
        nonlocal operators
        operators += 2 * left.numel() * disparities
        return left.new_empty(len(left), groups, disparities, *left.shape[2:])

    def products(motif: Tensor, features: Tensor, kernel: Tensor) -> Tensor:
        nonlocal operators
        operators += 2 * 27 * (motif.numel() + features.numel())
        return features

    names = {name: getattr(reference, name) for name in reference.__all__}
    own = {"groupwise_correlation": correlation, "camp_conv": products, "constant_highpass": lambda z: z}
    model = models.MoChaStereo(max_disparity=max_disparity, ops=SimpleNamespace(**{**names, **own})).to(
        "meta"
    )
    views = torch.empty(2, 1, 3, *shape, device="meta")
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(*views, iters=iters)
    return counter.get_total_flops() + operators


CASES = (
    Mocha(headline=True, quick=True),
    Mocha(shape=(384, 1248), iters=16, latency=True, devices=("cuda",)),
    Mocha(shape=(540, 960), iters=16, latency=True, headline=True, devices=("cuda",)),  # published: 0.34 s
    Update(headline=True, devices=("cuda",), goal="operators under 15 %"),
)
