"""Grade a photograph at 4K over a run of frames, beside stock PyTorch, and write pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import pyops
from pyops.io import read_cube, write_cube

from ._show import measure_one, progress_bar, write_sheet

LOOKS = ("as it is", "teal and orange", "silver", "evening")
STOCK_EVERY = 4  # stock PyTorch takes about a second a frame on a CPU: a quarter of the frames will do


def run(photo: Any, size: tuple[int, int], count: int, device: str, out: Path) -> list[str]:
    """Grades ``count`` frames of the photograph, a Pillow image; returns the names of tasks with a wrong result."""
    from PIL import Image, ImageOps

    cube = out / "teal_and_orange.cube"
    write_cube(cube, teal_and_orange(), title="Teal and orange")
    width, height = size
    wide = ImageOps.fit(photo, (width + width // 16, height), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(wide)).to(device).permute(2, 0, 1)[None].contiguous()
    frames = Frames(pixels / 255, width, count)
    film = read_cube(cube).table.to(device)
    basis, weights = basis_luts(film), mixing_weights(frames.count).to(device)
    tasks = [
        Task(".cube trilinear", lambda _: film),
        Task(".cube tetrahedral", lambda _: film, "tetrahedral"),
        Task(".cube uint8", lambda _: film, integer=True),
        Task("mix of 4 LUTs", lambda frame: pyops.fuse_luts(weights[frame : frame + 1], basis)[0]),
    ]
    with torch.inference_mode():
        _measure(tasks, frames)
        _print_table(tasks, frames)
        _write_pictures(tasks, frames, out)
    return [task.name for task in tasks if not task.is_right()]


def teal_and_orange(size: int = 33) -> Tensor:
    """The look of many feature films, `[3, size, size, size]`: cool shadows, warm lights."""
    x = pyops.identity_lut(size)
    x = x + 0.5 * (x * x * (3 - 2 * x) - x)  # a soft S: the toe and the shoulder of film
    luma = _luma(x)
    teal, orange = (x.new_tensor(tint).view(3, 1, 1, 1) for tint in ([-1.2, 0.15, 0.8], [0.7, 0.1, -0.9]))
    x = x + teal * luma * (1 - luma) ** 3 + orange * luma**2 * (1 - luma)
    return (luma + 1.1 * (x - luma)).clamp(0, 1)


def basis_luts(film: Tensor) -> Tensor:
    """The four `LOOKS`, `[4, 3, N, N, N]`, to be mixed by weights."""
    plain = pyops.identity_lut(film.shape[-1], device=film.device)
    luma = _luma(plain)
    silver = luma * luma * (3 - 2 * luma) + 0.1 * (plain - luma)
    evening = 0.06 + 0.9 * plain ** plain.new_tensor([0.75, 1.1, 1.5]).view(3, 1, 1, 1)
    return torch.stack([plain, film, silver, evening]).clamp(0, 1)


def mixing_weights(frame_count: int) -> Tensor:
    """`[frames, 4]`: from each look to the next over the run; every row sums to 1."""
    return F.relu(1 - (torch.linspace(0, 3, frame_count)[:, None] - torch.arange(4)).abs())


def _luma(rgb: Tensor) -> Tensor:
    return (rgb * rgb.new_tensor([0.2126, 0.7152, 0.0722]).view(3, 1, 1, 1)).sum(0, keepdim=True)


@dataclass
class Task:
    """A row of the table: what to do, and what doing it with pyops and with stock PyTorch showed."""

    name: str
    lut: Callable[[int], Tensor]  # frame number -> [3, N, N, N]
    interpolation: str = "trilinear"
    integer: bool = False
    seconds: list[float] = field(default_factory=list)
    stock_seconds: list[float] = field(default_factory=list)
    differences: list[float] = field(default_factory=list)

    def ours(self, image: Tensor, index: int) -> Tensor:
        return pyops.lut3d(image, self.lut(index), interpolation=self.interpolation)

    def stock(self, image: Tensor, index: int) -> Tensor:
        colours = image.float() / 255 if self.integer else image
        grid = (colours.permute(0, 2, 3, 1) * 2 - 1).unsqueeze(1)
        table = self.lut(index)[None]
        result = F.grid_sample(table, grid, padding_mode="border", align_corners=True).squeeze(2)
        return result.mul(255).round().to(image.dtype) if self.integer else result

    def measure(self, image: Tensor, index: int) -> None:
        if index == 0:  # the first call of each also pays for memory and, on a GPU, for loading kernels
            self.ours(image, index), self.stock(image, index)
        result, seconds = measure_one(self.ours, image, index)
        self.seconds.append(seconds)
        if index % STOCK_EVERY:
            return
        expected, seconds = measure_one(self.stock, image, index)
        self.stock_seconds.append(seconds)
        if self.interpolation == "tetrahedral":  # stock PyTorch has none: the definition, on every 64th pixel
            image, result = image[..., ::8, ::8], result[..., ::8, ::8]
            expected = pyops.reference.lut3d(image, self.lut(index), interpolation="tetrahedral")
        difference = (result.float() - expected.float()).abs().max().item()
        self.differences.append(difference / 255 if self.integer else difference)

    def is_right(self) -> bool:
        # A float32 rounding error may tip the rounding to an integer: one level.
        tolerance = 1.001 / 255 if self.integer else 1e-4
        return all(difference <= tolerance for difference in self.differences)


@dataclass
class Frames:
    """A slow pan over a photograph while the light falls."""

    wide: Tensor  # [1, 3, H, W + some]
    width: int
    count: int

    def __getitem__(self, index: int) -> Tensor:
        """`[1, 3, H, W]`, float32."""
        progress = index / max(self.count - 1, 1)
        left = round(progress * (self.wide.shape[-1] - self.width))
        return self.wide[..., left : left + self.width].contiguous() * (1 - 0.1 * progress)


def _measure(tasks: list[Task], frames: Frames) -> None:
    with progress_bar() as progress:
        bar = progress.add_task("", total=frames.count * len(tasks))
        for index in range(frames.count):
            frame = frames[index]
            pixels = (frame * 255).round().byte()
            for task in tasks:
                task.measure(pixels if task.integer else frame, index)
                progress.update(bar, advance=1, description=f"frame {index + 1}: {task.name}")


def _print_table(tasks: list[Task], frames: Frames) -> None:
    from rich.console import Console
    from rich.table import Table

    width, height = frames.width, frames.wide.shape[-2]
    device = torch.cuda.get_device_name() if frames.wide.is_cuda else f"{torch.get_num_threads()} threads"
    table = Table(
        title=f"{frames.count} frames of {width}x{height}, {device}, torch {torch.__version__}",
        caption="Medians. grid_sample has no tetrahedral: there, its time is that of trilinear, and the "
        "difference is to pyops.reference on every 64th pixel.",
    )
    for column in ("task", "ms/frame", "GB/s", "grid_sample ms", "ratio", "max. diff."):
        table.add_column(column, justify="left" if column == "task" else "right")
    for task in tasks:
        ours, stock = median(task.seconds), median(task.stock_seconds)
        moved = 2 * 3 * width * height * (1 if task.integer else 4)  # bytes read and written
        speed = f"{ours * 1e3:.2f}", f"{moved / ours / 1e9:.1f}", f"{stock * 1e3:.1f}", f"{stock / ours:.1f}x"
        table.add_row(task.name, *speed, f"{max(task.differences):.1e}")
    Console().print(table)


def _write_pictures(tasks: list[Task], frames: Frames, out: Path) -> None:
    """Before and after, side by side, 1920 pixels wide."""
    weights, before, mixed = mixing_weights(frames.count), ("before", frames[0]), []
    for part in (0.4, 0.6, 0.9):
        index = round(part * (frames.count - 1))
        shares = zip(weights[index].tolist(), LOOKS, strict=True)
        label = " + ".join(f"{share:.0%} {look}" for share, look in shares if share > 0)
        mixed.append((f"frame {index + 1}: {label}", tasks[-1].ours(frames[index], index)))
    after = "after: teal_and_orange.cube", tasks[0].ours(frames[0], 0)
    write_sheet(out / "teal_and_orange.jpg", before, after)
    write_sheet(out / "mix.jpg", before, *mixed)
    print(f"Before and after: {out / 'teal_and_orange.jpg'} and {out / 'mix.jpg'}")
