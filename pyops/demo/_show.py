"""What the parts of the demo share: time of a call, progress, pictures side by side."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, cuda


def measure_one(step: Callable[..., Tensor], image: Tensor, *others: Any) -> tuple[Tensor, float]:
    """What a call returns and the seconds it takes."""
    wait = cuda.synchronize if image.is_cuda else lambda: None
    wait()
    start = time.perf_counter()
    result = step(image, *others)
    wait()
    return result, time.perf_counter() - start


def progress_bar() -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    )


def write_sheet(path: Path, *panels: tuple[str, Tensor]) -> None:
    """Labelled images ``[1, 3, H, W]`` of one size, in rows of two, 1920 pixels wide."""
    from PIL import Image, ImageDraw, ImageFont

    gap, width = 8, 956
    height = max(1, width * panels[0][1].shape[-2] // panels[0][1].shape[-1])
    sheet = Image.new("RGB", (2 * width + gap, len(panels) // 2 * (height + gap) - gap), "white")
    draw, font = ImageDraw.Draw(sheet, "RGBA"), ImageFont.load_default(24)
    for place, (label, image) in enumerate(panels):
        left, top = place % 2 * (width + gap), place // 2 * (height + gap)
        pixels = image[0].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
        sheet.paste(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS), (left, top))
        x, y = left + 28, top + height - 26
        right = draw.textbbox((x, y), label, font=font, anchor="ls")[2]
        draw.rounded_rectangle((x - 14, y - 30, right + 14, y + 14), 8, (0, 0, 0, 170))
        draw.text((x, y), label, fill="white", font=font, anchor="ls")
    sheet.save(path, quality=92)
