"""`pyops correct`: correct the exposure of pictures and videos with `pyops.models.CoTF`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyops.io.jobs import Job, plan, printable, reason, replacing, require_free

CUT = 0.5  # frames that correlate by less than this are of different scenes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `pyops correct`."""
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="pictures and videos, and folders of them: all that lies within",
    )
    parser.add_argument(
        "-o", "--out", required=True, help="a folder (for several inputs, or if it ends in /), or a file name"
    )
    parser.add_argument(
        "--weights", metavar="PATH", help="a checkpoint of CoTF (default: the one that comes along)"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--half", action="store_true", help="float16 for the networks, on CUDA")
    parser.add_argument(
        "--compare", action="store_true", help="one file with the input on the left of the result"
    )
    parser.add_argument(
        "--smooth",
        type=_smoothing,
        default=0.0,
        metavar="S",
        help="of a video, from 0 (default) to below 1: steadier",
    )
    parser.add_argument(
        "--quality",
        type=_quality,
        default=92,
        metavar="Q",
        help="of JPEG, WebP and AVIF, 1 to 100 (default: 92)",
    )
    parser.add_argument("--force", action="store_true", help="overwrite results that exist; never an input")


def run(args: argparse.Namespace) -> int:
    """Run the command; exit status 0, 1 when a file was skipped, 2 when it cannot start, 130 when interrupted."""
    try:
        import av
        import PIL  # noqa: F401
        import rich  # noqa: F401
    except ImportError as error:
        print(f"pyops correct needs {error.name}: pip install '.[correct]'", file=sys.stderr)
        return 2
    from pyops.io import images, video

    av.logging.set_level(None)  # what goes wrong comes as an exception, in one line
    try:
        try:
            jobs = plan(args.inputs, args.out, {*images.FORMATS, *video.CONTAINERS})
            corrector = _corrector(args)
        except (OSError, ValueError) as error:
            print(f"pyops correct cannot start: {printable(reason(error))}", file=sys.stderr)
            return 2
        with torch.inference_mode():
            tally = _work(jobs, corrector, args)
    except KeyboardInterrupt:
        print("Interrupted; the file in work is left out.", file=sys.stderr)
        return 130
    _print_table(tally, corrector)
    return 1 if tally.skipped else 0


# ---- what is done to each --------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What was done, and in what time."""

    skipped: int = 0
    pictures: int = 0
    megapixels: float = 0
    picture_seconds: list[float] = field(default_factory=lambda: [0.0, 0.0])  # of the model, and in all
    videos: int = 0
    frames: int = 0
    video_seconds: list[float] = field(default_factory=lambda: [0.0, 0.0])


class Corrector:
    """The model, on its device, for arrays."""

    def __init__(self, model: Any, device: torch.device, half: bool) -> None:
        self.model, self.device, self.half = model.to(device), device, half
        self.seconds = 0.0

    def __call__(self, pixels: NDArray[Any], smoothing: Smoothing | None = None) -> NDArray[Any]:
        """`[H, W, 3]`, uint8 or uint16, to the same."""
        start = time.perf_counter()
        image = torch.from_numpy(pixels).to(self.device).permute(2, 0, 1)[None]
        with torch.autocast(self.device.type, torch.float16, enabled=self.half):
            weights = None if smoothing is None else smoothing(self.model.lut_weights(image), image)
            result = self.model(image, lut_weights=weights)
        pixels = np.ascontiguousarray(result[0].permute(1, 2, 0).cpu().numpy())
        self.seconds += time.perf_counter() - start
        return pixels


class Smoothing:
    """Exponential smoothing over time of what mixes the tables, so that a video does not flicker.

    It starts anew with a new scene: where the pattern of light and dark, whatever its mean and contrast, is another.
    """

    def __init__(self, strength: float) -> None:
        self.strength = strength
        self.weights: Tensor | None = None
        self.pattern: Tensor | None = None

    def __call__(self, found: Tensor, image: Tensor) -> Tensor:
        steps = [max(size // 32, 1) for size in image.shape[2:]]
        pattern = image[:, :, :: steps[0], :: steps[1]].float().mean(1)
        pattern = pattern - pattern.mean()
        pattern = pattern / pattern.norm().clamp(min=1e-6)
        same = self.pattern is not None and bool((pattern * self.pattern).sum() >= CUT)
        if self.weights is not None and same:
            found = self.strength * self.weights + (1 - self.strength) * found
        self.weights, self.pattern = found, pattern
        return found


def _corrector(args: argparse.Namespace) -> Corrector:
    from pyops.models import CoTF

    device = "cuda" if args.device != "cpu" and torch.cuda.is_available() else "cpu"
    if args.device == "cuda" and device == "cpu":
        raise ValueError("this PyTorch sees no CUDA device: use --device cpu")
    if args.half and device == "cpu":
        raise ValueError("--half needs a CUDA device")
    model = CoTF.from_checkpoint(args.weights) if args.weights else CoTF.pretrained()
    return Corrector(model, torch.device(device), args.half)


def _work(jobs: list[Job], corrector: Corrector, args: argparse.Namespace) -> Tally:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    tally, console = Tally(), Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        bar = progress.add_task("files", total=len(jobs))
        for job in jobs:
            try:
                if job.problem is not None:
                    raise ValueError(job.problem)
                _do(job, corrector, args, tally, progress)
            except Exception as error:  # a damaged file may raise anything; the others shall have their turn
                tally.skipped += 1
                line = f"skipped {job.source}: {reason(error, job.source)}"
                console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
            progress.advance(bar)
    return tally


def _do(job: Job, corrector: Corrector, args: argparse.Namespace, tally: Tally, progress: Any) -> None:
    from pyops.io import images, video

    start, before = time.perf_counter(), corrector.seconds
    suffix = job.target.suffix.lower()
    if os.stat(job.source).st_size == 0:
        raise ValueError("the file is empty" if job.source.is_file() else "not a file")
    require_free(job.target, args.force)
    if images.is_picture(job.source):
        if suffix not in images.FORMATS:
            raise ValueError(f"a picture cannot be written as {job.target.name}")
        picture = images.read_picture(job.source)
        result = replace(picture, colours=corrector(picture.colours))
        if args.compare:
            result = images.side_by_side(picture, result)
        with replacing(job.target, args.force) as temporary, open(temporary, "xb") as file:
            images.write_picture(file, images.FORMATS[suffix], result, quality=args.quality)
        tally.pictures += 1
        tally.megapixels += picture.colours[..., 0].size / 1e6
        seconds = tally.picture_seconds
    else:
        count = video.frame_count(job.source)
        if suffix not in video.CONTAINERS:
            raise ValueError(f"a video cannot be written as {job.target.name}")
        smoothing = Smoothing(args.smooth) if args.smooth else None
        bar = progress.add_task(printable(job.source.name), total=count)

        def change(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
            result = corrector(frame, smoothing)
            progress.advance(bar)
            return np.concatenate([frame, result], 1) if args.compare else result

        try:
            with replacing(job.target, args.force) as temporary:
                frames = video.transcode(job.source, temporary, video.CONTAINERS[suffix], change)
        finally:
            progress.remove_task(bar)
        tally.videos += 1
        tally.frames += frames
        seconds = tally.video_seconds
    seconds[0] += corrector.seconds - before
    seconds[1] += time.perf_counter() - start


# ---- what is said ----------------------------------------------------------------------------------------------------


def _print_table(tally: Tally, corrector: Corrector) -> None:
    from rich.console import Console
    from rich.table import Table

    done = tally.pictures + tally.videos
    on_cpu = corrector.device.type == "cpu"
    device = f"{torch.get_num_threads()} threads" if on_cpu else torch.cuda.get_device_name()
    table = Table(title=f"{done} done, {tally.skipped} skipped, {device}")
    for column in ("", "files", "size", "model", "with reading and writing"):
        table.add_column(column, justify="right" if column else "left")
    if tally.pictures:
        speeds = (f"{1e3 * seconds / tally.megapixels:.0f} ms/megapixel" for seconds in tally.picture_seconds)
        table.add_row("pictures", str(tally.pictures), f"{tally.megapixels:.2f} megapixels", *speeds)
    if tally.videos:
        speeds = (f"{tally.frames / seconds:.1f} frames/s" for seconds in tally.video_seconds)
        table.add_row("videos", str(tally.videos), f"{tally.frames} frames", *speeds)
    Console().print(table)


def _smoothing(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to below 1, got {text!r}")
    return value


def _quality(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 100):
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to 100, got {text!r}")
    return int(text)
