"""cotf: exposure correction of a whole image by `pyops.models.CoTF`. Its peers are in `bench/peers/cotf.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .. import inputs as make
from ..case import Case, Contestant, Inputs, Tolerance, dtype_name, size_name
from ..limits import launches_of
from ..ops import modulation
from ..timing import captured

SMALL_FLOPS = (
    479_813_618  # of what runs on 256x256 samples, as torch counts them: backbones, context and query
)
WEIGHT_BYTES = 4 * 309_998


def state(seed: int = 0) -> dict[str, Tensor]:
    """Random weights of which every part changes the result: a new model samples evenly and has but one table."""
    from pyops.models import CoTF

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = CoTF().state_dict()
        found["sampler.intervals.weight"] = 0.1 * torch.randn(found["sampler.intervals.weight"].shape)
        for i, table in enumerate(found["luts.basis"][1:]):
            table += make.grading_lut(modulation.LUT_SIZE, seed=i + 1) - found["luts.basis"][0]
        found["luts.head.bias"] = torch.tensor([0.8, 0.4, -0.3])
    return found | {f"modulation.weights.{name}": value for name, value in modulation.weights(seed).items()}


@dataclass(frozen=True)
class CoTF(Case):
    shape: tuple[int, int] = (1080, 1624)
    dtype: torch.dtype = torch.float32
    seconds: float = 8.0

    @property
    def words(self) -> list[str]:
        return [size_name(self.shape), dtype_name(self.dtype)]

    def inputs(self, device: torch.device, seed: int = 0) -> Inputs:
        image = make.encoded(make.photo(1, *self.shape, seed), self.dtype)
        weights = {name: value.to(device) for name, value in state(seed).items()}
        return {"image": image.to(device), "state": weights, "models": {}}

    def model(
        self,
        ops: Any,
        x: Inputs,
        kind: Callable[..., Any] | None = None,
        finish: Callable[..., Any] | None = None,
    ) -> Callable[[Tensor], Tensor]:
        """With operators from `ops`; made once for all copies of an image, since a user compiles but once, too."""
        from pyops import models

        made, key = x["models"], (id(ops), kind, finish)
        if key not in made:
            model = (kind or models.CoTF)(ops=ops).to(x["image"].device)
            model.load_state_dict(x["state"])
            model.eval().requires_grad_(False)
            made[key] = finish(model) if finish else model
        return made[key]

    def ours(self, device: torch.device) -> dict[str, Callable[[Inputs], Contestant]]:
        import pyops

        def ready(x: Inputs) -> Callable[[], Tensor]:
            return partial(self.model(pyops, x), x["image"])

        ours = {"pyops": lambda x: Contestant(ready(x))}
        if self.latency and device.type == "cuda":
            # Captured on this image: a caller copies the next one into its place.
            ours["pyops, CUDA graph"] = lambda x: Contestant(captured(ready(x)))
        return ours

    def reference(self, inputs: Inputs) -> list[Tensor]:
        from pyops import reference

        image = inputs["image"]
        dtype = modulation.definition_dtype(self.pixels, image.device)

        def with_dtype(name: str) -> Callable[..., Tensor]:  # the model asks for float32 samples
            return lambda *tensors, **how: getattr(reference, name)(*tensors, **{**how, "dtype": dtype})

        wide = SimpleNamespace(
            separable_grid_sample=with_dtype("separable_grid_sample"),
            adaptive_grid_sample=with_dtype("adaptive_grid_sample"),
            fuse_luts=reference.fuse_luts,
            relation_aware_modulation=reference.relation_aware_modulation,
        )
        model = self.model(wide, {**inputs, "models": {}}, finish=lambda model: model.to(dtype))
        return [model(image.to(dtype) if image.is_floating_point() else image)]

    def tolerances(self) -> list[Tolerance]:
        return [modulation.image_tolerance(self.dtype)]

    @property
    def pixels(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def bytes(self) -> int:
        """The image twice and the result once, as the modulation needs it; four taps for each of the two sets of
        samples, and the weights. What lies between is small."""
        taps = 2 * 4 * 3 * 256 * 256
        return (3 * 3 * self.pixels + taps) * self.dtype.itemsize + WEIGHT_BYTES

    @property
    def flops(self) -> int:
        return SMALL_FLOPS + self.pixels * (2 * modulation.MULTIPLY_ADDS + modulation.OTHER_FLOPS)

    @property
    def launches(self) -> int:
        return _launches()


@cache
def _launches() -> int:
    import pyops

    case = CoTF(shape=(32, 32))
    x = case.inputs(torch.device("cpu"))
    with torch.inference_mode():
        return launches_of(partial(case.model(pyops, x), x["image"]))


CASES = (
    CoTF(headline=True),
    CoTF(shape=(1024, 1024), quick=True),
    CoTF(shape=(2160, 3840)),
    CoTF(dtype=torch.uint8),
    CoTF(shape=(1024, 1024), dtype=torch.float16, headline=True, devices=("cuda",), goal="0.5 ms"),
    CoTF(shape=(2160, 3840), dtype=torch.float16, headline=True, devices=("cuda",), goal="2.5 ms"),
    CoTF(latency=True, devices=("cuda",)),
)
