"""lut3d: a 3D lookup table on every pixel. Its peers are in `bench/peers/lut3d.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import inputs as make
from ..case import Case, Contestant, Inputs, Tolerance, dtype_name, forward_backward, size_name
from ..inputs import LEVELS
from ..limits import Bound, Chip

STRIP_PIXELS = 1 << 19
SHARED_BYTES = 227 << 10  # of a block on Hopper


@dataclass(frozen=True)
class Lut3d(Case):
    shape: tuple[int, int] = (2160, 3840)
    size: int = 33
    interpolation: str = "trilinear"
    dtype: torch.dtype = torch.float32
    lut_dtype: torch.dtype = torch.float32
    channels_last: bool = False
    vertices: bool = False
    batch: int = 1
    lut_per_image: bool = False
    content: str = "photo"

    @property
    def words(self) -> list[str]:
        mixed = self.dtype.is_floating_point and self.dtype != self.lut_dtype
        dtype = dtype_name(self.dtype)
        return [
            *([f"{self.batch} x"] if self.batch > 1 else []),
            size_name(self.shape),
            f"N={self.size}",
            self.interpolation,
            f"{dtype} image, {dtype_name(self.lut_dtype)} LUT" if mixed else dtype,
            *(["channels_last"] if self.channels_last else []),
            *(["non-uniform vertices"] if self.vertices else []),
            *(["a LUT per image"] if self.lut_per_image else []),
            *(["random noise"] if self.content == "noise" else []),
        ]

    def inputs(self, device: torch.device, seed: int = 0) -> Inputs:
        pixels = {"photo": make.photo, "noise": make.noise}[self.content](self.batch, *self.shape, seed)
        tables = [make.grading_lut(self.size, seed=i) for i in range(self.batch if self.lut_per_image else 1)]
        lut = torch.stack(tables) if self.lut_per_image else tables[0]
        grad = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed + 1))
        return {
            "image": make.encoded(pixels, self.dtype, self.channels_last).to(device),
            "lut": lut.to(device, self.lut_dtype),
            "vertices": make.vertices(self.size).to(device) if self.vertices else None,
            "grad": grad.to(device, self.dtype) if self.backward else None,
        }

    def task(self, lut3d: Callable[..., Tensor], x: Inputs) -> Callable[[], Any]:
        """The case's work with `lut3d(image, lut, vertices=)`: the output, then any gradients."""
        image, lut, vertices = x["image"], x["lut"], x["vertices"]
        if not self.backward:
            return lambda: lut3d(image, lut, vertices=vertices)
        if vertices is None:
            return forward_backward(lut3d, (image, lut), x["grad"])
        return forward_backward(lambda i, t, v: lut3d(i, t, vertices=v), (image, lut, vertices), x["grad"])

    def ours(self, device: torch.device) -> dict[str, Callable[[Inputs], Contestant]]:
        import pyops

        op = partial(pyops.lut3d, interpolation=self.interpolation)
        ours = {"pyops": lambda x: Contestant(self.task(op, x))}
        return ours | ({"pyops (Triton)": self.triton} if device.type == "cuda" else {})

    def triton(self, x: Inputs) -> Contestant:
        """The Triton kernels by name: with the CUDA library installed, a plain call does not reach them."""
        from pyops.triton import lut3d as kernels

        image, lut, vertices = x["image"], x["lut"], x["vertices"]
        arguments = (image, lut, vertices, self.interpolation == "tetrahedral")
        if not self.backward:
            return Contestant(lambda: kernels.lut3d(*arguments))

        def both() -> list[Tensor]:
            out = kernels.lut3d(*arguments)
            grads = kernels.lut3d_backward(x["grad"], *arguments, True, True, self.vertices)
            return [out, *grads[: 2 + self.vertices]]

        return Contestant(both)

    def reference(self, inputs: Inputs) -> list[Tensor]:
        """In float64 and strip by strip: pixels are independent, and whole 4K gradients need gigabytes."""
        from pyops import reference

        op = partial(reference.lut3d, interpolation=self.interpolation)
        wide = {k: v.double() if v is not None and v.is_floating_point() else v for k, v in inputs.items()}
        rows = max(1, STRIP_PIXELS // (self.batch * self.shape[1]))
        strips = []
        for top in range(0, self.shape[0], rows):
            cut = {k: wide[k][:, :, top : top + rows] for k in ("image", "grad") if wide[k] is not None}
            result = self.task(op, wide | cut)()
            strips.append(result if self.backward else [result])
        by_row, whole = (2, len(strips[0])) if self.backward else (1, 1)
        joined = [torch.cat([s[i] for s in strips], dim=2) for i in range(by_row)]
        return joined + [torch.stack([s[i] for s in strips]).sum(0) for i in range(by_row, whole)]

    def tolerances(self) -> list[Tolerance]:
        levels = self.dtype in LEVELS
        limit = {torch.float32: 1e-5, torch.float16: 6e-4, torch.bfloat16: 4e-3}.get(self.dtype, 0.5)
        output = Tolerance(limit, flips=0.03, ceiling=1.0) if levels else Tolerance(limit)
        if not self.backward:
            return [output]
        slope = Tolerance(max(1e-4, limit), flips=1e-3, of_peak=True)
        sums = [Tolerance(1e-4, of_peak=True)] + [Tolerance(1e-3, of_peak=True)] * self.vertices
        return [output, slope, *sums]

    @property
    def pixels(self) -> int:
        return self.batch * self.shape[0] * self.shape[1]

    @property
    def bytes(self) -> int:
        """Forward: image, LUT, output. Backward: image, LUT and the output's gradient to two gradients."""
        image = 3 * self.pixels * self.dtype.itemsize
        lut = 3 * self.size**3 * self.lut_dtype.itemsize * (self.batch if self.lut_per_image else 1)
        return 5 * image + 3 * lut if self.backward else 2 * image + lut

    @property
    def flops(self) -> int:
        """A pixel: 3 cell searches of 4, then 7 lerps or 4 weighted corners; backward twice that."""
        blend = 7 * 3 * 3 if self.interpolation == "trilinear" else 3 + 4 * 3 * 2
        return self.pixels * (12 + blend) * (3 if self.backward else 1)

    def bound(self, chip: Chip) -> Bound:
        """Lattice points come from shared memory (half: 6 bytes in 2 words), or from the first-level cache, 4 words
        each. The table's gradient is summed slab by slab in shared memory, and each slab looks at all pixels."""
        plane, corners = self.size**2, 8 if self.interpolation == "trilinear" else 4
        half = self.lut_dtype.itemsize == 2 and 6 * plane * self.size <= SHARED_BYTES
        if half and not self.backward:
            staged = 6 * plane * self.size / (chip.l2 / chip.multiprocessors)
            return Bound(
                staged + self.bytes / chip.copied, "the table on its way to shared memory, then bytes"
            )
        lookups = self.pixels * corners * 4 / chip.words
        if not self.backward:
            return Bound(lookups, "lattice points from the first-level cache")
        slabs = 3 * -(-self.size // max(1, min(self.size, SHARED_BYTES // (8 * plane))))
        again = slabs * 4 * self.pixels * self.dtype.itemsize
        sums = self.pixels * corners * 3 * 2 / chip.words  # two words each
        return Bound((self.bytes + again) / chip.copied + sums, f"the table's gradient in {slabs} slabs")


FHD = (1080, 1920)
CASES = (
    Lut3d(headline=True, goal="110 us"),
    Lut3d(interpolation="tetrahedral", headline=True),
    Lut3d(dtype=torch.uint8, headline=True, goal="30 us"),
    Lut3d(backward=True, headline=True, goal="4x forward"),
    Lut3d(
        interpolation="tetrahedral",
        dtype=torch.float16,
        lut_dtype=torch.float16,
        headline=True,
        goal="80 % of a copy",
    ),
    Lut3d(dtype=torch.bfloat16),
    Lut3d(interpolation="tetrahedral", dtype=torch.uint16),
    Lut3d(channels_last=True),
    Lut3d(vertices=True),
    Lut3d(size=17),
    Lut3d(size=65),
    Lut3d(content="noise"),
    Lut3d(shape=FHD, quick=True),
    Lut3d(shape=FHD, interpolation="tetrahedral", quick=True),
    Lut3d(shape=FHD, dtype=torch.uint8, quick=True),
    Lut3d(shape=FHD, interpolation="tetrahedral", backward=True),
    Lut3d(shape=(480, 720), batch=8, lut_per_image=True),
    Lut3d(shape=(480, 720), batch=8, lut_per_image=True, vertices=True, backward=True),
    Lut3d(shape=(1, 1), overhead=True, quick=True),
)
