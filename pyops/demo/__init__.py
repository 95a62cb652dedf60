"""`pyops demo`: correct the exposure of a photograph, then grade it at 4K; tables and pictures beside stock PyTorch."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

PARTS = ("exposure", "grading")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `pyops demo`."""
    parser.add_argument("part", nargs="?", choices=PARTS, help="only this part")
    parser.add_argument(
        "--image", type=Path, help="a photograph (default: one that scikit-image brings along)"
    )
    parser.add_argument("--frames", type=_count, metavar="N", help="to grade; default: 24, with --quick 6")
    parser.add_argument(
        "--size",
        type=_size,
        metavar="WxH",
        help="default: 1620x1080 to correct, 3840x2160 to grade, with --quick 480x320 and 960x540",
    )
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
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / ".writable").touch()
        (args.out / ".writable").unlink()
        photo = Image.open(args.image) if args.image else Image.fromarray(stereo_motorcycle()[0])
        photo = ImageOps.exif_transpose(photo).convert("RGB")
    except (OSError, Image.DecompressionBombError) as error:
        print(f"The demo cannot start: {error}")
        return 2
    from . import exposure, grading

    device = "cuda" if args.device != "cpu" and torch.cuda.is_available() else "cpu"
    wrong = []
    if args.part != "grading":
        wrong += exposure.run(
            photo, args.size or ((480, 320) if args.quick else (1620, 1080)), device, args.out
        )
    if args.part != "exposure":
        size = args.size or ((960, 540) if args.quick else (3840, 2160))
        wrong += grading.run(photo, size, args.frames or (6 if args.quick else 24), device, args.out)
    if wrong:
        print(f"Wrong by more than the tolerance: {', '.join(wrong)}.")
    return 1 if wrong else 0


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text!r}")
    return int(text)


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return _count(width), _count(height)
