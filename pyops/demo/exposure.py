"""Correct the exposure of a photograph, under- and over-exposed, beside the same model in stock PyTorch."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pyops import reference
from pyops.models import CoTF

from ._show import measure_one, progress_bar, write_sheet

EXPOSURES = (-1.5, 0.0, 1.5)  # in stops


def run(photo: Any, size: tuple[int, int], device: str, out: Path) -> list[str]:
    """Corrects the photograph, a Pillow image; returns the exposures at which the two ways differ by more than 1e-4."""
    from PIL import Image, ImageOps

    fitted = ImageOps.fit(photo, size, Image.Resampling.LANCZOS)
    truth = torch.from_numpy(np.array(fitted)).to(device).permute(2, 0, 1)[None].contiguous() / 255
    ours, stock = (CoTF.pretrained(ops=ops).to(device) for ops in (_pyops(), _stock()))
    rows, panels = [], []
    with torch.inference_mode(), progress_bar() as progress:
        bar = progress.add_task("", total=2 * len(EXPOSURES) + 2)
        for model in (
            ours,
            stock,
        ):  # the first call of each also pays for memory and, on a GPU, for loading kernels
            progress.update(bar, advance=1, description="the first call of each")
            model(truth)
        for stops in EXPOSURES:
            image, results, times = expose(truth, stops), [], []
            for model, repeats in ((ours, 3), (stock, 1)):
                progress.update(bar, advance=1, description=f"{stops:+g} stops")
                timed = [measure_one(model, image) for _ in range(repeats)]
                results.append(timed[0][0])
                times.append(median(seconds for _, seconds in timed))
            difference = (results[0] - results[1]).abs().max().item()
            rows.append((stops, psnr(image, truth), psnr(results[0], truth), *times, difference))
            if stops:
                panels += [(f"{stops:+g} stops", image), ("corrected", results[0])]
    _print_table(rows, truth)
    write_sheet(out / "exposure.jpg", *panels)
    print(f"Before and after: {out / 'exposure.jpg'}")
    return [f"{stops:+g} stops" for stops, *_, difference in rows if not difference <= 1e-4]


def expose(image: Tensor, stops: float) -> Tensor:
    """The photograph as a camera of gamma 2.2 would have taken it with 2^stops times the light, in 8 bits."""
    return (image**2.2 * 2**stops).clamp(0, 1).pow(1 / 2.2).mul(255).round() / 255


def psnr(image: Tensor, truth: Tensor) -> float:
    """In decibels, of the image as 8 bits would show it."""
    shown = image.clamp(0, 1).mul(255).round() / 255
    return -10 * (shown - truth).square().mean().log10().item()


def _pyops() -> Any:
    import pyops

    return pyops


def _stock() -> SimpleNamespace:
    """The operators as one writes them without pyops."""

    def separable_grid_sample(
        image: Tensor, x: Tensor, y: Tensor, *, padding_mode="zeros", dtype=None
    ) -> Tensor:
        shape = (len(image), y.shape[1], x.shape[1])
        grid = torch.stack([x[:, None].expand(shape), y[:, :, None].expand(shape)], -1)
        return F.grid_sample(image, grid, padding_mode=padding_mode, align_corners=False)

    def adaptive_grid_sample(image: Tensor, x_logits: Tensor, y_logits: Tensor, *, dtype=None) -> Tensor:
        x, y = (F.pad(t.softmax(-1).cumsum(-1), (1, 0)) * 2 - 1 for t in (x_logits, y_logits))
        return separable_grid_sample(image, x, y)

    def relation_aware_modulation(image: Tensor, lut: Tensor, query: Tensor, weights: Any) -> Tensor:
        grid = image.permute(0, 2, 3, 1).unsqueeze(1) * 2 - 1
        graded = F.grid_sample(lut, grid, padding_mode="border", align_corners=True).squeeze(2)
        return reference.modulation.modulate(graded, query, weights)

    return SimpleNamespace(
        separable_grid_sample=separable_grid_sample,
        adaptive_grid_sample=adaptive_grid_sample,
        fuse_luts=reference.fuse_luts,
        relation_aware_modulation=relation_aware_modulation,
    )


def _print_table(rows: list[tuple[float, ...]], truth: Tensor) -> None:
    from rich.console import Console
    from rich.table import Table

    height, width = truth.shape[-2:]
    device = torch.cuda.get_device_name() if truth.is_cuda else f"{torch.get_num_threads()} threads"
    table = Table(
        title=f"Exposure correction of {width}x{height}, {device}, torch {torch.__version__}",
        caption="Before and after: PSNR against the photograph as it is; the input at +0 stops is that photograph. "
        "Stock: the same model and weights in plain PyTorch.",
    )
    for column in ("exposure", "before", "after", "ms/frame", "stock ms", "ratio", "max. diff."):
        table.add_column(column, justify="right")
    for stops, before, after, ours, stock, difference in rows:
        quality = "perfect" if before == float("inf") else f"{before:.2f} dB", f"{after:.2f} dB"
        speed = f"{ours * 1e3:.1f}", f"{stock * 1e3:.1f}", f"{stock / ours:.1f}x"
        table.add_row(f"{stops:+g} stops", *quality, *speed, f"{difference:.1e}")
    Console().print(table)
