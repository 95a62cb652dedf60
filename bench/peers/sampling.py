"""Other ways to sample an image on the product of two axes.

`F.interpolate` is not among them: its modes that average know evenly spaced samples only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..case import Contestant, Inputs, Peers
from ..inputs import LEVELS
from ..ops.sampling import Sampling

PEERS = Peers()


def grid_sample(
    image: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    align_corners: bool = False,
    padding_mode: str = "zeros",
    antialias: bool = False,
    dtype: torch.dtype | None = None,
    arithmetic: torch.dtype = torch.float32,
) -> Tensor:
    """The plain user's way: the axes become a grid of all their pairs. It wants one floating dtype for all."""
    grid = torch.stack([*_pairs(x, y)], -1).to(arithmetic)
    out = F.grid_sample(decoded(image, arithmetic), grid, "bilinear", padding_mode, align_corners)
    return out.to(dtype or image.dtype)


def _pairs(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x[:, None, :].expand(-1, y.shape[1], -1), y[:, :, None].expand(-1, -1, x.shape[1])


def decoded(image: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    levels = LEVELS.get(image.dtype)
    return image.to(dtype) / levels if levels else image.to(dtype)


def vertices(logits: Tensor) -> Tensor:
    """As in the code of the paper: softmax, cumulative sum with a leading 0."""
    first = logits.new_zeros(len(logits), 1)
    return torch.cat([first, logits.softmax(1).cumsum(1)], 1) * 2 - 1


def adaptive_grid_sample(image: Tensor, x: Tensor, y: Tensor, **how: Any) -> Tensor:
    return grid_sample(image, vertices(x), vertices(y), **how)


def _task(case: Sampling, sample: Callable[..., Tensor], x: Inputs) -> Callable[[], Any]:
    def adaptive(image: Tensor, x: Tensor, y: Tensor, **how: Any) -> Tensor:
        return sample(image, vertices(x), vertices(y), **how)

    return case.task(adaptive if case.adaptive else sample, x)


def _points(case: Sampling) -> bool:
    return not case.antialias


@PEERS.peer("torch grid_sample", when=_points, stock=True)
def stock(case: Sampling, x: Inputs):
    return case.task(adaptive_grid_sample if case.adaptive else grid_sample, x)


@cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Once, or every copy of the inputs would compile anew."""
    return torch.compile(function, dynamic=False)


@PEERS.peer(
    "torch.compile grid_sample",
    when=lambda case: _points(case) and not case.overhead,
    slow_start=True,
    cpu_headlines_only=True,
)
def compiled(case: Sampling, x: Inputs):
    return case.task(_compiled(adaptive_grid_sample if case.adaptive else grid_sample), x)


@PEERS.peer(
    "torch grid_sample, all in half",
    devices=["cuda"],
    when=lambda case: _points(case) and case.dtype == torch.float16,
)
def half(case: Sampling, x: Inputs):
    """Not on a CPU: there torch 2.13 counts the pixels of a half image in 16 bits, and reads outside of it."""
    return _task(case, partial(grid_sample, arithmetic=case.dtype), x)


def four_taps(
    image: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    align_corners: bool = False,
    padding_mode: str = "zeros",
    antialias: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The careful user's way: four times the pixels by index, so that an image of any dtype is taken as it is."""
    batch = torch.arange(len(image), device=image.device)[:, None, None]
    border = padding_mode == "border"
    columns = _axis_taps(x, image.shape[3], align_corners, border)
    rows = _axis_taps(y, image.shape[2], align_corners, border)
    parts = [
        image[batch, :, row[:, :, None], column[:, None, :]] * (wy[:, :, None] * wx[:, None, :])[..., None]
        for row, wy in rows
        for column, wx in columns
    ]
    out = (parts[0] + parts[1] + parts[2] + parts[3]).movedim(3, 1)
    return (out / LEVELS.get(image.dtype, 1)).to(dtype or image.dtype)


def _axis_taps(x: Tensor, size: int, align_corners: bool, border: bool) -> list[tuple[Tensor, Tensor]]:
    position = (x + 1) / 2 * (size - 1) if align_corners else ((x + 1) * size - 1) / 2
    if border:
        position = position.clamp(0, size - 1)
    low = position.floor()
    taps = []
    for pixel, weight in ((low, low + 1 - position), (low + 1, position - low)):
        inside = (pixel >= 0) & (pixel < size)
        taps.append((pixel.clamp(0, size - 1).long(), weight * inside))
    return taps


@PEERS.peer("torch indexing", when=lambda case: _points(case) and not case.overhead)
def indexing(case: Sampling, x: Inputs):
    return _task(case, four_taps, x)


@PEERS.peer("kornia remap", needs="kornia", when=lambda case: _points(case) and case.dtype == torch.float32)
def kornia_remap(case: Sampling, x: Inputs):
    from kornia.geometry.transform import remap

    def sample(image, x, y, *, align_corners, padding_mode, antialias, dtype):
        return remap(
            image, *_pairs(x, y), "bilinear", padding_mode, align_corners, normalized_coordinates=True
        )

    return _task(case, sample, x)


# ---- ndimage: a grid of positions in pixels, an image and a channel at a time ----------------------------------------


def _ndimage(case: Sampling) -> bool:
    plain = case.dtype == torch.float32 or case.as_float
    return _points(case) and plain and not (case.backward or case.adaptive or case.channels_last)


def _map_coordinates(
    case: Sampling, x: Inputs, array: Callable, numpy: Any, function: Callable
) -> Callable[[], Any]:
    image, columns, rows = (array(x[name]) for name in ("image", "x", "y"))
    mode = "nearest" if case.padding_mode == "border" else "grid-constant"
    out = numpy.empty((case.batch, 3, *case.size), numpy.float32)

    def position(axis, size):
        return (axis + 1) / 2 * (size - 1) if case.align_corners else ((axis + 1) * size - 1) / 2

    def call():
        for b in range(case.batch):
            axes = position(rows[b], case.shape[0]), position(columns[b], case.shape[1])
            grid = numpy.stack(numpy.meshgrid(*axes, indexing="ij"))
            for c in range(3):
                function(image[b, c], grid, out[b, c], order=1, mode=mode, prefilter=False)
        return numpy.divide(out, LEVELS[case.dtype]) if case.dtype in LEVELS else out

    return call


@PEERS.peer("SciPy map_coordinates", needs="scipy", devices=["cpu"], when=_ndimage)
def scipy_ndimage(case: Sampling, x: Inputs):
    import numpy
    from scipy.ndimage import map_coordinates

    call = _map_coordinates(case, x, lambda t: t.numpy(), numpy, map_coordinates)
    return Contestant(call, view=lambda out: [torch.from_numpy(out.copy())])


@PEERS.peer("CuPy map_coordinates", needs="cupy", devices=["cuda"], when=_ndimage)
def cupy_ndimage(case: Sampling, x: Inputs):
    import cupy
    from cupyx.scipy.ndimage import map_coordinates

    work = _map_coordinates(case, x, cupy.from_dlpack, cupy, map_coordinates)

    def call():
        with cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
            return work()

    return Contestant(call, view=lambda out: [torch.from_dlpack(out).clone()], graph=False)


# ---- antialias: what each sample takes of every pixel, as a matrix for each axis -------------------------------------


def matrices(image: Tensor, x: Tensor, y: Tensor, align_corners: bool, padding_mode: str) -> Iterator[Tensor]:
    """Rows, then columns: [B, 1, samples, pixels], by the formula of the definition."""
    from pyops.reference import sampling as reference

    for axis, size in ((y, image.shape[2]), (x, image.shape[3])):
        position = reference._pixel_positions(axis, size, align_corners)
        yield reference._cell_weights(position, size, padding_mode == "border")[0][:, None]


def dense(
    image: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    align_corners: bool = False,
    padding_mode: str = "zeros",
    antialias: bool = True,
    dtype: torch.dtype | None = None,
) -> Tensor:
    rows, columns = matrices(image, x, y, align_corners, padding_mode)
    return (rows @ decoded(image) @ columns.mT).to(dtype or image.dtype)


def adaptive_dense(image: Tensor, x: Tensor, y: Tensor, **how: Any) -> Tensor:
    return dense(image, vertices(x), vertices(y), **how)


def _cells(case: Sampling) -> bool:
    return case.antialias


@PEERS.peer("torch dense matrices", when=_cells, stock=True)
def dense_matrices(case: Sampling, x: Inputs):
    return case.task(adaptive_dense if case.adaptive else dense, x)


@PEERS.peer("torch.compile dense matrices", when=_cells, slow_start=True, cpu_headlines_only=True)
def dense_compiled(case: Sampling, x: Inputs):
    return case.task(_compiled(adaptive_dense if case.adaptive else dense), x)


@PEERS.peer(
    "torch dense matrices, made beforehand",
    when=lambda case: _cells(case) and not (case.backward or case.adaptive),
)
def dense_beforehand(case: Sampling, x: Inputs):
    made: list[Tensor] = []

    def keep(image, x, y, *, align_corners, padding_mode, **_):
        made.extend(matrices(image, x, y, align_corners, padding_mode))
        return image

    _task(case, keep, x)()
    rows, columns = made
    return lambda: (rows @ decoded(x["image"]) @ columns.mT).to(case.result_dtype)
