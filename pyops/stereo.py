"""`pyops stereo`: the disparity of a rectified pair with `pyops.models.MoChaStereo`, and a cloud of points from it."""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pyops.io.disparity import LARGEST, to_16_bits, to_colours, to_points
from pyops.io.jobs import printable, reason, replacing, require_free
from pyops.io.pfm import write_pfm
from pyops.io.ply import write_ply

DISPARITY, FLOATS, COLOURS, POINTS = "disparity.png", "disparity.pfm", "colours.png", "points.ply"
WIDTHS = 6  # a wider picture than so many times the largest disparity of the model is made smaller


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `pyops stereo`."""
    parser.add_argument("left", metavar="LEFT", help="the left picture of a rectified pair")
    parser.add_argument("right", metavar="RIGHT", help="the right one, of the same size")
    parser.add_argument(
        "-o", "--out", required=True, help=f"a folder, for {DISPARITY}, {FLOATS}, {COLOURS} and {POINTS}"
    )
    parser.add_argument(
        "--weights",
        metavar="PATH",
        help="a checkpoint of MoChaStereo, such as examples/train_mocha.py writes (default: the one that comes along)",
    )
    parser.add_argument(
        "--max-disparity",
        type=_count,
        default=64,
        metavar="D",
        help="that --weights are for, a multiple of 32 (default: 64)",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--iters",
        type=_count,
        default=16,
        metavar="N",
        help="updates: more are better, fewer faster (default: 16)",
    )
    parser.add_argument(
        "--scale",
        type=_scale,
        metavar="S",
        help="match pictures of S times the size, above 0 to 1 (default: smaller if larger than the model is for)",
    )
    parser.add_argument(
        "--check", action="store_true", help="leave out what the right picture, matched too, does not confirm"
    )
    parser.add_argument("--ply", action="store_true", help="write points too; needs --focal and --baseline")
    parser.add_argument("--focal", type=_positive, metavar="F", help="focal length in pixels of LEFT")
    parser.add_argument(
        "--baseline",
        type=_positive,
        metavar="B",
        help="distance of the cameras, in the unit wanted for points",
    )
    parser.add_argument("--cx", type=_finite, metavar="X", help="principal point (default: the centre)")
    parser.add_argument("--cy", type=_finite, metavar="Y")
    parser.add_argument("--force", action="store_true", help="overwrite results that exist; never an input")


def run(args: argparse.Namespace) -> int:
    """Run the command; exit status 0, 1 when the pair fails, 2 when it cannot start, 130 when interrupted."""
    try:
        import av  # noqa: F401
        import PIL  # noqa: F401
        import rich  # noqa: F401
    except ImportError as error:
        print(f"pyops stereo needs {error.name}: pip install '.[stereo]'", file=sys.stderr)
        return 2
    try:
        try:
            model = _model(args)
        except (OSError, ValueError) as error:
            print(f"pyops stereo cannot start: {printable(reason(error))}", file=sys.stderr)
            return 2
        try:
            with torch.inference_mode():
                _work(model, args)
        except Exception as error:  # a damaged file may raise anything
            print(f"pyops stereo failed: {printable(reason(error))}", file=sys.stderr)
            return 1
    except KeyboardInterrupt:
        print("Interrupted; nothing is written.", file=sys.stderr)
        return 130
    return 0


# ---- what is done ----------------------------------------------------------------------------------------------------


@dataclass
class Result:
    """What was found."""

    disparity: NDArray[np.float32]
    """`[H, W]`, in pixels of the left picture; infinite where there is none."""
    scale: float
    confirmed: float | None
    """The share of pixels that the right picture confirms, if asked for."""


class Matcher:
    """The model, on its device, for arrays."""

    def __init__(self, model: Any, device: torch.device, iters: int, scale: float | None) -> None:
        self.model, self.device, self.iters, self.scale = model.to(device), device, iters, scale

    def __call__(self, left: NDArray[Any], right: NDArray[Any], check: bool = False) -> Result:
        """`[H, W, 3]` each, uint8 or uint16."""
        size = left.shape[:2]
        scale = min(1, WIDTHS * self.model.max_disparity / size[1]) if self.scale is None else self.scale
        small = tuple(max(1, round(n * scale)) for n in size)
        views = [self._view(pixels, small) for pixels in (left, right)]
        found, share = self._match(*views), None
        if check:
            mirrored = self._match(*(view.flip(3) for view in reversed(views))).flip(3)
            agreed = consistent(found, mirrored)
            share = agreed.float().mean().item()
            found = torch.where(agreed, found, torch.inf)
        # The nearest: between an object and what is behind it there is nothing.
        found = F.interpolate(found, size, mode="nearest-exact") * (size[1] / small[1])
        disparity = torch.where(found > 0, found, torch.inf)[0, 0].cpu().numpy()
        return Result(disparity, small[1] / size[1], share)

    def _match(self, left: Tensor, right: Tensor) -> Tensor:
        return self.model(left, right, iters=self.iters).float()

    def _view(self, pixels: NDArray[Any], size: tuple[int, ...]) -> Tensor:
        levels = torch.from_numpy(pixels.astype(np.float32)).to(self.device).permute(2, 0, 1)[None]
        if pixels.dtype == np.uint16:
            levels /= 257
        if levels.shape[2:] == size:
            return levels
        return F.interpolate(levels, size, mode="bilinear", antialias=True).clamp(0, 255)


def consistent(left: Tensor, right: Tensor, within: float = 1.0) -> Tensor:
    """Where the disparities `[B, 1, H, W]` of both views agree: `|left(x) - right(x - left(x))| < within` pixels."""
    width = left.shape[3]
    there = (torch.arange(width, device=left.device) - left).round()
    other = right.gather(3, there.clamp(0, width - 1).long())
    return ((left - other).abs() < within) & (there >= 0) & (there < width)


def _model(args: argparse.Namespace) -> Matcher:
    from pyops.models import MoChaStereo

    missing = [name for name in ("focal", "baseline") if getattr(args, name) is None]
    if args.ply and missing:
        raise ValueError(f"--ply needs {' and '.join(f'--{name}' for name in missing)}")
    if os.path.exists(args.out) and not os.path.isdir(args.out):
        raise ValueError(f"--out {args.out} is a file, it must be a folder")
    device = "cuda" if args.device != "cpu" and torch.cuda.is_available() else "cpu"
    if args.device == "cuda" and device == "cpu":
        raise ValueError("this PyTorch sees no CUDA device: use --device cpu")
    if args.weights:
        model = MoChaStereo.from_checkpoint(args.weights, max_disparity=args.max_disparity)
    else:
        try:
            model = MoChaStereo.pretrained()
        except FileNotFoundError:
            raise ValueError(
                "no weights come along: pass a checkpoint, such as examples/train_mocha.py writes, with --weights"
            ) from None
    return Matcher(model, torch.device(device), args.iters, args.scale)


def _work(matcher: Matcher, args: argparse.Namespace) -> None:
    from rich.console import Console

    inputs = [Path(args.left), Path(args.right)]
    names = (DISPARITY, FLOATS, COLOURS, *([POINTS] if args.ply else []))
    targets = {name: Path(args.out, name) for name in names}
    for target in targets.values():
        if any(target.exists() and path.exists() and target.samefile(path) for path in inputs):
            raise ValueError(f"a result would overwrite an input: {target}")
        require_free(target, args.force)
    console, start = Console(stderr=True), time.perf_counter()
    with console.status("reading") as status:
        left, right = (_read(path) for path in inputs)
        if left.shape != right.shape:
            sizes = " and ".join(f"{pixels.shape[1]}x{pixels.shape[0]}" for pixels in (left, right))
            raise ValueError(f"the pictures of a pair must be of one size, got {sizes}")
        status.update("matching")
        before = time.perf_counter()
        result = matcher(left, right, args.check)
        seconds = time.perf_counter() - before
        status.update("writing")
        _write(targets, result.disparity, left, args)
    _say(result, targets, seconds, time.perf_counter() - start)


def _read(path: Path) -> NDArray[Any]:
    from pyops.io import images

    try:
        if os.stat(path).st_size == 0:
            raise ValueError("the file is empty" if path.is_file() else "not a file")
        return images.read_picture(path).colours
    except Exception as error:
        raise ValueError(f"{path}: {reason(error, path)}") from error


def _write(
    targets: dict[str, Path], disparity: NDArray[np.float32], left: NDArray[Any], args: argparse.Namespace
) -> None:
    """All files or none."""
    from pyops.io import deep, images

    def depth(file: IO[bytes]) -> None:
        points, known = to_points(disparity, args.focal, args.baseline, args.cx, args.cy)
        colours = left if left.dtype == np.uint8 else (left // 257).astype(np.uint8)
        write_ply(file, points, colours[known])

    writers: dict[str, Callable[[IO[bytes]], None]] = {
        DISPARITY: lambda file: deep.write_png(file, to_16_bits(disparity)[..., None]),
        FLOATS: lambda file: write_pfm(file, disparity),
        COLOURS: lambda file: images.write_picture(file, "PNG", images.Picture(to_colours(disparity))),
        POINTS: depth,
    }
    with ExitStack() as stack:
        for name, target in targets.items():
            temporary = stack.enter_context(replacing(target, args.force))
            with open(temporary, "xb") as file:
                writers[name](file)


# ---- what is said ----------------------------------------------------------------------------------------------------


def _say(result: Result, targets: dict[str, Path], seconds: float, whole: float) -> None:
    from rich.console import Console
    from rich.table import Table

    height, width = result.disparity.shape
    known = result.disparity[np.isfinite(result.disparity)]
    table = Table(show_header=False)
    table.add_row("size", f"{width}x{height}, matched at {result.scale:.3g} times that")
    if known.size:
        low, median, high = np.percentile(known, (1, 50, 99))
        table.add_row("disparity", f"{low:.1f} to {high:.1f} pixels, median {median:.1f}")
    if result.confirmed is not None:
        table.add_row("confirmed", f"{100 * result.confirmed:.1f} % of the pixels")
    if known.size and known.max() > LARGEST:
        table.add_row("note", f"{DISPARITY} cannot hold 256 pixels and more: 0 there")
    table.add_row("time", f"{seconds:.2f} s of the model, {whole:.2f} s in all")
    for target in targets.values():
        table.add_row("written", printable(str(target)))
    Console().print(table)


def _finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}")
    return value


def _positive(text: str) -> float:
    value = _finite(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def _scale(text: str) -> float:
    value = _positive(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0 to 1, got {text!r}")
    return value


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)
