"""`pyops demo`: grade a photograph at 4K over a run of frames, beside stock PyTorch, and write pictures."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import pyops
from pyops.io import read_cube, write_cube

LOOKS = ("as it is", "teal and orange", "silver", "evening")
STOCK_EVERY = 4  # stock PyTorch takes about a second a frame on a CPU: a quarter of the frames will do


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `pyops demo`."""
    parser.add_argument(
        "--image", type=Path, help="a photograph (default: one that scikit-image brings along)"
    )
    parser.add_argument("--frames", type=_count, metavar="N", help="default: 24, with --quick 6")
    parser.add_argument("--size", type=_size, metavar="WxH", help="default: 3840x2160, with --quick 960x540")
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="default: demo")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--quick", action="store_true", help="small and short: a few seconds")


def run(args: argparse.Namespace) -> int:
    """Run the demo; exit status 0, or 1 when a result is wrong, or 2 when the demo cannot start."""
    try:
        import rich  # noqa: F401
        from PIL import Image, ImageOps
        from skimage.data import stereo_motorcycle
    except ImportError as error:
        print(f"The demo needs {error.name}: pip install '.[demo]'")
        return 2
    if args.device == "cuda" and not torch.cuda.is_available():
        print("This PyTorch sees no CUDA device: use --device cpu.")
        return 2
    try:
        cube = args.out / "teal_and_orange.cube"
        args.out.mkdir(parents=True, exist_ok=True)
        photo = Image.open(args.image) if args.image else Image.fromarray(stereo_motorcycle()[0])
        photo = photo.convert("RGB")
        write_cube(cube, teal_and_orange(), title="Teal and orange")
    except (OSError, Image.DecompressionBombError) as error:
        print(f"The demo cannot start: {error}")
        return 2
    device = "cuda" if args.device != "cpu" and torch.cuda.is_available() else "cpu"
    width, height = args.size or ((960, 540) if args.quick else (3840, 2160))
    wide = ImageOps.fit(photo, (width + width // 16, height), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(wide)).to(device).permute(2, 0, 1)[None].contiguous()
    frames = Frames(pixels / 255, width, args.frames or (6 if args.quick else 24))
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
        _write_pictures(tasks, frames, args.out)
    if wrong := [task.name for task in tasks if not task.is_right()]:
        print(f"Wrong by more than the tolerance: {', '.join(wrong)}.")
    return 1 if wrong else 0


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
        result, seconds = _timed(self.ours, image, index)
        self.seconds.append(seconds)
        if index % STOCK_EVERY:
            return
        expected, seconds = _timed(self.stock, image, index)
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
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("", total=frames.count * len(tasks))
        for index in range(frames.count):
            frame = frames[index]
            pixels = (frame * 255).round().byte()
            for task in tasks:
                task.measure(pixels if task.integer else frame, index)
                progress.update(bar, advance=1, description=f"frame {index + 1}: {task.name}")


def _timed(step: Callable[[Tensor, int], Tensor], image: Tensor, index: int) -> tuple[Tensor, float]:
    wait = torch.cuda.synchronize if image.is_cuda else lambda: None
    wait()
    start = time.perf_counter()
    result = step(image, index)
    wait()
    return result, time.perf_counter() - start


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
    _write_sheet(out / "teal_and_orange.jpg", before, after)
    _write_sheet(out / "mix.jpg", before, *mixed)
    print(f"Before and after: {out / 'teal_and_orange.jpg'} and {out / 'mix.jpg'}")


def _write_sheet(path: Path, *panels: tuple[str, Tensor]) -> None:
    """Labelled frames `[1, 3, H, W]` in rows of two."""
    from PIL import Image, ImageDraw, ImageFont

    gap, width = 8, 956
    height = max(1, width * panels[0][1].shape[-2] // panels[0][1].shape[-1])
    sheet = Image.new("RGB", (2 * width + gap, len(panels) // 2 * (height + gap) - gap), "white")
    draw, font = ImageDraw.Draw(sheet, "RGBA"), ImageFont.load_default(24)
    for place, (label, frame) in enumerate(panels):
        left, top = place % 2 * (width + gap), place // 2 * (height + gap)
        pixels = frame[0].mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
        sheet.paste(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS), (left, top))
        x, y = left + 28, top + height - 26
        right = draw.textbbox((x, y), label, font=font, anchor="ls")[2]
        draw.rounded_rectangle((x - 14, y - 30, right + 14, y + 14), 8, (0, 0, 0, 170))
        draw.text((x, y), label, fill="white", font=font, anchor="ls")
    sheet.save(path, quality=92)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text!r}")
    return int(text)


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return _count(width), _count(height)
