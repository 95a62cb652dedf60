"""Other libraries' way of applying a 3D LUT. kornia 0.9 has none."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..case import Contestant, Inputs, Peers
from ..inputs import LEVELS
from ..ops.lut3d import Lut3d

PEERS = Peers()
HALF = (torch.float16, torch.bfloat16)


def grid_sample_lut3d(
    image: Tensor, lut: Tensor, *, vertices: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The plain user's way, computed in `dtype`: pixels become a sampling grid over the LUT as a volume."""
    levels = LEVELS.get(image.dtype)
    value = image.to(dtype) / levels if levels else image.to(dtype)
    if vertices is not None:
        value = _lattice_coordinates(value, vertices)
    volume = (lut if lut.dim() == 5 else lut.expand(len(image), -1, -1, -1, -1)).to(dtype)
    grid = (value.permute(0, 2, 3, 1) * 2 - 1).unsqueeze(1)
    out = F.grid_sample(volume, grid, mode="bilinear", padding_mode="border", align_corners=True).squeeze(2)
    return ((out * levels).round().clamp(0, levels) if levels else out).to(image.dtype)


def _lattice_coordinates(value: Tensor, vertices: Tensor) -> Tensor:
    """Where each value lies on a lattice of uneven spacing, as a coordinate in [0, 1]."""
    batch, channels, *image = value.shape
    flat = value.clamp(0, 1).reshape(batch, channels, -1)
    v = vertices.expand(batch, channels, -1).contiguous()
    cell = (torch.searchsorted(v, flat.detach().contiguous(), right=True) - 1).clamp(0, v.shape[-1] - 2)
    low, high = v.gather(-1, cell), v.gather(-1, cell + 1)
    return ((cell + (flat - low) / (high - low)) / (v.shape[-1] - 1)).reshape(batch, channels, *image)


def _trilinear(case: Lut3d) -> bool:
    return case.interpolation == "trilinear"


@PEERS.peer("torch grid_sample", when=_trilinear, stock=True)
def stock(case: Lut3d, x: Inputs):
    return case.task(grid_sample_lut3d, x)


@PEERS.peer(
    "torch.compile grid_sample", when=lambda case: _trilinear(case) and not case.overhead, slow_start=True
)
def compiled(case: Lut3d, x: Inputs):
    return case.task(torch.compile(grid_sample_lut3d, dynamic=False), x)


@PEERS.peer("torch grid_sample, all in half", when=lambda case: _trilinear(case) and case.dtype in HALF)
def half(case: Lut3d, x: Inputs):
    return case.task(partial(grid_sample_lut3d, dtype=case.dtype), x)


def _packed(case: Lut3d) -> bool:
    return case.batch == 1 and not case.vertices and not case.backward and case.dtype != torch.bfloat16


@PEERS.peer("OpenColorIO", needs="PyOpenColorIO", devices=["cpu"], when=_packed)
def open_color_io(case: Lut3d, x: Inputs):
    return _open_color_io(case, x, threads=1)


@PEERS.peer(
    "OpenColorIO, rows in threads",
    needs="PyOpenColorIO",
    devices=["cpu"],
    when=lambda case: _packed(case) and not case.overhead and torch.get_num_threads() > 1,
)
def open_color_io_threads(case: Lut3d, x: Inputs):
    return _open_color_io(case, x, threads=torch.get_num_threads())


def _open_color_io(case: Lut3d, x: Inputs, threads: int) -> Contestant:
    """At its best layout, RGBA in place; packing the pixels is not timed."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np
    import PyOpenColorIO as ocio

    depth = {
        torch.float32: ocio.BIT_DEPTH_F32,
        torch.float16: ocio.BIT_DEPTH_F16,
        torch.uint8: ocio.BIT_DEPTH_UINT8,
        torch.uint16: ocio.BIT_DEPTH_UINT16,
    }[case.dtype]
    linear = case.interpolation == "trilinear"
    transform = ocio.Lut3DTransform(case.size)
    transform.setInterpolation(ocio.INTERP_LINEAR if linear else ocio.INTERP_TETRAHEDRAL)
    # OpenColorIO orders the table red, green, blue (fastest), then channel.
    transform.setData(x["lut"].float().permute(3, 2, 1, 0).contiguous().numpy().reshape(-1))
    processor = ocio.Config.CreateRaw().getProcessor(transform)
    cpu = processor.getOptimizedCPUProcessor(depth, depth, ocio.OPTIMIZATION_DEFAULT)

    rgb = x["image"][0].permute(1, 2, 0).contiguous().numpy()
    source = np.concatenate([rgb, np.ones_like(rgb[..., :1])], axis=2)
    work = source.copy()
    step = work.itemsize

    def descriptor(part):
        height, width, _ = part.shape
        return ocio.PackedImageDesc(part, width, height, 4, depth, step, 4 * step, 4 * step * width)

    parts = [descriptor(part) for part in np.array_split(work, threads)]
    pool = ThreadPoolExecutor(threads)
    return Contestant(
        (lambda: list(pool.map(cpu.apply, parts))) if threads > 1 else lambda: cpu.apply(parts[0]),
        view=lambda _: [torch.from_numpy(work[..., :3].copy()).permute(2, 0, 1)[None]],
        before=None if case.overhead else lambda: np.copyto(work, source),
    )


def _pillow(case: Lut3d) -> bool:
    return _packed(case) and _trilinear(case) and case.dtype == torch.uint8 and case.size <= 65


@PEERS.peer("Pillow Color3DLUT", needs="PIL", devices=["cpu"], when=_pillow)
def pillow(case: Lut3d, x: Inputs):
    import numpy as np
    from PIL import Image, ImageFilter

    image = Image.fromarray(x["image"][0].permute(1, 2, 0).contiguous().numpy())
    table = x["lut"].float().permute(1, 2, 3, 0).contiguous().numpy().reshape(-1)
    color_lut = ImageFilter.Color3DLUT(case.size, table)
    return Contestant(
        lambda: image.filter(color_lut),
        view=lambda out: [torch.from_numpy(np.array(out)).permute(2, 0, 1)[None]],
    )


def _cupy(case: Lut3d) -> bool:
    return _packed(case) and _trilinear(case) and case.dtype == torch.float32


@PEERS.peer("CuPy map_coordinates", needs="cupy", devices=["cuda"], when=_cupy)
def cupy_ndimage(case: Lut3d, x: Inputs):
    import cupy
    from cupyx.scipy.ndimage import map_coordinates

    blue_green_red = cupy.from_dlpack(x["image"][0].flip(0).contiguous())
    lut = cupy.from_dlpack(x["lut"])
    out = cupy.empty_like(blue_green_red)

    def call():
        with cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
            coordinates = blue_green_red * (case.size - 1)
            for channel in range(3):
                map_coordinates(lut[channel], coordinates, out[channel], order=1, mode="nearest")
        return out

    return Contestant(call, view=lambda out: [torch.from_dlpack(out).clone()[None]], graph=False)
